"""Many walkers as one batch, or any kernel, under the conventions of ASE."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.trajectory import Trajectory
from ase.optimize.optimize import BaseDynamics
from ase.utils.abc import Optimizable

from ..potentials.base import Potential
from ..potentials.named import Source
from ..sampling.kernels import Kernel
from ..simulation.constraints import LINEAR
from ..simulation.prepare import StepRequest
from ..system import System
from .chain import Chain, seed_of
from .images import check_images
from .log import StepLog, absolute
from .physics import OfKernel
from .shared import Adapter, Reverse, flushed

__all__ = ["Batch", "BatchReverseDiffusion", "MonteCarlo", "Walkers"]


class Batch(Adapter, BaseDynamics):
    """Several walkers under the conventions of ASE's dynamics.

    A list of trajectories must have one for each walker, else a ``ValueError`` says so.
    """

    def clock(self) -> list[tuple[str, float, str]]:
        """Name, value and format of the time in a log; nothing without a clock."""
        return []

    def _open(self, trajectory, logfile, loginterval: int, append: bool) -> None:
        each = trajectory if isinstance(trajectory, list | tuple) else None
        BaseDynamics.__init__(
            self,
            Walkers(self.chain),  # type: ignore[arg-type]  # ASE's base needs no more
            trajectory=None if each is not None else absolute(trajectory),
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
        self.chain.advance(self.nsteps)

    def irun(self, steps: int = 50) -> Iterator[bool]:
        """Run, yielding before the first step and after each; True after the last."""
        self.chain.look()
        chain, done = self.chain, self._irun(steps)
        return flushed(done, chain) if chain.kernel.potential.has_memory else done

    def _irun(self, steps: int) -> Iterator[bool]:
        self.max_steps = self.nsteps + steps
        if self.nsteps == 0:
            self._refresh_properties()
            self.call_observers()
        yield self.converged()
        while not self.converged():
            self.step()
            self.nsteps += 1
            self._refresh_properties()
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

    def _refresh_properties(self) -> None:
        if self.chain.state is None or self.chain.state.step != self.nsteps:
            self.chain.sync(self.nsteps)

    def _attach_writers(self, files, mode: str, interval: int) -> None:
        if len(files) != len(self.images):
            raise ValueError(f"{len(files)} trajectories for {len(self.images)} walkers")
        writers = [
            self.closelater(Trajectory(absolute(f), mode)) if isinstance(f, str | Path) else f
            for f in files
        ]
        for writer in writers:
            writer.set_description(self.todict() | {"interval": interval})

        def write() -> None:
            for image in self.atoms.iterimages():
                writers[image.info["walker"]].write(image)

        self.attach(write, interval)


class Walkers(Optimizable):
    """The B walkers of a ``chain`` as what ASE writes and observes: B frames.

    The value is the sum of their energies (eV), the gradient minus their forces (eV/Å), flat.
    """

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


class BatchReverseDiffusion(Reverse, Batch):
    """`ReverseDiffusion` of many walkers of one system, as one batch on the device.

    Parameters
    ----------
    others : as of `ReverseDiffusion`
    images : list of `Atoms` with the same elements, masses, cell, pbc and constraints; charges,
        spins, tags, arrays and ``info`` may be each walker's own, and are what a calculator of ASE
        sees. The calculator of the first serves all; the others have it, an equal one, or none
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

    Raises
    ------
    ValueError : as `ReverseDiffusion`, and images that are not walkers of one batch
    DivergedError : no walker is left
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
        target: Source | None = None,
        proposal_steps: int = 1,
        rng: int | np.random.Generator | np.random.RandomState | None = None,
        trajectory=None,
        logfile=None,
        loginterval: int = 1,
        append_trajectory: bool = False,
    ):
        step = StepRequest(timestep, friction, mobility, spring)
        self._start(list(images), True, temperature_K, step, bias, target, proposal_steps, rng)
        self._open(trajectory, logfile, loginterval, append_trajectory)


class MonteCarlo(Batch):
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
    time: `get_time` counts steps. Atoms that `FixAtoms` holds need h = 0 in the kernel, those in a
    plane or on a line its ``directions``. Temperature and step are the kernel's, for good.

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
            if type(constraint) not in LINEAR:
                raise ValueError(
                    f"{type(constraint).__name__} is not held by a kernel: use FixAtoms with h = 0 "
                    "for its atoms, planes and lines with directions=, or mean_free=True and no "
                    "constraint"
                )
        physics = OfKernel(kernel, System.from_atoms(walkers[0]), device)
        batched = not isinstance(images, Atoms)
        self.chain = Chain(walkers, physics, batched=batched, seed=seed_of(rng))
        self._open(trajectory, logfile, loginterval, append_trajectory)

    def get_time(self) -> float:
        """Completed steps: a kernel has no clock."""
        return float(self.nsteps)

    def set_temperature(self, temperature=None, temperature_K=None) -> None:
        """``TypeError``: a kernel is frozen, and its walkers may have temperatures of their own."""
        raise TypeError(
            f"the temperatures are those of the kernel (kT={self.kernel.kT} eV), which is frozen: "
            "make a new MonteCarlo with dataclasses.replace(kernel, kT=...)"
        )
