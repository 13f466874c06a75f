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
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from .linear_fit import draws
from .linear_form import Frames, gradient_noise, moments
from .neighbours import edges
from .networks.angular import DEGREES, RADIALS, pairs_of_channels
from .networks.embedded import DECAYS, POWERS, EmbeddedEnergy
from .networks.inputs import Inputs
from .networks.splines import END
from .sets import Sets, as_sets, temperings
from .shrinkage import NOTHING, choose_ridges, solve
from .snapshots import Snapshots
from .uncertainty import MOST_PARAMETERS, covariance, root

__all__ = ["fit_embedded"]

log = logging.getLogger(__name__)

_INSIDE = 0.95  # of the shortest distance of the data, where V goes on as a straight line
_SPARE = 1e-5  # relative mean square of the score that a smoother fit may lose
_UNSEEN = 1e-10  # of the largest mean square of a feature's derivatives: no data speak of it
_LEAST = 1e-14  # of a penalty: no ridge is less
_FOLDS = 8
_FRAMES = 16  # at a time, of which edges or all slopes are taken
_EDGES, _NOISY = 500, 2000  # frames of each set, for shortest distances and the noise of gradients


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
    energy = EmbeddedEnergy(cutoff, _empty(sets, cutoff, functions, angular), angular=angular)
    parts = [
        _Part.of(energy, part, r, force_weight)
        for part, r in zip(sets, temperings(sets), strict=True)
    ]
    generator = torch.Generator().manual_seed(seed)
    total = sum(len(part.frames.positions) for part in parts)
    # neighbours in time are in one fold, but for the edges
    every = max(1, math.ceil(total / frames))
    parts = [part.take(slice(None, None, every)) for part in parts]
    many = draws(total)
    sums = [_sums([part.fold(k) for part in parts], sigma, generator, many) for k in range(_FOLDS)]
    grams, drives = (torch.stack(m) for m in zip(*sums, strict=True))
    diagonal = grams.sum(0).diagonal()
    kinds = diagonal.split([energy.plain, len(diagonal) - energy.plain])
    unit = torch.cat([k.clamp_min(_UNSEEN * float(k.max())).rsqrt() for k in kinds if len(k)])
    grams, drives = unit[:, None] * grams * unit, unit * drives
    theta, penalty = _solved(energy, grams, drives, unit)
    tables = _tables(energy, unit * theta)
    if len(theta) <= MOST_PARAMETERS:
        noise = _noise(parts, unit, theta, sigma, generator, many)
        used = len(theta) if "angular" in tables else energy.plain  # without what does not pay
        known = covariance(grams.sum(0), penalty, noise)[:used, :used]
        tables["spread"] = root(unit[:used], known)
    return {**{k: v for k, v in energy.state_dict().items() if k != "angular"}, **tables}


