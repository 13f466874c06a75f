"""The parameters of a force field, fitted to snapshots by score matching, in closed form.

    E_prior(x) = Σ_f θ_f f(x)

with the terms of `force_field` as features f. Score matching of an energy that is linear in its
parameters is a linear least-squares problem (Hyvärinen, JMLR 6, 695 (2005), section 3): with
J = ∂f/∂x at x ± σε,

    G θ = b        G = ⟨J₊J₊ᵀ + J₋J₋ᵀ⟩        b = ⟨(J₊ - J₋) ε⟩/σ

the minimum of the antithetic denoising loss, with covariance V = G⁻¹ΣG⁻¹/M, Σ the
covariance of one frame's ``JJᵀθ``-and-``b`` terms. Where snapshots carry forces F, b may be the
mean with what they say, ``[b - w⟨(J₊ + J₋) F/kT⟩]/(1 + w)``. Score matching hardly sees the
relative weight of separated modes; moves between them do, and their likelihood is convex in θ
as well:

    θ = argmin ½(θ - θ_SM)ᵀ V⁻¹ (θ - θ_SM) + Σ softplus(E(x) - E(y) - log q(y)/q(x))

Nothing is assumed but the form: all parameters, charges included, come from the snapshots.
Atoms that the molecule's symmetry exchanges share their parameters. What the form cannot say
is left to the network.
"""

from __future__ import annotations

import logging
from typing import Literal

import torch
from torch import Tensor

from .couplings import GROUPS
from .extrapolation import seen_tables
from .force_field import COORDINATES, MechanicsPrior
from .force_field_tables import coupling_tables, parameter_numbers, term_tables
from .linear_fit import folds_in_units, label_weight, mixed
from .linear_form import Form, Frames, gradient_noise
from .mode_weights import Pairs, weigh_modes
from .shrinkage import choose_ridges, solve
from .snapshots import Snapshots
from .topology import Topology
from .uncertainty import covariance, root

__all__ = ["fit_prior"]

log = logging.getLogger(__name__)

# numbers multiplied for the moments, at most: of what decides the form, and of the fit itself
_TRIAL, _WORK = 1e11, 2e12
_GAIN = 0.005  # about the square of a relative error of forces
_FEWEST = 1000  # frames, whatever they cost
_FIRST_WEIGHT = 100.0  # of labels, before theirs is known
_LEAST_RIDGE = 1e-6  # that keeps G invertible
_FREE = 1e-3  # largest ridge of a torsion where modes are weighed
_ROUNDS, _NEAR = 3, 3.0  # of its search; and a factor that changes little


def fit_prior(
    snapshots: Snapshots,
    *,
    sigma: float,
    frames: int = 50_000,
    moves: int = 4,
    seed: int = 0,
    force_weight: float | Literal["auto"] = 0.0,
) -> dict[str, Tensor]:
    """Tables and parameters θ of a `MechanicsPrior`, from snapshots.

    The ridge that keeps undetermined combinations at zero is chosen on held-out frames. Where the
    snapshots hold the values of a baseline, the energy is what is to be added to it.

    Parameters
    ----------
    snapshots : of one molecule, that is not periodic
    sigma : noise in Å
    frames : at most
    moves : between modes, from each snapshot; 0 leaves θ to score matching
    seed : of the noise, the moves and the held-out frames
    force_weight : w of forces that snapshots carry, all or some; "auto": as their residuals say
    """
    topology = snapshots.topology
    generator = torch.Generator().manual_seed(seed)
    order = mixed(snapshots, frames, generator)
    weight = _FIRST_WEIGHT if force_weight == "auto" else force_weight
    whole = Frames.of(snapshots, weight)
    every = whole.take(order)
    form = _form(whole.positions, every, topology, sigma, torch.Generator().manual_seed(seed))
    if form.prior.coupled:
        every = every.some(_affordable(_WORK, form, every))
    if force_weight == "auto" and bool(every.labelled.any()):
        for _ in range(_ROUNDS):
            before, weight = weight, label_weight(form, every, sigma, generator)
            every = every._replace(weight=weight)
            if 1 / _NEAR < weight / before < _NEAR:
                break
    unit, gram, drive, ridge = _moments_and_ridges(form, every, sigma, generator)
    theta = solve(gram, drive, ridge)
    noise = gradient_noise(form, unit, theta, every, sigma, generator)
    freed = ridge
    if every.base is not None:  # forces that are right say nothing of the weights of modes
        freed = torch.where(_turning(form), ridge.clamp_max(_FREE), ridge)
    precision = _precision(gram, freed, noise, len(every.positions))
    # Ridges below one count as none: at the least held-out loss they trade as much bias for the
    # variance that they save, and the fit is about as good as without.
    held = torch.diag(torch.where(ridge < 1, ridge.clamp_max(_LEAST_RIDGE), ridge))
    known = covariance(gram, held, noise) / len(every.positions)
    if moves and len(topology.rotors):
        if snapshots.baseline is None:
            pairs = Pairs.drawn(form, unit, every.positions, topology, generator, moves)
        else:
            values = snapshots.baseline.take(order.numpy())
            pairs = Pairs.of_baseline(form, unit, whole.positions[order], values, snapshots.kT)
        theta, curvature = weigh_modes(pairs, theta, precision)
        # of two sources that know nothing of each other precisions add up: V (1 + H V)⁻¹
        told = torch.eye(form.size, dtype=known.dtype) + curvature @ known
        known = torch.linalg.solve(told.T, known).T
    tables = form.tables(unit, theta)
    if force_weight == "auto":
        tables["label_weight"] = torch.tensor(every.weight)
    tables["spread"] = root(unit, known)
    return tables | seen_tables(form, whole.positions, topology)


