"""How far the equilibrium of a model is from that of a reference, from energies alone.

Samples of the model's law exp(-E/kT), and the reference's energies U of the same structures, give
weights ``w = exp(-(U - E)/kT)``, free of any constant. For every observable f

    ⟨f⟩_ref - ⟨f⟩_model = Cov(f, w)/⟨w⟩        |⟨f⟩_ref - ⟨f⟩_model| ≤ σ_f sqrt(χ²)
    χ² = ⟨w²⟩/⟨w⟩² - 1        KL(model ‖ reference) = ⟨(U - E)/kT⟩ + ln⟨w⟩

averages and σ_f under the model; the first is exact, the second Cauchy–Schwarz. All of it is
blind to modes that no sample visited: estimated, on the visited support. Plain steps do not
sample exp(-E/kT); accepted ones do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..statistics import Estimate, mean_estimate, statistical_inefficiency

__all__ = ["Equilibrium", "Shift", "compare_energies"]

_FEWEST = 10.0  # independent samples that must carry the weight


class Shift(NamedTuple):
    """What the model's error does to the average of one observable.

    Attributes
    ----------
    model : average under the model
    reference : average under the reference, reweighted
    difference : reference less model, ``Cov(f, w)/⟨w⟩``
    bound : ``σ_f sqrt(χ²)``, which no difference exceeds on the visited support
    """

    model: Estimate
    reference: Estimate
    difference: Estimate
    bound: Estimate


@dataclass(frozen=True, eq=False)
class Equilibrium:
    """The equilibrium of a model against that of a reference: estimated, on the visited support.

    Made by `compare_energies`.
    """

    chi2: Estimate  # χ² of the two laws; infinite without overlap
    kl: Estimate  # KL(model ‖ reference) in nats; infinite without overlap
    spread: Estimate  # std((U - E)/kT)
    effective: float  # fraction of the samples that the weights are worth, 1/(1 + χ²)
    samples: int  # structures
    overlap: bool  # enough samples carry the weight for the numbers to mean something
    weights: np.ndarray  # (T, W), mean 1

    @property
    def bound(self) -> Estimate:
        """``sqrt(χ²)``: how far any average can be from the reference's, in its σ_f."""
        root = float(np.sqrt(max(self.chi2.value, 0.0)))
        error = self.chi2.error / (2.0 * root) if root > 0 else self.chi2.error
        return Estimate(root, error, self.chi2.n_effective)

    def shift(self, values: np.ndarray) -> Shift:
        """The exact error and its bound for an observable, ``values`` (T, W) of the samples.

        Raises ``ValueError`` for another shape.
        """
        f = np.asarray(values, dtype=float)
        if f.shape != self.weights.shape:
            raise ValueError(
                f"values {f.shape} of an observable for samples {self.weights.shape}: expected "
                "one value for each structure"
            )
        model, centred = mean_estimate(f), f - f.mean()
        value = float((centred * self.weights).mean())
        difference = Estimate(
            value,
            # w·δf with the mean weight and the mean of f estimated from the same samples
            mean_estimate((self.weights - 1.0) * centred - value * self.weights).error,
            model.n_effective,
        )
        reference = mean_estimate(self.weights * (centred - value))
        reference = Estimate(model.value + value, reference.error, reference.n_effective)
        sigma, root = float(f.std()), self.bound
        bound = Estimate(sigma * root.value, sigma * root.error, root.n_effective)
        return Shift(model, reference, difference, bound)


def compare_energies(model: np.ndarray, reference: np.ndarray) -> Equilibrium:
    """`Equilibrium` from energies over kT of samples of the ``model``, and the ``reference``'s.

    Parameters
    ----------
    model, reference : (T,) or (T, W) E/kT and U/kT of the same structures, time first

    Raises
    ------
    ValueError : shapes that differ, fewer than two samples, energies that are not finite
    """
    e, u = (np.asarray(a, dtype=float) for a in (model, reference))
    if e.shape != u.shape or e.ndim not in (1, 2) or e.size < 2:
        raise ValueError(
            f"energies of shapes {e.shape} and {u.shape}: expected (T,) or (T, W), at least two "
            "and one of each for every structure"
        )
    delta = (u - e).reshape(len(u), -1)
    if not np.isfinite(delta).all():
        raise ValueError(
            f"{(~np.isfinite(delta)).sum()} of {delta.size} energies are not finite: leave out the "
            "structures for which the reference fails, or converge it there"
        )
    delta = delta - delta.mean()
    logs = -delta
    shift = float(logs.max())
    log_mean = shift + float(np.log(np.exp(logs - shift).mean()))
    w = np.exp(logs - log_mean)
    chi2 = float((w**2).mean()) - 1.0
    # energies that differ by a constant leave every sample its full weight
    g = max(map(statistical_inefficiency, (w, delta))) if np.ptp(delta) > 1e-9 else 1.0
    independent = delta.size / (1.0 + chi2) / min(g, len(delta))
    overlap = independent >= min(_FEWEST, delta.size)
    error = mean_estimate(w**2 - 2.0 * (chi2 + 1.0) * w)
    kl_error = mean_estimate(delta + w).error
    variance = mean_estimate(delta**2)
    std = float(np.sqrt(variance.value))
    infinite = Estimate(np.inf, np.nan, independent)
    return Equilibrium(
        chi2=Estimate(chi2, error.error, independent) if overlap else infinite,
        kl=Estimate(max(log_mean, 0.0), kl_error, independent) if overlap else infinite,
        spread=Estimate(std, variance.error / (2 * std) if std else 0.0, variance.n_effective),
        effective=1.0 / (1.0 + chi2),
        samples=delta.size,
        overlap=bool(overlap),
        weights=w,
    )
