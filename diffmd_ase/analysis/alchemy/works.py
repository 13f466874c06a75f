"""ΔF from the works of switches in both directions: BAR, and what one direction alone would say."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.special import logsumexp

from ...libraries import quiet_pymbar
from ..statistics import Estimate

__all__ = ["WorkEstimate", "from_works"]

_LARGEST = 500.0  # kT from their median: what is further has no weight, or all of it


@dataclass
class WorkEstimate:
    """ΔF in kT from works, and ``verdicts``: ``good`` and ``text`` of each."""

    best: Estimate  # BAR (Crooks)
    forward: float  # Jarzynski, -ln⟨exp(-w)⟩, of the forward works alone
    backward: float  # and of the backward ones
    dissipated: tuple[float, float]  # ⟨w⟩ - ΔF forward, ⟨w⟩ + ΔF backward, in kT
    verdicts: list[dict[str, Any]] = field(default_factory=list)

    def numbers(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "BAR_kT": self.best.value,
            "BAR_error_kT": self.best.error,
            "Jarzynski_forward_kT": self.forward,
            "Jarzynski_backward_kT": self.backward,
            "dissipated_kT": list(self.dissipated),
            "switches": self.best.n_effective,
        }


def from_works(forward, backward) -> WorkEstimate:
    """BAR of ``forward`` and ``backward`` works (n,), (m,) in kT, of independent switches.

    An infinite work, of a particle that came where energies are not finite, has no weight.

    Raises
    ------
    ValueError : less than two works in a direction
    """
    w_f, w_b = (np.asarray(w, dtype=float).ravel() for w in (forward, backward))
    w_f, w_b = (w[~np.isnan(w)] for w in (w_f, w_b))
    if min(len(w_f), len(w_b)) < 2:
        raise ValueError(
            f"{len(w_f)} works forward and {len(w_b)} backward: at least 2 each; a switch whose "
            "calculator failed has none"
        )
    # works may have a large constant, and a few that are out of all proportion
    shift = float(np.median(np.concatenate((w_f, -w_b))))
    w_f, w_b = (np.clip(w, -_LARGEST, _LARGEST) for w in (w_f - shift, w_b + shift))
    told = quiet_pymbar().bar(w_f, w_b)
    value, error = float(told["Delta_f"]), float(told["dDelta_f"])
    one_way = [float(np.log(len(w)) - logsumexp(-w)) for w in (w_f, w_b)]
    result = WorkEstimate(
        Estimate(value + shift, error, float(len(w_f) + len(w_b))),
        one_way[0] + shift,
        -one_way[1] + shift,
        (float(w_f.mean() - value), float(w_b.mean() + value)),
    )
    lost = max(result.dissipated)
    text = f"switches dissipate {result.dissipated[0]:.2f} and {result.dissipated[1]:.2f} kT"
    good = lost < np.log(min(len(w_f), len(w_b)))
    if not good:
        text += ": works of the two directions hardly overlap; switch more slowly"
    result.verdicts.append({"good": bool(good), "text": text})
    both = abs(result.forward - result.backward)
    text = f"one direction alone gives {result.forward:.2f} and {result.backward:.2f} kT"
    fine = both < max(1.0, 6 * error)
    result.verdicts.append(
        {"good": bool(fine), "text": text if fine else f"{text}: switch more slowly"}
    )
    return result
