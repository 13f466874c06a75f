"""Overdamped diffusion in any potential of the plane, on a grid: times, committors, exactly.

The generator ``D (∇² - ∇(U/kT)·∇)`` as jumps between neighbouring cells with rates
``(D/a²) exp(-[U_j - U_i]/2kT)``, reversible with respect to exp(-U/kT) and of second order in a.
"""

import numpy as np
import scipy.sparse as sp
import torch
from scipy.sparse.linalg import eigsh, factorized


class PlaneGrid:
    """``potential`` (of one atom, at z = 0) on nx × ny cells of ``box`` ((x0, x1), (y0, y1))."""

    def __init__(self, potential, kT: float, box, cells: int, *, ceiling: float = 25.0):
        (x0, x1), (y0, y1) = box
        self.a = (x1 - x0) / cells
        xs = np.arange(x0 + self.a / 2, x1, self.a)
        ys = np.arange(y0 + self.a / 2, y1, self.a)
        points = np.stack(np.meshgrid(xs, ys, indexing="ij"), -1)
        x = torch.zeros(points.size // 2, 1, 3, dtype=torch.float64)
        x[:, 0, :2] = torch.from_numpy(points.reshape(-1, 2))
        u = potential(x).energy.numpy() / kT
        u -= u.min()
        kept = u < ceiling  # nobody comes higher
        self.points, self.u = points.reshape(-1, 2)[kept], u[kept]
        number = np.full(len(u), -1)
        number[kept] = np.arange(kept.sum())
        number = number.reshape(points.shape[:2])
        rows, columns = [], []
        for a, b in ((number[1:], number[:-1]), (number[:, 1:], number[:, :-1])):
            both = (a >= 0) & (b >= 0)
            rows += [a[both], b[both]]
            columns += [b[both], a[both]]
        i, j = np.concatenate(rows), np.concatenate(columns)
        rates = np.exp(-0.5 * (self.u[j] - self.u[i])) / self.a**2
        size = len(self.u)
        jumps = sp.csr_array((rates, (i, j)), shape=(size, size))
        self.generator = (jumps - sp.diags_array(jumps.sum(1))).tocsc()
        law = np.exp(-self.u)
        self.law = law / law.sum()

    def disc(self, centre, radius: float) -> np.ndarray:
        return np.linalg.norm(self.points - centre, axis=1) < radius

    def nearest(self, points: np.ndarray) -> np.ndarray:
        from scipy.spatial import cKDTree

        return cKDTree(self.points).query(points)[1]

    def mfpt(self, target: np.ndarray) -> np.ndarray:
        """Mean first passage time from each cell to the target (mask)."""
        free = np.flatnonzero(~target)
        times = np.zeros(len(self.u))
        inner = self.generator[free][:, free].tocsc()
        times[free] = factorized(inner)(-np.ones(len(free)))
        return times

    def committor(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Probability of each cell to reach b before a."""
        free = np.flatnonzero(~(a | b))
        q = b.astype(float)
        rest = -self.generator[free] @ q
        q[free] = factorized(self.generator[free][:, free].tocsc())(rest)
        return q

    def timescales(self, count: int = 3) -> np.ndarray:
        root = np.sqrt(self.law)
        symmetric = sp.diags_array(root) @ self.generator @ sp.diags_array(1 / root)
        symmetric = 0.5 * (symmetric + symmetric.T)
        values = eigsh(symmetric.tocsc(), k=count + 1, sigma=1e-3, return_eigenvectors=False)
        return -1 / np.sort(values)[::-1][1:]
