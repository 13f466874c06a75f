"""What an alchemical run is asked to do, and the files that it leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..settings import Files, json_object

__all__ = ["AlchemyFiles", "AlchemySettings"]

Protocol = Literal["windows", "exchange", "expanded", "switching", "smc", "diffusion"]


class AlchemySettings(BaseModel):
    """The options of ``diffmd alchemy``, in the words of its help.

    Raises
    ------
    ValueError : options that contradict each other; a pydantic ValidationError is one
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    start: str = Field(
        description="A: a model (file or shipped name), an installed potential (openmm), a "
        "calculator of ASE (emt), or an ideal crystal at the sites of STRUCTURE: `einstein` (equal "
        "springs), `harmonic` (the Hessian of B)"
    )
    end: str = Field(description="B: likewise")
    structure: str = Field(description="where walkers start: anything ASE reads; its last frame")
    end_structure: str | None = Field(
        None, description="the atoms as they are at B, where elements change: the same order"
    )
    temperature: float = Field(300.0, gt=0, description="of both, K")
    protocol: Protocol = Field(
        "exchange",
        description="windows (fixed λ), exchange (of λ between windows), expanded (walkers change "
        "λ), switching (both directions, Crooks), smc (annealed), diffusion (from noise down the "
        "levels of the model A, and annealed to B)",
    )
    windows: int = Field(
        0, ge=0, description="values of λ; 0: as many as a first pass finds that there must be"
    )
    walkers: int = Field(4, ge=1, description="of each window (switching, smc: of each end)")
    steps: int = Field(
        5000, ge=1, description="of every walker, after the first pass; diffusion: noise levels"
    )
    every: int = Field(10, ge=1, description="steps between frames, exchanges and draws of λ")
    first_pass: int = Field(500, ge=20, description="steps that place windows and find the step h")
    switch_steps: int = Field(500, ge=2, description="of one switch, or of one annealing")
    soft_core: float | None = Field(
        None, gt=0, description="E of the soft core, eV; default: linear in the energies"
    )
    plain: bool = Field(
        False, description="plain steps, with the error of their size, and no Metropolis choice"
    )
    start_options: str | None = Field(None, description='of A, as JSON; einstein: {"k": eV/Å²}')
    end_options: str | None = Field(None, description="of B, as JSON")
    skip: float = Field(0.1, ge=0, lt=1, description="fraction of the frames left out at first")
    prefix: str = Field("alchemy", description="of the files that are written")
    seed: int = Field(0, ge=0, description="seed of all randomness")
    device: str = Field("auto", description="of models: auto, cpu, cuda or cuda:N")

    @model_validator(mode="after")
    def _agrees(self) -> AlchemySettings:
        json_object("--start-options", self.start_options)
        json_object("--end-options", self.end_options)
        if self.windows == 1:
            raise ValueError("--windows 1: at least the two ends, or 0 to have them placed")
        if self.protocol in ("smc", "diffusion") and self.walkers < 2:
            raise ValueError(
                f"--walkers 1 with --protocol {self.protocol}: each walker is a population, and "
                "their spread is the error; take 4 or more"
            )
        if self.plain and self.protocol in ("switching", "smc", "diffusion"):
            raise ValueError(
                f"--plain with --protocol {self.protocol}: works are exact for Metropolis steps "
                "only; leave --plain out, or take windows"
            )
        if self.steps < 20 * self.every:
            raise ValueError(
                f"--steps {self.steps} with a frame every {self.every}: fewer than 20 frames; run "
                "longer"
            )
        return self


class AlchemyFiles:
    """Names of the files of one run: those of `Files`, and

    PREFIX.plan.npz     what the first pass found: λ, starting positions, factor of the step
    PREFIX.works.npz    works of switches, or weights of annealings, so far
    PREFIX.alchemy.json, .csv, .png   the result
    PREFIX.u_nk.parquet, PREFIX.dHdl.parquet   frames of alchemlyb, decorrelated
    """

    def __init__(self, prefix: str):
        self.run = Files(prefix).absolute()
        self.prefix = self.run.prefix
        self.plan = Path(f"{self.prefix}.plan.npz")
        self.works = Path(f"{self.prefix}.works.npz")
        self.json = Path(f"{self.prefix}.alchemy.json")
        self.csv = Path(f"{self.prefix}.csv")
        self.png = Path(f"{self.prefix}.png")

    def check_free(self) -> None:
        """Raise ``FileExistsError`` where another run left its files."""
        self.run.check_free()
        for path in (self.plan, self.works):
            if path.exists():
                raise FileExistsError(
                    f"{path} exists: restart that run, remove it, or choose another prefix"
                )
