"""Checkpoints: a `State` in one safetensors file with a JSON header.

A checkpoint is written beside its place and moved there in one step, and the one before
is kept as ``NAME.prev``: at any moment a whole checkpoint exists. No generator state is
needed, for noise is addressed by (seed, walker, step).
"""

from __future__ import annotations

import hashlib
import shutil
import warnings
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, Field

from ..state import Record, State
from .atomic import replacing
from .schema import validated
from .tensors import load_tensors, save_tensors, verify

__all__ = ["Checkpoint", "load_checkpoint", "save_checkpoint", "state_of", "tensors_of"]

SCHEMA_VERSION = 2
_KEY = "diffmd_ase"
_FORMAT = "diffmd_ase checkpoint"


class _Header(BaseModel):
    """What is in the header of a file besides format and schema."""

    step: Annotated[int, Field(ge=0)]
    seed: Annotated[int, Field(ge=0)]
    records: list[str] = Field(default_factory=list)
    parameters: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a run needs to go on: state, seed of its noise, and ``parameters`` (JSON values)."""

    state: State
    seed: int
    parameters: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(path, state: State, *, seed: int, parameters: dict | None = None) -> None:
    """Write ``state``, ``seed`` and ``parameters`` (JSON) to ``path``; keep the one before.

    Values that can be evaluated again are left out. Flush the trajectory before. Raises
    ``TypeError`` for parameters that JSON does not hold.
    """
    path = Path(path)
    tensors, kinds = tensors_of(state)
    header = {
        "format": _FORMAT,
        "schema_version": SCHEMA_VERSION,
        "step": int(state.step),
        "seed": int(seed),
        "records": kinds,
        "parameters": {} if parameters is None else parameters,
    }
    if path.exists():  # a copy, so that a kill never finds ``path`` missing
        with replacing(previous(path)) as temporary:
            shutil.copyfile(path, temporary)
    save_tensors(path, tensors, _KEY, header)


def tensors_of(state: State) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Tensors of ``state`` by name, and the kinds of its records, outermost first.

    What can be evaluated again is left out; `state_of` makes the state again.
    """
    tensors = {"x": state.x, "forces": state.forces}
    if state.energy is not None:
        tensors["energy"] = state.energy
    if state.walkers is not None:
        tensors["walkers"] = state.walkers
    if state.momenta is not None:
        tensors["momenta"] = state.momenta
    kinds: list[str] = []
    record = state.record
    while record is not None:
        parts = {f.name: getattr(record, f.name) for f in fields(record)}
        own = {n: value for n, value in parts.items() if isinstance(value, torch.Tensor)}
        tensors |= {f"record.{len(kinds)}.{name}": value for name, value in own.items()}
        kinds.append(type(record).__name__)
        record = parts.get("record")
    return tensors, kinds


def state_of(source, tensors: dict[str, torch.Tensor], step: int, kinds: list[str]) -> State:
    """The state after ``step`` of which `tensors_of` gave ``tensors`` and ``kinds``.

    Raises ``ValueError``, which names the ``source``, for records that are known nowhere.
    """
    return State(
        x=tensors["x"],
        energy=tensors.get("energy"),
        forces=tensors["forces"],
        step=step,
        walkers=tensors.get("walkers"),
        momenta=tensors.get("momenta"),
        record=_record(source, kinds, tensors),
    )


def load_checkpoint(path, *, device="cpu", older: bool = True) -> Checkpoint:
    """The checkpoint at ``path``, or with a warning the one before if it is not whole.

    Without ``older`` that one is left alone.

    Raises
    ------
    FileNotFoundError : neither exists
    ValueError : no whole checkpoint: truncated, altered, foreign, or of a newer schema
    """
    path = Path(path)
    if not older:
        return _load(path, device)
    before = previous(path)
    if not path.exists() and not before.exists():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    try:
        if not path.exists():
            raise ValueError(f"{path} is missing")
        return _load(path, device)
    except ValueError as error:
        if not before.exists():
            raise
        try:
            checkpoint = _load(before, device)
        except ValueError:
            raise error from None
        warnings.warn(f"{error}; using the one before, {before}", stacklevel=2)
        return checkpoint