def _form(positions: Tensor, frames: Frames, topology: Topology, sigma: float, generator) -> Form:
    """With couplings where they pay: where they lower the loss of some frames left out.

    By `_GAIN` of it at least, and by more than twice the standard error of the paired difference,
    or in each of the parts that are left out in turn.
    Above a baseline each kind of terms and each group of couplings has a ridge of its own.
    All ``positions`` say what is near and far, some of the ``frames`` decide.
    """
    tables = term_tables(topology, positions)
    prior = MechanicsPrior(tables)
    orbits = parameter_numbers(prior, topology)
    count = int(orbits.max()) + 1
    plain = Form(prior, orbits, torch.zeros(count, dtype=torch.long))
    tables, group_of, tie = coupling_tables(tables, topology, positions)
    if not len(tie):
        return plain
    group = torch.zeros(count + int(tie.max()) + 1, dtype=torch.long)
    if frames.base is not None:  # any group of terms may have nothing to add to a baseline
        group[orbits] = _kinds(prior)
    group[count + tie] = 1 + group.max() + group_of
    coupled = Form(MechanicsPrior(tables), torch.cat([orbits, count + tie]), group)
    if frames.base is not None:
        return coupled
    some = frames.some(_affordable(_TRIAL, coupled, frames))
    _, grams, drives = folds_in_units(coupled, some, sigma, generator)
    ridges, with_couplings = choose_ridges(grams, drives, group)
    _, without = choose_ridges(grams[:, :count, :count], drives[:, :count], plain.group)
    gain = without - with_couplings
    least = _GAIN * without.mean().abs()
    sure = gain.mean() > torch.maximum(2 * gain.std() / len(gain) ** 0.5, least)
    pays = bool(sure | (gain > least).all())
    words = ", ".join(f"{n} {r:.0e}" for n, r in zip(GROUPS, ridges[1:].tolist(), strict=False))
    log.info("couplings %s: held-out loss lower by %.3g (%s)", pays, gain.mean(), words)
    return coupled if pays else plain


def _turning(form: Form) -> Tensor:
    """(size,) bool: parameters of torsions alone."""
    names = [kind for kind in COORDINATES if len(getattr(form.prior, kind))]
    kinds = _kinds(form.prior)
    found = torch.zeros(form.size, dtype=torch.bool)
    if "torsions" in names:
        found[form.orbits[: len(kinds)][kinds == names.index("torsions")]] = True
    return found


def _kinds(prior: MechanicsPrior) -> Tensor:
    """(F,) number of the kind of coordinate of each feature, of those that there are."""
    counts = {kind: len(getattr(prior, kind)) for kind in COORDINATES}
    repeats = [
        count * len(prior.features(kind, prior.unit.new_ones(1, count)))
        for kind, count in counts.items()
        if count
    ]
    return torch.repeat_interleave(torch.arange(len(repeats)), torch.tensor(repeats))


def _moments_and_ridges(form: Form, frames: Frames, sigma, generator) -> tuple[Tensor, ...]:
    """Units, G, b and ridges (F,), those of each group by `choose_ridges`."""
    unit, grams, drives = folds_in_units(form, frames, sigma, generator)
    ridges, _ = choose_ridges(grams, drives, form.group)
    return unit, grams.mean(0), drives.mean(0), ridges[form.group]


def _affordable(work: float, form: Form, frames: Frames) -> int:
    return max(_FEWEST, int(work / (form.size**2 * frames.positions[0].numel())))


def _precision(gram: Tensor, ridge: Tensor, noise: Tensor, frames: int) -> Tensor:
    """V⁻¹ = M (G + ridge) Σ⁻¹ (G + ridge), with Σ kept invertible."""
    eye = torch.eye(len(gram), dtype=gram.dtype)
    regular = gram + torch.diag(ridge)
    floor = 1e-6 * noise.diagonal().mean()
    return frames * regular @ torch.linalg.solve(noise + floor * eye, regular)
