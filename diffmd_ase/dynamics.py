"""`ReverseDiffusion`, `BatchReverseDiffusion` and `MonteCarlo`: chains as ASE dynamics.

Adapters only: the steps are kernels of `sampling`, the loop `sampling.run`, and
`dynamics_chain` keeps `Atoms` and state in step. The ensemble is that of ``exp(-U/kT)`` at
constant cell, overdamped: there are no velocities, and momenta of atoms are left alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from ase import Atoms
from ase import units as ase_units
from ase.calculators.calculator import BaseCalculator
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.io.trajectory import Trajectory
from ase.md.md import MolecularDynamics
from ase.optimize.optimize import BaseDynamics
from ase.utils.abc import Optimizable

from . import units
from .dynamics_chain import Chain, check_images, seed_of
from .dynamics_log import StepLog
from .dynamics_physics import OfCalculator, OfKernel
from .dynamics_step import Step
from .noise import Noise
from .potentials.base import Potential
from .sampling.adaptation import Adaptation, DualAveraging
from .sampling.kernels import Kernel
from .system import State, System

__all__ = ["BatchReverseDiffusion", "MonteCarlo", "ReverseDiffusion", "Walkers"]


class _Adapter:
    """What all classes show of their chain."""

    chain: Chain
    nsteps: int

    @property
    def kernel(self) -> Kernel:
        """The kernel; frozen."""
        return self.chain.kernel

    @property
    def noise(self) -> Noise:
        """The noise; ``noise.seed`` and the step count are all that a restart needs."""
        return self.chain.noise

    @property
    def acceptance(self) -> float:
        """Fraction of the proposals accepted so far, all walkers; NaN for plain dynamics."""
        return self.chain.tally.acceptance

    @property
    def state(self) -> State:
        """Positions, forces and step count, evaluated if they are not yet known.

        Setting it moves the atoms there and sets the step count: a restart.
        """
        self.chain.sync(self.nsteps)
        return self.chain.state

    @state.setter
    def state(self, state: State) -> None:
        self.chain.restore(state)
        self.nsteps = state.step

    def adapt(self, steps: int, *, settings: DualAveraging | None = None) -> Adaptation:
        """Tune the step size in ``steps`` steps to the acceptance wanted, then freeze it.

        Call it before `run`. The steps count, so that noise goes on, but no observer is
        called: warm-up is in no trajectory and no log, and is no sample. See
        `sampling.adaptation.adapt`; the record is in ``todict``. A restart does not repeat
        it: give the step that was found (``dyn.step_size``).

        Raises
        ------
        TypeError : plain dynamics, which has no acceptance
        """
        self.chain.sync(self.nsteps)
        record = self.chain.adapt(steps, settings)
        self.nsteps = record.end
        return record

    def todict(self) -> dict:
        """Settings that say how to repeat the run; JSON values only."""
        adaptation = self.chain.adaptation
        return {
            "type": "molecular-dynamics",
            "md-type": type(self).__name__,
            **self.chain.physics.todict(),
            "seed": self.noise.seed,
            "adaptation": None if adaptation is None else asdict(adaptation),
        }


class _Reverse(_Adapter):
    """What one walker and a batch of harmonic-coupled steps have in common."""

    dt: float

    def _start(
        self, images, batched, temperature_K, words, bias, target, proposal_steps, rng
    ) -> None:
        check_images(images)
        kelvin = float(temperature_K)
        kT = units.kT_from_temperature(kelvin)
        physics = OfCalculator(
            images,
            temperature_K=kelvin,
            kT=kT,
            bias=bias,
            target=target,
            proposal_steps=proposal_steps,
        )
        self.chain = Chain(images, physics, batched=batched, seed=seed_of(rng))
        timestep, friction, mobility, spring = words
        physics.choose(
            self.chain.tensor(),
            timestep=timestep,
            friction=friction,
            mobility=mobility,
            spring=spring,
        )
        self._physics = physics

    @property
    def step_size(self) -> Step:
        """The resolved step: ``h`` (Å²), ``timestep``, and where they come from."""
        return self._physics.step_size

    def adapt(self, steps: int, *, settings: DualAveraging | None = None) -> Adaptation:
        record = super().adapt(steps, settings=settings)
        self.dt = self.step_size.timestep
        return record

    def clock(self) -> list[tuple[str, float, str]]:
        """Name, value and format of the time in a log."""
        time = self.nsteps * self.dt
        if self.step_size.physical:
            return [("Time[ps]", time / (1000 * ase_units.fs), "14.6f")]
        # with unit mobility the clock is D·t = kT·t
        return [("D*t[A^2]", time * self._physics.kT, "14.6e")]


class ReverseDiffusion(_Reverse, MolecularDynamics):
    """Dynamics from a score, ``x' = x + (h/kT) F + sqrt(2h) ξ``, for one `Atoms`.

    Each step is a reverse-diffusion step coupled to the last frame by a spring of
    stiffness ``k = 1/(2h)``, which is an Euler–Maruyama step of overdamped Langevin
    dynamics (Diamond & Lill, arXiv 2511.17741). Ensemble: ``exp(-U/kT)`` up to O(h).

    Parameters
    ----------
    atoms : with a `ScoreCalculator` or any other ASE calculator. `FixAtoms` and `FixCom`
        hold; other constraints are refused
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
    ``dyn.nsteps`` (or ``dyn.state``) before ``run``. Constraints are read at construction.

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
        target: str | Potential | BaseCalculator | None = None,
        proposal_steps: int = 1,
        rng: int | np.random.Generator | np.random.RandomState | None = None,
        trajectory=None,
        logfile=None,
        loginterval: int = 1,
        append_trajectory: bool = False,
    ):
        words = (timestep, friction, mobility, spring)
        self._start([atoms], False, temperature_K, words, bias, target, proposal_steps, rng)
        super().__init__(
            atoms,
            self.step_size.timestep,
            trajectory=trajectory,
            loginterval=loginterval,
            append_trajectory=append_trajectory,
        )
        if logfile is not None:
            self.attach(StepLog(self, logfile), loginterval)

    def step(self) -> None:
        """One step and one evaluation; one more if somebody has moved the atoms."""
        self.chain.sync(self.nsteps)
        self.chain.advance()

    def irun(self, steps: int = 50) -> Iterator[bool]:
        """Run, yielding before the first step and after each; True after the last."""
        try:
            yield from super().irun(steps)
        finally:  # COLVAR and HILLS are there for who reads them next
            self.kernel.potential.flush()

    def _refresh_properties(self) -> None:
        # ASE would evaluate here; the chain already has
        self.chain.sync(self.nsteps)
        physics, state = self.chain.physics, self.chain.state
        physics.seed(state)
        self.atoms.info |= {name: value[0] for name, value in physics.frame_info(state).items()}