def previous(path) -> Path:
    """Where :func:`save_checkpoint` keeps the checkpoint before ``path``."""
    path = Path(path)
    return path.with_name(path.name + ".prev")


def _load(path: Path, device) -> Checkpoint:
    tensors, header = load_tensors(path, _KEY)
    if header is None or header.get("format") != _FORMAT:
        found = None if header is None else header.get("format")
        raise ValueError(
            f"{path} is a safetensors file but not a checkpoint (format {found!r}, expected "
            f"{_FORMAT!r}); a model file goes to --model"
        )
    schema = header.get("schema_version")
    if isinstance(schema, int) and schema > SCHEMA_VERSION:
        raise ValueError(
            f"{path}: written with schema {schema}, this version reads up to {SCHEMA_VERSION}; "
            "update diffmd_ase"
        )
    if schema == 1:
        tensors = _from_first_schema(path, tensors, header.get("sha256"))
    else:
        header = verify(path, tensors, header)
    told = validated(_Header, header, path, "header")
    _check_shapes(path, tensors)
    tensors = {name: t.to(device) for name, t in tensors.items()}
    state = state_of(path, tensors, told.step, told.records)
    return Checkpoint(state, told.seed, told.parameters)


def _check_shapes(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """``ValueError`` for tensors that are missing, or are none of one state."""
    shapes = {name: tuple(t.shape) for name, t in tensors.items()}
    x = shapes.get("x", ())
    own = {"x": x, "forces": x, "momenta": x, "energy": x[:-2], "walkers": x[:1]}
    wrong = [name for name, shape in own.items() if shapes.get(name, shape) != shape]
    missing = [name for name in ("x", "forces") if name not in shapes]
    own.pop("walkers")
    real = [n for n in own if n in tensors and not tensors[n].is_floating_point()]
    whole = "walkers" not in tensors or tensors["walkers"].dtype == torch.int64
    if wrong or missing or real or not whole or len(x) < 2 or x[-1] != 3:
        said = ", ".join(f"{n} {s}" for n, s in shapes.items() if n in own) or "nothing"
        raise ValueError(
            f"{path} has damaged tensors ({said}): expected x and forces (…, N, 3) and what "
            "belongs to them"
        )


def _record(path, kinds: list[str], tensors: dict[str, torch.Tensor]) -> Record | None:
    """The records of a kernel, and of those that it is made of, from the innermost outwards."""
    known = {kind.__name__: kind for kind in Record.__subclasses__()}
    record: Record | None = None
    for depth, name in reversed(list(enumerate(kinds))):
        if name not in known:
            raise ValueError(
                f"{path}: its kernel remembers {name!r}, which is known nowhere here: import the "
                "module of that kernel before the checkpoint is read"
            )
        prefix = f"record.{depth}."
        own: dict[str, Any] = {
            n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)
        }
        if record is not None:
            own["record"] = record
        try:
            record = known[name](**own)
        except TypeError as error:
            raise ValueError(f"{path}: damaged record of {name}: {error}") from error
    return record


def _from_first_schema(path: Path, tensors: dict[str, torch.Tensor], told) -> dict:
    total = hashlib.sha256()  # the header had no part in it
    for name in sorted(tensors):
        values = tensors[name]
        total.update(f"{name}{values.dtype}{tuple(values.shape)}".encode())
        total.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
    if total.hexdigest() != told:
        raise ValueError(f"{path} was altered or damaged: it does not match its checksum")
    strange = sorted(n for n in tensors if n.startswith("extra.") and n != "extra.momenta")
    if strange:
        raise ValueError(
            f"{path} was written by an earlier version and holds {', '.join(strange)}, "
            "which is kept in another form now (and replica exchange draws other numbers): "
            "finish the run with that version, or start a new one from its last frame"
        )
    return {name.removeprefix("extra."): value for name, value in tensors.items()}
