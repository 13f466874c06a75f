"""Alchemical coupling: one potential that is A at λ = 0 and B at λ = 1.

    linear      U_λ = (1-λ) U_A + λ U_B                          ∂U/∂λ = u,   u = U_B - U_A
    soft core   U_λ = -E ln[(1-λ) e^(-U_A/E) + λ e^(-U_B/E)]
                ∂U/∂λ = E (1 - e^(-u/E)) / (1-λ + λ e^(-u/E))
                F_λ = (1-w) F_A + w F_B,    w = λ e^(-u/E) / (1-λ + λ e^(-u/E))

The soft core acts on the total gap u, so that it knows no pairs and no engine: any two potentials
couple. It is U_A at λ = 0 and U_B at λ = 1 whatever E, monotone in u, and between the ends bounded,
``U_λ ≤ U_A - E ln(1-λ)`` and ``U_λ ≤ U_B - E ln λ``: where atoms of one end state overlap the
other one is left. Gaps well below E are mixed linearly. (The form is that of λ-EDS: König, Ries,
Hünenberger & Riniker, J. Chem. Theory Comput. 17, 5805 (2021); soft cores on the gap: Azimi,
Khuttan, Wu, Pal & Gallicchio, J. Chem. Inf. Model. 62, 309 (2022).)

The law of a mixed score is that of U_λ at zero noise alone: walkers move by Langevin or Metropolis
steps at one smallest noise level, never by reverse diffusion of mixed scores.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from ase.units import kJ, mol
from torch import Tensor

from ..state import Evaluation
from ..system import System
from .base import Potential, Wrapped, common_system, evaluate
from .biases.cv import CV
from .biases.recorded import Frozen
from .ladder import Blend, weighted

__all__ = [
    "Alchemical",
    "Gap",
    "Transmuted",
    "check_lambda",
    "coupled",
    "coupled_energy",
    "coupled_slope",
]


class Alchemical(Wrapped):
    """The coupling of two potentials, with λ for all walkers or one for each state of a ladder.

    It is a `Blend` of two, with its rules: row b of a batch has λ number ``b mod K``, a leading
    time axis is a batch, both end states are evaluated once for all rows. What learns enters
    frozen (`Frozen`); what is to learn is added, ``Alchemical(A, B, lam) + bias``.

    Parameters
    ----------
    start, end : A and B, of the same atoms (`Transmuted` where elements change); learned, ASE,
        OpenMM, biased, in any mixture
    lam : λ in [0, 1], scalar or (K,)
    soft : E of the soft core in eV; None: linear. Some tens of kT are a start
    target : for end states that are scores without energies: two potentials that have them,
        whose coupling is what steps are accepted to, and what ∂U/∂λ is of

    Attributes
    ----------
    target : the coupling whose energy counts: this one, or that of the targets; None without any

    Raises
    ------
    ValueError : λ outside [0, 1], different atoms, E that is not positive, a soft core of end
        states without energies, targets without energies
    """

    def __init__(
        self,
        start: Potential,
        end: Potential,
        lam,
        *,
        soft: float | None = None,
        target: tuple[Potential, Potential] | None = None,
    ):
        lam = check_lambda(lam)
        if soft is not None and not (np.isfinite(soft) and soft > 0):
            raise ValueError(f"{soft=} must be positive: the energy in eV beyond which gaps soften")
        both = start.system is not None and end.system is not None
        if both and (difference := start.system.difference(end.system)):
            raise ValueError(
                f"end states differ in {difference}: give both for the same atoms in the same "
                "order; where only elements change, Transmuted(B, A.system) says so"
            )
        ends = [Frozen(p) if p.has_memory else p for p in (start, end)]
        super().__init__(Blend(ends, torch.stack((1.0 - lam, lam), -1)))
        self.lam, self.soft = lam, soft
        if soft is not None and not self.conservative:
            raise ValueError(
                f"{soft=} needs the energies of both end states, and {_blamed(ends)} has none: "
                "couple scores linearly, soft=None"
            )
        self.target: Alchemical | None = self if self.conservative else None
        if target is not None:
            self.target = Alchemical(*target, lam, soft=soft)
            if not self.target.conservative:
                raise ValueError(
                    f"target: {_blamed(target)} has no energy either; give two potentials that "
                    "have one, such as ASE calculators"
                )

    def __call__(self, x: Tensor, **options) -> Evaluation:
        return self.mixed(self.inner.values(x, **options), x)

    def mixed(self, values: list[Evaluation], x: Tensor) -> Evaluation:
        """The coupling at ``x`` (*batch, N, 3) of ``values`` of A and B that are known there."""
        return coupled(values, self.inner.rows(x).to(x)[..., 1], self.soft, x)

    def ends(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``U_A`` and ``U_B`` (*batch) at ``x`` (*batch, N, 3) in eV, those of the targets.

        Raises ``ValueError`` where an end state has no energy.
        """
        a, b = self._with_energy().inner.values(x)
        return a.energy, b.energy

    def dudl(self, x: Tensor) -> Tensor:
        """``∂U/∂λ`` (*batch) in eV at ``x`` (*batch, N, 3).

        Raises ``ValueError`` where an end state has no energy.
        """
        a, b = self.ends(x)
        return coupled_slope(a, b, self.inner.rows(x).to(x)[..., 1], self.soft)

    def at(self, lam) -> Alchemical:
        """The same coupling at another λ, scalar or (K,), in [0, 1]."""
        lam = check_lambda(lam)
        new, blend = copy.copy(self), copy.copy(self.inner)
        blend.weights = torch.stack((1.0 - lam, lam), -1)
        blend.per_walker = new.per_walker = lam.ndim == 1
        new.inner, new.lam = blend, lam
        if self.target is not None:
            new.target = new if self.target is self else self.target.at(lam)
        return new

    def describe(self, x) -> dict[str, Tensor]:
        """λ, ∂U/∂λ (eV) and the energies of both ends (eV): all that estimators need."""
        lam = self.inner.rows(x).to(x)[..., 1].expand(x.shape[:-2])
        if self.target is None:
            return {"lambda": lam}
        a, b = self.ends(x)
        slope = coupled_slope(a, b, lam, self.soft)
        return {"lambda": lam, "dudl": slope, "energy_start": a, "energy_end": b}

    def select(self, keep) -> None:
        self.inner.select(keep)  # a kernel tells its target itself
        self.lam = self.inner.weights[..., 1]

    def _with_energy(self) -> Alchemical:
        if self.target is None:
            raise ValueError(
                f"{_blamed(self.inner.potentials)} has no energy (its forces are not a gradient), "
                "and ∂U/∂λ is a difference of energies: give target=(U_A, U_B), two potentials "
                "that have one"
            )
        return self.target