class _Batch(_Adapter, BaseDynamics):
    """Several walkers under the conventions of ASE's dynamics."""

    def clock(self) -> list[tuple[str, float, str]]:
        """Name, value and format of the time in a log; nothing without a clock."""
        return []

    def _open(self, trajectory, logfile, loginterval: int, append: bool) -> None:
        each = trajectory if isinstance(trajectory, list | tuple) else None
        BaseDynamics.__init__(
            self,
            Walkers(self.chain),  # type: ignore[arg-type]  # ASE's base needs no more
            trajectory=None if each is not None else trajectory,
            append_trajectory=append,
            loginterval=loginterval,
        )
        if each is not None:
            self._attach_writers(each, "a" if append else "w", loginterval)
        if logfile is not None:
            self.attach(StepLog(self, logfile), loginterval)

    @property
    def lost(self) -> dict[int, int]:
        return self.chain.lost

    @property
    def images(self) -> list[Atoms]:
        """The `Atoms` of all walkers, lost ones included."""
        return self.chain.images

    def step(self) -> None:
        """One step of every walker, one batched evaluation."""
        self.chain.sync(self.nsteps)
        self.chain.advance()

    def irun(self, steps: int = 50) -> Iterator[bool]:
        """Run, yielding before the first step and after each; True after the last."""
        self.max_steps = self.nsteps + steps
        if self.nsteps == 0:
            self._refresh_properties()
            self.log()
            self.call_observers()
        try:
            yield self.converged()
            while not self.converged():
                self.step()
                self.nsteps += 1
                self._refresh_properties()
                self.log()
                self.call_observers()
                yield self.converged()
        finally:
            self.kernel.potential.flush()

    def run(self, steps: int = 50) -> bool:
        """Run ``steps`` steps; True."""
        done = steps == 0
        for done in self.irun(steps):  # noqa: B007
            pass
        return done

    def converged(self, gradient=None) -> bool:
        """All steps are done."""
        return self.nsteps >= self.max_steps

    def log(self) -> None:
        """Nothing: the log is an observer."""

    def _refresh_properties(self) -> None:
        self.chain.sync(self.nsteps)

    def _attach_writers(self, files, mode: str, interval: int) -> None:
        if len(files) != len(self.images):
            raise ValueError(f"{len(files)} trajectories for {len(self.images)} walkers")
        writers = [
            self.closelater(Trajectory(str(f), mode)) if isinstance(f, str | Path) else f
            for f in files
        ]
        for writer in writers:
            writer.set_description(self.todict() | {"interval": interval})

        def write() -> None:
            for image in self.atoms.iterimages():
                writers[image.info["walker"]].write(image)

        self.attach(write, interval)


