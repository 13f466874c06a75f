"""What all dynamics classes show of their chain."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from ase import units as ase_units

from .. import units
from ..noise import Noise
from ..sampling.adaptation import Adaptation, DualAveraging
from ..sampling.kernels import Kernel
from ..sampling.step_size import Step
from ..state import State
from .chain import Chain, check_images, seed_of
from .physics import OfCalculator

__all__ = ["Adapter", "Reverse", "flushed"]


class Adapter:
    """What all classes show of their ``chain``, after ``nsteps`` completed steps."""

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


class Reverse(Adapter):
    """What one walker and a batch of harmonic-coupled steps have in common.

    ``dt`` is the time of a step in ASE time, with unit mobility where none was given.
    """

    dt: float

    def _start(
        self, images, batched, temperature_K, step, bias, target, proposal_steps, rng
    ) -> None:
        check_images(images)
        self._physics = OfCalculator(
            images,
            batched=batched,
            temperature_K=float(temperature_K),
            step=step,
            bias=bias,
            target=target,
            proposal_steps=proposal_steps,
        )
        self.chain = Chain(images, self._physics, batched=batched, seed=seed_of(rng))

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
        kT = units.kT_from_temperature(self._physics.temperature_K)
        return [("D*t[A^2]", time * kT, "14.6e")]


def flushed(steps: Iterator[bool], chain: Chain) -> Iterator[bool]:
    """``steps`` of the ``chain``; files of potentials with memory are complete when they end."""
    try:
        yield from steps
    finally:  # COLVAR and HILLS are there for who reads them next
        chain.kernel.potential.flush()
