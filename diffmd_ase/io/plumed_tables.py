"""Tables that PLUMED writes: COLVAR, HILLS, KERNELS, STATE and grids, also cut or continued ones.

A table is text: ``#! FIELDS time phi m.bias`` names the columns and ``#! SET min_phi -pi``
a constant. A restarted run writes its header again and may repeat rows that it had already
written; a killed one leaves half a line. Reading says what it left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from ase import units

from .._moved import forward
from ..units import kT_from_temperature
from .plumed_checks import check_segment
from .plumed_text import Segment, number, parse

__all__ = [
    "ENERGY_UNITS",
    "PlumedTable",
    "read_plumed",
    "read_rows",
    "read_state",
    "thermal_energy",
]

# eV, by PLUMED's names
ENERGY_UNITS = {
    "kJ/mol": units.kJ / units.mol,
    "kcal/mol": units.kcal / units.mol,
    "eV": units.eV,
    "Ha": units.Hartree,
}


@dataclass(frozen=True)
class PlumedTable:
    """Columns of one or several files of the same kind.

    Attributes
    ----------
    fields : names of the columns
    values : (n, len(fields)) float64, rows in the order of the files
    walker : (n,) int; rows of one walker are in the order of time
    domains : periodic columns with their (min, max)
    constants : the other ``#! SET`` lines, as text
    notes : what was left out or guessed, in words
    path : of the file, for messages

    Raises
    ------
    ValueError : a column that there is not
    """

    fields: tuple[str, ...]
    values: np.ndarray
    walker: np.ndarray
    domains: dict[str, tuple[float, float]]
    constants: dict[str, str]
    notes: tuple[str, ...] = ()
    path: str = ""

    def __len__(self) -> int:
        return len(self.values)

    def __contains__(self, name: str) -> bool:
        return name in self.fields

    def column(self, name: str) -> np.ndarray:
        """One column (n,). Raises ``ValueError`` that names the columns there are."""
        if name not in self.fields:
            raise ValueError(f"{self.path} has no column {name!r}, only {', '.join(self.fields)}")
        return self.values[:, self.fields.index(name)]

    def columns(self, names: Sequence[str]) -> np.ndarray:
        """Columns (n, len(names))."""
        return np.stack([self.column(name) for name in names], axis=-1)

    def take(self, rows: np.ndarray) -> PlumedTable:
        """The table of these rows (an index or mask)."""
        return replace(self, values=self.values[rows], walker=self.walker[rows])

    def period(self, name: str) -> float | None:
        """Length of the domain of a periodic column, or None."""
        low, high = self.domains.get(name, (0.0, 0.0))
        return high - low if high > low else None


def thermal_energy(temperature_K: float | None, unit: str) -> float:
    """kT of ``temperature_K`` in a file's ``unit`` of energy, by PLUMED's name; 1 in units of kT.

    Raises ``ValueError`` for an unknown unit, no temperature, or one that is not positive.
    """
    if unit != "kT" and unit not in ENERGY_UNITS:
        raise ValueError(f"energy unit {unit!r}: expected one of {', '.join(ENERGY_UNITS)}, kT")
    if unit == "kT":
        return 1.0
    if temperature_K is None:
        raise ValueError(
            "no temperature: give --temperature in kelvin, free energies are -kT ln p and PLUMED's "
            "files do not state it"
        )
    return float(kT_from_temperature(temperature_K) / ENERGY_UNITS[unit])


def read_rows(path: str | Path) -> np.ndarray:
    """All complete rows (n, columns) of one file, as they stand there; it may have none.

    Raises ``ValueError`` for a file without a header, or with different ones, and for rows that
    cannot be right (`check_segment`), or lines between them that are none.
    """
    segments = parse(path)
    _same_fields(segments, path)
    for segment in segments:
        check_segment(path, segment)
        if segment.rows and segment.broken and segment.strange[0] < segment.lines[-1]:
            raise ValueError(
                f"{path}, line {segment.strange[0]}: no row of {len(segment.fields)} numbers: it "
                "was edited or damaged; take a copy of the file"
            )
    rows = [row for segment in segments for row in segment.rows]
    return np.array(rows, float).reshape(-1, len(segments[0].fields))


def read_state(path: str | Path) -> PlumedTable:
    """The last of the states in a STATE file of OPES, which holds its compressed kernels.

    Of a state that a kill has cut off the one before is read, where there is one.

    Raises ``ValueError`` for a file without a header, or without rows.
    """
    segments = parse(path)
    chosen = segments[-1]
    fine = [segment for segment in segments if segment.rows and not segment.broken]
    notes = []
    if chosen not in fine:
        chosen = fine[-1] if fine else chosen
        notes.append(
            f"{path}: the last state is incomplete" + "; the one before is read" * bool(fine)
        )
    if not chosen.rows:
        raise ValueError(f"{path} has no kernels: is the run still at its start?")
    constants = dict(chosen.constants)
    domains = _domains(chosen.fields, constants, path)
    values = np.array(chosen.rows)
    walker = np.zeros(len(values), int)
    return PlumedTable(chosen.fields, values, walker, domains, constants, tuple(notes), str(path))


def read_plumed(paths: str | Path | Sequence[str | Path]) -> PlumedTable:
    """Read ``paths``: one file, or one per walker with the same columns.

    * A header in the middle is a restart if time goes on from inside what was written: rows
      at and after the restart are superseded by those that follow. If it starts at or before
      the first time, what follows is another walker (``cat COLVAR.*``).
    * Rows of one time that come W at a time are W walkers driven by one instance, unless
      a column ``walker`` names them.
    * Half lines and rows with numbers that are not finite are left out, and counted.

    Raises
    ------
    ValueError : no header, no rows, or columns that differ between headers; rows that cannot be
        right (`check_segment`)
    """
    listed = [paths] if isinstance(paths, str | Path) else list(paths)
    if not listed:
        raise ValueError("no file to read")
    tables = [_read_one(Path(path)) for path in listed]
    first = tables[0]
    if len(tables) == 1:
        return first
    for other in tables[1:]:
        where = f"{first.path} and {other.path}"
        _same_fields([Segment(t.fields) for t in (first, other)], where)
        _constants([t.constants for t in (first, other)], where)
        if first.domains != other.domains:
            raise ValueError(f"{where}: domains {first.domains} and {other.domains} differ")
    offsets = np.cumsum([0, *(t.walker.max() + 1 for t in tables[:-1])])
    return PlumedTable(
        first.fields,
        np.concatenate([t.values for t in tables]),
        np.concatenate([t.walker + n for t, n in zip(tables, offsets, strict=True)]),
        first.domains,
        first.constants,
        tuple(note for t in tables for note in t.notes),
        f"{first.path} and {len(tables) - 1} more",
    )


def _read_one(path: Path) -> PlumedTable:
    segments, notes = parse(path), []
    _same_fields(segments, path)
    notes += [note for segment in segments for note in check_segment(path, segment)]
    strange = [line for segment in segments for line in segment.strange]
    fields, broken = segments[0].fields, len(strange)
    parts = [np.array(s.rows, float).reshape(-1, len(fields)) for s in segments]
    parts = [part for part in parts if len(part)]
    if broken:
        notes.append(f"{path}: {broken} incomplete lines left out (the first: line {strange[0]})")
    if not parts or broken > sum(map(len, parts)):
        raise ValueError(
            f"{path} has {sum(map(len, parts))} rows of {len(fields)} columns "
            f"({', '.join(fields)}) and {broken} that do not fit: is the run still at its start, "
            "or the header of another file?"
        )
    parts, walkers = _join(path, parts, fields, notes)
    values = np.concatenate(parts)
    walker = np.concatenate(
        [np.full(len(p), w) for p, w in zip(parts, walkers, strict=True)]
    ).astype(int)
    fine = np.isfinite(values).all(axis=1)
    if not fine.all():
        notes.append(f"{path}: {(~fine).sum()} rows with NaN or infinite numbers left out")
        values, walker = values[fine], walker[fine]
        if not len(values):
            raise ValueError(f"{path}: no row is finite: the run had diverged")
    if not walker.any():
        walker = _multiplexed(fields, values)
        if walker.any():
            notes.append(f"{path}: {walker.max() + 1} walkers in turn")
    constants = _constants([s.constants for s in segments], path)
    domains = _domains(fields, constants, path)
    return PlumedTable(fields, values, walker, domains, constants, tuple(notes), str(path))


def _same_fields(segments: Sequence[Segment], where) -> None:
    for other in segments[1:]:
        if other.fields != segments[0].fields:
            raise ValueError(
                f"{where}: headers name different columns, ({', '.join(segments[0].fields)}) and "
                f"({', '.join(other.fields)}): they are of different inputs; give them one at a "
                "time"
            )


def _constants(every: Sequence[dict[str, str]], where) -> dict[str, str]:
    """Of several headers the last words count; kernels and domains may not differ."""
    constants: dict[str, str] = {}
    for later in every:
        for name, value in later.items():
            fixed = name in ("kerneltype", "multivariate") or name.startswith(("min_", "max_"))
            if fixed and constants.get(name, value) != value:
                raise ValueError(
                    f"{where}: headers say {name} {constants[name]} and {value}: such rows cannot "
                    "be taken together; give those of each header as a file of its own"
                )
            constants[name] = value
    return constants


def _domains(fields, constants: dict[str, str], where) -> dict[str, tuple[float, float]]:
    """(min, max) of the periodic columns, which are taken from the ``constants``."""
    domains = {}
    for name in fields:
        sides = f"min_{name}", f"max_{name}"
        there = all(side in constants for side in sides)
        if not there or constants.get(f"periodic_{name}", "true") != "true":  # of a grid
            continue
        limits = [constants.pop(side) for side in sides]
        try:
            low, high = map(number, limits)
        except ValueError:
            raise ValueError(f"{where}: the domain of {name}, {limits}, is no numbers") from None
        domains[name] = low, high
    return domains


def _join(path, parts, fields, notes) -> tuple[list[np.ndarray], list[int]]:
    """Restarts supersede what they repeat; a start from the beginning is another walker."""
    if "time" not in fields or len(parts) == 1:
        return parts, list(range(len(parts)))[:1] * len(parts)
    time = fields.index("time")
    kept, walkers, walker, superseded = [parts[0]], [0], 0, 0
    begin = parts[0][0, time]
    for part in parts[1:]:
        start = part[0, time]
        if start <= begin:
            walker, begin = walker + 1, start
        else:
            for n, w in enumerate(walkers):
                if w == walker:
                    keep = kept[n][:, time] < start
                    superseded += int((~keep).sum())
                    kept[n] = kept[n][keep]
        kept.append(part)
        walkers.append(walker)
    restarts = len(parts) - 1 - walker
    if restarts:
        notes.append(f"{path}: {restarts} restarts, {superseded} rows superseded")
    if walker:
        notes.append(f"{path}: {walker + 1} walkers one after the other")
    return kept, walkers


def _multiplexed(fields, values) -> np.ndarray:
    """Walker of each row where all walkers print at the same times, in turn."""
    none = np.zeros(len(values), int)
    if "walker" in fields:
        return np.unique(values[:, fields.index("walker")], return_inverse=True)[1]
    if "time" not in fields or len(values) < 2:
        return none
    time = values[:, fields.index("time")]
    starts = np.flatnonzero(np.diff(time, prepend=time[0] - 1.0))
    runs = np.diff(starts, append=len(time))
    count = int(np.median(runs))
    if count < 2 or (runs[:-1] != count).any():
        return none
    return np.arange(len(values)) % count


__getattr__ = forward(__name__, "io.plumed_text")
