"""Book-keeping between `Atoms` and one chain or a batch of chains.

The chain is advanced by `sampling.run.advance`; here the atoms are followed (moved by the
user, another calculator, another cell), and told where the chain has gone.
"""

from __future__ import annotations

import logging
import secrets
import warnings
from dataclasses import replace

import numpy as np
import torch
from ase import Atoms
from ase.constraints import FixAtoms, FixCom
from ase.parallel import world

from . import units
from .calculator import ScoreCalculator
from .dynamics_step import card_stiffness, check_step, choose_step, measured_stiffness
from .noise import Noise
from .potentials.base import Evaluation, Potential, Sum, add_term
from .potentials.calculators import AsePotential
from .sampling.kernels import DivergedError, EulerMaruyama
from .sampling.run import advance
from .system import State, System

__all__ = ["Chain"]

log = logging.getLogger(__name__)


class Chain:
    """One chain, or a batch of chains, between `Atoms` and the kernel.

    Parameters
    ----------
    images : the atoms of each walker
    batched : positions of the state are (B, N, 3); False: of one walker, (N, 3)
    """

    def __init__(self, images: list[Atoms], *, batched: bool, temperature_K, bias, rng):
        self.images, self._batched = images, batched
        self.live = list(range(len(images)))
        self.lost: dict[int, int] = {}
        _check_images(images)
        self.temperature_K = float(temperature_K)
        self.kT = units.kT_from_temperature(self.temperature_K)
        if bias is not None and not isinstance(bias, Potential):
            raise TypeError(f"bias must be a Potential, not {type(bias).__name__}")
        self.bias = bias
        self.noise = Noise(_seed(rng))
        self._fixed, self._com = _constraints(images[0])
        self.state: State | None = None
        self.before: State | None = None
        self._ase: tuple | None = None
        self._written: np.ndarray | None = None
        self._base = self._field()
        self._bind()

    def choose(self, timestep, friction, mobility, spring) -> None:
        """Resolve the step and make the kernel."""
        atoms, moving = self.images[0], ~self._fixed
        if not moving.any():
            raise ValueError("all atoms are fixed: there is nothing to simulate")
        card = card_stiffness(self.potential, self.kT)

        def stiffness() -> tuple[float, str]:
            if card is not None:
                return card, "from the model card"
            lam, evaluations = measured_stiffness(self.potential, self._tensor(), self.kT)
            return lam, f"measured at the start with {evaluations} extra evaluations"

        self._said = {
            name: value if value is None else np.asarray(value, float).tolist()
            for name, value in {
                "friction": friction, "mobility": mobility, "spring": spring
            }.items()
        }  # fmt: skip
        self.step_size = choose_step(
            kT=self.kT,
            masses=atoms.get_masses(),
            timestep=timestep,
            friction=friction,
            mobility=mobility,
            spring=spring,
            stiffness=stiffness,
        )
        if card is not None and (timestep is not None or spring is not None):
            check_step(self.step_size, card, moving)
        h: float | torch.Tensor = torch.tensor(np.where(moving, self.step_size.h, 0.0))
        if np.ndim(self.step_size.h) == 0 and moving.all():
            h = float(self.step_size.h)
        log.info("step h = %s A^2 (%s), seed %d", h, self.step_size.source, self.noise.seed)
        self.kernel = EulerMaruyama(self.potential, kT=self.kT, h=h, mean_free=self._com)

    def todict(self) -> dict:
        return {
            "timestep": self.step_size.timestep,
            "temperature_K": self.temperature_K,
            **self._said,
            "h": np.asarray(self.step_size.h).tolist(),
            "step-source": self.step_size.source,
            "seed": self.noise.seed,
            "bias": None if self.bias is None else type(self.bias).__name__,
        }

    def sync(self, step: int) -> None:
        """Make the state that of the atoms as they are now, at step count ``step``.

        Costs an evaluation only if positions, cell, elements or calculator have changed
        since the last step.
        """
        field = self._field()
        if field is not self._base:
            self._base, self.state = field, None
            self._bind()
            self.kernel = replace(self.kernel, potential=self.potential)
        if self.state is None or not np.array_equal(self.positions(), self._written):
            self._start(step)
        elif self.state.step != step:
            self.state, self.before = replace(self.state, step=step), None

    def advance(self) -> None:
        """One step; diverged walkers of a batch are put aside and the others go on."""
        while True:
            try:
                new, _ = advance(self.kernel, self.state, self.noise)
                break
            except DivergedError as error:
                if error.survivors is None:
                    raise
                self.state = error.survivors
                self.live = error.survivors.walkers.tolist()
                self.lost |= dict.fromkeys(error.walkers, error.step)
                warnings.warn(str(error), RuntimeWarning, stacklevel=3)
        self.before, self.state = self.state, new
        self._write()

    def restore(self, state: State) -> None:
        """Move the atoms to ``state``, which is evaluated when it is needed."""
        rows = state.x.double().cpu().numpy().reshape(-1, len(self.images[0]), 3)
        ids = range(len(rows)) if state.walkers is None else state.walkers.tolist()
        if not set(ids) <= set(range(len(self.images))):
            raise ValueError(f"walkers {list(ids)} for {len(self.images)} images")
        self.live = list(ids)
        for i, row in zip(ids, rows, strict=True):
            self.images[i].set_positions(row, apply_constraint=False)
        self.state = None

    def values(self) -> Evaluation:
        """Energy and forces of the atoms' calculator (without the bias) at the state."""
        if self.bias is None:
            return Evaluation(self.state.energy, self.state.forces)
        total = None
        for term in self._recorded:
            total, _ = add_term(total, term, self.state.x, value=term.last)
        return total

    def energies(self) -> tuple[float, float]:
        """Energy of the calculator and of the bias in eV, means over walkers; NaN if none."""
        base, total = self.values().energy, self.state.energy
        if base is None:
            return float("nan"), float("nan")
        bias = 0.0 if self.bias is None else float("nan")
        if self.bias is not None and total is not None:
            bias = float((total - base).mean())
        return float(base.mean()), bias

    def seed_calculator(self) -> None:
        """Give the calculator what the chain knows, so that ASE's look-ups are free."""
        atoms = self.images[0]
        if isinstance(atoms.calc, ScoreCalculator):
            atoms.calc.adopt(atoms, self.values())
        else:
            # AsePotential used this very calculator: its cache answers
            atoms.get_forces()

    def positions(self) -> np.ndarray:
        """Positions of the live walkers as the atoms have them, (B, N, 3)."""
        if len(self.live) == 1:
            return self.images[self.live[0]].positions[None]
        return np.stack([self.images[i].positions for i in self.live])

    def _start(self, step: int) -> None:
        x, ids = self._tensor(), None
        if len(self.live) < len(self.images):
            ids = torch.tensor(self.live, device=x.device)
        state = self.kernel.init(x, walkers=ids)
        if not torch.isfinite(state.x.sum() + state.forces.sum()):
            raise ValueError(
                "the forces at the initial positions are not finite: look for overlapping atoms "
                "or positions that are NaN"
            )
        if self._com:
            _check_com(self.images[0].get_masses(), state.forces)
        self.state, self.before = replace(state, step=step), None
        self._written = self.positions().copy()

    def _write(self) -> None:
        rows = self.state.x.detach().cpu().numpy()
        rows = rows if rows.ndim == 3 else rows[None]
        for i, row in zip(self.live, rows, strict=True):
            self.images[i].set_positions(row)
        self._written = rows
        if self._com:
            # ASE's FixCom shifts all atoms alike: a choice of origin, which no force feels
            self._written = self.positions().copy()
            self.state = replace(self.state, x=self._tensor())
        elif len(self.live) == 1 and not np.array_equal(self.positions(), rows):
            raise ValueError(
                "a constraint moved the atoms away from the state: constraints are read at "
                "construction, make a new dynamics after changing them"
            )

    def _tensor(self) -> torch.Tensor:
        calc = self.images[0].calc
        device = calc.device(self.images[0]) if isinstance(calc, ScoreCalculator) else "cpu"
        x = torch.tensor(self.positions(), device=device)
        return x if self._batched else x[0]

    def _field(self) -> Potential:
        atoms = self.images[0]
        calc = atoms.calc
        if isinstance(calc, ScoreCalculator):
            return calc.potential(atoms)
        if calc is None:
            raise ValueError("the atoms have no calculator: atoms.calc = ScoreCalculator(...)")
        key = calc, atoms.numbers.tobytes(), atoms.cell.array.tobytes(), atoms.pbc.tobytes()
        if self._ase is None or self._ase[0] != key:
            for name in ("initial_charges", "initial_magmoms"):
                if atoms.has(name) and atoms.arrays[name].any():
                    raise ValueError(
                        f"atoms have {name}, which a potential does not carry: give the "
                        "calculator its charges and moments by its own settings"
                    )
            self._ase = key, AsePotential(calc, System.from_atoms(atoms))
        return self._ase[1]

    def _bind(self) -> None:
        self.potential = self._base
        if self.bias is not None:
            self._recorded = [_Recorded(term) for term in self._base.terms]
            self.potential = Sum(*self._recorded) + self.bias


