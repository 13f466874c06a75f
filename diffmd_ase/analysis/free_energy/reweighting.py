"""Weights that undo a bias, and how many independent samples they leave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import logsumexp

from ...independent.weights import effective_fraction
from ...io.plumed_tables import PlumedTable
from ..statistics import statistical_inefficiency
from .hills_files import Hills, bias_at, reweighting_factor

__all__ = [
    "Effective",
    "Samples",
    "bias_columns",
    "choose_method",
    "effective_samples",
    "keep_after",
    "log_weights",
    "log_weights_of_each",
    "variable_names",
]

_METHODS = ("rbias", "last", "opes", "static", "none")
_OPES = ("zed", "neff", "nker")


@dataclass(frozen=True)
class Samples:
    """Collective variables with the logarithms of their weights.

    Attributes
    ----------
    s : (n, d)
    log_weights : (n,) up to a constant; normalised so that the weights sum to n
    walker : (n,) int; rows of one walker are in the order of time
    names : d names
    periods : (d,) lengths of periodic domains, 0 where there is none

    Raises
    ------
    ValueError : shapes that do not fit, numbers that are not finite, fewer than two samples
    """

    s: np.ndarray
    log_weights: np.ndarray
    walker: np.ndarray
    names: tuple[str, ...]
    periods: np.ndarray

    def __post_init__(self):
        n, d = len(self.s), len(self.names)
        shapes = self.s.shape, self.log_weights.shape, self.walker.shape, self.periods.shape
        if shapes != ((n, d), (n,), (n,), (d,)):
            raise ValueError(f"shapes {shapes} of s, weights, walkers and periods do not fit")
        if n < 2:
            raise ValueError(f"{n} samples are left: skip less, or run longer")
        if not (np.isfinite(self.s).all() and np.isfinite(self.log_weights).all()):
            raise ValueError("samples or weights are not finite: leave those rows out")
        normal = self.log_weights - logsumexp(self.log_weights) + np.log(n)
        object.__setattr__(self, "log_weights", normal)

    @classmethod
    def of(cls, s, log_weights=None, *, walker=None, names=None, periods=None) -> Samples:
        """From arrays; no weights, one walker and nothing periodic unless given."""
        s = np.asarray(s, float)
        s = s[:, None] if s.ndim == 1 else s
        n, d = s.shape
        return cls(
            s,
            np.zeros(n) if log_weights is None else np.asarray(log_weights, float),
            np.zeros(n, int) if walker is None else np.asarray(walker, int),
            tuple(f"s{i}" for i in range(d)) if names is None else tuple(names),
            np.zeros(d) if periods is None else np.asarray(periods, float),
        )

    def __len__(self) -> int:
        return len(self.s)

    @property
    def weights(self) -> np.ndarray:
        """(n,) weights of mean one."""
        return np.exp(self.log_weights)

    def take(self, rows: np.ndarray) -> Samples:
        """These rows only, weights normalised again."""
        return replace(
            self, s=self.s[rows], log_weights=self.log_weights[rows], walker=self.walker[rows]
        )

    def progress(self) -> np.ndarray:
        """(n,) how far along its own walker each row is, in (0, 1]."""
        place, count = _places(self.walker)
        return (place + 1) / count

    @cached_property
    def inefficiency(self) -> float:
        """g of the slowest variable, weights and all: of the series ``w (f - Σ w f/n)``, with f
        the variable or, of an angle, its cosine and its sine."""
        w, g = self.weights, 1.0
        for n, period in enumerate(self.periods):
            s = self.s[:, n]
            parts = [f(2 * np.pi / period * s) for f in (np.cos, np.sin)] if period else [s]
            for f in parts:
                g = max(g, statistical_inefficiency(self.series(w * (f - np.mean(w * f)))))
        return g

    def series(self, values: np.ndarray) -> np.ndarray:
        """(n,) as (T, W) where all walkers are of one length, else one series (n,)."""
        order = np.argsort(self.walker, kind="stable")
        counts = np.unique(self.walker, return_counts=True)[1]
        if (counts != counts[0]).any():
            return values[order]
        return values[order].reshape(len(counts), counts[0]).T


class Effective(NamedTuple):
    """How many samples there really are.

    ``kish = (Σw)²/Σw²`` counts weights, ``inefficiency`` g is that of the weighted series
    and counts correlation in time, ``independent`` has both.
    """

    kish: float
    inefficiency: float
    independent: float


def keep_after(table: PlumedTable, fraction: float) -> np.ndarray:
    """(n,) bool: rows of the ``table`` after the first ``fraction`` of each walker."""
    place, count = _places(table.walker)
    return place / count >= fraction


def _places(walker: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number of each row among those of its walker, from 0, and how many these are: (n,) each."""
    _, own, counts = np.unique(walker, return_inverse=True, return_counts=True)
    place = np.empty(len(walker), int)
    first = np.cumsum(counts) - counts
    place[np.argsort(own, kind="stable")] = np.arange(len(walker)) - np.repeat(first, counts)
    return place, counts[own]


