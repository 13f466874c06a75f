"""What a METAD or OPES run deposited: bias, free energy and the constant c(t) from it.

HILLS heights of a well-tempered run are stored multiplied by γ/(γ-1): their sum G is minus
the free energy, the bias itself is V = G (γ-1)/γ. Without tempering (γ → ∞) both are one.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.ndimage import map_coordinates
from scipy.special import logsumexp

from ...io.plumed_tables import PlumedTable, read_plumed

__all__ = [
    "HeightLaw",
    "Hills",
    "bias_at",
    "free_energy_of_kernels",
    "height_law",
    "plumed_command",
    "plumed_sum_hills",
    "reweighting_factor",
    "sum_hills",
]

_CUTOFF = 6.25  # PLUMED's DP2CUTOFF: ½ d² beyond which a hill is zero
_CHUNK = 2_000_000  # numbers held at a time
_POINTS_PER_SIGMA = 6
_MAX_EVALUATIONS = 2000  # of c(t), which is smooth


@dataclass(frozen=True)
class Hills:
    """Gaussians in the order of time.

    Attributes
    ----------
    names : d collective variables
    time : (n,)
    centres : (n, d)
    precision : (n, d, d) inverse covariance
    heights : (n,) as in the file, in its unit of energy
    biasfactor : γ; ``inf`` without tempering
    periods : (d,) lengths of the periodic domains, 0 where there is none
    lows : (d,) where those domains start
    stretched : PLUMED's stretched Gaussian, ``(exp(-q) - exp(-q₀))/(1 - exp(-q₀))`` with
        ``q = ½ d²``, 0 beyond q₀; older files hold plain Gaussians cut off there
    cutoff : q₀
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
    cutoff: float = _CUTOFF
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
        periods, lows = _domains(table, names)
        return cls(
            names,
            table.column("time"),
            table.columns(names),
            _precision(table, names),
            table.column("height"),
            float(factor[0]) if factor[0] > 1 else np.inf,
            periods,
            lows,
            "stretched" in table.constants.get("kerneltype", "gaussian"),
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

    def first(self, n: int) -> Hills:
        """The first ``n`` hills."""
        return replace(
            self,
            time=self.time[:n],
            centres=self.centres[:n],
            precision=self.precision[:n],
            heights=self.heights[:n],
        )

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
    """``F(s) = -Σ_k h_k K(s - s_k)`` on the grid of ``points``, (len(points[0]), …).

    In the unit of the file and up to a constant, as ``plumed sum_hills`` writes it: for a
    well-tempered run the heights already hold γ/(γ-1) (Barducci, Bussi & Parrinello, Phys.
    Rev. Lett. 100, 020603 (2008)).
    """
    shape = _shape(hills, points)
    total = np.zeros(shape)
    for part in _chunks(len(hills), int(np.prod(shape))):
        total -= np.tensordot(hills.heights[part], _kernels(hills, part, points), axes=1)
    return total


def bias_at(hills: Hills, s: np.ndarray) -> np.ndarray:
    """The bias V(s, T) of all hills at points (m, d): (m,), in the unit of the file.

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

        c = kT ln [ ∫ exp(γ V/((γ-1) kT)) ds / ∫ exp(V/((γ-1) kT)) ds ]

    (Tiwary & Parrinello, J. Phys. Chem. B 119, 736 (2015), eq. 12); the exponents are G/kT
    and G/(γ kT) for the sum G of the heights of the file. The integrals run over
    ``points``, which for PLUMED's own numbers must be those of its grid. Of long files c is
    computed 2000 times and interpolated.
    """
    points = hills.grid(4) if points is None else points
    total = np.zeros(_shape(hills, points))
    n = len(hills)
    stops = np.unique(np.linspace(0, n, min(n, _MAX_EVALUATIONS) + 1).round().astype(int))
    values = [0.0]
    for start, stop in pairwise(stops):
        for part in _chunks(stop - start, total.size, start):
            total += np.tensordot(hills.heights[part], _kernels(hills, part, points), axes=1)
        tempered = logsumexp(total / (hills.biasfactor * kT))
        values.append(kT * (logsumexp(total / kT) - tempered))
    return np.interp(np.arange(n + 1), stops, values)


class HeightLaw(NamedTuple):
    """kT that the heights obey, and the correlation of their logarithm with the bias."""

    kT: float
    correlation: float


def height_law(hills: Hills, *, most: int = 1500) -> HeightLaw | None:
    """The kT of a well-tempered run, from its heights alone; in the unit of the file.

    ``ln h_k = const - V_{k-1}(s_k)/((γ-1) kT)`` is a straight line whose slope is kT. It
    tells a wrong unit or temperature. None without tempering or for too few hills.
    """
    early = hills.first(most)
    n = len(early)
    if n < 20 or not np.isfinite(hills.biasfactor) or (early.heights <= 0).any():
        return None
    before = np.zeros(n)
    for part in _chunks(n, n):
        points = [c[:, None] for c in early.centres.T]
        delta = np.stack(
            [_difference(early, part, m, p[:, 0]) for m, p in enumerate(points)], axis=-1
        )
        q = 0.5 * np.einsum("kmi,kij,kmj->km", delta, early.precision[part], delta)
        later = np.arange(n)[None] > np.arange(n)[part][:, None]
        before += early.heights[part] @ np.where(later, _profile(early, q), 0.0)
    x, y = before / hills.biasfactor, np.log(early.heights)  # V/(γ-1) = G/γ
    if x.std() < 1e-12 or y.std() < 1e-3:
        return None
    slope = np.polyfit(x, y, 1)[0]
    r = float(np.corrcoef(x, y)[0, 1])
    return HeightLaw(float(-1.0 / slope) if slope < 0 else np.inf, r)


def free_energy_of_kernels(
    table: PlumedTable, kT: float, points: Sequence[np.ndarray]
) -> np.ndarray:
    """``F(s) = -kT ln Σ_k h_k G(s; s_k, σ_k)`` of a KERNELS file of OPES, minimum 0.

    For OPES_METAD_EXPLORE, whose kernels make the sampled distribution, times γ.
    Infinite where there are no kernels. (Invernizzi & Parrinello, J. Phys. Chem. Lett. 11,
    2731 (2020); J. Chem. Theory Comput. 18, 3988 (2022).)
    """
    if "logweight" not in table:
        raise ValueError(f"{table.path} has no column logweight: it is not a KERNELS file of OPES")
    cutoff = 0.5 * float(table.constants["kernel_cutoff"]) ** 2
    kernels = replace(Hills.from_table(table), stretched=True, cutoff=cutoff)
    explore = "EXPLORE" in table.constants.get("action", "")
    factor = float(table.constants["biasfactor"]) if explore else 1.0
    with np.errstate(divide="ignore"):
        energy = -factor * kT * np.log(-sum_hills(kernels, points))
    return energy - energy.min()


def plumed_command() -> str:
    """Path of ``plumed``: beside this Python, whose environment need not be active, or on PATH.

    Raises ``FileNotFoundError`` with the install line where there is none.
    """
    beside = str(Path(sys.executable).parent)
    command = shutil.which("plumed", path=beside) or shutil.which("plumed")
    if command is None:
        raise FileNotFoundError("no command `plumed`: pip install --no-deps hillclimber")
    return command


def plumed_sum_hills(paths: Sequence[str | Path], points: Sequence[np.ndarray], hills: Hills):
    """The free energy of ``plumed sum_hills`` at evenly spaced ``points``, for comparison.

    Raises ``FileNotFoundError`` without the command, ``RuntimeError`` with its message.
    """
    command = plumed_command()
    low, high, count = [], [], []
    for n, p in enumerate(points):
        step = p[1] - p[0]
        low.append(repr(float(p[0])))
        high.append(repr(float(p[-1] + step if hills.periods[n] else p[-1])))
        count.append(str(len(p) if hills.periods[n] else len(p) - 1))
    with tempfile.TemporaryDirectory() as folder:
        listed = ",".join(str(Path(path).absolute()) for path in paths)
        words = [command, "sum_hills", "--hills", listed, "--outfile", "fes.dat"]
        words += ["--min", ",".join(low), "--max", ",".join(high), "--bin", ",".join(count)]
        words += ["--fmt", "%20.12f"]
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"plumed sum_hills failed: {(done.stderr or done.stdout)[-400:]}")
        table = read_plumed(Path(folder) / "fes.dat")
    values = table.column("file.free").reshape([len(p) for p in points][::-1])
    return values.T  # PLUMED's first variable runs fastest