class _Recorded(Potential):
    """A term that remembers its last evaluation, to tell the model's energy from the bias."""

    def __init__(self, term: Potential):
        self._term, self.system = term, term.system
        self.conservative, self.has_memory = term.conservative, term.has_memory
        self.needs_base = term.needs_base
        self.last: Evaluation | None = None

    def __call__(self, x, *, stress=False, base=None) -> Evaluation:
        options: dict = {"stress": True} if stress else {}
        if self.needs_base:
            options["base"] = base
        self.last = Evaluation(*self._term(x, **options))
        return self.last

    def update(self, x, step) -> bool:
        return self._term.update(x, step)

    def select(self, keep) -> None:
        self._term.select(keep)


def _check_images(images: list[Atoms]) -> None:
    if not images:
        raise ValueError("no images: expected a list of Atoms, one for each walker")
    first = images[0]
    if len({id(image) for image in images}) < len(images):
        raise ValueError("the same Atoms object appears twice: use atoms.copy() for each walker")
    for i, image in enumerate(images[1:], start=1):
        if not (
            np.array_equal(image.numbers, first.numbers)
            and np.array_equal(image.get_masses(), first.get_masses())
            and np.array_equal(image.cell.array, first.cell.array)
            and np.array_equal(image.pbc, first.pbc)
        ):
            raise ValueError(
                f"image {i} ({image.get_chemical_formula()}) differs from image 0 "
                f"({first.get_chemical_formula()}) in elements, masses, cell or pbc; a batch is "
                "of one system"
            )
        if [c.todict() for c in image.constraints] != [c.todict() for c in first.constraints]:
            raise ValueError(f"image {i} and image 0 have different constraints")
        if image.calc is not None and image.calc is not first.calc:
            raise ValueError(
                f"image {i} has a calculator of its own; the one of image 0 serves the batch: "
                "attach that one, or none, to the others"
            )


