"""The training of one expert: one readable loop.

Every step draws its randomness from (seed, expert, step), and each rank from its part of it, so
that a run which was interrupted goes on to the same weights (see `training_state`). The weights
that are kept are averages over steps, best on snapshots that were held out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..io.ranks import Ranks
from ..progress import Report
from .loss_gradient import LossGradient
from .networks.build import below, build
from .networks.liquid import LiquidNetwork
from .networks.molecule import MechanicsNetwork
from .objective import Objective
from .plan import Expert, TrainConfig
from .sets import Sets, as_sets
from .snapshots import Snapshots
from .training_state import TrainingState, address, file_of, generator_of, read_checkpoint

__all__ = ["batch_sizes", "fit", "frames_of"]

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
    ranks: Ranks | None = None,
) -> None:
    """Train one expert and leave its best weights in ``folder``.

    Ranks take equal parts of each batch, and the mean of their gradients. Rank 0 prepares, looks at
    held-out snapshots and keeps the checkpoint, of which the others have a copy at the start and at
    the end.

    Parameters
    ----------
    config : steps, batches, rates and when to stop
    folder : holds its checkpoint; one that is there is where the training goes on
    report : called with the expert's name, the fraction done, and a note
    ranks : that train together; each calls this with a ``folder`` of its own

    Raises
    ------
    ValueError : more ranks than a batch has snapshots of a set; a checkpoint of another network
    RankError : another rank is gone
    """
    began = time.monotonic()  # the budget holds the fit of a force field as well
    report(expert.name, 0.0, "preparing")
    ranks, sets = ranks or Ranks(), as_sets(snapshots)
    counts = batch_sizes(sets, config.batch_size, ranks.size)
    training, held_out = _split(sets, config.validation_fraction, seed)
    learner = ranks.in_turn(
        lambda: _Learner.begin(expert, config, sets, training, held_out, seed, device, folder),
        file_of(folder, expert),
    )
    expert, optimiser, run = learner.expert, learner.optimiser, learner.run
    gradient = LossGradient(learner.network, learner.objective, _compiled(config, run))
    x_train = learner.frames(training)
    began -= run.seconds
    every = max(1, config.steps // config.evaluations)
    # a closed form has no parameters: nothing is left to train
    parameters = gradient.parameters
    steps = config.steps if parameters else 0
    patience = config.patience * every
    terms = None
    while run.step < steps and run.step - run.best_step < patience:
        run.seconds = ranks.mean(time.monotonic() - began)
        fraction = max(run.step / steps, run.seconds / (60 * config.max_minutes))
        if fraction >= 1:
            break
        if gradient.undecided:
            left = 60 * config.max_minutes - run.seconds
            gradient.compiled = ranks.first(partial(gradient.pays, steps - run.step, left))
        if gradient.compiled and not run.compiled:
            report(expert.name, fraction, "compiling the step")
        run.compiled = gradient.compiled
        generator = generator_of(seed, expert.name, run.step, ranks.rank)
        for group in optimiser.param_groups:
            group["lr"] = learner.rate * _schedule(run.step, fraction)
        batches = []
        for x, count in zip(x_train, counts, strict=True):
            index = torch.randint(len(x), (count,), generator=generator)
            batches.append(x[index.to(device)])
        terms = gradient(batches, generator)
        ranks.average([p.grad for p in parameters if p.grad is not None])
        nn.utils.clip_grad_norm_(parameters, expert.clip)
        optimiser.step()
        run.step += 1
        decay = min(config.ema, (1 + run.step) / (10 + run.step))
        with torch.no_grad():
            for a, p in zip(learner.average.module.parameters(), parameters, strict=True):
                a.lerp_(p, 1 - decay)
        if run.step % every == 0 or run.step == steps:
            run.seconds = ranks.mean(time.monotonic() - began)
            learner.validate(terms, ranks)
            report(expert.name, fraction, _note(run))
        elif run.step % 50 == 0:
            report(expert.name, fraction, None)
    if run.history[-1]["step"] != run.step:
        learner.validate(terms, ranks)
    ranks.copy(learner.file)
    report(expert.name, 1.0, _note(run))


def batch_sizes(sets: Sets, batch_size: int, ranks: int = 1) -> list[int]:
    """Snapshots of each of the ``sets`` in a batch of one of so many ``ranks``.

    Each set has its share of ``batch_size``, one at least, and each rank an equal part of that,
    rounded up. Raises ``ValueError`` for more ranks than snapshots.
    """
    total = sum(len(part) for part in sets)
    counts = [max(1, round(batch_size * (len(part) / total))) for part in sets]
    if min(counts) < ranks:
        rows = f"{min(counts)} snapshot{'s' * (min(counts) > 1)}"
        raise ValueError(
            f"{ranks} ranks, but a batch of {batch_size} has {rows} of a set: start at most "
            f"{min(counts)} ranks, or give a larger batch (--batch-size)"
        )
    return [math.ceil(count / ranks) for count in counts]


@dataclass
class _Learner:
    """One expert in training: its networks, and what they are compared with."""

    expert: Expert  # with the weight of labels that was chosen
    network: nn.Module
    average: torch.optim.swa_utils.AveragedModel  # of its weights over steps
    rate: float
    optimiser: torch.optim.Optimizer
    run: TrainingState
    objective: Objective
    seed: int
    device: str
    file: Path  # the checkpoint
    held_out: list[Tensor] = field(default_factory=list)  # frames of each set

    @classmethod
    def begin(
        cls,
        expert: Expert,
        config: TrainConfig,
        sets: Sets,
        training: Sets,
        held_out: Sets,
        seed: int,
        device: str,
        folder: Path,
    ) -> _Learner:
        """As it stands in ``folder``; where there is nothing, fitted, validated and kept there."""
        network = _network(expert, training, folder, seed).to(device)
        expert = _weighed(expert, network)
        average = torch.optim.swa_utils.AveragedModel(network)
        rate = expert.rate * config.learning_rate
        optimiser = torch.optim.Adam([{"params": list(network.parameters())}], lr=rate)
        run = TrainingState.load(folder, expert, network, average, optimiser)
        objective = Objective(expert, sets, device)
        file = file_of(folder, expert)
        own = cls(expert, network, average, rate, optimiser, run, objective, seed, device, file)
        own.held_out = own.frames([part.take(slice(0, _HELD_OUT)) for part in held_out])
        if not run.history:  # the network as built may already be good: a fitted force field
            own.validate(None, Ranks())
        return own

    def frames(self, parts: Iterable[Snapshots]) -> list[Tensor]:
        """`frames_of` each of the ``parts``, with what this expert has to know."""
        known = bool(self.expert.force_weight), self.device, self.expert.corrects
        return [frames_of(part, *known) for part in parts]

    def validate(self, terms: dict | None, ranks: Ranks) -> None:
        """Look at held-out frames, and keep what there is: rank 0, which tells the others."""
        run = self.run

        def look() -> tuple[dict, int]:
            run.validate(self.objective, self.average.module, self.held_out, terms, self.seed)
            run.save(self.file.parent, self.expert, self.network, self.average, self.optimiser)
            return run.history[-1], run.best_step

        entry, best = ranks.first(look)
        if not ranks.leads:
            run.history.append(entry)
            run.best_step = best


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


def _compiled(config: TrainConfig, run: TrainingState) -> bool | None:
    """Whether steps are compiled: as asked, or as before the restart; None: where it pays."""
    asked = {"on": True, "off": False, "auto": None}[config.compile]
    return run.compiled if asked is None else asked


def _split(sets: Sets, fraction: float, seed: int) -> tuple[Sets, Sets]:
    parts = [part.split(fraction, seed=seed) for part in sets]
    training, held_out = zip(*parts, strict=True)
    return Sets(training), Sets(held_out)


def _network(expert: Expert, training: Sets, folder: Path, seed: int) -> nn.Module:
    """As it stands in ``folder``, or a new one: a fitted force field is not fitted again."""
    path = file_of(folder, expert)
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
