"""What a METAD or OPES run deposited: bias, free energy and the constant c(t) from it.

HILLS heights of a well-tempered run are stored multiplied by γ/(γ-1): their sum G is minus
the free energy, the bias itself is V = G (γ-1)/γ. Without tempering (γ → ∞) both are one; with
γ = 1 nothing acts, V = 0, and G is learned all the same.
The hills are those of `potentials.biases.hills`, with covariances where a run adapted them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.ndimage import map_coordinates
from torch import Tensor

from ...geometry import shortest
from ...io.plumed_tables import PlumedTable, read_plumed
from ...potentials.biases.hills import CHUNK, CUTOFF, profile
from ...potentials.biases.metadynamics import reweighting_constant

__all__ = [
    "HeightLaw",
    "Hills",
    "bias_at",
    "free_energy_of_components",
    "height_law",
    "reweighting_factor",
    "sum_hills",
]

_STRETCHED = "stretched-gaussian"
_POINTS_PER_SIGMA = 6
_MAX_EVALUATIONS = 2000  # of c(t), which is smooth


@dataclass(frozen=True)
class Hills:
    """Hills of a file, in the order of time; `read` and `from_table` make them.

    Attributes
    ----------
    names : d collective variables
    time : (n,) in the unit of the file
    centres : (n, d)
    precision : (n, d, d) inverse covariance
    heights : (n,) as in the file, in its unit of energy
    biasfactor : γ ≥ 1; ``inf`` without tempering
    periods : (d,) lengths of the periodic domains, 0 where there is none
    lows : (d,) where those domains start
    stretched : PLUMED's stretched Gaussian, also of files that name no kernel, as ``sum_hills``
        reads them; ``kerneltype gaussian`` are Gaussians that end at the cutoff
    cutoff : ½ d² where a hill ends
    notes : what was left out or guessed when the files were read

    Raises
    ------
    ValueError : a file that is no HILLS, or holds hills of several bias factors
    """

    names: tuple[str, ...]
    time: np.ndarray
    centres: np.ndarray
    precision: np.ndarray
    heights: np.ndarray
    biasfactor: float
    periods: np.ndarray
    lows: np.ndarray
    stretched: bool = True
    cutoff: float = CUTOFF
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.time)

    @classmethod
    def read(cls, paths: str | Path | Sequence[str | Path]) -> Hills:
        """From HILLS files; those of several walkers are merged in the order of time.

        Raises ``ValueError`` for other files.
        """
        return cls.from_table(read_plumed(paths))

    @classmethod
    def read_each(cls, paths: str | Path | Sequence[str | Path]) -> list[Hills]:
        """As `read`, the hills of each walker by themselves."""
        table = read_plumed(paths)
        walkers = (table.walker == walker for walker in np.unique(table.walker))
        return [cls.from_table(table.take(rows)) for rows in walkers]

    @classmethod
    def from_table(cls, table: PlumedTable) -> Hills:
        """From a table with ``time``, variables, ``sigma_…``, ``height`` and ``biasf``."""
        if "height" not in table or "time" not in table:
            raise ValueError(
                f"{table.path} has the columns {', '.join(table.fields)}: HILLS has time, the "
                "variables, sigma_…, height and biasf"
            )
        names = tuple(table.fields[1 : next(_sigma_columns(table))])
        table = table.take(np.argsort(table.column("time"), kind="stable"))
        factor = np.unique(table.column("biasf")) if "biasf" in table else np.array([-1.0])
        if len(factor) > 1:
            raise ValueError(
                f"{table.path} holds hills of the bias factors {factor.tolist()}: they cannot be "
                "summed; use the files of one run"
            )
        kernel = table.constants.get("kerneltype", _STRETCHED)
        if kernel not in (_STRETCHED, "gaussian"):
            raise ValueError(
                f"{table.path} holds kernels of the type {kernel!r}; METAD has {_STRETCHED!r} and, "
                "before PLUMED 2.8, 'gaussian'"
            )
        periods, lows = _domains(table, names)
        return cls(
            names,
            table.column("time"),
            table.columns(names),
            _precision(table, names),
            table.column("height"),
            float(factor[0]) if factor[0] >= 1 else np.inf,
            periods,
            lows,
            kernel == _STRETCHED,
            notes=table.notes,
        )

    @property
    def bias_scale(self) -> float:
        """(γ-1)/γ: from heights of the file to those of the bias."""
        return 1.0 - 1.0 / self.biasfactor

    @property
    def sigmas(self) -> np.ndarray:
        """(n, d) widths, those of the diagonal of the covariance."""
        return np.sqrt(np.diagonal(np.linalg.inv(self.precision), axis1=1, axis2=2))

    def part(self, rows: slice) -> Hills:
        """These hills only."""
        names = ("time", "centres", "precision", "heights")
        return replace(self, **{name: getattr(self, name)[rows] for name in names})

    def first(self, n: int) -> Hills:
        """The first ``n`` hills."""
        return self.part(slice(n))

    def each(self, s: Sequence[Tensor]) -> Tensor:
        """What hills of unit height are at s, (n, *shape): coordinates of points, d tensors that
        are broadcast to ``shape``, such as the axes of a grid."""

        def column(values: np.ndarray) -> Tensor:
            return torch.from_numpy(values.copy()).reshape(-1, *[1] * s[0].ndim)

        periods = np.where(self.periods > 0, self.periods, np.inf)
        apart = [
            shortest(axis - column(centres), period)
            for axis, centres, period in zip(s, self.centres.T, periods, strict=True)
        ]
        q = sum(column(0.5 * self.precision[:, n, n]) * a * a for n, a in enumerate(apart))
        for n, m in combinations(range(len(apart)), 2):
            if self.precision[:, n, m].any():
                q = q + column(self.precision[:, n, m]) * apart[n] * apart[m]
        return profile(q, self.cutoff, stretched=self.stretched)

    def sum(self, s: Sequence[Tensor]) -> Tensor:
        """``Σ_k h_k G_k(s)`` at points as of `each`: (*shape), in the unit of the file."""
        total = torch.zeros(torch.broadcast_shapes(*(axis.shape for axis in s))).double()
        size = max(1, CHUNK // max(1, total.numel()))
        for begin in range(0, len(self), size):
            few = self.part(slice(begin, begin + size))
            total += torch.tensordot(torch.from_numpy(few.heights), few.each(s), 1)
        return total

    def grid(self, per_sigma: float = _POINTS_PER_SIGMA, *, also: np.ndarray | None = None):
        """Points of each variable, ``per_sigma`` in the narrowest σ, over all that is biased.

        Periodic variables get their whole domain without its end; others reach a cut-off
        beyond the outermost hill, and ``also`` (m, d).
        """
        sigmas = self.sigmas
        reach = np.sqrt(2 * self.cutoff) * sigmas
        low, high = (self.centres - reach).min(0), (self.centres + reach).max(0)
        if also is not None:
            low, high = np.minimum(low, also.min(0)), np.maximum(high, also.max(0))
        points = []
        for n, period in enumerate(self.periods):
            spacing = sigmas[:, n].min() / per_sigma
            if period:
                points.append(self.lows[n] + period * _fractions(period / spacing))
            else:
                count = int(np.ceil((high[n] - low[n]) / spacing)) + 1
                points.append(np.linspace(low[n], high[n], count))
        return points


def _fractions(count: float) -> np.ndarray:
    whole = max(4, int(np.ceil(count)))
    return np.arange(whole) / whole


def sum_hills(hills: Hills, points: Sequence[np.ndarray]) -> np.ndarray:
    """``F(s) = -Σ_k h_k G(s - s_k)`` on the grid of ``points``, (len(points[0]), …).

    In the unit of the file and up to a constant, as ``plumed sum_hills`` writes it: for a
    well-tempered run the heights already hold γ/(γ-1) (Barducci, Bussi & Parrinello, Phys.
    Rev. Lett. 100, 020603 (2008)). ``hills`` are all that count.

    Raises ``ValueError`` where there is not one axis for each variable.
    """
    return -hills.sum(_on_grid(hills, points)).numpy()


def _on_grid(hills: Hills, points: Sequence[np.ndarray]) -> tuple[Tensor, ...]:
    if len(points) != len(hills.names):
        raise ValueError(
            f"{len(points)} axes for hills on {', '.join(hills.names)}: give one for each"
        )
    return tuple(map(torch.from_numpy, np.meshgrid(*points, indexing="ij", sparse=True)))


def bias_at(hills: Hills, s: np.ndarray) -> np.ndarray:
    """The bias V(s, T) of all ``hills`` at points ``s`` (m, d): (m,), in the unit of the file.

    Summed on a grid of σ/6 and interpolated by cubic splines: the error is about 1e-5 V.
    """
    s = np.asarray(s, float)
    points = hills.grid(also=s)
    values = -sum_hills(hills, points) * hills.bias_scale
    if not any(hills.periods):
        modes = "nearest"
    elif all(hills.periods):
        modes = "grid-wrap"
    else:  # mixed: splines wrap where the values are repeated
        modes = "nearest"
        values, points = _repeated(values, points, hills.periods)
    index = [((_wrapped(s[:, n], hills, n)) - p[0]) / (p[1] - p[0]) for n, p in enumerate(points)]
    return map_coordinates(values, index, order=3, mode=modes)


def reweighting_factor(
    hills: Hills, kT: float, points: Sequence[np.ndarray] | None = None
) -> np.ndarray:
    """c(t) after 0, 1, …, n hills: (n + 1,), in the unit of the file.

    See `reweighting_constant`; its sums run over ``points``, one axis for each variable (default,
    a grid of σ/4), which for PLUMED's own numbers must be those of its grid. Of long files c is
    computed 2000 times and interpolated.

    ``kT``: in the unit of the ``hills``. Raises ``ValueError`` for another number of axes.
    """
    if hills.biasfactor == 1.0:  # V = 0
        return np.zeros(len(hills) + 1)
    s = _on_grid(hills, hills.grid(4) if points is None else points)
    bias, n = torch.zeros(1, dtype=torch.float64), len(hills)
    stops = np.unique(np.linspace(0, n, min(n, _MAX_EVALUATIONS) + 1).round().astype(int))
    values = [0.0]
    for start, stop in pairwise(stops.tolist()):
        bias = bias + hills.bias_scale * hills.part(slice(start, stop)).sum(s).flatten()
        values.append(float(reweighting_constant(bias, kT, hills.biasfactor)))
    return np.interp(np.arange(n + 1), stops, values)


class HeightLaw(NamedTuple):
    """What the heights of hills tell.

    Attributes
    ----------
    kT : that they obey, in the unit of the file; inf where they do not decay
    correlation : of ``ln h_k`` with the bias; -1 of a well-tempered run
    """

    kT: float
    correlation: float


def height_law(hills: Hills, *, most: int = 1500) -> HeightLaw | None:
    """The kT of a well-tempered run, from its heights alone; in the unit of the file.

    ``ln h_k = const - V_{k-1}(s_k)/((γ-1) kT)`` is a straight line whose slope is -1/kT. It
    tells a wrong unit or temperature. None without tempering or for too few ``hills``; the first
    ``most`` of them are looked at.
    """
    early = hills.first(most)
    n = len(early)
    if n < 20 or not np.isfinite(hills.biasfactor) or (early.heights <= 0).any():
        return None
    centres, heights = torch.from_numpy(early.centres), torch.from_numpy(early.heights)
    before = (heights @ early.each(centres.unbind(-1)).triu(1)).numpy()
    x, y = before / hills.biasfactor, np.log(early.heights)  # V/(γ-1) = G/γ
    if x.std() < 1e-12 or y.std() < 1e-3:
        return None
    slope = np.polyfit(x, y, 1)[0]
    r = float(np.corrcoef(x, y)[0, 1])
    return HeightLaw(float(-1.0 / slope) if slope < 0 else np.inf, r)


def free_energy_of_components(
    table: PlumedTable, kT: float, points: Sequence[np.ndarray]
) -> np.ndarray:
    """``F(s) = -kT ln Σ_k h_k G(s; s_k, σ_k)`` of a KERNELS or STATE file of OPES, minimum 0.

    For OPES_METAD_EXPLORE, whose components make the sampled distribution, times γ.
    Infinite where there are no components. (Invernizzi & Parrinello, J. Phys. Chem. Lett. 11,
    2731 (2020); J. Chem. Theory Comput. 18, 3988 (2022).)

    Parameters
    ----------
    table : of a KERNELS file, or a state (`io.plumed_tables.read_state`)
    kT : in the unit of energy of the result
    points : values of each variable on the grid

    Raises
    ------
    ValueError : a table that is not of OPES, or another number of axes
    """
    if "kernel_cutoff" not in table.constants:
        raise ValueError(
            f"{table.path} has no column logweight and no kernel_cutoff: it is neither a KERNELS "
            "nor a STATE file of OPES"
        )
    cutoff = 0.5 * float(table.constants["kernel_cutoff"]) ** 2
    components = replace(Hills.from_table(table), stretched=True, cutoff=cutoff)
    explore = "EXPLORE" in table.constants.get("action", "")
    factor = float(table.constants["biasfactor"]) if explore else 1.0
    with np.errstate(divide="ignore"):
        energy = -factor * kT * np.log(-sum_hills(components, points))
    return energy - energy.min()


def _wrapped(s: np.ndarray, hills: Hills, n: int) -> np.ndarray:
    period = hills.periods[n]
    return hills.lows[n] + (s - hills.lows[n]) % period if period else s


def _repeated(values: np.ndarray, points, periods):
    """Periodic axes repeated by eight points at each end, enough for a cubic spline."""
    extended = []
    for n, p in enumerate(points):
        if periods[n]:
            pad = [(0, 0)] * values.ndim
            pad[n] = (8, 8)
            values = np.pad(values, pad, mode="wrap")
            step = p[1] - p[0]
            p = p[0] + step * np.arange(-8, len(p) + 8)
        extended.append(p)
    return values, extended


def _sigma_columns(table: PlumedTable):
    found = [n for n, name in enumerate(table.fields) if name.startswith("sigma_")]
    if not found:
        raise ValueError(f"{table.path} has no columns sigma_…, only {', '.join(table.fields)}")
    return iter(found)


def _domains(table: PlumedTable, names) -> tuple[np.ndarray, np.ndarray]:
    low = np.array([table.domains.get(name, (0.0, 0.0))[0] for name in names])
    high = np.array([table.domains.get(name, (0.0, 0.0))[1] for name in names])
    return high - low, low


def _precision(table: PlumedTable, names) -> np.ndarray:
    """From widths, or from the Cholesky factors ``sigma_a_b`` of an adaptive run."""
    d = len(names)
    factor = np.zeros((len(table), d, d))
    for i, a in enumerate(names):
        for j, b in enumerate(names[: i + 1]):
            name = f"sigma_{a}_{b}"
            if name in table:
                factor[:, i, j] = table.column(name)
            elif i == j:
                factor[:, i, i] = table.column(f"sigma_{a}")
    return np.linalg.inv(factor @ np.swapaxes(factor, 1, 2))