def _check_com(masses: np.ndarray, forces: torch.Tensor) -> None:
    """Fixing the mean and shifting to the centre of mass is exact if no force feels a shift."""
    net = forces.sum(-2).norm(dim=-1)
    if np.ptp(masses) > 0 and (net > 1e-3 * forces.norm(dim=-1).sum(-1)).any():
        raise ValueError(
            f"FixCom with a net force of {float(net.max()):.3g} eV/Å: something outside holds the "
            "atoms, and a shift to the centre of mass would change their energy; drop FixCom"
        )


def _constraints(atoms: Atoms) -> tuple[np.ndarray, bool]:
    """Which atoms are fixed, and whether the centre of mass is."""
    fixed, com = np.zeros(len(atoms), bool), False
    for constraint in atoms.constraints:
        if type(constraint) is FixAtoms:
            fixed[constraint.index] = True
        elif type(constraint) is FixCom:
            com = True
        else:
            raise ValueError(
                f"{type(constraint).__name__} is not supported: overdamped steps projected on "
                "internal constraints sample with a metric factor, and energies do not belong "
                "in constraints; use FixAtoms, FixCom, or a restraint as bias"
            )
    if com and fixed.any():
        raise ValueError("FixCom with FixAtoms: fixed atoms already hold the origin, drop FixCom")
    return fixed, com


def _seed(rng) -> int:
    """Seed from what ASE users pass as ``rng``; None draws one, the same on all ranks."""
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
