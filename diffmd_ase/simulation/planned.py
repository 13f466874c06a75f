"""The run that `RunSettings` ask for: model, start and kernel, each made once."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.units import fs
from torch import Tensor

from ..io.limits import check_memory
from ..io.ranks import Ranks
from ..io.run_info import RunInfo
from ..io.trajectory import Trajectory
from ..plugins import load_potential
from ..potentials.learned import compiling_pays
from ..potentials.named import find_potential
from ..sampling.ahead import Ahead
from ..sampling.euler import EulerMaruyama
from ..score.model import ScoreModel, resolve_device
from ..score.snapshots import Snapshots
from ..system import System
from ..units import kT_from_temperature, spring_from_h
from .constraints import what_moves
from .division import Division, default_chunk
from .frames import read_frames, starting_positions
from .outside import Outside, scores_of
from .prepare import Prepared, StepRequest, prepare
from .settings import Files, RunSettings, json_object
from .simulate import simulate

__all__ = ["PlannedRun", "held", "sha256_of"]

_KEPT = 20  # positions, forces, what is proposed, what networks keep of them, at least
LINEAR = "linear"  # the draft that is the target itself


@dataclass(frozen=True)
class PlannedRun:
    """What a run will do; :meth:`of` makes it."""

    settings: RunSettings  # what was asked for
    model: ScoreModel  # the score that drives
    frames: Snapshots | None  # to start from; None: i.i.d. samples, or a restart
    system: System  # of the walkers
    prepared: Prepared  # kernel and step
    files: Files  # that it leaves
    model_sha256: str | None  # of the model's file, None of a shipped one
    restart: bool  # go on from the checkpoint
    ahead: Ahead | None = None  # makes many steps together
    ranks: Ranks | None = None  # that share the walkers

    @classmethod
    def of(
        cls,
        settings: RunSettings,
        *,
        restart: bool = False,
        dry: bool = False,
        ranks: Ranks | None = None,
    ) -> PlannedRun:
        """The run of these settings, on ``ranks`` or in one process.

        ``dry`` opens no file of PLUMED.

        Raises
        ------
        ValueError : what does not fit together, see `prepare`
        FileExistsError : another run left its files, and this is no restart
        """
        files = Files(settings.prefix).absolute()
        if not (restart or dry):
            files.check_free()
        if settings.plumed is not None and (ranks is not None or settings.chunk is not None):
            raise ValueError(
                "--plumed on ranks or with --chunk: the PLUMED of each rank would build a bias of "
                "its own; run one process without --chunk, or start processes with --first-walker "
                "that share hills through PLUMED's WALKERS_N, WALKERS_ID and WALKERS_DIR"
            )
        if settings.parallel and (ranks is not None or settings.chunk is not None):
            raise ValueError("--parallel on ranks or with --chunk: give one of them")
        if ranks is not None:
            settings = settings.model_copy(update={"device": ranks.device(settings.device)})
        model = ScoreModel.load(settings.model)
        check_memory(
            _KEPT * 24.0 * len(model.card.numbers) * settings.walkers,
            f"a batch of {settings.walkers} walkers of {model.card.formula}",
            "give fewer --walkers, and share them with --first-walker",
        )
        frames = None
        if settings.start is not None and not restart:
            frames = read_frames(settings.start, model)
        if restart:
            system = Trajectory(files.trajectory).system
        else:
            system = model.system if frames is None else frames.system
        prepared = _prepared(settings, model, system, restart=restart, dry=dry)
        sha256, ahead = sha256_of(settings.model), _ahead(settings, prepared, system)
        return cls(settings, model, frames, system, prepared, files, sha256, restart, ahead, ranks)

    @property
    def h(self) -> float:
        """Step size in Å²; with friction that of the lightest atom."""
        return float(np.max(self.prepared.step.h))

    @property
    def timestep_fs(self) -> float | None:
        """Time step where a friction sets the clock."""
        step = self.prepared.step
        return step.timestep / fs if step.physical else None

    @property
    def gain(self) -> str:
        """Rounds so far and steps for each of them, for the eye; empty where steps are alone."""
        if self.ahead is None:
            return ""
        count = self.ahead.count
        return f"  rounds {count.rounds + count.sequential}  steps a round {count.gain:.1f}"

    @property
    def held_atoms(self) -> dict[str, int]:
        """How many atoms are held, by that name; empty where none is."""
        held = int((~self.prepared.moving).sum())
        return {"held_atoms": held} if held else {}

    @property
    def plain(self) -> EulerMaruyama:
        """The kernel of plain steps; of an accepted run, the proposal."""
        kernel = self.prepared.kernel
        return kernel if isinstance(kernel, EulerMaruyama) else kernel.proposal

    @property
    def _walkers(self) -> Tensor:
        first = self.settings.first_walker
        return torch.arange(first, first + self.settings.walkers)

    def facts(self) -> dict[str, Any]:
        """What it will do, by name with units."""
        settings = self.settings
        return {
            "model": settings.model,
            "formula": self.system.formula,
            "temperature_K": _kelvin(settings, self.model),
            "h_A2": self.h,
            "h_from": self.prepared.step.source,
            "timestep_fs": self.timestep_fs,
            "target": settings.target,
            "walkers": settings.walkers,
            **({"window": settings.window, "draft": settings.draft} if settings.parallel else {}),
            **self.held_atoms,
            "steps": settings.steps,
            "D_t_per_walker_A2": self.h * settings.steps,
            "trajectory": str(Files(settings.prefix).trajectory),
        }

    def start(self) -> Tensor | None:
        """Positions (B, N, 3) in Å that the walkers start from; None for a restart."""
        if self.restart:
            return None
        settings, chunk = self.settings, self.chunk

        def start(walkers: Tensor) -> Tensor:
            return starting_positions(
                self.model, self.frames, walkers, seed=settings.seed, device=settings.device
            )

        if chunk is None:
            return start(self._walkers)
        ranks = self.ranks or Ranks()
        return Division.of(settings.walkers, chunk, ranks.size).starts(self._walkers, start, ranks)

    @property
    def chunk(self) -> int | None:
        """Walkers that step together; None: all."""
        if self.settings.chunk is not None:
            return self.settings.chunk
        if self.restart and "chunk" in (extra := Trajectory(self.files.trajectory).info.extra):
            return extra["chunk"]
        return None if self.ranks is None else default_chunk(self.settings.walkers)

    def run(
        self,
        x: Tensor | None,
        *,
        extra: dict[str, Any],
        compiled: bool | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> dict[str, Any]:
        """Run from `start`, see `simulate`; the summary.

        Parameters
        ----------
        extra : options to be kept in the trajectory, JSON values
        compiled : what `compiled` has said; None: it is asked
        """
        settings = self.settings
        compiled = self.compiled(x) if compiled is None else compiled
        info = RunInfo(
            seed=settings.seed,
            kT=float(self.prepared.kernel.kT),
            h=self.h,
            kinetics_valid=settings.target is None and settings.plumed is None,
            timestep_fs=self.timestep_fs,
            model_sha256=self.model_sha256,
            extra={**extra, "compiled": compiled},
        )
        summary = simulate(
            self.prepared.kernel,
            self.system,
            x,
            settings.steps,
            files=self.files,
            info=info,
            every=settings.every,
            walkers=self._walkers,
            restart=self.restart,
            warm_up=settings.adapt,
            ahead=self.ahead,
            device=resolve_device(settings.device),
            progress=progress,
            outside=Outside(self.system, settings.collect, settings.stop_outside),
            ranks=self.ranks,
            chunk=self.chunk,
        )
        return summary | self.held_atoms | {"compiled": compiled}

    def compiled(self, x: Tensor | None) -> bool:
        """Whether networks will be compiled: as asked, as before the restart, or where it pays.

        ``x`` are the positions of `start`, by which "auto" takes the time.
        """
        kernel, asked = self.prepared.kernel, self.settings.compile
        learned = scores_of(kernel)
        if x is None:  # one chain is computed in one way
            chosen = bool(Trajectory(self.files.trajectory).info.extra.get("compiled"))
        elif asked == "auto":
            ranks, steps = self.ranks or Ranks(), self.settings.steps
            chosen = ranks.first(lambda: bool(learned) and compiling_pays(learned[0], x, steps))
        else:
            chosen = asked == "on"
        for potential in learned:
            potential.compiled = chosen
        return chosen


def _kelvin(settings: RunSettings, model: ScoreModel) -> float:
    return model.card.temperature_K if settings.temperature is None else settings.temperature


def _ahead(settings: RunSettings, prepared: Prepared, system: System) -> Ahead | None:
    """What makes steps together, if it was asked for; raises where it cannot."""
    if not settings.parallel:
        return None
    draft = None
    if settings.draft not in (None, LINEAR):
        draft = find_potential(
            settings.draft,
            system,
            role="draft",
            device=settings.device,
            needs_energy=settings.target is not None,
        )
    ahead = Ahead(window=settings.window, speculative=settings.draft is not None, draft=draft)
    ahead.check(prepared.kernel)
    return ahead


def _prepared(
    settings: RunSettings, model: ScoreModel, system: System, *, restart: bool, dry: bool
) -> Prepared:
    drift = model.potential(system, device=settings.device)
    kelvin = _kelvin(settings, model)

    def plumed(step):
        return load_potential(
            "plumed",
            system,
            input=settings.plumed,
            allow_load=settings.allow_load,
            kT=kT_from_temperature(kelvin),
            # without a clock PLUMED's times count steps, as femtoseconds
            timestep=step.timestep if step.physical else fs,
            restart=restart,
        )

    options = json_object("--target-options", settings.target_options)
    target = None
    if settings.target is not None:
        target = find_potential(
            settings.target, system, model=drift, options=options, device=settings.device
        )
    spring = settings.spring if settings.step_size is None else spring_from_h(settings.step_size)
    return prepare(
        drift,
        temperature_K=kelvin,
        step=StepRequest(
            timestep=None if settings.timestep is None else settings.timestep * fs,
            friction=None if settings.friction is None else settings.friction / fs,
            spring=spring,
        ),
        target=target,
        proposal_steps=settings.proposal_steps,
        bias=None if settings.plumed is None or dry else plumed,
        **held(model, system),
    )


def held(model: ScoreModel, system: System) -> dict[str, Any]:
    """What moves, as `prepare` asks: without atoms that the snapshots held, or the start holds.

    ``model`` and ``system`` are those of a run.
    """
    moving: np.ndarray = model.card.moving(system)
    atoms = system.carriers()[0]
    if not atoms.constraints:
        return {"moving": moving, "mean_free": not system.periodic}
    try:
        directions, com = what_moves(atoms)
    except ValueError as error:
        warnings.warn(f"the constraints of the start are not held: {error}", stacklevel=2)
        return {"moving": moving, "mean_free": not system.periodic}
    directions = directions * moving[:, None, None]
    alike = np.allclose(directions, directions[:1])
    return {"moving": directions, "mean_free": com or (alike and not system.periodic)}


def sha256_of(model: str) -> str | None:
    """Of the file of ``model``; None of a shipped one."""
    path = Path(model)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
