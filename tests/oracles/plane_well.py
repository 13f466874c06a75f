"""Two atoms in a coupled harmonic well, and its law in any subspace of displacements."""

import numpy as np
import torch
from ase import Atoms

from diffmd_ase.potentials.base import Potential
from diffmd_ase.state import Evaluation
from diffmd_ase.units import kT_from_temperature

KELVIN = 300.0
KT = kT_from_temperature(KELVIN)
LAMBDA = 60.0  # 1/Å², about the largest eigenvalue of K/kT
SPRING = LAMBDA / 1.6  # h λ = 0.8

_ROOT = np.random.default_rng(5).standard_normal((6, 6))
K = KT * LAMBDA * (np.eye(6) * 0.25 + 0.75 * _ROOT @ _ROOT.T / np.linalg.norm(_ROOT @ _ROOT.T, 2))
START = np.array([[0.3, -0.2, 0.1], [1.0, 0.4, -0.3]])


class Well(Potential):
    """``½ xᵀ K x``."""

    def __call__(self, x):
        flat = x.flatten(-2)
        forces = -flat @ torch.as_tensor(K).to(x)
        return Evaluation(-0.5 * (flat * forces).sum(-1), forces.reshape(x.shape))


def atoms() -> Atoms:
    return Atoms("CuAg", START, cell=[[7.0, 0.0, 0.0], [1.0, 8.0, 0.0], [0.0, 2.0, 9.0]])


def basis(rows) -> np.ndarray:
    """Orthonormal columns (6, d) across the ``rows`` (m, 6)."""
    rows = np.reshape(rows, (-1, 6))
    return np.linalg.svd(rows)[2][np.linalg.matrix_rank(rows) :].T


def z_scores(x: np.ndarray, free: np.ndarray) -> np.ndarray:
    """Of means and covariances of independent draws x (M, 2, 3), in the directions ``free`` (6, d).

    The law there is that of exp(-U/kT) with what is across staying as in `START`.
    """
    stiffness = free.T @ K @ free
    mean = -np.linalg.solve(stiffness, free.T @ K @ START.ravel())
    c = KT * np.linalg.inv(stiffness)
    y = (x.reshape(-1, 6) - START.ravel()) @ free - mean
    count, width = len(y), np.sqrt(np.diag(c))
    of_mean = y.mean(0) / (width / np.sqrt(count))
    spread = np.sqrt((np.outer(width, width) ** 2 + c**2) / count)
    of_covariance = (y.T @ y / count - c) / spread
    return np.concatenate([of_mean, of_covariance[np.triu_indices(len(c))]])
