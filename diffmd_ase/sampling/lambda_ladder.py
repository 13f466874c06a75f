"""Where to put the windows of a coupling: equal lengths in the metric of ∂U/∂λ.

The length of a path of ensembles is ``L = ∫ sqrt(Var(∂U/∂λ))/kT dλ``; neighbours at equal parts
of it overlap alike, and ΔF has the smallest error for a number of samples (Shenfeld, Xu, Eastwood,
Dror & Shaw, Phys. Rev. E 80, 046705 (2009); Crooks, Phys. Rev. Lett. 99, 100602 (2007)).
"""

from __future__ import annotations

import numpy as np
from scipy.interpolate import PchipInterpolator
from torch import Tensor

__all__ = ["equalised_lambda", "path_length"]

_SHARE = 0.3  # of the mean density that no part of the path goes below: a short run may see none


def path_length(lambdas, deviations) -> np.ndarray:
    """(K,) length of the path from λ_0 to each λ, by the trapezoid.

    Parameters
    ----------
    lambdas : (K,) increasing
    deviations : (K,) standard deviation of ``(∂U/∂λ)/kT`` at each

    Raises
    ------
    ValueError : shapes that differ, λ that do not increase, deviations that are no numbers
    """
    lam, density = (np.asarray(_array(v), dtype=float) for v in (lambdas, deviations))
    if lam.ndim != 1 or lam.shape != density.shape or len(lam) < 2 or (np.diff(lam) <= 0).any():
        raise ValueError(f"λ {lam} and deviations {density}: expected (K,) of both, λ increasing")
    if not (np.isfinite(density) & (density >= 0)).all() or not density.any():
        raise ValueError(
            f"deviations {density} of ∂U/∂λ must be finite, not negative and not all zero: the "
            "end states differ by a constant, or a calculator failed"
        )
    parts = 0.5 * (density[1:] + density[:-1]) * np.diff(lam)
    return np.concatenate(([0.0], np.cumsum(parts)))


def equalised_lambda(lambdas, deviations, n_states: int | None = None) -> np.ndarray:
    """(K',) λ from the first to the last at equal parts of the length of the path.

    Parameters
    ----------
    lambdas, deviations : as of `path_length`, from a short first pass
    n_states : K'; None: one for each kT of the length, and 3 to 40

    Raises
    ------
    ValueError : as `path_length`; fewer than two states
    """
    length = path_length(lambdas, deviations)
    lam = np.asarray(_array(lambdas), dtype=float)
    count = int(np.clip(np.ceil(length[-1]) + 1, 3, 40)) if n_states is None else n_states
    if count < 2:
        raise ValueError(f"{n_states=} must be at least 2")
    density = np.asarray(_array(deviations), dtype=float)
    floor = np.maximum(density, _SHARE * length[-1] / (lam[-1] - lam[0]))
    length = path_length(lam, floor)
    new = PchipInterpolator(length, lam)(np.linspace(0.0, length[-1], count))
    new[0], new[-1] = lam[0], lam[-1]
    return new


def _array(values):
    return values.cpu().numpy() if isinstance(values, Tensor) else values
