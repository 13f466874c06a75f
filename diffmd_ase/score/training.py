"""Training: one readable loop, for each expert of the model.

The experts (see `experts`) of a molecule train side by side, in processes of one thread.
The state of a training run lives in a folder: the job, and for each expert a checkpoint in
safetensors with its history in JSON. A run that was interrupted goes on from there. Every
step draws its randomness from (seed, expert, step), so there is no generator state to keep.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from . import diffusion
from .experts import Expert, TrainConfig, plan
from .jobs import Bars, read_job, run_side_by_side, write_job
from .model import Card, ExpertCard, ScoreModel, largest_curvature, resolve_device
from .network import MechanicsConfig, build
from .sets import as_sets, configurational_temperatures, temperings
from .snapshots import Snapshots

__all__ = ["Expert", "TrainConfig", "fit", "load_best", "plan", "train"]


def train(
    snapshots: Snapshots | Iterable[Snapshots],
    *,
    config: TrainConfig | None = None,
    seed: int = 0,
    device: str = "auto",
    progress: bool = False,
    directory: str | Path | None = None,
) -> ScoreModel:
    """Learn the score of equilibrium snapshots.

    Parameters
    ----------
    snapshots : one set (one system, one temperature) or several, whose losses are added: other
        sizes and compositions, and temperatures, of which one energy holds them all (see
        `sets`). The first one names the model and gives its temperature
    config : see `TrainConfig`; the default takes six minutes on two cores
    seed : of weights, batches, noise and the held-out frames
    device : "auto", "cpu", "cuda", "cuda:1", …
    progress : show a progress bar
    directory : keeps checkpoints; a second call with the same snapshots, config and seed
        goes on from them

    Raises
    ------
    ValueError : snapshots or config that cannot be trained on, or not together
    RuntimeError : a training process failed, with its last words
    """
    config = config or TrainConfig()
    started = time.time()
    sets = as_sets(snapshots)
    experts = plan(sets, config)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(directory or scratch)
        write_job(folder, sets, config, seed, str(resolve_device(device)))
        processes = config.processes or (os.cpu_count() or 1)
        if resolve_device(device).type != "cpu":
            processes = 1
        with Bars(progress) as report:
            _fit_all(folder, experts, min(processes, len(experts)), report)
        results = [load_best(folder, expert) for expert in experts]
    cards = [card for _, card in results]
    networks = [network for network, _ in results]
    card = Card.describe(sets, cards, seed=seed, config=config.model_dump(mode="json"))
    card.training["seconds"] = round(time.time() - started, 1)
    peaks = [max(entry.get("peak_memory_MB", 0) for entry in c.history) for c in cards]
    # those trained side by side hold their memory at the same time
    card.training["peak_memory_MB"] = sum(sorted(peaks)[-processes:]) if peaks else 0
    card.training["device"] = str(resolve_device(device))
    model = ScoreModel(card, networks)
    model.card.lambda_max = max(largest_curvature(model, part, seed=seed) for part in sets)
    found = configurational_temperatures(model.expert(card.sigma_min), card.sigma_min, sets)
    for described, kelvin in zip(card.systems, found, strict=True):
        described.configurational_temperature_K = round(kelvin, 1)
    return model


# ------------------------------------------------------------------- one expert


def fit(
    expert: Expert,
    snapshots: Snapshots | Iterable[Snapshots],
    config: TrainConfig,
    *,
    seed: int,
    device: str,
    folder: Path,
    report: Callable[[dict], None],
) -> None:
    """Train one expert and leave its best weights in ``folder``."""
    began = time.time()  # the budget holds the fit of the prior as well
    sets = as_sets(snapshots)
    split = [part.split(config.validation_fraction, seed=seed) for part in sets]
    training, held_out = zip(*split, strict=True)
    report({"expert": expert.name, "fraction": 0.0, "note": "preparing"})
    network = _network(expert, training, folder, seed).to(device)
    average = torch.optim.swa_utils.AveragedModel(network)
    groups = [{"params": list(network.parameters())}]
    optimiser = torch.optim.Adam(groups, lr=config.learning_rate)
    run = _Progress.load(folder, expert, network, average, optimiser)
    objective = _Objective(expert, sets, device)
    x_train, x_valid = (
        [_frames(p, expert.force_weight > 0, device) for p in parts]
        for parts in (training, [part.take(slice(0, 2048)) for part in held_out])
    )
    counts = [max(1, round(config.batch_size * share)) for share in objective.shares]
    began -= run.seconds
    every = max(1, config.steps // config.evaluations)
    if not run.history:  # the network as built may already be good: a fitted prior
        run.validate(objective, average.module, x_valid, None, seed)
        run.save(folder, expert, network, average, optimiser)
    if not any(True for _ in network.parameters()):  # a closed form: nothing is left to train
        report({"expert": expert.name, "fraction": 1.0, **run.history[-1]})
        return
    terms = None
    patience = config.patience * every
    while run.step < config.steps and run.step - run.best_step < patience:
        run.seconds = time.time() - began
        fraction = max(run.step / config.steps, run.seconds / (60 * config.max_minutes))
        if fraction >= 1:
            break
        generator = _generator(seed, expert.name, run.step)
        for group in optimiser.param_groups:
            cosine = 0.5 * (1 + math.cos(math.pi * fraction))
            group["lr"] = config.learning_rate * max(cosine, 1e-3) * min(1, (run.step + 1) / 100)
        batches = []
        for x, count in zip(x_train, counts, strict=True):
            index = torch.randint(len(x), (count,), generator=generator)
            batches.append(x[index.to(device)])
        terms = objective(network, batches, generator)
        optimiser.zero_grad(set_to_none=True)
        terms["loss"].backward()
        nn.utils.clip_grad_norm_(network.parameters(), expert.clip)
        optimiser.step()
        run.step += 1
        decay = min(config.ema, (1 + run.step) / (10 + run.step))
        with torch.no_grad():
            for a, p in zip(average.module.parameters(), network.parameters(), strict=True):
                a.lerp_(p, 1 - decay)
        if run.step % 50 == 0:
            report({"expert": expert.name, "step": run.step, "fraction": fraction})
        if run.step % every == 0 or run.step == config.steps:
            run.seconds = time.time() - began
            run.validate(objective, average.module, x_valid, terms, seed)
            run.save(folder, expert, network, average, optimiser)
            report({"expert": expert.name, "fraction": fraction, **run.history[-1]})
    if run.history[-1]["step"] != run.step:
        run.validate(objective, average.module, x_valid, terms, seed)
        run.save(folder, expert, network, average, optimiser)
    report({"expert": expert.name, "fraction": 1.0, **run.history[-1]})


def _frames(part: Snapshots, labelled: bool, device) -> Tensor:
    """Positions (M, N, 3) in float32, or beside them F/kT (M, N, 6) where forces are learned."""
    columns = [part.positions, part.forces / part.kT] if labelled else [part.positions]
    return torch.as_tensor(np.concatenate(columns, -1), dtype=torch.float32, device=device)


class _Objective:
    """The loss of one expert: the mean over the frames of all sets."""

    def __init__(self, expert: Expert, sets: tuple[Snapshots, ...], device):
        total = sum(len(part) for part in sets)
        self.shares = [len(part) / total for part in sets]
        self.losses = [
            _Loss(expert, part, tempering, device)
            for part, tempering in zip(sets, temperings(sets), strict=True)
        ]

    def __call__(self, network: nn.Module, batches: list[Tensor], generator) -> dict:
        """Mean losses by name of one batch of each set; ``loss`` is their weighted sum."""
        together: dict[str, Tensor] = {}
        for loss, share, x in zip(self.losses, self.shares, batches, strict=True):
            for name, value in loss(network, x, generator).items():
                together[name] = together.get(name, 0.0) + share * value
        return together


class _Loss:
    """The loss of one expert on a batch of snapshots of one set, ``E_n = (T_1/T_n) E``.

    Terms with squared scores are weighted by T_n/T_1 (see `sets`).
    """

    DELTA = 0.02  # rad, angular noise: far below the width of a torsional well
    MOVES = 3  # bonds turned at most in a contrastive move

    def __init__(self, expert: Expert, snapshots: Snapshots, tempering: float, device):
        self.expert, self.tempering = expert, tempering
        system = snapshots.system
        self.cell = None if system.cell is None else torch.as_tensor(system.cell).float().to(device)
        self.numbers = torch.as_tensor(system.numbers, device=device)
        self.pbc = tuple(bool(p) for p in system.pbc)
        self.moving = torch.as_tensor(snapshots.moving, device=device)[:, None]
        self.force2 = 0.0  # mean square of a component of F/kT
        if expert.force_weight:
            self.force2 = float(np.mean((snapshots.forces[:1000] / snapshots.kT) ** 2))
        self.moves = self.permutations = None
        if not system.periodic:
            self.permutations = torch.as_tensor(snapshots.topology.permutations, device=device)
            if len(snapshots.topology.rotors):
                self.moves = diffusion.Moves(snapshots.topology, device)

    def __call__(self, network: nn.Module, x: Tensor, generator: torch.Generator) -> dict:
        """Mean losses by name; ``loss`` is their weighted sum."""
        e, n = self.expert, len(x)

        def energy(positions, level):
            value = network(positions, level, numbers=self.numbers, cell=self.cell, pbc=self.pbc)
            return self.tempering * value

        def random(shape):
            return torch.randn(shape, generator=generator, dtype=x.dtype).to(x.device)

        if self.permutations is not None:
            which = torch.randint(len(self.permutations), (n,), generator=generator)
            order = self.permutations[which.to(x.device)]
            x = x.gather(1, order[:, :, None].expand_as(x))
        x, labels = x[..., :3], x[..., 3:]
        sigma = diffusion.log_uniform(n, *e.sigma, generator)
        if e.focus:
            sigma[::2] = diffusion.log_uniform(len(sigma[::2]), *e.focus, generator)
        sigma = sigma.to(x)
        epsilon = random(x.shape) * self.moving
        noisy = x + sigma[:, None, None] * epsilon
        points = [noisy, x - sigma[:, None, None] * epsilon]
        torsional = e.torsional > 0 and self.moves is not None
        if torsional:
            rotor, xi = self.moves.choose(n, generator), random((n,))
            points += [self.moves.rotate(x, rotor, sign * self.DELTA * xi) for sign in (1, -1)]
        levels = sigma.repeat(len(points))
        _, scores = diffusion.score(energy, torch.cat(points), levels, create_graph=True)
        plus, minus, *turned = (scores * self.moving).chunk(len(points))
        terms = {"denoising": diffusion.denoising_loss(plus, minus, epsilon, sigma).mean()}
        matched = terms["denoising"]
        if e.force_weight:
            wrong = diffusion.force_loss(plus, minus, labels * self.moving, sigma)
            # where noise hides the forces they say less than the noise itself
            terms["forces"] = (wrong / (1 + sigma**2 * self.force2)).mean()
            matched = (matched + e.force_weight * terms["forces"]) / (1 + e.force_weight)
        loss = e.denoising / self.tempering * matched
        if torsional:
            g_plus, g_minus = (
                self.moves.angular_score(p, s, rotor)
                for p, s in zip(points[2:], turned, strict=True)
            )
            terms["torsional"] = diffusion.torsional_loss(g_plus, g_minus, xi, self.DELTA).mean()
            loss = loss + e.torsional / self.tempering * terms["torsional"]
        negatives = {}
        # noise is added before the move, which is symmetric at every noise level
        if e.contrastive > 0 and self.moves is not None:
            negatives["contrastive"] = self.moves.scramble(noisy, self.MOVES, generator)
        if e.mirror > 0:
            negatives["mirror"] = -noisy
        if negatives:
            together = torch.cat([noisy, *negatives.values()])
            first, *moved = energy(together, sigma.repeat(1 + len(negatives))).chunk(
                1 + len(negatives)
            )
            for name, other in zip(negatives, moved, strict=True):
                terms[name] = diffusion.contrastive_loss(first, other).mean()
                loss = loss + getattr(e, name) * terms[name]
        return {**terms, "loss": loss}


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


def _network(expert: Expert, training: tuple[Snapshots, ...], folder: Path, seed: int) -> nn.Module:
    """As it stands in ``folder``, or a new one: a fitted prior is not fitted again."""
    path = folder / f"{expert.name}.safetensors"
    if path.exists():
        return build(expert.network, _below(_read_progress(path)[1], "network."))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_address(seed, expert.name, -1))
        weight = expert.force_weight
        return build(expert.network, training, sigma=expert.sigma[0], force_weight=weight)


def _peak_memory_MB() -> int:
    """Of this process so far; of the GPU's tensors as well where there is one."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 2**10  # KiB on Linux
    if torch.cuda.is_available():
        peak += torch.cuda.max_memory_allocated()
    return round(peak / 1e6)


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _generator(seed: int, name: str, step: int) -> torch.Generator:
    return torch.Generator().manual_seed(_address(seed, name, step))


def _address(seed: int, name: str, step: int) -> int:
    digest = hashlib.blake2b(f"{seed}/{name}/{step}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _fit_in_folder(folder: Path, name: str, report) -> None:
    sets, config, job = read_job(folder)
    expert = next(e for e in plan(sets, config) if e.name == name)
    fit(
        expert,
        sets,
        config,
        seed=job["seed"],
        device=job["device"],
        folder=folder,
        report=report,
    )


def _fit_all(folder: Path, experts: list[Expert], processes: int, report) -> None:
    if processes > 1:
        commands = [[sys.executable, "-m", __name__, str(folder), e.name] for e in experts]
        run_side_by_side(commands, processes, report)
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for expert in experts:
            _fit_in_folder(folder, expert.name, report)
    finally:
        torch.set_num_threads(threads)


def _main(folder: str, name: str) -> None:
    torch.set_num_threads(1)
    _fit_in_folder(Path(folder), name, lambda message: print(json.dumps(message), flush=True))


if __name__ == "__main__":
    _main(*sys.argv[1:])
