"""Entries of the card for what has no torsions: distances, and the peaks of g(r)."""

from __future__ import annotations

import numpy as np
import torch
from scipy.signal import find_peaks
from scipy.sparse import csr_array

from ..score.neighbours import edges
from ..system import System
from . import observables as ob
from .fidelity import excess_divergence
from .scorecard import Entry, Goals, divergence_entry, many_entry

__all__ = ["distance_entries"]

_CELLS = 150
_CUTOFF = 6.0  # Å, of distances between periodic images
_GROUPS = 20  # of frames, for the jackknife


def distance_entries(
    system: System,
    reference: np.ndarray,
    samples: dict[str, tuple[np.ndarray, np.ndarray | None]],
    goals: Goals,
    *,
    seed: int,
) -> list[Entry]:
    """Divergence of all distances, and the first peaks of g(r) where there are any.

    ``reference`` (M, N, 3); samples (S, N, 3) and, of walkers, who they are of (S,).
    """
    edges_, rows = _distance_rows(system, reference, None)
    found, centres = [], (edges_[1:] + edges_[:-1]) / 2
    for label, (x, walkers) in samples.items():
        _, table = _distance_rows(system, x, edges_)
        excess = excess_divergence(rows, table, walkers=walkers, seed=seed)
        goal = goals.dynamics if walkers is not None else goals.independent
        worth = f"{len(x)} frames worth {excess.n_effective:.0f}"
        found.append(divergence_entry("distances", f"JS distances: {label}", excess, goal, worth))
        shell = np.diff(edges_**3)
        groups = np.arange(len(x)) % 20 if walkers is None else walkers
        data = _peaks(
            centres, _blocks(rows, np.arange(len(reference)) * 20 // len(reference)), shell
        )
        ours = _peaks(centres, _blocks(table, groups), shell, near=[p[0] for p in data])
        names, values, errors = [], [], []
        for n, (a, b) in enumerate(zip(ours, data, strict=True), 1):
            for what, k in (("place", 0), ("height", 1)):
                names.append(f"{what} of peak {n} at {b[0]:.2f} Å")
                ratio = a[k] / b[k]
                values.append(ratio)
                errors.append(ratio * np.hypot(a[k + 2] / a[k], b[k + 2] / b[k]))
        if names:
            name = f"peaks of g(r): {label}"
            found.append(many_entry("distances", name, names, values, errors, goal=goals.peak))
    return found


def _distance_rows(system: System, x: np.ndarray, bins):
    if system.periodic:
        widths = np.abs(np.linalg.det(system.cell))
        limit = min(_CUTOFF, 3 * widths ** (1 / 3))
        cell = torch.as_tensor(system.cell)
        pbc = tuple(bool(p) for p in system.pbc)
        values, frames = [], []
        for begin in range(0, len(x), 256):
            part = torch.as_tensor(x[begin : begin + 256])
            first, _, vector = edges(part, limit, cell, pbc)[:3]
            values.append(vector.norm(dim=-1).numpy())
            frames.append(first.numpy() // len(system) + begin)
        r, owner = np.concatenate(values), np.concatenate(frames)
    else:
        pairs = np.stack(np.triu_indices(len(system), 1), 1)
        r = ob.distances(x, pairs)
        owner = np.repeat(np.arange(len(x)), len(pairs))
        r, limit = r.ravel(), None
    if bins is None:
        high = r.max() if limit is None else limit
        bins = np.linspace(r.min() * 0.9, high * (1 + 1e-9), _CELLS + 1)
    cells = np.searchsorted(bins, r, side="right") - 1
    return bins, _rows_by_owner(owner, cells, len(x), len(bins) - 1)


def _rows_by_owner(owner, cells, n_frames: int, n_cells: int):
    fine = (cells >= 0) & (cells < n_cells)
    data = np.ones(int(fine.sum()))
    return csr_array((data, (owner[fine], cells[fine])), shape=(n_frames, n_cells))


def _blocks(rows, groups) -> np.ndarray:
    """Mean counts of each group (G, K)."""
    groups = np.unique(groups, return_inverse=True)[1]
    return np.stack(
        [rows[groups == g].sum(0) / (groups == g).sum() for g in range(groups.max() + 1)]
    )


def _peaks(r, blocks, shell, near=None) -> list[tuple[float, float, float, float]]:
    """Place, height and their errors of up to three peaks of counts over r²dr; jackknife."""
    whole = blocks.mean(0) / shell
    if near is None:
        tops = find_peaks(whole, prominence=0.1 * whole.max())[0][:3]
        near = r[tops].tolist()
    found = []
    for place in near:
        full = _top(r, whole, place)
        left = [_top(r, (blocks.sum(0) - one) / (len(blocks) - 1) / shell, place) for one in blocks]
        spread = np.std(left, axis=0) * np.sqrt(len(blocks) - 1)
        found.append((*full, *spread.tolist()))
    return found


def _top(r, g, place) -> tuple[float, float]:
    """Of a parabola through the bins around the largest one within 0.3 Å of ``place``."""
    close = np.abs(r - place) < 0.3
    top = r[close][g[close].argmax()]
    close = np.abs(r - top) < max(0.16, 1.5 * (r[1] - r[0]))
    a, b, c = np.polyfit(r[close] - top, g[close], 2)
    if not a < 0:
        return float("nan"), float("nan")
    return float(top - b / (2 * a)), float(c - b**2 / (4 * a))