def _solved(energy, grams: Tensor, drives: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
    """θ (F,), and what held it back (F, F), of folds (K, F, F), (K, F) in these units (F,)."""
    n, splines = energy.plain, energy.pair[:, :-END].numel()
    rough = unit[:n, None] * _roughness(energy) * unit[:n]
    # both of order one where data speak: median, since features that they hardly see are scaled up
    rough = rough / rough.diagonal()[:splines].median()
    penalty = _penalty(grams[:, :n, :n], drives[:, :n], rough)
    if energy.radius:
        return _with_angular(energy, grams, drives, penalty)
    return torch.linalg.solve(grams.sum(0) + penalty, drives.sum(0)), penalty


def _tables(energy: EmbeddedEnergy, theta: Tensor) -> dict[str, Tensor]:
    """Of an `EmbeddedEnergy` with the parameters ``theta`` (F,)."""
    (kinds, n_splines), size = energy.pair.shape, energy.embedding.numel()
    pair, embedding, others = theta.tensor_split([energy.plain - size, energy.plain])
    pair = nn.functional.pad(pair.reshape(kinds, n_splines - END), (0, END))
    # the line inside of the data may be level but never pulls
    pair[:, 0] = torch.maximum(pair[:, 0], pair[:, 2])
    tables = {"pair": pair, "embedding": embedding.reshape(energy.embedding.shape)}
    if others.any():  # else they do not pay, and cost nothing
        tables["angular"] = others.reshape(energy.angular.shape)
    return tables


def _with_angular(energy, grams: Tensor, drives: Tensor, penalty: Tensor) -> tuple[Tensor, Tensor]:
    """As `_solved`, with angular terms after those that have the ``penalty`` (P, P)."""
    elements, degrees, channels = energy.angular.shape
    numbers = torch.arange(degrees).repeat_interleave(channels).repeat(elements)
    plain, folds = len(penalty), len(grams)
    # in units in which the penalty is a ridge of one
    values, vectors = torch.linalg.eigh(penalty)
    basis = torch.eye(grams.shape[-1], dtype=grams.dtype)
    basis[:plain, :plain] = vectors * values.clamp_min(_LEAST).rsqrt()
    group = torch.cat([numbers.new_zeros(plain), 1 + numbers])
    grams, drives = folds * (basis.T @ grams @ basis), folds * drives @ basis
    ridges, _ = choose_ridges(grams, drives, group)
    said = ", ".join(f"l = {n}: {ridge:.0e}" for n, ridge in enumerate(ridges[1:].tolist()))
    log.info("ridges of angular terms: %s", said)
    theta = basis @ solve(grams.mean(0), drives.mean(0), ridges[group])
    theta[ridges[group] >= NOTHING] = 0.0  # what is left of terms that do not pay
    return theta, torch.block_diag(ridges[0] * penalty, torch.diag(ridges[group[plain:]]))


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
    """One set of snapshots: the energy as `linear_form` asks of it, frames, and T_1/T of it."""

    energy: EmbeddedEnergy
    inputs: Inputs
    moving: Tensor  # (N,) 1 or 0
    frames: Frames
    tempering: float

    @classmethod
    def of(cls, energy, part: Snapshots, tempering: float, weight: float) -> _Part:
        dtype = torch.float64
        frames = Frames.of(part, weight if part.forces is not None else 0.0, dtype)
        moving = torch.as_tensor(part.moving).to(dtype)
        return cls(energy, Inputs.of(part.system, dtype=dtype), moving, frames, tempering)

    @property
    def group(self) -> Tensor:
        return torch.zeros(self.size, dtype=torch.long)

    @property
    def size(self) -> int:
        return self.energy.plain + (self.energy.angular.numel() if self.energy.radius else 0)

    def jacobian(self, planes: Tensor) -> Tensor:
        return self.energy.jacobian(planes.transpose(-1, -2).contiguous(), *self.inputs)

    def along(self, planes: Tensor, arrows: Tensor) -> Tensor:
        parts = zip(planes.split(_FRAMES), arrows.flatten(1).split(_FRAMES), strict=True)
        return torch.cat([torch.einsum("fbd,bd->fb", self.jacobian(p), v) for p, v in parts], 1)

    def weigh(self, planes: Tensor) -> Tensor:
        """Scores of atoms that are held are not asked for."""
        return planes * self.moving

    def take(self, index) -> _Part:
        return replace(self, frames=self.frames.take(index))

    def fold(self, k: int) -> _Part:
        """The k-th part of the frames, neighbours together."""
        return self.take(torch.arange(len(self.frames.positions)).tensor_split(_FOLDS)[k])


def _sums(parts: list[_Part], sigma: float, generator, many: int) -> tuple[Tensor, Tensor]:
    """Σ_n r_n G_n and Σ_n b_n over some frames."""
    size = parts[0].size
    gram, drive = torch.zeros(size, size).double(), torch.zeros(size).double()
    for part in parts:
        if count := len(part.frames.positions):
            one, b = moments(part, part.frames, sigma, generator, many)
            gram, drive = gram + count * part.tempering * one, drive + count * b
    return gram, drive


def _noise(parts: list[_Part], unit, theta, sigma: float, generator, many: int) -> Tensor:
    """(F, F) covariance of the gradient of the loss of all frames, from some of them."""
    total = torch.zeros(len(unit), len(unit), dtype=torch.float64)
    for part in parts:
        count = len(part.frames.positions)
        some = part.frames.take(slice(None, None, max(1, count // _NOISY)))
        own = part.tempering * theta
        total += count * gradient_noise(part, unit, own, some, sigma, generator, many)
    return total


def _empty(sets: Sets, cutoff: float, functions: int, angular: float) -> dict[str, Tensor]:
    """Tables with the scales of the data and no energy yet."""
    elements = torch.unique(torch.cat([torch.as_tensor(part.system.numbers) for part in sets]))
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
    for part in sets:
        told = Inputs.of(part.system, dtype=dtype)
        species = blank.species(told.numbers)
        some = torch.as_tensor(part.positions[:: max(1, len(part) // _EDGES)], dtype=dtype)
        for x in some.split(_FRAMES):
            source, target, vectors = edges(x, cutoff, told.cell, told.pbc)
            element = species[torch.stack([target, source]) % len(species)]
            lengths.append(vectors.norm(dim=-1))
            pair_kinds.append(blank.kinds[element[0], element[1]])
        atoms += len(species) * len(some)
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
    radial = EmbeddedEnergy(cutoff, tables).radial(r, kind)
    falls = torch.stack([fall.sum() for fall in radial]) / atoms
    return {**tables, "density": falls.repeat(a // len(DECAYS))}
