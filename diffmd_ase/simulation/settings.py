"""What a run is asked to do, and the files that it leaves. Imports nothing heavy: the command
line makes its options of it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..io.part_names import part_path, parts_beside

__all__ = ["Files", "RunSettings", "json_object"]


class RunSettings(BaseModel):
    """The options of ``diffmd run``, in the words of its help; what ``--config`` reads.

    Raises
    ------
    ValueError : options that contradict each other; a pydantic ValidationError is one
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(description="model file, or name of a shipped model")
    start: str | None = Field(
        None,
        description="starting frames: anything ASE reads, .npz, shipped set; default: i.i.d. "
        "samples (molecules)",
    )
    steps: int = Field(100_000, ge=0, description="steps in all")
    walkers: int = Field(1, ge=1, description="copies run as one batch")
    first_walker: int = Field(
        0, ge=0, description="id of the first walker, to share a batch between processes"
    )
    temperature: float | None = Field(
        None, description="of the run, K (default: that of the snapshots)"
    )
    timestep: float | None = Field(None, description="time step, fs (with friction)")
    friction: float | None = Field(None, description="friction, 1/fs: sets the clock")
    spring: float | None = Field(None, description="spring to the frame before, k = 1/(2h), 1/Å²")
    step_size: float | None = Field(None, description="h = D·Δt, Å² (default: 0.2/λ)")
    target: str | None = Field(
        None,
        description="accept steps to the Boltzmann law of: model (its own energy), another model, "
        "an installed potential (openmm), or a calculator of ASE (emt); default: plain dynamics",
    )
    target_options: str | None = Field(None, description="of that potential or calculator, as JSON")
    proposal_steps: int = Field(1, ge=1, description="reverse steps of one proposal to the target")
    parallel: bool = Field(
        False,
        description="make steps together, --window at a time: the same trajectory",
    )
    window: int = Field(64, ge=1, description="steps made together (--parallel)")
    draft: str | None = Field(
        None,
        description="with --parallel, other noise of the same law, faster: steps are drafted by "
        "linear (the target itself, linear about its last evaluations), another model, an "
        "installed potential, or a calculator of ASE",
    )
    plumed: Path | None = Field(
        None,
        description="input of PLUMED: its biases act on all walkers together; its files go on "
        "with --restart (needs the plugin `plumed`)",
    )
    allow_load: bool = Field(
        False,
        description="let the input of PLUMED run code of files (LOAD, also through INCLUDE): such "
        "an input is a program, with all your rights",
    )
    adapt: int = Field(
        0,
        ge=0,
        description="first steps, in no frame, that adapt h to 57 % acceptance, then freeze it",
    )
    stop_outside: bool = Field(
        False, description="end a walker where a frame is outside of the model's snapshots"
    )
    collect: Path | None = Field(
        None, description="file (.extxyz) of the frames outside of them: what to label next"
    )
    every: int = Field(100, ge=1, description="steps between frames")
    prefix: str = Field("md", description="of the files: PREFIX.h5, .restart, .json, .extxyz, .yml")
    seed: int = Field(0, ge=0, description="seed of all randomness")
    chunk: int | None = Field(
        None,
        ge=2,
        description="walkers that step together, so that any number of ranks (torchrun) makes the "
        "same trajectory, bit by bit; default: a quarter of all, 2 to 64, on ranks, else all",
    )
    rank_timeout: float = Field(300.0, gt=0, description="seconds in which another rank answers")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    compile: Literal["auto", "on", "off"] = Field(
        "auto",
        description="compile the network: steps are several times faster after up to a minute "
        "for the compiler; auto: where the run is long enough to pay for it",
    )

    @model_validator(mode="after")
    def _agrees(self) -> RunSettings:
        h = self.step_size
        if h is not None and (self.spring is not None or self.timestep is not None):
            raise ValueError(f"step size {h} Å² and a spring or time step: give one, each sets h")
        if h is not None and not h > 0:
            raise ValueError(f"step size {h} Å² must be positive")
        if self.timestep is not None and self.friction is None:
            raise ValueError(
                f"time step {self.timestep} fs needs a friction (1/fs): only together they make a "
                "step h; give neither for the default"
            )
        if self.draft is not None and not self.parallel:
            raise ValueError(f"--draft {self.draft} is of steps made together: add --parallel")
        if self.parallel and self.proposal_steps != 1:
            raise ValueError(
                f"--parallel and --proposal-steps {self.proposal_steps}: the steps of a proposal "
                "are made one after the other; give one of the two"
            )
        if self.target is None and (self.adapt or self.target_options is not None):
            raise ValueError("--adapt and --target-options are for accepted steps: give --target")
        if self.adapt > self.steps:
            raise ValueError(
                f"--adapt {self.adapt} of --steps {self.steps}: it is the first part of the run"
            )
        if self.plumed is not None and self.adapt:  # PLUMED's times are set before the run
            raise ValueError("--plumed and --adapt: adapt without the bias, then give --step-size")
        json_object("--target-options", self.target_options)
        return self


def json_object(flag: str, text: str | None) -> dict[str, Any]:
    """The value of ``flag``, a JSON object, from its ``text``; empty if that is None.

    Raises ``ValueError``, naming the flag, for what is not JSON, or not an object.
    """
    try:
        values = {} if text is None else json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{flag} {text!r} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f'{flag} {text!r}: expected an object, {{"name": value}}')
    return values


class Files:
    """The files of one run, named after its ``prefix``; `check_free` raises where some are."""

    def __init__(self, prefix: str):
        self.prefix = prefix
        self.trajectory, self.restart = Path(f"{prefix}.h5"), Path(f"{prefix}.restart")
        self.summary, self.final = Path(f"{prefix}.json"), Path(f"{prefix}.extxyz")
        self.lost, self.lock = Path(f"{prefix}.lost.extxyz"), Path(f"{prefix}.lock")

    def absolute(self) -> Files:
        """The same files, which stay when the working directory changes."""
        return Files(os.path.join(os.getcwd(), self.prefix))

    def of_rank(self, rank: int, size: int) -> Files:
        """Those of one of several ranks, which has a trajectory and lost walkers of its own."""
        own = Files(self.prefix)
        if size > 1:
            own.trajectory = part_path(self.trajectory, rank, size)
            own.lost = own.trajectory.with_suffix(".lost.extxyz")
        return own

    def check_free(self) -> None:
        """Raise ``FileExistsError`` where another run left its files, or links are in the way."""
        for path in (self.summary, self.final, self.lost, self.lock):
            if path.is_symlink():
                raise FileExistsError(
                    f"{path} is a link to {os.readlink(path)}: nothing is written through links; "
                    "remove it, or choose another prefix"
                )
        begun = (
            self.restart.exists() or self.restart.with_name(f"{self.restart.name}.prev").exists()
        )
        for path in (self.trajectory, self.restart, *parts_beside(self.trajectory)):
            if path.exists() or path.is_symlink():
                way = (
                    "restart that run, remove it" if begun else "remove it (no checkpoint goes on)"
                )
                raise FileExistsError(f"{path} exists: {way}, or choose another prefix")
