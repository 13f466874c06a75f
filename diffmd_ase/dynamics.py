"""`ReverseDiffusion` and `BatchReverseDiffusion`: harmonic-coupled reverse steps in ASE.

Adapters only: the step is `sampling.kernels.EulerMaruyama`, the loop `sampling.run`, and
`dynamics_chain` keeps `Atoms` and state in step. The ensemble is that of ``exp(-U/kT)`` at
constant cell, overdamped: there are no velocities, and momenta of atoms are left alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.trajectory import Trajectory
from ase.md.md import MolecularDynamics
from ase.optimize.optimize import BaseDynamics
from ase.utils.abc import Optimizable

from .dynamics_chain import Chain
from .dynamics_log import StepLog
from .dynamics_step import Step
from .noise import Noise
from .potentials.base import Potential
from .sampling.kernels import EulerMaruyama
from .system import State

__all__ = ["BatchReverseDiffusion", "ReverseDiffusion", "Walkers"]


class _Adapter:
    """What both classes show of their chain."""

    chain: Chain

    @property
    def step_size(self) -> Step:
        """The resolved step: ``h`` (Å²), ``timestep``, and where they come from."""
        return self.chain.step_size

    @property
    def kernel(self) -> EulerMaruyama:
        """The kernel; frozen."""
        return self.chain.kernel

    @property
    def noise(self) -> Noise:
        """The noise; ``noise.seed`` and the step count are all that a restart needs."""
        return self.chain.noise

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

    def todict(self) -> dict:
        """Settings that say how to repeat the run; JSON values only."""
        return {
            "type": "molecular-dynamics",
            "md-type": type(self).__name__,
            **self.chain.todict(),
        }


class ReverseDiffusion(_Adapter, MolecularDynamics):
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
        of the trajectory) stay those of its calculator; memory learns once per step
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

    Raises
    ------
    ValueError : contradictory settings, an unstable step, constraints that are not
        supported, no calculator
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
        rng: int | np.random.Generator | np.random.RandomState | None = None,
        trajectory=None,
        logfile=None,
        loginterval: int = 1,
        append_trajectory: bool = False,
    ):
        self.chain = Chain([atoms], batched=False, temperature_K=temperature_K, bias=bias, rng=rng)
        self.chain.choose(timestep, friction, mobility, spring)
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

    def _refresh_properties(self) -> None:
        # ASE would evaluate here; the chain already has
        self.chain.sync(self.nsteps)
        self.chain.seed_calculator()


class BatchReverseDiffusion(_Adapter, BaseDynamics):
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
        rng: int | np.random.Generator | np.random.RandomState | None = None,
        trajectory=None,
        logfile=None,
        loginterval: int = 1,
        append_trajectory: bool = False,
    ):
        self.chain = Chain(
            list(images), batched=True, temperature_K=temperature_K, bias=bias, rng=rng
        )
        self.chain.choose(timestep, friction, mobility, spring)
        self.dt = self.step_size.timestep
        each = trajectory if isinstance(trajectory, list | tuple) else None
        super().__init__(
            Walkers(self.chain),  # type: ignore[arg-type]  # ASE's base needs no more
            trajectory=None if each is not None else trajectory,
            append_trajectory=append_trajectory,
            loginterval=loginterval,
        )
        if each is not None:
            self._attach_writers(each, "a" if append_trajectory else "w", loginterval)
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
        yield self.converged()
        while not self.converged():
            self.step()
            self.nsteps += 1
            self._refresh_properties()
            self.log()
            self.call_observers()
            yield self.converged()

    def run(self, steps: int = 50) -> bool:
        """Run ``steps`` steps; True."""
        done = steps == 0
        for done in self.irun(steps):  # noqa: B007
            pass
        return done

    def converged(self, gradient=None) -> bool:
        """All steps are done."""
        return self.nsteps >= self.max_steps

    def get_time(self) -> float:
        """Time in ASE units, with unit mobility where neither friction nor mobility was given."""
        return self.nsteps * self.dt

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
        return -self._chain.values().forces.double().cpu().numpy().ravel()

    def get_value(self) -> float:
        return float(self._chain.values().energy.sum())

    def iterimages(self) -> Iterator[Atoms]:
        """Copies with results frozen in; ``info`` says walker and step."""
        chain, value = self._chain, self._chain.values()
        forces = value.forces.double().cpu().numpy()
        energies = [None] * len(chain.live) if value.energy is None else value.energy.tolist()
        for i, energy, force in zip(chain.live, energies, forces, strict=True):
            image = chain.images[i].copy()
            image.info |= {"walker": i, "step": chain.state.step}
            image.calc = SinglePointCalculator(
                image, energy=energy, free_energy=energy, forces=force
            )
            yield image
