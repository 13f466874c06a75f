"""A training that can be stopped at any step: its checkpoints, and the best network so far."""

from __future__ import annotations

import hashlib
import json
import os
import resource
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .card import ExpertCard
from .networks.build import build
from .networks.molecule import MechanicsConfig
from .plan import Expert

__all__ = ["load_best"]


@dataclass
class _Progress:
    """Where a training run stands, on disk after every validation."""

    step: int = 0
    seconds: float = 0.0
    best_step: int = 0
    best_losses: list[float] = None  # type: ignore[assignment]
    history: list[dict] = None  # type: ignore[assignment]
    best: dict[str, Tensor] = None  # type: ignore[assignment]

    def validate(self, objective, network, x, terms, seed) -> None:
        """Losses on held-out snapshots, always with the same noise; keep the best weights.

        Later weights must be better by more than twice the standard error of the paired
        difference: a fitted prior is not given up for luck.
        """
        generator = _generator(seed, "validation", 0)
        # each part holds some frames of each set; what is left over is left out
        chunks = zip(*(p.split(max(1, min(128, len(p) // 8))) for p in x), strict=False)
        parts = [
            {name: value.item() for name, value in objective(network, part, generator).items()}
            for part in chunks
        ]
        entry: dict = {"step": self.step, "seconds": round(self.seconds, 1)}
        entry["peak_memory_MB"] = _peak_memory_MB()
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
        tensors = {f"network.{k}": v for k, v in network.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in average.module.state_dict().items()}
        tensors |= {f"best.{k}": v for k, v in self.best.items()}
        for n, slot in optimiser.state_dict()["state"].items():
            tensors |= {f"adam.{n}.{k}": torch.as_tensor(v) for k, v in slot.items()}
        facts = {k: getattr(self, k) for k in ("step", "seconds", "best_step", "best_losses")}
        facts |= {"history": self.history, "expert": expert.model_dump(mode="json")}
        path = folder / f"{expert.name}.safetensors"
        part = path.with_suffix(".part")
        tensors = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
        save_file(tensors, part, metadata={"progress": json.dumps(facts)})
        os.replace(part, path)

    @classmethod
    def load(cls, folder: Path, expert: Expert, network, average, optimiser) -> _Progress:
        path = folder / f"{expert.name}.safetensors"
        if not path.exists():
            return cls(history=[])
        facts, tensors = _read_progress(path)

        network.load_state_dict(_below(tensors, "network."))
        average.module.load_state_dict(_below(tensors, "average."))
        state: dict = {}
        for name, value in _below(tensors, "adam.").items():
            n, key = name.split(".")
            state.setdefault(int(n), {})[key] = value
        optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
        facts.pop("expert")
        return cls(**facts, best=_below(tensors, "best."))


def _read_progress(path: Path) -> tuple[dict, dict[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        facts = json.loads(file.metadata()["progress"])
        return facts, {name: file.get_tensor(name) for name in file.keys()}


def load_best(folder: Path, expert: Expert) -> tuple[nn.Module, ExpertCard]:
    """The weights that `fit` left, best on held-out snapshots, and their history."""
    facts, tensors = _read_progress(folder / f"{expert.name}.safetensors")
    best, config = _below(tensors, "best."), expert.network
    if isinstance(config, MechanicsConfig) and not facts["best_step"]:
        # the perceptron did not improve on the prior: leave it out
        config = config.model_copy(update={"depth": 0})
        best = {k: v for k, v in best.items() if k.startswith("prior.")}
    network = build(config, best)
    network.load_state_dict(best)
    card = ExpertCard(
        name=expert.name,
        sigma=expert.sigma,
        network=config,
        best_step=facts["best_step"],
        history=facts["history"],
    )
    return network.eval(), card


def _generator(seed: int, name: str, step: int) -> torch.Generator:
    return torch.Generator().manual_seed(_address(seed, name, step))


def _address(seed: int, name: str, step: int) -> int:
    digest = hashlib.blake2b(f"{seed}/{name}/{step}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _peak_memory_MB() -> int:
    """Of this process so far; of the GPU's tensors as well where there is one."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 2**10  # KiB on Linux
    if torch.cuda.is_available():
        peak += torch.cuda.max_memory_allocated()
    return round(peak / 1e6)


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