def effective_samples(samples: Samples) -> Effective:
    """Independent samples behind the slowest variable: those of its mean, at most ``kish``.

    An angle enters as its cosine and sine.
    """
    kish = len(samples) * float(effective_fraction(torch.from_numpy(samples.log_weights)))
    g = samples.inefficiency
    return Effective(kish, g, max(1.0, kish / g))


# ------------------------------------------------------------------------ from files


def bias_columns(table: PlumedTable) -> dict[str, str]:
    """Labels of the biases of a COLVAR and what they are: ``metad``, ``opes`` or ``bias``.

    A column that is just ``bias`` has the label "". The columns beside a bias tell its kind.
    ``table``: the COLVAR.
    """
    kinds = {}
    for name in table.fields:
        label, _, part = name.rpartition(".")
        if part != "bias":
            continue
        if any(_of(label, p) in table for p in _OPES):
            kinds[label] = "opes"
        elif _of(label, "rbias") in table or _of(label, "rct") in table:
            kinds[label] = "metad"
        else:
            kinds[label] = "bias"
    return kinds


def choose_method(table: PlumedTable, hills: Hills | None) -> str:
    """The way to reweight that the columns of a COLVAR ``table`` and its ``hills`` call for.

    Raises ``ValueError`` where they leave it open, or where there is no bias.
    """
    kinds = set(bias_columns(table).values())
    if "metad" in kinds or hills is not None:
        return "rbias"
    if "opes" in kinds:
        return "opes"
    if kinds:
        names = ", ".join(_of(k, "bias") for k in bias_columns(table))
        raise ValueError(
            f"{table.path}: the columns {names} do "
            "not say what bias this is. Metadynamics: give its HILLS as well; OPES: say opes; a "
            "restraint or any bias that does not change: say static"
        )
    raise ValueError(
        f"{table.path} has no bias column, only {', '.join(table.fields)}: PRINT ARG=…,m.bias "
        "writes one; if the run was not biased, say none"
    )