class BatchReverseDiffusion(_Reverse, _Batch):
    """`ReverseDiffusion` of many walkers of one system, as one batch on the device.

    Parameters are those of `ReverseDiffusion`, except

    Parameters
    ----------
    images : list of `Atoms` with the same elements, masses, cell, pbc and constraints.
        The calculator of the first serves all; the others have the same one, or none
    trajectory : file name or open Trajectory, which gets one frame per walker and
        interval (``atoms.info`` says walker and step), or a list with one for each walker

    Attributes
    ----------
    lost : {walker: step} of the walkers that diverged; a RuntimeWarning told so. Their
        `Atoms` keep the last good positions, the others go on

    Notes
    -----
    The positions of all images are updated after every step; their energies and forces
    reach the trajectory without further evaluations, while asking an image for them
    evaluates it. A walker's noise depends on its index and the step, not on the batch.
    """

    def __init__(
        self,
        images: Sequence[Atoms],
        *,
        temperature_K: float,
        timestep: float | None = None,
        friction: float | None = None,
        mobility: float | np.ndarray | None = None,
        spring: float | np.ndarray | None = None,
        bias: Potential | None = None,
        target: str | Potential | BaseCalculator | None = None,
        proposal_steps: int = 1,
        rng: int | np.random.Generator | np.random.RandomState | None = None,
        trajectory=None,
        logfile=None,
        loginterval: int = 1,
        append_trajectory: bool = False,
    ):
        words = (timestep, friction, mobility, spring)
        self._start(list(images), True, temperature_K, words, bias, target, proposal_steps, rng)
        self.dt = self.step_size.timestep
        self._open(trajectory, logfile, loginterval, append_trajectory)

    def get_time(self) -> float:
        """Time in ASE units, with unit mobility where neither friction nor mobility was given."""
        return self.nsteps * self.dt


class MonteCarlo(_Batch):
    """Any kernel of `sampling` under the conventions of ASE: ``attach``, trajectory, ``irun``.

    Parameters
    ----------
    images : `Atoms`, or a list of walkers with the same elements, masses, cell, pbc and
        constraints. Their calculators are neither used nor changed
    kernel : with its potentials, temperature and step, frozen: `Metropolis`, or any other
    rng, trajectory, logfile, loginterval, append_trajectory : as `BatchReverseDiffusion`
    device : where the walkers live

    Attributes
    ----------
    lost : as in `BatchReverseDiffusion`

    Notes
    -----
    Frames hold the energy of the kernel's target and the forces of its drift. There is no
    time: `get_time` counts steps. Atoms that `FixAtoms` holds need h = 0 in the kernel.

    Raises
    ------
    ValueError : a kernel for another system, `FixCom` and other constraints
    DivergedError : as in the other dynamics
    """

    def __init__(
        self,
        images: Atoms | Sequence[Atoms],
        kernel: Kernel,
        *,
        rng: int | np.random.Generator | np.random.RandomState | None = None,
        device: str = "cpu",
        trajectory=None,
        logfile=None,
        loginterval: int = 1,
        append_trajectory: bool = False,
    ):
        walkers = [images] if isinstance(images, Atoms) else list(images)
        check_images(walkers)
        for constraint in walkers[0].constraints:
            if type(constraint) is not FixAtoms:
                raise ValueError(
                    f"{type(constraint).__name__} is not held by a kernel: use FixAtoms with h = 0 "
                    "for its atoms, or mean_free=True and no constraint"
                )
        physics = OfKernel(kernel, System.from_atoms(walkers[0]), device)
        batched = not isinstance(images, Atoms)
        self.chain = Chain(walkers, physics, batched=batched, seed=seed_of(rng))
        self._open(trajectory, logfile, loginterval, append_trajectory)

    def get_time(self) -> float:
        """Completed steps: a kernel has no clock."""
        return float(self.nsteps)


class Walkers(Optimizable):
    """The walkers of a batch as what ASE writes and observes: B frames, their sum."""

    def __init__(self, chain: Chain):
        self._chain = chain

    def __len__(self) -> int:
        return len(self._chain.live)

    def ndofs(self) -> int:
        return 3 * sum(len(self._chain.images[i]) for i in self._chain.live)

    def get_x(self) -> np.ndarray:
        return self._chain.positions().ravel()

    def set_x(self, x: np.ndarray) -> None:
        for i, row in zip(self._chain.live, x.reshape(len(self), -1, 3), strict=True):
            self._chain.images[i].set_positions(row)

    def get_gradient(self) -> np.ndarray:
        return -self._chain.physics.values(self._chain.state).forces.double().cpu().numpy().ravel()

    def get_value(self) -> float:
        return float(self._chain.physics.values(self._chain.state).energy.sum())

    def iterimages(self) -> Iterator[Atoms]:
        """Copies with results frozen in; ``info`` says walker and step."""
        chain = self._chain
        value, more = chain.physics.values(chain.state), chain.physics.frame_info(chain.state)
        forces = value.forces.double().cpu().numpy().reshape(len(chain.live), -1, 3)
        energies = (
            [None] * len(chain.live) if value.energy is None else value.energy.reshape(-1).tolist()
        )
        for n, (i, energy, force) in enumerate(zip(chain.live, energies, forces, strict=True)):
            image = chain.images[i].copy()
            image.info |= {"walker": i, "step": chain.state.step}
            image.info |= {name: values[n] for name, values in more.items()}
            image.calc = SinglePointCalculator(
                image, energy=energy, free_energy=energy, forces=force
            )
            yield image
