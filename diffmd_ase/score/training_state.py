"""A training that can be stopped at any step: its checkpoints, and the best network so far."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from ..io.schema import validated
from ..io.tensors import load_tensors, save_tensors, verify
from .card import ExpertCard
from .networks.build import below, build
from .networks.molecule import MechanicsConfig
from .plan import Expert

__all__ = [
    "Progress",
    "TrainingState",
    "address",
    "file_of",
    "generator_of",
    "load_best",
    "peak_memory_MB",
    "read_checkpoint",
]


@dataclass
class TrainingState:
    """Where the training of one expert stands; on disk after every validation."""

    step: int = 0  # done so far
    seconds: float = 0.0  # likewise
    best_step: int = 0  # of the network that is best on held-out snapshots
    best_losses: list[float] = field(default_factory=list)  # its losses on parts of these
    compiled: bool | None = None  # its steps, from here on; None: not decided
    history: list[dict] = field(default_factory=list)  # an entry for each validation
    best: dict[str, Tensor] = field(default_factory=dict)  # its weights

    def validate(self, objective, network, x, terms, seed) -> None:
        """Losses on held-out snapshots, always with the same noise; keep the best weights.

        Later weights must be better by more than twice the standard error of the paired
        difference: a fitted prior is not given up for luck.
        """
        generator = generator_of(seed, "validation", 0)
        # each part holds some frames of each set; what is left over is left out
        chunks = zip(*(p.split(max(1, min(128, len(p) // 8))) for p in x), strict=False)
        parts = [
            {name: value.item() for name, value in objective(network, part, generator).items()}
            for part in chunks
        ]
        entry: dict = {"step": self.step, "seconds": round(self.seconds, 1)}
        if (memory := peak_memory_MB()) is not None:
            entry["peak_memory_MB"] = memory
        entry["training_loss"] = terms["loss"].item() if terms else None
        entry |= {f"validation_{k}": float(np.mean([p[k] for p in parts])) for k in parts[0]}
        losses = [p["loss"] for p in parts]
        gain = np.subtract(self.best_losses, losses) if self.best_losses else np.array([np.inf])
        error = gain.std(ddof=1) / len(gain) ** 0.5 if len(gain) > 1 else 0.0
        self.history.append(entry)
        if gain.mean() > 2 * error:
            self.best_losses, self.best_step = losses, self.step
            self.best = {k: v.detach().cpu().clone() for k, v in network.state_dict().items()}

    def save(self, folder: Path, expert: Expert, network, average, optimiser) -> None:
        """The file of ``expert`` in ``folder``, in the place of the one before."""
        tensors = {f"network.{k}": v for k, v in network.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in average.module.state_dict().items()}
        tensors |= {f"best.{k}": v for k, v in self.best.items()}
        for n, slot in optimiser.state_dict()["state"].items():
            tensors |= {f"adam.{n}.{k}": torch.as_tensor(v) for k, v in slot.items()}
        kept = ("step", "seconds", "best_step", "best_losses", "compiled")
        facts = {k: getattr(self, k) for k in kept}
        facts |= {"history": self.history, "expert": expert.model_dump(mode="json")}
        path = file_of(folder, expert)
        save_tensors(path, tensors, "progress", facts)

    @classmethod
    def load(cls, folder: Path, expert: Expert, network, average, optimiser) -> TrainingState:
        """As it stands in ``folder``, with networks and optimiser; a new one if there is none."""
        path = file_of(folder, expert)
        if not path.exists():
            return cls()
        facts, tensors = read_checkpoint(path)
        state: dict = {}
        try:
            network.load_state_dict(below(tensors, "network."))
            average.module.load_state_dict(below(tensors, "average."))
            for name, value in below(tensors, "adam.").items():
                n, key = name.split(".")
                state.setdefault(int(n), {})[key] = value
            optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise _unfit(path, error) from error
        return cls(**facts.model_dump(exclude={"expert"}), best=below(tensors, "best."))


class Progress(BaseModel):
    """What is in the header of the checkpoint of a training, see `TrainingState`."""

    step: Annotated[int, Field(ge=0)]
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    best_step: Annotated[int, Field(ge=0)]
    best_losses: list[float]
    compiled: bool | None = None
    history: list[dict[str, Any]]
    expert: dict[str, Any]


def _unfit(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{path} does not fit this training: {error}; remove it to train this network from the "
        "start"
    )


def file_of(folder: Path, expert: Expert) -> Path:
    """The checkpoint of an ``expert`` in ``folder``."""
    return folder / f"{expert.name}.safetensors"


def read_checkpoint(path: Path) -> tuple[Progress, dict[str, Tensor]]:
    """Facts and tensors of a checkpoint. Raises ``ValueError`` where it is damaged."""
    tensors, header = load_tensors(path, "progress")
    if header is None:
        raise ValueError(
            f"{path} is no checkpoint of a training; remove it to train from the start"
        )
    return validated(Progress, verify(path, tensors, header), path, "header"), tensors


def load_best(folder: Path, expert: Expert) -> tuple[nn.Module, ExpertCard]:
    """The weights of ``expert`` that `fit` left in ``folder``, best on held-out snapshots.

    The network, and its card with the history of the training.
    """
    path = file_of(folder, expert)
    facts, tensors = read_checkpoint(path)
    best, config = below(tensors, "best."), expert.network
    if isinstance(config, MechanicsConfig) and not facts.best_step:
        # the perceptron did not improve on the force field: leave it out
        config = config.model_copy(update={"depth": 0})
        best = {k: v for k, v in best.items() if k.startswith("prior.")}
    try:
        network = build(config, best)
        network.load_state_dict(best)
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise _unfit(path, error) from error
    card = ExpertCard(
        name=expert.name,
        sigma=expert.sigma,
        network=config,
        best_step=facts.best_step,
        history=facts.history,
        correction=_correction(expert, facts),
    )
    return network.eval(), card


def _correction(expert: Expert, facts: Progress) -> str | None:
    """What a network on a fitted force field was good for, in words; None where there is none."""
    config, history = expert.network, facts.history
    if not isinstance(config, MechanicsConfig) or not config.depth:
        return None
    first, *_ = losses = [entry["validation_loss"] for entry in history]
    if not facts.best_step:
        looks = len(losses) - 1
        return (
            f"dropped: no better than the force field alone on held-out snapshots, in {looks} looks"
        )
    best = next(e["validation_loss"] for e in history if e["step"] == facts.best_step)
    return (
        f"kept: held-out loss {first:.4g} to {best:.4g} ({(first - best) / abs(first):.2%} lower)"
    )


def generator_of(seed: int, name: str, step: int, part: int = 0) -> torch.Generator:
    """The random numbers of a ``part`` of one ``step`` of an expert of this ``name``.

    No generator has a state to keep.
    """
    return torch.Generator().manual_seed(address(seed, name, step, part))


def address(seed: int, name: str, step: int, part: int = 0) -> int:
    """A seed of 63 bits for a ``part`` of one ``step`` of an expert of this ``name``.

    The upper bits of the BLAKE2b hash of ``{seed}/{name}/{step}`` of the first part, and of
    ``{seed}/{name}/{step}/{part}`` of others.
    """
    words = f"{seed}/{name}/{step}" + (f"/{part}" if part else "")
    digest = hashlib.blake2b(words.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def peak_memory_MB() -> int | None:
    """Of this process so far; of the GPU's tensors as well where there is one.

    None on systems that do not tell (Windows).
    """
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 2**10  # bytes there, KiB on Linux
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    if torch.cuda.is_available():
        peak += torch.cuda.max_memory_allocated()
    return round(peak / 1e6)