class Gap(CV):
    """``u = U_B - U_A - c`` in eV as a collective variable; biases on it reach both end states.

    Under PLUMED it is λ: walkers of A with OPES_EXPANDED over ``ECV_LINEAR ARG=gap LAMBDA_MAX=1``
    sample all ``(1-λ) U_A + λ U_B`` at once (M. Invernizzi, P. M. Piaggi & M. Parrinello, Phys.
    Rev. X 10, 041034 (2020)). PLUMED has it in kJ/mol. A call evaluates both end states.

    Parameters
    ----------
    start, end : A and B, of the same atoms (`Transmuted` where elements change), with energies
    constant : c in eV, about the mean of U_B - U_A: energies of two programs differ by any number
    name : of the variable

    Raises
    ------
    ValueError : an end state without energy, or that learns; different atoms, or none
    """

    domains = (None,)
    plumed_units = (mol / kJ,)

    def __init__(
        self, start: Potential, end: Potential, *, constant: float = 0.0, name: str = "gap"
    ):
        for potential in (start, end):
            if not potential.conservative or potential.has_memory:
                raise ValueError(
                    f"{_blamed([potential])}: the gap is a difference of energies that do not "
                    "change; give end states with an energy and without memory"
                )
        self.start, self.end, self.constant, self.names = start, end, float(constant), (name,)
        system = common_system((start, end), "the end states are")
        if system is None:
            raise ValueError("end states of no atoms: make them with system=System.from_atoms(…)")
        self.system = system

    def vjp(self, x):
        x = self.checked(x)
        a, b = (evaluate(p.terms, x) for p in (self.start, self.end))
        pull = a.forces.double() - b.forces.double()
        value = b.energy.double() - a.energy.double() - self.constant
        return value[..., None], lambda g: g[..., None] * pull


