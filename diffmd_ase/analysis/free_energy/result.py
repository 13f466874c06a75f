"""A free energy as it is shown: numbers, verdicts, a picture and tables."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...io.atomic import replacing
from .grid import Axis, Basin
from .plots import free_energy_figure
from .surface import BlockScan, Convergence

__all__ = ["Result", "named"]

_FORMATS = {".png": "png", ".pdf": "pdf", ".svg": "svg"}
_TABLES = ".npz", ".csv"


def named(output: Path) -> tuple[Path, Path, Path]:
    """Names of picture, archive and table of a result that is to be ``output``.

    The ending .png, .pdf, .svg, .npz or .csv is that of a format; any other, such as that of
    ``fes_0.1``, belongs to the name, and then the picture has none.
    """
    ending = output.suffix.lower()
    stem = output.stem if ending in (*_FORMATS, *_TABLES) else output.name
    picture = output.with_name(f"{stem}.png") if ending in _TABLES else output
    archive, rows = (output.with_name(stem + table) for table in _TABLES)
    return picture, archive, rows


@dataclass
class Result:
    """A surface with numbers and verdicts; ``write`` makes the files.

    Parameters
    ----------
    free_energy, error : (*shape) of the axes, in ``unit``; no error of a sum of hills
    kT : in ``unit``
    basins : of ΔF; ``settling`` and ``scan`` of samples, ``history`` (times and ΔF) of hills
    numbers : ready for JSON
    verdicts : ``good`` (None: to be known) and ``text`` of each
    notes : what was left out or guessed when files were read
    """

    axes: tuple[Axis, ...]
    free_energy: np.ndarray
    error: np.ndarray | None
    unit: str
    kT: float
    basins: tuple[Basin, Basin] | None = None
    settling: Convergence | None = None
    scan: BlockScan | None = None
    history: tuple[np.ndarray, np.ndarray] | None = None
    numbers: dict[str, Any] = field(default_factory=dict)
    verdicts: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def judge(self, good: bool | None, text: str) -> None:
        """One verdict: good, bad, or to be known (None)."""
        self.verdicts.append({"good": good, "text": text})

    def write(self, output: Path) -> list[Path]:
        """The files that `named` tells: picture, and surface as .npz and .csv (a row per bin)."""
        picture, archive, rows = named(output)
        figure = free_energy_figure(
            self.axes,
            self.free_energy,
            self.error,
            unit=self.unit,
            basins=self.basins or (),
            settling=self.settling,
            scan=self.scan,
            history=self.history,
            limit=self._limit(),
        )
        error = np.full_like(self.free_energy, np.nan) if self.error is None else self.error
        centres = [axis.centres for axis in self.axes]
        with replacing(picture) as part:
            form = _FORMATS.get(picture.suffix.lower(), "png")
            figure.savefig(part, format=form, dpi=130, facecolor="white")
        with replacing(archive) as part, open(part, "wb") as file:
            arrays: dict[str, Any] = {f"centres_{n}": c for n, c in enumerate(centres)}
            arrays |= {"free_energy": self.free_energy, "error": error, "kT": self.kT}
            arrays |= {"unit": self.unit, "names": [axis.name for axis in self.axes]}
            np.savez(file, **arrays)
        columns = [c.ravel() for c in np.meshgrid(*centres, indexing="ij")]
        with replacing(rows) as part, open(part, "w", newline="") as file:
            writer = csv.writer(file)
            names = [axis.name for axis in self.axes]
            writer.writerow([*names, f"F ({self.unit})", f"error ({self.unit})"])
            writer.writerows(zip(*columns, self.free_energy.ravel(), error.ravel(), strict=True))
        return [picture, archive, rows]

    def _limit(self) -> float | None:
        finite = self.free_energy[np.isfinite(self.free_energy)]
        return float(min(finite.max(), max(np.percentile(finite, 90), 10 * self.kT)))
