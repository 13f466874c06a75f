"""TI, BAR and MBAR of one coupling, their overlap and convergence, and a verdict in words.

The numbers are alchemlyb's and pymbar's. What is added: TI along a cubic spline through the means
(scipy), whose difference from the trapezoid says how good the quadrature is; and a jackknife over
blocks of time for BAR of more than two states, whose neighbours share samples.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.interpolate import CubicSpline

from ...libraries import quiet_alchemlyb, quiet_pymbar
from ..statistics import Estimate, jackknife_error
from .samples import CoupledSamples

__all__ = ["CoupledEstimate", "closure", "estimate"]

OVERLAP = 0.03  # of neighbours, the rule of alchemlyb (Klimovich, Shirts & Mobley 2015)
_FEW = 50  # effective samples in a state
_BLOCKS = 10
_ITERATIONS = 500
_LARGEST = 500.0  # kT: what is further up has no weight in the other state
_PARTS = 4  # of the run, for convergence


@dataclass
class CoupledEstimate:
    """ΔF from λ = 0 to 1 by several estimators, all in kT.

    Parameters
    ----------
    value : of each estimator by name, "MBAR", "BAR", "TI"
    states : (K,) λ
    profile : (K,) F(λ) - F(0) by MBAR, and ``profile_error``
    slope, slope_error : (K,) mean of ∂U/∂λ
    n_effective : (K,) samples behind each
    overlap : (K, K), row i: how samples of i are shared out among the states
    convergence : (_PARTS, 5) fraction, ΔF from the start and its error, from the end and its error
    settled : A_c of the slopes in each state (K,), 1 settled at once, 0 never (Fan et al. 2021)
    kT : in eV
    """

    value: dict[str, Estimate]
    states: np.ndarray
    profile: np.ndarray
    profile_error: np.ndarray
    slope: np.ndarray
    slope_error: np.ndarray
    n_effective: np.ndarray
    overlap: np.ndarray
    convergence: np.ndarray
    settled: np.ndarray
    kT: float
    verdicts: list[dict[str, Any]] = field(default_factory=list)

    @property
    def best(self) -> Estimate:
        """That of MBAR."""
        return self.value["MBAR"]

    def judge(self, good: bool | None, text: str) -> None:
        """One verdict: good, bad, or to be known (None)."""
        self.verdicts.append({"good": None if good is None else bool(good), "text": text})

    @property
    def neighbour_overlap(self) -> np.ndarray:
        """(K-1,), the smaller of both directions, as if all states had as many samples."""
        even = self.overlap * self.n_effective.mean() / self.n_effective
        return np.minimum(np.diag(even, 1), np.diag(even, -1))

    def numbers(self) -> dict[str, Any]:
        """Ready for JSON."""
        told: dict[str, Any] = {"kT_eV": self.kT, "lambdas": self.states.tolist()}
        for name, one in self.value.items():
            told[f"{name}_kT"], told[f"{name}_error_kT"] = one.value, one.error
        told["dF_eV"], told["dF_error_eV"] = self.best.value * self.kT, self.best.error * self.kT
        told["neighbour_overlap"] = self.neighbour_overlap.tolist()
        told["effective_samples"] = self.n_effective.tolist()
        return told


def estimate(samples: CoupledSamples, *, skip: float = 0.0) -> CoupledEstimate:
    """Estimates of ``samples`` without the first fraction ``skip`` of the frames.

    Values are of all frames. Errors, overlap and convergence are of decorrelated ones, as many as
    all are worth: the values of these few alone would scatter more than their number says.

    Raises
    ------
    ImportError : alchemlyb is not installed
    ValueError : a state without samples
    """
    alchemlyb = quiet_alchemlyb()
    samples = samples.after(skip)
    offset = samples.offset / samples.kT
    samples = samples.centred()
    u_nk, dhdl = samples.u_nk(), samples.dhdl()
    every_u, every_slope = samples.u_nk(decorrelated=False), samples.dhdl(decorrelated=False)
    mbar, whole_mbar = (_mbar(alchemlyb, frames) for frames in (u_nk, every_u))
    profile, errors = whole_mbar.delta_f_.to_numpy()[0], mbar.d_delta_f_.to_numpy()[0]
    count = float(sum(map(len, u_nk)))
    slope = np.array([frame["fep"].mean() for frame in every_slope])
    slope_error = np.array([_error(frame["fep"].to_numpy()) for frame in dhdl])
    value = {
        "MBAR": Estimate(float(profile[-1]), float(errors[-1]), count),
        "BAR": _bar(every_u, u_nk, count),
        "TI": _ti(samples.states, slope, slope_error, count),
    }
    trapezoid = alchemlyb.estimators.TI().fit(alchemlyb.concat(every_slope)).delta_f_.iloc[0, -1]
    doubt = abs(float(trapezoid) - value["TI"].value)
    whole = offset * (samples.states[-1] - samples.states[0])
    value = {name: one._replace(value=one.value + whole) for name, one in value.items()}
    result = CoupledEstimate(
        value=value,
        states=samples.states,
        profile=profile + offset * (samples.states - samples.states[0]),
        profile_error=errors,
        slope=slope + offset,
        slope_error=slope_error,
        n_effective=np.array([float(len(frame)) for frame in u_nk]),
        overlap=mbar.overlap_matrix,
        convergence=_convergence(alchemlyb, u_nk, mbar.overlap_matrix)
        + whole * np.array([0, 1, 0, 1, 0]),
        settled=_settled(alchemlyb, dhdl),
        kT=samples.kT,
    )
    _judge(result, doubt)
    return result


def closure(legs: list[Estimate], *, limit: float = 4.0) -> tuple[Estimate, float, dict[str, Any]]:
    """The sum around a cycle of independent ``legs``, its z-score, and a verdict.

    Legs walked backwards enter with their sign changed. Returns ``Σ ΔF`` with its error, z, and
    the verdict; the cycle closes if ``|z| < limit``.
    """
    total = sum(leg.value for leg in legs)
    error = float(np.sqrt(sum(leg.error**2 for leg in legs)))
    z = total / error if error > 0 else (0.0 if total == 0 else np.inf)
    good = abs(z) < limit
    text = (
        f"the cycle {'closes' if good else 'does not close'}: {total:.3f} ± {error:.3f}, z {z:.1f}"
    )
    return Estimate(total, error, min(leg.n_effective for leg in legs)), z, _said(good, text)


def _said(good: bool | None, text: str) -> dict[str, Any]:
    return {"good": None if good is None else bool(good), "text": text}


def _mbar(alchemlyb, u_nk: list):
    # where windows overlap a few iterations do, and where they do not, none are enough
    return alchemlyb.estimators.MBAR(maximum_iterations=_ITERATIONS).fit(alchemlyb.concat(u_nk))


def _error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else np.nan


def _ti(states, slope, error, count: float) -> Estimate:
    """``Σ_k w_k ⟨∂U/∂λ⟩_k``, w_k the integral of the spline through 1 at λ_k and 0 elsewhere."""
    if len(states) < 3:
        weights = np.full(2, 0.5 * (states[-1] - states[0]))
    else:
        splines = CubicSpline(states, np.eye(len(states)))
        weights = splines.integrate(states[0], states[-1])
    return Estimate(float(weights @ slope), float(np.sqrt(weights**2 @ error**2)), count)


def _bar(u_nk: list, decorrelated: list, count: float) -> Estimate:
    """``Σ_k`` of ``pymbar.bar`` between neighbours; jackknife where they share samples."""
    frames, few = (
        [np.clip(frame.to_numpy(), -_LARGEST, _LARGEST) for frame in each]
        for each in (u_nk, decorrelated)
    )
    bar = quiet_pymbar().bar

    def whole(frames) -> tuple[float, float]:
        value, square = 0.0, 0.0
        for k, (lower, upper) in enumerate(pairwise(frames)):
            forward, backward = lower[:, k + 1] - lower[:, k], upper[:, k] - upper[:, k + 1]
            told = bar(forward, backward)
            value, square = value + told["Delta_f"], square + told["dDelta_f"] ** 2
        return float(value), float(np.sqrt(square))

    value, error = whole(frames)[0], whole(few)[1]
    if len(frames) > 2 and min(map(len, frames)) >= 2 * _BLOCKS:
        blocks = [np.arange(len(frame)) * _BLOCKS // len(frame) for frame in frames]
        left = [
            whole([frame[own != b] for frame, own in zip(frames, blocks, strict=True)])[0]
            for b in range(_BLOCKS)
        ]
        error = max(error, float(jackknife_error(left)))
    return Estimate(value, error, count)


def _convergence(alchemlyb, u_nk: list, overlap: np.ndarray) -> np.ndarray:
    """Empty where there are few samples, or windows that do not overlap at all."""
    if min(map(len, u_nk)) < 4 * _PARTS or np.diag(overlap, 1).min() < 1e-4:
        return np.empty((0, 5))
    told = alchemlyb.convergence.forward_backward_convergence(
        u_nk, "MBAR", num=_PARTS, maximum_iterations=_ITERATIONS
    )
    names = ["data_fraction", "Forward", "Forward_Error", "Backward", "Backward_Error"]
    return told[names].to_numpy()


def _settled(alchemlyb, dhdl: list) -> np.ndarray:
    """A_c of each state: the part of the run behind the point from where on means agree."""
    if min(map(len, dhdl)) < 20:
        return np.full(len(dhdl), np.nan)
    one = []
    for frame in dhdl:
        series = frame["fep"]
        tolerance = max(4.0 * _error(series.to_numpy()), 1e-9)
        one.append(alchemlyb.convergence.A_c([series], precision=0.1, tol=tolerance))
    return np.array(one)


def _judge(result: CoupledEstimate, doubt: float) -> None:
    """Verdicts of ``result``; ``doubt`` is between spline and trapezoid, in kT."""
    best, ti, bar = (result.value[name] for name in ("MBAR", "TI", "BAR"))
    for k, shared in enumerate(result.neighbour_overlap):
        if not shared >= OVERLAP:
            result.judge(
                False,
                f"windows λ = {result.states[k]:.3g} and {result.states[k + 1]:.3g} overlap by "
                f"{shared:.2g}, below {OVERLAP}: put a window between them, or more windows",
            )
    if not result.verdicts:
        result.judge(
            True, f"neighbours overlap by {result.neighbour_overlap.min():.2f}, at least {OVERLAP}"
        )
    few = result.n_effective.min()
    text = f"{few:.0f} effective samples in the poorest window"
    result.judge(few >= _FEW, text if few >= _FEW else f"{text}, below {_FEW}: run longer")
    if len(result.convergence):
        half = len(result.convergence) // 2 - 1
        _, first, first_error, last, last_error = result.convergence[half]
        z = abs(first - last) / max(np.hypot(first_error, last_error), 1e-12)
        text = f"the run from its start and from its end give {first:.2f} and {last:.2f} kT"
        result.judge(z < 3, text if z < 3 else f"{text}, {z:.1f} standard errors: run longer")
    else:
        result.judge(None, "too few samples, or too little overlap, to look at convergence")
    for name, one in (("BAR", bar), ("TI", ti)):
        z = abs(one.value - best.value) / max(one.error, best.error, 1e-12)
        text = f"{name} {one.value:.3f} ± {one.error:.3f} and MBAR {best.value:.3f} ± "
        text += f"{best.error:.3f} kT"
        if z < 3:
            result.judge(True, f"{text} agree")
        elif name == "TI" and doubt > best.error:
            result.judge(
                None,
                f"{text}: the quadrature of TI is known to {doubt:.2g} kT only; more windows "
                "make it better, MBAR needs none",
            )
        else:
            result.judge(False, f"{text} differ by {z:.1f} standard errors: run longer")
