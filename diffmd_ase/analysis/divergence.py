"""How far samples are from a reference, beyond what counting alone gives.

Frames are rows of a sparse table, counts in cells are its columns: one cell for a pair of
torsions, many for distances. A histogram is then a product with the multiplicities of the
frames, whether these are halves, weights or a jackknife.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_array
from scipy.spatial.distance import jensenshannon

from ..independent.weights import effective_fraction
from .statistics import jackknife_error

__all__ = [
    "Divergence",
    "cell_rows",
    "excess_divergence",
    "excess_reweighted",
    "jensen_shannon",
    "torsion_bins",
    "torsion_rows",
    "walker_groups",
]

_BINS = 64
_CROWDED = 6  # frames in an occupied cell, on average
_SPLITS = 20
_GROUPS = 20  # of independent frames, for the jackknife
_MANY_WALKERS = 8


class Divergence(NamedTuple):
    """A Jensen–Shannon divergence (nats) from a reference and what exact draws would give."""

    js: float  # of the samples
    floor: float  # of as many frames of the reference itself from the rest of it
    excess: float  # js - floor, 0 on average for exact draws
    error: float  # standard error of the excess
    n_effective: float  # independent frames that the samples are worth


def jensen_shannon(p: np.ndarray, q: np.ndarray) -> float:
    """``½ Σ p ln(p/m) + ½ Σ q ln(q/m)`` in nats, in [0, ln 2], with m = (p + q)/2.

    ``p`` and ``q`` are histograms of one shape, normalised here. It is the square of
    `scipy.spatial.distance.jensenshannon` (Lin, IEEE Trans. Inf. Theory 37, 145 (1991)).
    """
    return float(jensenshannon(np.ravel(p), np.ravel(q)) ** 2)


def cell_rows(owner: np.ndarray, cells: np.ndarray, shape: tuple[int, int]) -> csr_array:
    """Sparse counts (frames, cells) of what frames have in cells.

    Parameters
    ----------
    owner : (n,) frame of each entry
    cells : (n,) cell of each entry; entries in no cell of the table are left out
    shape : (frames, cells)
    """
    inside = (cells >= 0) & (cells < shape[1])
    return csr_array((np.ones(int(inside.sum())), (owner[inside], cells[inside])), shape=shape)


def torsion_rows(angles: np.ndarray, *, bins: int = _BINS) -> csr_array:
    """Counts (n, cells) of frames in equal cells of [-π, π), for one torsion or two.

    Parameters
    ----------
    angles : (n, 1) or (n, 2) in rad
    bins : along each angle: bins or bins² cells
    """
    angles = np.asarray(angles, float)
    place = np.floor((angles + np.pi) / (2 * np.pi) * bins).astype(int) % bins
    cells = place @ bins ** np.arange(place.shape[1])[::-1]
    return cell_rows(np.arange(len(cells)), cells, (len(cells), bins ** place.shape[1]))


def torsion_bins(angles: np.ndarray) -> int:
    """Bins along each of the ``angles`` (n, 1) or (n, 2) in rad that n frames can fill.

    64, halved, to 8 at least, until six frames are in an occupied cell on average: in emptier ones
    counting alone gives a tenth of a nat.
    """
    bins = _BINS
    while bins > 8 and _CROWDED * np.count_nonzero(torsion_rows(angles, bins=bins).sum(0)) > len(
        angles
    ):
        bins //= 2
    return bins


def walker_groups(frames: int, walkers: int) -> np.ndarray:
    """(T·W,) independent group of each frame of T ``frames`` of W ``walkers``.

    Its walker or, of fewer than 8 walkers, a piece of it; there are 20 pieces or more, which
    must be longer than the memory of a walker.
    """
    pieces = 1 if walkers >= _MANY_WALKERS else -(-_GROUPS // walkers)
    piece = np.arange(frames) * pieces // frames
    return (piece[:, None] * walkers + np.arange(walkers)).ravel()


def excess_divergence(
    reference: csr_array, samples: csr_array, *, groups: np.ndarray | None = None, seed: int = 0
) -> Divergence:
    """Divergence of samples (n, K) from a reference (M, K) of independent frames, and its excess.

    The reference is cut at random into a part A, of as many frames as the samples are
    worth, and the rest B:

        excess = ⟨JS(samples, B) - JS(A, B)⟩ over splits

    so that no formula for a floor enters. Samples worth more than half the reference are
    cut to that. The error is the larger of the spread of JS(A, B) and a jackknife over
    groups of samples.

    Parameters
    ----------
    reference, samples : counts of frames in K cells, see `cell_rows`
    groups : (n,) which independent group a frame is of, see `walker_groups`; two halves of them
        say what their frames are worth. None: frames are independent
    """
    rng = np.random.default_rng(seed)
    m, n = reference.shape[0], samples.shape[0]
    if groups is None:
        groups, worth = rng.permutation(n) % min(_GROUPS, n), float(n)
    else:
        groups = np.unique(groups, return_inverse=True)[1]
        worth = _effective_number(reference, samples, groups, seed=seed)
    table = _by_group(samples, groups)
    count = max(1, min(round(worth), m // 2))
    kept = max(2, round(min(1.0, count / worth) * len(table)))
    from_rest, floor = [], []
    for _ in range(_SPLITS):
        order = rng.permutation(m)
        first, rest = _sum(reference, order[:count]), _sum(reference, order[count:])
        part = table[rng.permutation(len(table))[:kept]].sum(0)
        floor.append(jensen_shannon(first, rest))
        from_rest.append(jensen_shannon(part, rest))
    total = _sum(reference, np.arange(m))
    left = [jensen_shannon(table.sum(0) - row, total) for row in table]
    js, level = float(np.mean(from_rest)), float(np.mean(floor))
    error = max(float(np.std(floor, ddof=1)), float(jackknife_error(left)))
    return Divergence(js, level, js - level, error, worth)


def excess_reweighted(
    reference: csr_array, log_weights: np.ndarray, *, seed: int = 0
) -> Divergence:
    """Divergence of the law ``w p`` from p, of frames (M, K) of p with log weights (M,).

        excess = ⟨JS(w·A, B) - JS(w'·A, B)⟩ over random halves A, B

    with w' the weights over their mean in the cells of the frame: they change no law, but have
    the noise of w where it is. The error is a jackknife over groups of frames;
    ``n_effective = (Σ w)²/Σ w²``.

    Parameters
    ----------
    reference : counts of frames in K cells, see `cell_rows`
    log_weights : ln w, up to a constant
    """
    rng = np.random.default_rng(seed)
    m = reference.shape[0]
    w = np.exp(log_weights - np.max(log_weights))
    counts = np.maximum(reference.sum(0), 1.0)
    level = reference @ ((w @ reference) / counts) / reference.sum(1)
    splits = [rng.permutation(m) for _ in range(_SPLITS)]
    groups = rng.permutation(m) % min(_GROUPS, m)

    def both(use: np.ndarray, orders) -> np.ndarray:
        pairs = []
        for order in orders:
            a, b = order[: m // 2], order[m // 2 :]
            rest = _sum(reference, b, use[b])
            ours, exact = (_sum(reference, a, (use * v)[a]) for v in (w, w / level))
            pairs.append((jensen_shannon(ours, rest), jensen_shannon(exact, rest)))
        return np.mean(pairs, axis=0)

    js, floor = both(np.ones(m), splits)
    each = [both((groups != g).astype(float), splits[:4]) for g in range(groups.max() + 1)]
    error = float(jackknife_error([a - b for a, b in each]))
    worth = m * float(effective_fraction(torch.as_tensor(log_weights)))
    return Divergence(float(js), float(floor), float(js - floor), error, worth)


def _effective_number(
    reference: csr_array, samples: csr_array, groups: np.ndarray, *, seed: int = 0
) -> float:
    """Independent frames that correlated samples are worth, as this histogram sees it.

    Two halves of the groups (walkers, whole) differ by JS_h; so do two disjoint sets of k
    frames of the reference, for a k that is found on a grid. The samples are worth 2k, at
    least 2 and at most their number.
    """
    rng = np.random.default_rng(seed)
    m, table = reference.shape[0], _by_group(samples, groups)
    halves = []
    for _ in range(_SPLITS):
        order = rng.permutation(len(table))
        first, second = (table[o].sum(0) for o in np.array_split(order, 2))
        halves.append(jensen_shannon(first, second))
    sizes = np.unique(np.geomspace(max(2, len(table) // 8), m // 2, 12).astype(int))
    curve = []
    for k in sizes:
        pairs = [rng.permutation(m)[: 2 * k] for _ in range(8)]
        between = [jensen_shannon(_sum(reference, o[:k]), _sum(reference, o[k:])) for o in pairs]
        curve.append(np.mean(between))
    # decreasing in k but for noise
    falling = np.minimum.accumulate(curve)
    log_k = np.interp(-np.mean(halves), -falling, np.log(sizes))
    return float(np.clip(2 * np.exp(log_k), 2, samples.shape[0]))


def _by_group(samples: csr_array, groups: np.ndarray) -> np.ndarray:
    """Counts of each group (G, K)."""
    n = samples.shape[0]
    picks = csr_array((np.ones(n), (groups, np.arange(n))), shape=(int(groups.max()) + 1, n))
    return (picks @ samples).toarray()


def _sum(rows: csr_array, index: np.ndarray, weights=1.0) -> np.ndarray:
    c = np.zeros(rows.shape[0])
    c[index] = weights
    return c @ rows
