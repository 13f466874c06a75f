"""States of a trajectory: boxes of its variables, modes of its torsions, or clusters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from ...libraries import quiet_deeptime
from ..modes import torsion_modes
from .variables import Variables

__all__ = ["Box", "States", "boxes", "clusters", "last_visited", "torsion_states"]

_FITTED = 100_000  # frames that centres are found with


@dataclass(frozen=True, eq=False)
class States:
    """Numbers of states, and what they are called."""

    names: tuple[str, ...]  # of the states, by number
    numbers: np.ndarray  # (T, W), that of the state each frame is in, or was in last

    def inside(self, name: str) -> np.ndarray:
        """(T, W) bool of the state ``name``."""
        return self.numbers == self.names.index(name)


@dataclass(frozen=True)
class Box:
    """A state: where variables lie between limits.

    Parameters
    ----------
    name : of the state
    limits : variable → (low, high) in degrees or Å; from low upwards to high, for angles through
        180° where high is below low
    """

    name: str
    limits: dict[str, tuple[float, float]]

    @classmethod
    def parse(cls, text: str) -> Box:
        """From ``beta=phi:-180:-40,psi:100:200``. Raises ``ValueError`` for other words."""
        name, _, rest = text.partition("=")
        limits = {}
        for part in rest.split(","):
            words = part.split(":")
            try:
                low, high = float(words[-2]), float(words[-1])
            except (IndexError, ValueError):
                raise ValueError(
                    f"{text!r}: expected name=variable:low:high, such as beta=phi:-180:-40 or "
                    "beta=phi:-180:-40,psi:100:200"
                ) from None
            limits[":".join(words[:-2])] = low, high
        return cls(name, limits)

    def inside(self, variables: Variables) -> np.ndarray:
        """(T, W) bool. Raises ``ValueError`` for variables that are not among ``variables``."""
        found = np.ones(variables.values.shape[:2], bool)
        for name, (low, high) in self.limits.items():
            if name not in variables.names:
                raise ValueError(
                    f"state {self.name}: {name!r} is none of the variables "
                    f"{', '.join(variables.names)}"
                )
            n = variables.names.index(name)
            values = variables.values[..., n]
            if variables.angular[n]:
                width = (high - low) % 360 or 360.0
                found &= np.mod(np.degrees(values) - low, 360) < width
            else:
                found &= (values >= low) & (values < high)
        return found


def boxes(variables: Variables, of: Sequence[Box]) -> States:
    """States by boxes; a frame in none of them counts to the one that was visited last.

    Raises ``ValueError`` for fewer than two boxes, boxes that overlap, and a box without frames.
    """
    if len(of) < 2 or len({box.name for box in of}) < len(of):
        raise ValueError(f"states {[b.name for b in of]}: expected two or more, of different names")
    numbers = np.full(variables.values.shape[:2], -1)
    for n, box in enumerate(of):
        inside = box.inside(variables)
        if not inside.any():
            raise ValueError(f"state {box.name}: no frame is in it; look at its limits")
        if (both := inside & (numbers >= 0)).any():
            other = of[int(numbers[both][0])].name
            raise ValueError(f"states {other} and {box.name} overlap: a frame is in both")
        numbers[inside] = n
    return States(tuple(box.name for box in of), last_visited(numbers))


def last_visited(numbers: np.ndarray) -> np.ndarray:
    """``numbers`` (T, W) with -1 replaced by what was there last, at first by what comes first.

    Raises ``ValueError`` for a walker that has none.
    """
    seen = numbers >= 0
    if not seen.any(0).all():
        raise ValueError(
            f"walkers {np.flatnonzero(~seen.any(0)).tolist()} were in none of the states: make "
            "them larger, or add one"
        )
    rows = np.arange(len(numbers))[:, None]
    place = np.maximum.accumulate(np.where(seen, rows, -1), axis=0)
    place = np.where(place < 0, seen.argmax(0)[None], place)
    return np.take_along_axis(numbers, place, axis=0)


def torsion_states(variables: Variables) -> States:
    """One state for each combination of modes of the torsions that was seen.

    Modes are parted by gaps (`analysis.modes.torsion_modes`). Raises ``ValueError`` where that
    makes one state only.
    """
    arcs = {
        name: torsion_modes(variables.values[..., n])
        for n, name in enumerate(variables.names)
        if variables.angular[n]
    }
    split = {name: modes for name, modes in arcs.items() if len(modes) > 1}
    if not split:
        raise ValueError(
            "no torsion has two modes with a gap between them: name states, such as "
            "'a=phi:-180:0' 'b=phi:0:180' (--state), or a number of clusters (--clusters)"
        )
    chosen = []
    for modes in product(*split.values()):
        inside = np.ones(variables.values.shape[:2], bool)
        for name, arc in zip(split, modes, strict=True):
            inside &= arc(variables.values[..., variables.names.index(name)])
        if inside.any():
            words = (f"{name} {arc}" for name, arc in zip(split, modes, strict=True))
            chosen.append((", ".join(words), inside))
    numbers = np.full(variables.values.shape[:2], -1)
    for n, (_, inside) in enumerate(chosen):
        numbers[inside] = n
    return States(tuple(name for name, _ in chosen), last_visited(numbers))


def clusters(variables: Variables, count: int, *, seed: int = 0) -> States:
    """``count`` clusters of the variables by k-means (deeptime), numbered by their population.

    Cosines and sines of angles are clustered, and lengths over their spread.

    Raises
    ------
    ValueError : fewer than two, or more than a tenth of the frames
    ImportError : no deeptime
    """
    features = variables.features()
    flat = features.reshape(-1, features.shape[-1])
    if not 2 <= count <= len(flat) // 10:
        raise ValueError(f"{count} clusters of {len(flat)} frames: expected 2 to a tenth of them")
    cluster = quiet_deeptime("clustering", "clusters")
    few = np.ascontiguousarray(flat[:: max(1, len(flat) // _FITTED)])
    found = cluster.KMeans(count, fixed_seed=seed + 1, n_jobs=1).fit_fetch(few)
    numbers = found.transform(np.ascontiguousarray(flat), n_jobs=1)
    order = np.argsort(-np.bincount(numbers, minlength=count), kind="stable")
    rank = np.argsort(order)[numbers].reshape(features.shape[:2])
    return States(tuple(f"cluster {n}" for n in range(count)), rank)
