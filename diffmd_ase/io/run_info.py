"""What the frames of a trajectory mean."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from typing import Any

from .json_text import to_json

__all__ = ["RunInfo"]


@dataclass(frozen=True)
class RunInfo:
    """What the frames of a trajectory mean.

    Parameters
    ----------
    seed : of the `Noise`
    kT : eV; one number or one per walker
    h : step size in Å² that makes the clock ``D·t = step · h`` (with per-atom mobility,
        that of the atom whose D is meant)
    kinetics_valid : time correlations may be computed (unbiased, unadjusted dynamics)
    timestep_fs : Δt where a friction or mobility set the clock, else None
    model_sha256 : of the model file, or None
    package_version : of diffmd_ase
    extra : anything that JSON holds

    Raises
    ------
    ValueError : `from_json` of what a later version wrote
    """

    seed: int
    kT: float | list[float]
    h: float
    kinetics_valid: bool
    timestep_fs: float | None = None
    model_sha256: str | None = None
    package_version: str = field(default_factory=lambda: version("diffmd-ase"))
    extra: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """One JSON object, which `from_json` reads."""
        unit = "fs" if self.timestep_fs is not None else "D·t in Å²"
        return to_json(
            {"schema_version": SCHEMA_VERSION, "clock": unit, **asdict(self)}, indent=None
        )

    @classmethod
    def from_json(cls, text: str, source) -> RunInfo:
        """From the ``text`` that `to_json` gave; ``source`` is named in errors."""
        data = json.loads(text)
        if data.get("schema_version", 0) > SCHEMA_VERSION:
            raise ValueError(
                f"{source}: written with schema {data['schema_version']}, this version reads "
                f"up to {SCHEMA_VERSION}; update diffmd_ase"
            )
        return cls(**{f.name: data[f.name] for f in fields(cls)})


SCHEMA_VERSION = 1
