"""The training of one expert: one readable loop.

Every step draws its randomness from (seed, expert, step), so that a run which was interrupted
goes on to the same weights (see `training_state`). The weights that are kept are averages over
steps, best on snapshots that were held out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..progress import Report
from .networks.build import below, build
from .networks.liquid import LiquidNetwork
from .networks.molecule import MechanicsNetwork
from .objective import Objective
from .plan import Expert, TrainConfig
from .sets import Sets, as_sets
from .snapshots import Snapshots
from .training_state import TrainingState, address, generator_of, read_checkpoint

__all__ = ["fit", "frames_of"]

_HELD_OUT = 2048  # frames of each set that a validation looks at, at most
_WARM_UP = 100  # steps


def fit(
    expert: Expert,
    snapshots: Snapshots | Iterable[Snapshots],
    config: TrainConfig,
    *,
    seed: int,
    device: str,
    folder: Path,
    report: Report,
) -> None:
    """Train one expert and leave its best weights in ``folder``.

    Parameters
    ----------
    config : steps, batches, rates and when to stop
    folder : holds its checkpoint; one that is there is where the training goes on
    report : called with the expert's name, the fraction done, and a note
    """
    began = time.monotonic()  # the budget holds the fit of a force field as well
    report(expert.name, 0.0, "preparing")
    sets = as_sets(snapshots)
    training, held_out = _split(sets, config.validation_fraction, seed)
    network = _network(expert, training, folder, seed).to(device)
    expert = _weighed(expert, network)
    average = torch.optim.swa_utils.AveragedModel(network)
    rate = expert.rate * config.learning_rate
    optimiser = torch.optim.Adam([{"params": list(network.parameters())}], lr=rate)
    run = TrainingState.load(folder, expert, network, average, optimiser)
    objective = Objective(expert, sets, device)
    x_train, x_valid = (
        [frames_of(part, bool(expert.force_weight), device, expert.corrects) for part in parts]
        for parts in (training, [part.take(slice(0, _HELD_OUT)) for part in held_out])
    )
    counts = [max(1, round(config.batch_size * share)) for share in objective.shares]
    began -= run.seconds
    every = max(1, config.steps // config.evaluations)
    terms = None

    def validate() -> None:
        run.validate(objective, average.module, x_valid, terms, seed)
        run.save(folder, expert, network, average, optimiser)

    if not run.history:  # the network as built may already be good: a fitted force field
        validate()
    # a closed form has no parameters: nothing is left to train
    steps = config.steps if any(True for _ in network.parameters()) else 0
    patience = config.patience * every
    while run.step < steps and run.step - run.best_step < patience:
        run.seconds = time.monotonic() - began
        fraction = max(run.step / steps, run.seconds / (60 * config.max_minutes))
        if fraction >= 1:
            break
        generator = generator_of(seed, expert.name, run.step)
        for group in optimiser.param_groups:
            group["lr"] = rate * _schedule(run.step, fraction)
        batches = []
        for x, count in zip(x_train, counts, strict=True):
            index = torch.randint(len(x), (count,), generator=generator)
            batches.append(x[index.to(device)])
        terms = objective(network, batches, generator)
        optimiser.zero_grad(set_to_none=True)
        # not to the positions, of which the scores are derivatives: a sixth of the time
        terms["loss"].backward(inputs=list(network.parameters()))
        nn.utils.clip_grad_norm_(network.parameters(), expert.clip)
        optimiser.step()
        run.step += 1
        decay = min(config.ema, (1 + run.step) / (10 + run.step))
        with torch.no_grad():
            for a, p in zip(average.module.parameters(), network.parameters(), strict=True):
                a.lerp_(p, 1 - decay)
        if run.step % every == 0 or run.step == steps:
            run.seconds = time.monotonic() - began
            validate()
            report(expert.name, fraction, _note(run))
        elif run.step % 50 == 0:
            report(expert.name, fraction, None)
    if run.history[-1]["step"] != run.step:
        validate()
    report(expert.name, 1.0, _note(run))


def frames_of(
    part: Snapshots, labelled: bool, device: str | torch.device, corrects: bool = False
) -> Tensor:
    """Positions (M, N, 3) in Å of ``part``, in float32.

    If ``labelled``, ``F/kT`` beside them, NaN where there is none, and if it ``corrects`` a
    baseline, F/kT of that: (M, N, 6) or (M, N, 9).
    """
    columns = [part.positions]
    if labelled:
        none = part.forces is None
        columns.append(np.full_like(part.positions, np.nan) if none else part.reduced_forces)
    if corrects:
        columns.append(part.baseline.forces / part.kT)
    return torch.cat([torch.as_tensor(c, dtype=torch.float32) for c in columns], dim=-1).to(device)


def _weighed(expert: Expert, network: nn.Module) -> Expert:
    """With the weight of labels that the fit of its force field chose."""
    if expert.force_weight != "auto":
        return expert
    if isinstance(network, MechanicsNetwork):
        return expert.model_copy(update={"force_weight": float(network.prior.label_weight)})
    if isinstance(network, LiquidNetwork):
        return expert.model_copy(update={"force_weight": float(network.energy.label_weight)})
    return expert


def _split(sets: Sets, fraction: float, seed: int) -> tuple[Sets, Sets]:
    parts = [part.split(fraction, seed=seed) for part in sets]
    training, held_out = zip(*parts, strict=True)
    return Sets(training), Sets(held_out)


def _network(expert: Expert, training: Sets, folder: Path, seed: int) -> nn.Module:
    """As it stands in ``folder``, or a new one: a fitted force field is not fitted again."""
    path = folder / f"{expert.name}.safetensors"
    if path.exists():
        try:
            return build(expert.network, below(read_checkpoint(path)[1], "network."))
        except (AttributeError, LookupError, RuntimeError, TypeError) as error:
            raise ValueError(f"{path} does not fit this training ({error}): remove it") from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(address(seed, expert.name, -1))
        weight = expert.force_weight
        return build(expert.network, training, sigma=expert.sigma[0], force_weight=weight)


def _schedule(step: int, fraction: float) -> float:
    """Of the learning rate: a ramp at the start, and a cosine down to a thousandth."""
    cosine = 0.5 * (1 + math.cos(math.pi * fraction))
    return max(cosine, 1e-3) * min(1, (step + 1) / _WARM_UP)


def _note(run: TrainingState) -> str:
    entry = run.history[-1]
    return f"step {entry['step']}  validation {entry['validation_loss']:.4g}"
