"""The energy of metals and solids (`networks.embedded`), fitted in closed form by score matching.

The energy is linear in its parameters θ, the values of V and the weights w, so that score
matching of snapshots is linear least squares: with G and b of `force_field_fit`, forces included,

    (G + λP + νN) θ = b

where P sums the squared third differences of V (Eilers & Marx, Stat. Sci. 11, 89 (1996)): between
shells, and where the few closest pairs are, V goes on as it does nearby. N = diag G; λ and ν are
chosen by cross-validation. Of 400 frames of copper it halves the error of forces.

Nothing of it knows the number of atoms: fitted to small cells, it runs on large ones, and G and
b of several sets of snapshots add up (see `sets`). Sets of one composition leave what an
atom of each element is worth undetermined: energies of two compositions have no common zero.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from .linear_fit import draws
from .neighbours import edges
from .networks.angular import DEGREES, RADIALS, pairs_of_channels
from .networks.embedded import DECAYS, POWERS, EmbeddedEnergy
from .networks.inputs import Inputs
from .networks.splines import END
from .sets import as_sets, temperings
from .shrinkage import NOTHING, choose_ridges, solve
from .snapshots import Snapshots

__all__ = ["fit_embedded"]

log = logging.getLogger(__name__)

_INSIDE = 0.95  # of the shortest distance of the data, where V goes on as a straight line
_SPARE = 1e-5  # relative mean square of the score that a smoother fit may lose
_UNSEEN = 1e-10  # of the largest mean square of a feature's derivatives: no data speak of it
_LEAST = 1e-14  # of a penalty: no ridge is less
_FOLDS = 8
_FRAMES = 16  # in one matrix product


def fit_embedded(
    snapshots: Snapshots | Iterable[Snapshots],
    *,
    cutoff: float,
    functions: int,
    sigma: float,
    angular: float = 0.0,
    frames: int = 20_000,
    seed: int = 0,
    force_weight: float = 0.0,
) -> dict[str, Tensor]:
    """Tables of an `EmbeddedEnergy` from one or several sets of snapshots.

    With r_n = T_1/T_n the losses of `sets` have ``G = Σ_n r_n G_n`` and ``b = Σ_n b_n``.

    Parameters
    ----------
    cutoff : r_c in Å
    functions : splines of each pair of elements
    sigma : noise in Å
    angular : radius of angular terms in Å; 0: none
    frames : of all sets together, at most
    seed : of the noise
    force_weight : w of forces that the snapshots carry

    The smoothness of V, and the ridge that keeps undetermined combinations at zero, are chosen
    by cross-validation over eighths of the frames; so is a ridge of the angular terms of each l,
    which says nothing where these do not pay (`shrinkage`).
    """
    sets = as_sets(snapshots)
    parts = [
        _Part.of(part, r, force_weight) for part, r in zip(sets, temperings(sets), strict=True)
    ]
    energy = EmbeddedEnergy(cutoff, _empty(parts, cutoff, functions, angular), angular=angular)
    generator = torch.Generator().manual_seed(seed)
    total = sum(len(part.x) for part in parts)
    # neighbours in time are in one fold, but for the edges
    every = max(1, math.ceil(total / frames))
    folds = [[part.take(slice(None, None, every)).fold(k) for part in parts] for k in range(_FOLDS)]
    many = draws(total)
    moments = [_moments(energy, [p.repeat(many) for p in f], sigma, generator) for f in folds]
    grams, drives = (torch.stack(m) for m in zip(*moments, strict=True))
    diagonal = grams.sum(0).diagonal()
    plain = energy.pair[:, :-END].numel() + energy.embedding.numel()
    kinds = diagonal.split([plain, len(diagonal) - plain])
    unit = torch.cat([k.clamp_min(_UNSEEN * float(k.max())).rsqrt() for k in kinds if len(k)])
    grams, drives = unit[:, None] * grams * unit, unit * drives
    rough = unit[:plain, None] * _roughness(energy) * unit[:plain]
    # both of order one where data speak: median, since features that they hardly see are scaled up
    rough = rough / rough.diagonal()[: energy.pair[:, :-END].numel()].median()
    penalty = _penalty(grams[:, :plain, :plain], drives[:, :plain], rough)
    if angular:
        elements, degrees, channels = energy.angular.shape
        numbers = torch.arange(degrees).repeat_interleave(channels).repeat(elements)
        theta = unit * _with_angular(grams, drives, penalty, numbers)
    else:
        theta = unit * torch.linalg.solve(grams.sum(0) + penalty, drives.sum(0))
    pair, embedding, others = theta.tensor_split([plain - energy.embedding.numel(), plain])
    pair = nn.functional.pad(pair.reshape(len(energy.pair), functions), (0, END))
    # the line inside of the data may be level but never pulls
    pair[:, 0] = torch.maximum(pair[:, 0], pair[:, 2])
    tables = {"pair": pair, "embedding": embedding.reshape(energy.embedding.shape)}
    if others.any():  # else they do not pay, and cost nothing
        tables["angular"] = others.reshape(energy.angular.shape)
    kept = {k: v for k, v in energy.state_dict().items() if k != "angular"}
    return {**kept, **tables}


def _with_angular(grams: Tensor, drives: Tensor, penalty: Tensor, degrees: Tensor) -> Tensor:
    """θ with angular terms of these ``degrees``, after those that have the ``penalty`` (P, P)."""
    plain, folds = len(penalty), len(grams)
    # in units in which the penalty is a ridge of one
    values, vectors = torch.linalg.eigh(penalty)
    basis = torch.eye(grams.shape[-1], dtype=grams.dtype)
    basis[:plain, :plain] = vectors * values.clamp_min(_LEAST).rsqrt()
    group = torch.cat([degrees.new_zeros(plain), 1 + degrees])
    grams, drives = folds * (basis.T @ grams @ basis), folds * drives @ basis
    ridges, _ = choose_ridges(grams, drives, group)
    said = ", ".join(f"l = {n}: {ridge:.0e}" for n, ridge in enumerate(ridges[1:].tolist()))
    log.info("ridges of angular terms: %s", said)
    theta = basis @ solve(grams.mean(0), drives.mean(0), ridges[group])
    theta[ridges[group] >= NOTHING] = 0.0  # what is left of terms that do not pay
    return theta


def _penalty(grams: Tensor, drives: Tensor, rough: Tensor) -> Tensor:
    """λP + νN for folds (K, F, F), (K, F), chosen by leaving out one after the other.

    The smoothest V whose loss is within one standard error of the least; of the ridge next to
    nothing is lost: terms that cancel lose digits in single precision.
    """
    gram, drive, eye = grams.sum(0), drives.sum(0), torch.eye(len(rough), dtype=rough.dtype)
    smooths = torch.logspace(-6, 6, 25, dtype=rough.dtype)
    ridges = torch.logspace(-7, -1, 13, dtype=rough.dtype)
    penalties = smooths[:, None, None, None] * rough + ridges[:, None, None] * eye
    losses = []
    for one, b in zip(grams, drives, strict=True):
        theta = torch.linalg.solve(gram - one + penalties, (drive - b).expand(25, 13, -1))
        losses.append(0.5 * torch.einsum("srf,fg,srg->sr", theta, one, theta) - theta @ b)
    left_out = torch.stack(losses)  # (K, smooths, ridges)
    mean = left_out.mean(0)
    best = int(mean.argmin())
    worse = left_out - left_out.flatten(1)[:, best][:, None, None]
    error = worse.std(0) / len(grams) ** 0.5
    smooth = int((mean - mean.min() <= error).any(1).nonzero().max())
    row = mean[smooth]
    ridge = int((row <= row.min() + _SPARE * row.min().abs()).nonzero().max())
    return penalties[smooth, ridge]


def _roughness(energy: EmbeddedEnergy) -> Tensor:
    """Squares of the third differences of each V, as a matrix for all parameters."""
    n_kinds, n_splines = energy.pair.shape
    thrice = torch.eye(n_splines, dtype=energy.pair.dtype)
    for _ in range(3):
        thrice = thrice.diff(dim=0)
    one = (thrice.T @ thrice)[:-END, :-END]  # the last ones are zero
    others = energy.pair.new_zeros(energy.embedding.numel(), energy.embedding.numel())
    return torch.block_diag(*[one] * n_kinds, others)


@dataclass(frozen=True, eq=False)
class _Part:
    """One set of snapshots as tensors, and T_1/T of it."""

    x: Tensor
    labels: Tensor | None  # F/kT (M, N, 3)
    base: Tensor | None  # likewise of a baseline
    weight: float
    inputs: Inputs
    moving: Tensor  # (N, 3) bool
    tempering: float

    @classmethod
    def of(cls, part: Snapshots, tempering: float, weight: float) -> _Part:
        x = torch.as_tensor(part.positions, dtype=torch.float64)
        labels = base = None
        if weight and part.forces is not None:
            labels = torch.as_tensor(part.reduced_forces, dtype=x.dtype)
        if part.baseline is not None:
            base = torch.as_tensor(part.baseline.forces / part.kT, dtype=x.dtype)
        moving = torch.as_tensor(part.moving)[:, None].expand(-1, 3)
        return cls(
            x, labels, base, weight, Inputs.of(part.system, dtype=x.dtype), moving, tempering
        )

    def take(self, index) -> _Part:
        labels, base = (None if p is None else p[index] for p in (self.labels, self.base))
        return replace(self, x=self.x[index], labels=labels, base=base)

    def fold(self, k: int) -> _Part:
        """The k-th part of the frames, neighbours together."""
        return self.take(torch.arange(len(self.x)).tensor_split(_FOLDS)[k])

    def repeat(self, count: int) -> _Part:
        """Each frame so many times."""
        return self.take(torch.arange(len(self.x)).repeat(count))

    def edges(self, cutoff: float) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """`edges` of at most 500 frames, some at a time."""
        for x in self.x[:: max(1, len(self.x) // 500)].split(_FRAMES):
            yield edges(x, cutoff, self.inputs.cell, self.inputs.pbc)


def _empty(parts: list[_Part], cutoff: float, functions: int, angular: float) -> dict[str, Tensor]:
    """Tables with the scales of the data and no energy yet."""
    elements = torch.unique(torch.cat([part.inputs.numbers for part in parts]))
    n, dtype = len(elements), torch.float64
    kinds, a = n * (n + 1) // 2, len(DECAYS) * (1 if n == 1 else 1 + n)
    tables = {
        "elements": elements,
        "inner": torch.tensor(0.0, dtype=dtype),
        "nearest": torch.tensor(1.0, dtype=dtype),
        "density": torch.ones(a, dtype=dtype),
        "pair": torch.zeros(kinds, functions + END, dtype=dtype),
        "embedding": torch.zeros(n, a, len(POWERS), dtype=dtype),
    }
    if angular:
        pairs = pairs_of_channels(n * RADIALS).shape[1]
        tables["angular"] = torch.zeros(n, DEGREES + 1, pairs, dtype=dtype)
    blank, lengths, pair_kinds, atoms = EmbeddedEnergy(cutoff, tables), [], [], 0
    for part in parts:
        species = blank.species(part.inputs.numbers)
        for source, target, vectors in part.edges(cutoff):
            element = species[torch.stack([target, source]) % len(species)]
            lengths.append(vectors.norm(dim=-1))
            pair_kinds.append(blank.kinds[element[0], element[1]])
        atoms += len(species) * len(part.x[:: max(1, len(part.x) // 500)])
    r, kind = torch.cat(lengths), torch.cat(pair_kinds)
    if not len(r):
        raise ValueError(f"no two atoms are closer than {cutoff=} Å: give a larger cutoff")
    counts, places = torch.histc(r, 100, float(r.min()), cutoff), torch.linspace(0, 1, 101)
    # the first shell: the highest peak of the radial distribution
    places = float(r.min()) + (cutoff - float(r.min())) * places
    near = places[:-1] + 0.5 * places.diff()
    tables["nearest"] = torch.tensor(float(near[(counts.to(near) / near**2).argmax()]), dtype=dtype)
    # a pair of elements that no set holds together begins where the nearest of all do
    closest = r.new_full((kinds,), float(r.min())).scatter_reduce(
        0, kind, r, "amin", include_self=False
    )
    tables["inner"] = _INSIDE * (closest if kinds > 1 else closest[0])
    falls = EmbeddedEnergy(cutoff, tables).radial(r, kind).sum(0) / atoms
    return {**tables, "density": falls.repeat(a // len(DECAYS))}


def _moments(energy, parts: list[_Part], sigma: float, generator) -> tuple[Tensor, Tensor]:
    """Σ_n r_n G_n and Σ_n b_n over some frames."""
    size = energy.pair[:, :-END].numel() + energy.embedding.numel()
    if energy.radius:
        size += energy.angular.numel()
    gram, drive = energy.pair.new_zeros(size, size), energy.pair.new_zeros(size)
    for part in parts:
        for first in range(0, len(part.x), _FRAMES):
            x = part.x[first : first + _FRAMES]
            epsilon = torch.randn(x.shape, generator=generator, dtype=x.dtype) * part.moving
            plus, minus = (energy.jacobian(x + s * sigma * epsilon, *part.inputs) for s in (1, -1))
            if not part.moving.all():  # scores of the others are not asked for
                plus, minus = (j * part.moving.flatten() for j in (plus, minus))
            drive += ((plus - minus) * epsilon.flatten(1)).sum((1, 2)) / sigma
            weight = torch.ones(len(x), 1, dtype=x.dtype)
            if part.labels is not None:
                labels = part.labels[first : first + _FRAMES].flatten(1)
                known = labels.isfinite().all(1, keepdim=True)
                weight = weight + part.weight * known
                labels = torch.where(known, labels, 0.0)
                drive -= part.weight * ((plus + minus) * labels).sum((1, 2))
            if part.base is not None:
                base = weight * part.base[first : first + _FRAMES].flatten(1)
                drive += ((plus + minus) * base).sum((1, 2))
            for j in (plus, minus):
                gram += part.tempering * ((weight * j).flatten(1) @ j.flatten(1).T)
    return gram, drive
