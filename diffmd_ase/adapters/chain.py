"""Book-keeping between `Atoms` and one chain or a batch of chains.

The chain is advanced by `sampling.run.advance`; here the atoms are followed (moved by the user;
another calculator, cell, mass, constraint, charge), and told where the chain has gone.
"""

from __future__ import annotations

import logging
import secrets
import warnings
from dataclasses import replace

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.parallel import world

from ..noise import Noise
from ..potentials.ase_calculator import PotentialCalculator
from ..sampling.acceptance import Tally
from ..sampling.adaptation import Adaptation, DualAveraging, adapt
from ..sampling.ahead import Ahead
from ..sampling.kernels import DivergedError
from ..sampling.run import survive
from ..state import State
from ..system import carried_by, comparable
from .images import check_calculators, check_images, constraints_of
from .physics import Physics

__all__ = ["Chain", "seed_of"]

log = logging.getLogger(__name__)

_ROUNDED = 1e-9  # Å, that a constraint of ASE and a kernel may differ by


class Chain:
    """One chain, or a batch of chains, between `Atoms` and the kernel.

    Parameters
    ----------
    images : the atoms of each walker
    physics : kernel and energies
    batched : positions of the state are (B, N, 3); False: of one walker, (N, 3)
    seed : of the noise

    Attributes
    ----------
    kernel : of the walkers that are left
    live, lost : walkers that are left; {walker: step} of those that are not
    state, before : where the chain is, and was a step ago; None where that is not known
    ahead : makes many steps together, or None
    tally : of the steps that were accepted or rejected
    shown : entries of ``atoms.info`` that the dynamics writes, which nobody has changed

    Raises
    ------
    ValueError : forces that are not finite at the start, a constraint that moved the atoms,
        FixCom with a net force, a state of other walkers
    DivergedError : no walker is left
    """

    def __init__(self, images: list[Atoms], physics: Physics, *, batched: bool, seed: int):
        self.images, self.physics, self._batched = images, physics, batched
        self.live = list(range(len(images)))
        self.lost: dict[int, int] = {}
        self.noise = Noise(seed)
        self.kernel = physics.kernel
        self.state: State | None = None
        self.before: State | None = None
        self.tally = Tally.empty(len(images))
        self.adaptation: Adaptation | None = None
        self.ahead: Ahead | None = None
        self._plain = 0  # evaluations in steps that are not judged
        self._written: np.ndarray | None = None
        self.shown: frozenset[str] = frozenset()
        self._calculator, self._seen = images[0].calc, [self._looks(i) for i in images]
        self._looked = True

    @property
    def evaluations(self) -> int | torch.Tensor:
        """Structures that the drift was evaluated for, those of starts left out."""
        return self._plain + self.tally.drift

    def look(self) -> None:
        """At all walkers when the chain goes on; without it, at the first."""
        self._looked = False

    def sync(self, step: int) -> None:
        """Make the state that of the atoms as they are now, at step count ``step``.

        Costs an evaluation only if positions, calculator or anything else that the kernel depends
        on has changed since the last step.
        """
        looks = [self._looks(image) for image in (self.images[:1] if self._looked else self.images)]
        calculator = self.images[0].calc
        if calculator is not self._calculator or looks != self._seen[: len(looks)]:
            self._follow(calculator)
        self._looked = True
        if self.state is None or not np.array_equal(self.positions(), self._written):
            self._start(step)
        elif self.state.step != step:
            self.state, self.before = replace(self.state, step=step), None

    def advance(self, step: int) -> None:
        """One step from where the atoms are now, which is number ``step``.

        Diverged walkers of a batch are put aside and the others go on.
        """
        self.sync(step)
        self.before = self.state
        advance = survive if self.ahead is None else self.ahead.advance
        self.kernel, self.state, info = advance(self.kernel, self.state, self.noise, self._lose)
        if info.accepted is None and isinstance(info.drift_evaluations, int):
            self._plain += len(self.live) * info.drift_evaluations
        else:
            self.tally = self._tally().add(info, self._rows())
        if self.physics.remembered:
            self.physics.keep(self.state)
        self._write()

    def _lose(self, error: DivergedError) -> None:
        self.lost |= dict.fromkeys(error.walkers, error.step)
        self.before = error.survivors
        self.live = error.survivors.walkers.tolist()
        warnings.warn(str(error), RuntimeWarning, stacklevel=5)

    def _follow(self, calculator) -> None:
        """The atoms are others in something but positions: a kernel for them, or words why not."""
        check_images(self.images)
        if self.physics.asks:
            check_calculators(self.images)
        if self.physics.follow([self.images[i] for i in self.live]):
            self.state = None
            self.choose_kernel()
        self._calculator, self._seen = calculator, [self._looks(i) for i in self.images]

    def _looks(self, image: Atoms) -> tuple:
        """What the kernel depends on besides positions and the calculator, to compare."""
        calc, held = self.images[0].calc, constraints_of(image) if image.constraints else ()
        if self.physics.carries:
            settings = comparable(dict(calc.parameters)) if isinstance(calc, Calculator) else None
            return carried_by(image, without=self.shown), settings, held
        # the same potential for the same atoms and settings of our own calculator
        asked = self.physics.asks and isinstance(calc, PotentialCalculator)
        masses = image.arrays["masses"].tobytes() if "masses" in image.arrays else None
        cell = image.cell.array.tobytes(), image.pbc.tobytes()
        depends = calc.potential(image) if asked else None
        return depends, image.numbers.tobytes(), masses, cell, held

    def choose_kernel(self) -> None:
        """The kernel of the physics, for the walkers that are left."""
        kernel, rows = self.physics.kernel, self._rows()
        self.kernel = kernel if rows is None else kernel.take(rows)

    def _rows(self) -> torch.Tensor | None:
        """Numbers of the live walkers, on their device; None: all, in their order."""
        if self.live == list(range(len(self.images))):
            return None
        return torch.tensor(self.live, device=self.physics.device)

    def adapt(self, n_steps: int, settings: DualAveraging | None) -> Adaptation:
        """Tune the step size in ``n_steps`` steps, which are not written or counted."""
        _, state, record = adapt(
            self.kernel, self.state, n_steps, noise=self.noise, settings=settings
        )
        self.physics.scale(record.factor)
        self.choose_kernel()
        self.adaptation = record
        rows = state.x.double().cpu().numpy().reshape(len(self.live), -1, 3)
        for i, row in zip(self.live, rows, strict=True):
            self.images[i].set_positions(row, apply_constraint=self.physics.com)
        self._start(state.step)
        log.info("step adapted by %.4g: %.3g accepted", record.factor, record.reached)
        return record

    def restore(self, state: State) -> None:
        """Move the atoms to ``state``, which is evaluated when it is needed."""
        rows = state.x.double().cpu().numpy().reshape(-1, len(self.images[0]), 3)
        ids = range(len(rows)) if state.walkers is None else state.walkers.tolist()
        if not set(ids) <= set(range(len(self.images))):
            raise ValueError(f"walkers {list(ids)} for {len(self.images)} images")
        if list(ids) != self.live:
            self.live = list(ids)
            self.physics.follow([self.images[i] for i in self.live])
        self.choose_kernel()
        for i, row in zip(ids, rows, strict=True):
            self.images[i].set_positions(row, apply_constraint=False)
        self.state = None

    def positions(self) -> np.ndarray:
        """Positions of the live walkers as the atoms have them, (B, N, 3)."""
        if len(self.live) == 1:
            return self.images[self.live[0]].positions[None]
        return np.stack([self.images[i].positions for i in self.live])

    def tensor(self) -> torch.Tensor:
        """The same, on the device of the chain: (B, N, 3), or (N, 3) of one walker."""
        x = torch.tensor(self.positions(), device=self.physics.device)
        return x if self._batched else x[0]

    def _start(self, step: int) -> None:
        try:
            state = self.kernel.init(self.tensor(), walkers=self._rows())
        except ValueError as error:
            failures, last = self.physics.failed
            if not failures:
                raise
            raise ValueError(f"{error}; {last}") from error
        self.physics.keep(state, first=True)
        if not torch.isfinite(state.x.sum() + state.forces.sum()):
            raise ValueError(
                "the forces at the initial positions are not finite: look for overlapping atoms "
                "or positions that are NaN"
            )
        if self.physics.com:
            for forces in self.physics.felt(state):
                _check_com(self.images[0].get_masses(), forces)
        self.state, self.before = replace(state, step=step), None
        self._written = self.positions().copy()

    def _write(self) -> None:
        rows = self.state.x.detach().cpu().numpy()
        rows = rows if rows.ndim == 3 else rows[None]
        # a kernel of the user's own may not know what is held
        applied = self.physics.com or (not self.physics.holds and self._held())
        for i, row in zip(self.live, rows, strict=True):
            self.images[i].set_positions(row, apply_constraint=applied)
        self._written = rows
        if self.physics.com:
            # ASE's FixCom shifts all atoms alike: a choice of origin, which no force feels
            self._written = self.positions().copy()
            self.state = replace(self.state, x=self.tensor())
        elif applied:
            if not np.allclose(self.positions(), rows, rtol=0.0, atol=_ROUNDED):
                raise ValueError(
                    "a constraint moved the atoms away from the state: the kernel does not hold "
                    "them; it holds an atom by h = 0, one in a plane or on a line by directions"
                )
            for i, row in zip(self.live, rows, strict=True):
                self.images[i].set_positions(row, apply_constraint=False)

    def _held(self) -> bool:
        return any(self.images[i].constraints for i in self.live)

    def _tally(self) -> Tally:
        device = self.state.x.device
        if self.tally.steps.device != device:  # the calculator of the atoms has moved
            self.tally = Tally.from_dict(self.tally.to_dict(), device)
        return self.tally


