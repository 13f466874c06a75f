"""`ReverseDiffusion`: a chain as the dynamics of one `Atoms` in ASE; `batch` has many.

Adapters only: the steps are kernels of `sampling`, made by `simulation.prepare`, and `chain`
keeps `Atoms` and state in step. The ensemble is that of ``exp(-U/kT)`` at
constant cell, overdamped: there are no velocities, and momenta of atoms are left alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from ase import Atoms
from ase.md.md import MolecularDynamics

from ..potentials.base import Potential
from ..potentials.named import Source
from ..simulation.prepare import StepRequest
from ..state import Evaluation
from .log import StepLog, absolute
from .shared import Reverse, flushed
from .together import Parallel, choose_ahead

__all__ = ["ReverseDiffusion"]


class ReverseDiffusion(Reverse, MolecularDynamics):
    """Dynamics from a score, ``x' = x + (h/kT) F + sqrt(2h) ξ``, for one `Atoms`.

    Each step is a reverse-diffusion step coupled to the last frame by a spring of
    stiffness ``k = 1/(2h)``, which is an Euler–Maruyama step of overdamped Langevin
    dynamics (Diamond & Lill, arXiv 2511.17741). Ensemble: ``exp(-U/kT)`` up to O(h).

    Parameters
    ----------
    atoms : with a `ScoreCalculator` or any other ASE calculator, which sees all that they carry.
        Linear constraints hold (`FixAtoms`, `FixCartesian`, `FixScaled`, `FixedPlane`, `FixedLine`,
        `FixCom`); others are refused
    temperature_K : temperature in K; need not be that of the model
    timestep : Δt in ASE time, with ``friction`` or ``mobility``
    friction : γ in 1/ASE time, ``h = kT Δt/(m γ)``
    mobility : μ in Å²/(eV·ASE time), ``h = μ kT Δt``; scalar or (N,)
    spring : k in 1/Å², ``h = 1/(2k)``; alone it means unit mobility, ``Δt = 1/(2k kT)``
    bias : a `Potential` felt by the dynamics only: energies and forces of ``atoms`` (and
        of the trajectory) stay those of its calculator; memory learns once per step. Its energy
        is ``atoms.info["bias_energy"]`` of frames, what it says of itself is beside it
    target : what the steps are accepted to (`sampling.metropolis.Metropolis`), plus the bias.
        "model": the energy of the atoms' own calculator, which removes the error of the finite
        step; an ASE calculator or a `Potential`: that reference, which also removes the error
        of the model, whose forces only propose. None: plain dynamics
    proposal_steps : reverse steps of one proposal; the target is evaluated after the last
    parallel : make many steps of the trajectory together, the same ones (`sampling.parallel`);
        "auto": where a batch, measured once, says that it pays. ``dyn.together`` has the reason in
        words. With a `ScoreCalculator`, without bias and without another target
    rng : seed, numpy Generator or RandomState (one draw gives the seed), or None
    trajectory : file name, or an open Trajectory, which is faster for short intervals
    logfile : file name, open file or "-"; see `StepLog`
    loginterval : steps between frames and between lines of the log
    append_trajectory : append to the trajectory instead of replacing it

    Notes
    -----
    With none of timestep, friction, mobility and spring, ``h = 0.2/λ`` with λ from the
    model card or measured at the start. Friction or mobility alone set only the clock.
    To restart, set ``atoms`` to the last positions, give the same seed and set
    ``dyn.nsteps`` (or ``dyn.state``) before ``run``. What is changed between two runs (calculator,
    constraints, masses, cell, charges, ``info``) counts from then on, as do ``dyn.dt`` and
    ``dyn.set_temperature``.

    With a target, `adapt` finds the step. Energies and forces of ``atoms`` stay those of
    its calculator; the energy of another target is in ``atoms.info["target_energy"]``.
    Proposals for which a calculator fails are rejected and counted (``Failed`` in the log);
    a failure at the start is an error.

    Examples
    --------
    A learned force (``ScoreCalculator("model.safetensors")``; here, a wrong one) corrected to EMT:

    >>> from ase.build import bulk
    >>> from ase.calculators.emt import EMT
    >>> from ase.calculators.lj import LennardJones
    >>> from diffmd_ase import ReverseDiffusion
    >>> atoms = bulk("Cu", cubic=True)
    >>> atoms.calc = LennardJones(sigma=2.3, epsilon=0.4, rc=5.0)
    >>> dyn = ReverseDiffusion(atoms, temperature_K=300, target=EMT(), rng=1)
    >>> record = dyn.adapt(200)
    >>> dyn.run(100)
    True
    >>> bool(0.3 < dyn.acceptance < 0.8)
    True

    Raises
    ------
    ValueError : contradictory settings, an unstable step, constraints that are not
        supported, no calculator, a target without energy or of another system
    DivergedError : positions or forces are not finite; the atoms keep the last good ones
    """

    def __init__(
        self,
        atoms: Atoms,
        *,
        temperature_K: float,
        timestep: float | None = None,
        friction: float | None = None,
        mobility: float | np.ndarray | None = None,
        spring: float | np.ndarray | None = None,
        bias: Potential | None = None,
        target: Source | None = None,
        proposal_steps: int = 1,
        rng: int | np.random.Generator | np.random.RandomState | None = None,
        parallel: Parallel = False,
        trajectory=None,
        logfile=None,
        loginterval: int = 1,
        append_trajectory: bool = False,
    ):
        step = StepRequest(timestep, friction, mobility, spring)
        self._start([atoms], False, temperature_K, step, bias, target, proposal_steps, rng)
        super().__init__(
            atoms,
            self.step_size.timestep,
            trajectory=absolute(trajectory),
            loginterval=loginterval,
            append_trajectory=append_trajectory,
        )
        self.chain.ahead, self.together = choose_ahead(self.chain, parallel)
        if logfile is not None:
            self.attach(StepLog(self, logfile), loginterval)

    def step(self) -> None:
        """One step and one evaluation; one more if somebody has moved the atoms."""
        self.chain.advance(self.nsteps)

    def todict(self) -> dict:
        """Settings that say how to repeat the run; JSON values only."""
        return super().todict() | {"parallel": self.chain.ahead is not None}

    def irun(self, steps: int = 50) -> Iterator[bool]:
        """Run, yielding before the first step and after each; True after the last."""
        self.chain.look()
        chain, done = self.chain, super().irun(steps)
        return flushed(done, chain) if chain.kernel.potential.has_memory else done

    def _refresh_properties(self) -> None:
        # ASE would evaluate here; the chain already has
        chain = self.chain
        if chain.state is None or chain.state.step != self.nsteps:
            chain.sync(self.nsteps)
        physics, state = chain.physics, chain.state
        if physics.adopt is not None:
            physics.adopt(self.atoms, Evaluation(state.energy, state.forces))
            return
        info = {name: value[0] for name, value in physics.frame_info(state).items()}
        chain.shown |= info.keys()
        self.atoms.info |= info
        physics.seed(state)
