"""What all dynamics classes show of their chain."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import NamedTuple

import numpy as np
from ase import units as ase_units
from ase.md.md import process_temperature

from .. import units
from ..noise import Noise
from ..sampling.adaptation import Adaptation, DualAveraging
from ..sampling.kernels import Kernel
from ..sampling.step_size import Step
from ..state import State
from .chain import Chain, seed_of
from .images import check_calculators, check_images
from .physics import OfCalculator

__all__ = ["Adapter", "AtConstruction", "Clock", "Reverse", "flushed"]


class AtConstruction:
    """A setting that is read when a dynamics is made: setting it later is an ``AttributeError``."""

    def __set_name__(self, owner, name: str) -> None:
        self._name = name

    def __get__(self, dyn, kind=None):
        raise AttributeError(f"{self._name} is no attribute: todict() has the settings")

    def __set__(self, dyn, value) -> None:
        free = "; dt and temperature_K can be set" if isinstance(dyn, Reverse) else ""
        raise AttributeError(
            f"{self._name} of a {type(dyn).__name__} is chosen at construction: make a new one, "
            f"which goes on from the atoms (nsteps and rng say where in the noise){free}"
        )


class Adapter:
    """What all classes show of their ``chain``, after ``nsteps`` completed steps."""

    chain: Chain
    nsteps: int

    # what ASE's own dynamics let a user set, and nobody here would see
    timestep = AtConstruction()
    friction, fr = AtConstruction(), AtConstruction()
    mobility, spring = AtConstruction(), AtConstruction()
    bias, target, proposal_steps = AtConstruction(), AtConstruction(), AtConstruction()
    temp, temperature, temperature_K = AtConstruction(), AtConstruction(), AtConstruction()
    dt, rng = AtConstruction(), AtConstruction()

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
        self.chain.look()
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


class Clock(NamedTuple):
    """Time up to the last change of time step or temperature.

    Attributes
    ----------
    step : the step count then
    time : in ASE time
    diffused : D·t in Å², with unit mobility
    """

    step: int = 0
    time: float = 0.0
    diffused: float = 0.0


class Reverse(Adapter):
    """What one walker and a batch of harmonic-coupled steps have in common."""

    def _start(
        self, images, batched, temperature_K, step, bias, target, proposal_steps, rng
    ) -> None:
        check_images(images)
        check_calculators(images)
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
        self.nsteps, self._clock = 0, Clock()

    @property
    def step_size(self) -> Step:
        """The resolved step: ``h`` (Å²), ``timestep``, and where they come from."""
        return self._physics.step_size

    @property
    def dt(self) -> float:
        """Time of a step in ASE time, with unit mobility where none was given.

        Setting it changes ``h`` in proportion, from the next step on. Raises ``ValueError`` for a
        step beyond the limit of stability.
        """
        return self.step_size.timestep

    @dt.setter
    def dt(self, timestep: float) -> None:
        now = self._now()
        self._physics.set_timestep(float(timestep))
        self._changed(now)

    @property
    def temperature_K(self) -> float:
        """Temperature of the next step in K; setting it is `set_temperature`."""
        return self._physics.temperature_K

    @temperature_K.setter
    def temperature_K(self, kelvin: float) -> None:
        self.set_temperature(temperature_K=kelvin)

    def set_timestep(self, timestep: float) -> None:
        """Set ``dt``, in ASE time, as ASE's `Langevin` has it."""
        self.dt = timestep

    def set_temperature(self, temperature=None, temperature_K: float | None = None) -> None:
        """Another temperature from the next step on, as ASE's `Langevin` has it, for annealing.

        Time step, friction and mobility stay, so that ``h ∝ T``; with a ``spring`` h stays. A step
        that `adapt` has found is scaled in the same way.

        Parameters
        ----------
        temperature : in eV, which ASE deprecates
        temperature_K : in K, one for all walkers

        Raises
        ------
        TypeError : none or both of them given
        ValueError : a temperature that is not one positive number, a bias that learns
        """
        kelvin = process_temperature(temperature, temperature_K, "eV")
        if np.ndim(kelvin) or not np.isfinite(kelvin):
            raise ValueError(
                f"temperature_K={kelvin}: expected one temperature in K for all walkers; for "
                "several give a kernel with kT (B,), or ReplicaExchange, to MonteCarlo"
            )
        now = self._now()
        self._physics.heat(float(kelvin))
        self._changed(now)

    def get_time(self) -> float:
        """Time in ASE units, with unit mobility where neither friction nor mobility was given."""
        return self._now().time

    def adapt(self, steps: int, *, settings: DualAveraging | None = None) -> Adaptation:
        now = self._now()
        record = super().adapt(steps, settings=settings)
        self._clock = now
        return record

    def clock(self) -> list[tuple[str, float, str]]:
        """Name, value and format of the time in a log."""
        now = self._now()
        if self.step_size.physical:
            return [("Time[ps]", now.time / (1000 * ase_units.fs), "14.6f")]
        # with unit mobility the clock is D·t = kT·t
        return [("D*t[A^2]", now.diffused, "14.6e")]

    def _now(self) -> Clock:
        time = (self.nsteps - self._clock.step) * self.dt
        kT = units.kT_from_temperature(self._physics.temperature_K)
        return Clock(self.nsteps, self._clock.time + time, self._clock.diffused + kT * time)

    def _changed(self, clock: Clock) -> None:
        """The steps from here on are others than those until ``clock``."""
        self._clock = clock
        self.chain.choose_kernel()


def flushed(steps: Iterator[bool], chain: Chain) -> Iterator[bool]:
    """``steps`` of the ``chain``; files of potentials with memory are complete when they end."""
    try:
        yield from steps
    finally:  # COLVAR and HILLS are there for who reads them next
        chain.kernel.potential.flush()
