"""Training: one readable loop, for each expert of the model.

The experts (see `experts`) of a molecule train side by side, in processes of one thread.
The state of a training run lives in a folder: the job, and for each expert a checkpoint in
safetensors with its history in JSON. A run that was interrupted goes on from there. Every
step draws its randomness from (seed, expert, step), so there is no generator state to keep.
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .._moved import forward
from ..processes import run_side_by_side
from ..progress import Bars
from .card import Card
from .curvature import configurational_temperatures, largest_curvature
from .job import read_job, write_job
from .model import ScoreModel, resolve_device
from .networks.build import build
from .objective import _Objective
from .plan import Expert, TrainConfig, plan
from .sets import as_sets
from .snapshots import Snapshots
from .training_state import _address, _below, _generator, _Progress, _read_progress, load_best

__all__ = ["Expert", "TrainConfig", "fit", "plan", "train"]


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


def _network(expert: Expert, training: tuple[Snapshots, ...], folder: Path, seed: int) -> nn.Module:
    """As it stands in ``folder``, or a new one: a fitted prior is not fitted again."""
    path = folder / f"{expert.name}.safetensors"
    if path.exists():
        return build(expert.network, _below(_read_progress(path)[1], "network."))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_address(seed, expert.name, -1))
        weight = expert.force_weight
        return build(expert.network, training, sigma=expert.sigma[0], force_weight=weight)


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


__getattr__ = forward(__name__, "score.plan score.training_state")
