"""What the frames of a trajectory mean."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Annotated, Any

from pydantic import BaseModel, Field

from .json_text import to_json
from .schema import json_object, validated

__all__ = ["RunInfo"]


@dataclass(frozen=True)
class RunInfo:
    """What the frames of a trajectory mean.

    The clock is ``D·t = step · h``; with a mobility of each atom, h is that of the atom whose D is
    meant.

    Raises
    ------
    ValueError : `from_json` of what a later version wrote, and of what cannot be
    """

    seed: int  # of the noise
    kT: float | list[float]  # eV; one number or one per walker
    h: float  # Å²
    kinetics_valid: bool  # time correlations may be computed (unbiased, unadjusted dynamics)
    timestep_fs: float | None = None  # Δt where a friction or mobility set the clock
    model_sha256: str | None = None  # of the model file
    package_version: str = field(default_factory=lambda: version("diffmd-ase"))  # of diffmd_ase
    extra: dict[str, Any] = field(default_factory=dict)  # anything that JSON holds

    def to_json(self) -> str:
        """One JSON object, which `from_json` reads."""
        unit = "fs" if self.timestep_fs is not None else "D·t in Å²"
        return to_json(
            {"schema_version": SCHEMA_VERSION, "clock": unit, **asdict(self)}, indent=None
        )

    @classmethod
    def from_json(cls, text: str, source) -> RunInfo:
        """From the ``text`` that `to_json` gave; ``source`` is named in errors."""
        data = json_object(text, source, "metadata")
        version = data.get("schema_version", 0)
        if type(version) is int and version > SCHEMA_VERSION:
            raise ValueError(
                f"{source}: written with schema {data['schema_version']}, this version reads "
                f"up to {SCHEMA_VERSION}; update diffmd_ase"
            )
        return cls(**validated(_Metadata, data, source, "metadata").model_dump())


_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Metadata(BaseModel):
    """The fields of `RunInfo` as they must be in a file; ``clock`` and others are not read."""

    seed: int
    kT: _Positive | Annotated[list[_Positive], Field(min_length=1)]
    h: _Positive
    kinetics_valid: bool
    timestep_fs: _Positive | None
    model_sha256: str | None
    package_version: str
    extra: dict[str, Any]


SCHEMA_VERSION = 1