def log_weights(
    table: PlumedTable, method: str, kT: float, *, hills: Hills | None = None
) -> np.ndarray:
    """Logarithms of the weights (n,) of the rows of a COLVAR, kT in its unit of energy.

    ==========  =============================================================
    ``rbias``   ``(V(s,t) - c(t))/kT`` (Tiwary & Parrinello, J. Phys. Chem. B 119, 736
                (2015)); from the column rbias, else rct, else c(t) of the hills
    ``last``    ``V(s,T)/kT`` with the final bias of the hills (Branduardi, Bussi &
                Parrinello, J. Chem. Theory Comput. 8, 2247 (2012))
    ``opes``    ``V(s,t)/kT`` with the bias as it was; leave out the time in which it grew
    ``static``  the same; the bias did not change
    ``none``    0
    ==========  =============================================================

    Restraints, walls and other ``.bias`` columns always enter as they were.
    ``last`` takes V(s,T) for exact: errors computed from its weights lack the noise of the
    last hills, so ``rbias`` is the one to trust.

    Parameters
    ----------
    table : the COLVAR
    method : one of the above
    hills : of the same run, where the columns do not hold what the method needs

    Raises
    ------
    ValueError : an unknown method, no bias, no hills that are needed, or several biases that may
        be theirs
    """
    if method not in _METHODS:
        raise ValueError(f"method {method!r}: expected one of {', '.join(_METHODS)}")
    if method == "none":
        return np.zeros(len(table))
    labels = bias_columns(table)
    if method in ("opes", "static"):
        if not labels:
            choose_method(table, None)  # says that there is no bias
        return np.sum([_bias(table, k) for k in labels], axis=0) / kT
    metad = [k for k, what in labels.items() if what == "metad"]
    if method == "rbias" and metad:
        total = np.sum([_rbias(table, k) for k in metad], axis=0)
        others = [k for k in labels if k not in metad]
    elif hills is None:
        raise ValueError(
            f"method {method} needs the HILLS of the run"
            + (", or CALC_RCT in METAD, which prints rbias" if method == "rbias" else "")
        )
    else:
        label = metad[0] if metad else _deposited(table, labels, method)
        others = [k for k in labels if k != label]
        if method == "last":
            total = bias_at(hills, table.columns(hills.names))
        else:
            c = reweighting_factor(hills, kT)
            # a row is printed before the hill of its own step is deposited
            n = np.searchsorted(hills.time, table.column("time") - 1e-9 * hills.time[-1])
            total = _bias(table, label) - c[n]
    return np.sum([total, *(_bias(table, k) for k in others)], axis=0) / kT


def log_weights_of_each(
    table: PlumedTable, method: str, kT: float, biases: Sequence[Hills] | None
) -> np.ndarray:
    """As `log_weights`, of independent walkers: each by its own bias, and of mean weight one.

    A bias is known up to a constant, hence the weights of a walker up to a factor.

    Parameters
    ----------
    table, method, kT : as of `log_weights`
    biases : the hills of each walker of the table, in their order, where `log_weights` needs any

    Raises
    ------
    ValueError : another number of walkers, and as `log_weights`
    """
    walkers = np.unique(table.walker)
    if biases is not None and len(walkers) != len(biases):
        raise ValueError(
            f"{table.path}: {len(walkers)} walkers, but HILLS of {len(biases)}: give the COLVAR "
            "and the HILLS of each walker"
        )
    log_w = np.empty(len(table))
    for walker, hills in zip(walkers, biases or [None] * len(walkers), strict=True):
        rows = table.walker == walker
        own = log_weights(table.take(rows), method, kT, hills=hills)
        log_w[rows] = own - logsumexp(own) + np.log(len(own))
    return log_w


def _of(label: str, part: str) -> str:
    return f"{label}.{part}" if label else part


def _bias(table: PlumedTable, label: str) -> np.ndarray:
    return table.column(_of(label, "bias"))


def _rbias(table: PlumedTable, label: str) -> np.ndarray:
    if _of(label, "rbias") in table:
        return table.column(_of(label, "rbias"))
    return _bias(table, label) - table.column(_of(label, "rct"))


def _deposited(table: PlumedTable, labels: dict[str, str], method: str) -> str | None:
    """The column of the bias that the hills made, where it is not the only one."""
    if len(labels) == 1:
        return next(iter(labels))
    likely = [k for k in labels if "metad" in k.lower()]
    if len(likely) == 1:
        return likely[0]
    if method == "last" and not labels:
        return None
    raise ValueError(
        f"{table.path}: which of the columns "
        f"{', '.join(_of(k, 'bias') for k in labels) or '(none)'} is that of the HILLS? Call the "
        "action metad (metad: METAD …), or print its rbias (CALC_RCT)"
    )


def variable_names(table: PlumedTable) -> list[str]:
    """Columns of a ``table`` that may be variables: neither time nor outputs of a bias."""
    labels = bias_columns(table)
    rest = [n for n in table.fields if n not in ("time", "walker")]
    if "" in labels:
        rest = [n for n in rest if n not in ("bias", "rbias", "rct", "work", *_OPES)]
    return [n for n in rest if not ("." in n and n.rpartition(".")[0] in labels)]