class Transmuted(Wrapped):
    """A potential of other elements at the same places, an end state for the atoms of ``system``.

    ``Alchemical(copper, Transmuted(gold, copper.system), lam)`` turns copper into gold. ΔF is that
    of the configurational integrals. With momenta, ``Σ_i (3/2) kT ln(m_i,A/m_i,B)`` is added (it
    cancels in a cycle).

    Parameters
    ----------
    inner : bound to the atoms as they are at the end
    system : of the atoms as they are at the start

    Raises
    ------
    ValueError : another number of atoms, cell or pbc; a potential without a system
    """

    def __init__(self, inner: Potential, system: System):
        super().__init__(inner)
        if inner.system is None:
            raise ValueError("the end state is bound to no atoms: nothing to be turned into")
        if len(inner.system) == len(system):
            same = System(system.numbers, system.masses, inner.system.cell, inner.system.pbc)
            difference = same.difference(system)
        else:
            difference = inner.system.difference(system)
        if difference:
            raise ValueError(
                f"end states differ in {difference}: elements may change from A to B, the number "
                "of atoms, their order and the cell may not"
            )
        self.system = system

    @property
    def end_system(self) -> System:
        """The atoms as they are at the end."""
        return self.inner.system


def check_lambda(lam) -> Tensor:
    """λ as float64, scalar or (K,). Raises ``ValueError`` for another shape or outside [0, 1]."""
    values = torch.as_tensor(lam, dtype=torch.float64)
    if values.ndim > 1 or not values.numel() or not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"{lam=} must lie in [0, 1], one number or one for each state (K,)")
    return values


def coupled(values: Sequence[Evaluation], lam: Tensor, soft: float | None, x: Tensor) -> Evaluation:
    """The coupling at positions ``x`` (*batch, N, 3) of what A and B give there.

    ``values`` are their evaluations, ``lam`` is λ, scalar or (*batch), ``soft`` the E of the soft
    core in eV or None.
    """
    if soft is None:
        return weighted(values, torch.stack((1.0 - lam, lam), -1), x)
    a, b = (value.energy for value in values)
    energy, w = _soft(a, b, lam, soft)
    forces = weighted(values, torch.stack((1.0 - w, w), -1), x)
    return forces._replace(energy=energy)


def coupled_energy(a: Tensor, b: Tensor, lam, soft: float | None = None) -> Tensor:
    """``U_λ`` of the energies U_A = ``a`` and U_B = ``b``, broadcast with λ = ``lam``, in eV.

    ``soft`` is the E of the soft core in eV; None: linear.
    """
    lam = torch.as_tensor(lam, dtype=a.dtype, device=a.device)
    if soft is None:
        return torch.where(lam == 0, a, torch.where(lam == 1, b, (1.0 - lam) * a + lam * b))
    return _soft(a, b, lam, soft)[0]


def coupled_slope(a: Tensor, b: Tensor, lam, soft: float | None = None) -> Tensor:
    """``∂U_λ/∂λ`` of the energies U_A = ``a`` and U_B = ``b``, broadcast with λ = ``lam``, in eV.

    ``soft`` is the E of the soft core in eV; None: linear.
    """
    lam = torch.as_tensor(lam, dtype=a.dtype, device=a.device)
    u = b - a
    if soft is None:
        return u + torch.zeros_like(lam)
    # of e^(-u/E) and e^(u/E) the one that does not overflow
    small = torch.exp(-u.abs() / soft)
    upwards = (1.0 - small) / (1.0 - lam + lam * small)
    downwards = (small - 1.0) / ((1.0 - lam) * small + lam)
    return soft * torch.where(u >= 0, upwards, downwards)


def _soft(a: Tensor, b: Tensor, lam: Tensor, soft: float) -> tuple[Tensor, Tensor]:
    """U_λ, counted from the lower end state, and the weight w of the forces of B."""
    lower = torch.minimum(a, b)
    log_a = torch.log1p(-lam) - (a - lower) / soft
    log_b = torch.log(lam) - (b - lower) / soft
    total = torch.logaddexp(log_a, log_b)
    # at its end λ has no weight to share, and energies are those of the end states to the last bit
    energy = torch.where(lam == 0, a, torch.where(lam == 1, b, lower - soft * total))
    return energy, torch.exp(log_b - total)


def _blamed(potentials) -> str:
    terms = [t for p in potentials for t in p.terms if not t.conservative]
    return ", ".join(type(t).__name__ for t in terms) or "an end state"