def _check_com(masses: np.ndarray, forces: torch.Tensor) -> None:
    """Fixing the mean and shifting to the centre of mass is exact if no force feels a shift."""
    net = forces.sum(-2).norm(dim=-1)
    if np.ptp(masses) > 0 and (net > 1e-3 * forces.norm(dim=-1).sum(-1)).any():
        raise ValueError(
            f"FixCom with a net force of {float(net.max()):.3g} eV/Å: something outside holds the "
            "atoms, and a shift to the centre of mass would change their energy; drop FixCom"
        )


def seed_of(rng) -> int:
    """Seed from what ASE users pass as ``rng``; None draws one, the same on all ranks.

    Raises ``TypeError`` for what is no int, numpy Generator, RandomState or None.
    """
    if rng is None:
        drawn = np.array([secrets.randbits(63)])
        world.broadcast(drawn, 0)
        log.info("rng=None: drew the seed %d", drawn[0])
        return int(drawn[0])
    if isinstance(rng, np.random.Generator):
        return int(rng.integers(2**63 - 1))
    if isinstance(rng, np.random.RandomState):
        return int(rng.randint(2**31 - 1))
    if isinstance(rng, int | np.integer) and not isinstance(rng, bool):
        return int(rng)
    raise TypeError(
        f"rng is a {type(rng).__name__}; expected an int, a numpy Generator or RandomState, or None"
    )