# ------------------------------------------------------------------------ kernels


def _kernels(hills: Hills, part: slice, points) -> np.ndarray:
    return _profile(hills, _quadratic(hills, part, points))


def _profile(hills: Hills, q: np.ndarray) -> np.ndarray:
    value = np.exp(-q)
    if hills.stretched:
        value = (value - np.exp(-hills.cutoff)) / (1.0 - np.exp(-hills.cutoff))
    return np.where(q < hills.cutoff, value, 0.0)


def _quadratic(hills: Hills, part: slice, points) -> np.ndarray:
    """½ d² of each hill of ``part`` at every point of the grid: (k, *shape)."""
    d = len(points)
    delta = []
    for n, p in enumerate(points):
        shape = [-1] + [1] * d
        shape[n + 1] = len(p)
        delta.append(_difference(hills, part, n, p).reshape(shape))
    precision = hills.precision[part].reshape(-1, d, d, *([1] * d))
    q = sum(0.5 * precision[:, n, n] * delta[n] ** 2 for n in range(d))
    for i in range(d):
        for j in range(i):
            if precision[:, i, j].any():
                q = q + precision[:, i, j] * delta[i] * delta[j]
    return np.asarray(q)


def _difference(hills: Hills, part: slice, n: int, p: np.ndarray) -> np.ndarray:
    delta = p[None, :] - hills.centres[part, n, None]
    period = hills.periods[n]
    return delta - period * np.round(delta / period) if period else delta


def _chunks(count: int, size: int, start: int = 0):
    step = max(1, _CHUNK // max(size, 1))
    for first in range(start, start + count, step):
        yield slice(first, min(first + step, start + count))


def _shape(hills: Hills, points) -> tuple[int, ...]:
    if len(points) != len(hills.names):
        raise ValueError(
            f"{len(points)} axes for hills on {', '.join(hills.names)}: give one for each"
        )
    return tuple(len(p) for p in points)


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
