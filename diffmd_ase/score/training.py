"""From snapshots to a model: a plan, its experts trained, and a card of what came out.

The experts (see `plan`) of a molecule train side by side, in processes of one thread (see
`job`); a single one, or one after the other, in this process. `fit` is the loop.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from ..io.ranks import Ranks
from ..progress import Bars, Report
from .baseline import Baseline, BaselineCard, evaluate_baseline
from .card import Card
from .curvature import configurational_temperatures, largest_curvature
from .fit import batch_sizes, fit
from .job import Job, fit_here, fit_in_processes, write_job
from .model import ScoreModel, resolve_device
from .networks.sizes import check_training
from .plan import Expert, TrainConfig, plan
from .sets import Sets, as_sets, joined, joint_hash
from .snapshots import Snapshots
from .training_state import load_best
from .uncertainty import compare_forces

__all__ = ["Expert", "TrainConfig", "fit", "plan", "train"]


def train(
    snapshots: Snapshots | Iterable[Snapshots],
    *,
    config: TrainConfig | None = None,
    seed: int = 0,
    device: str = "auto",
    progress: bool | Report = False,
    directory: str | Path | None = None,
    baseline: Baseline | None = None,
    ranks: Ranks | None = None,
) -> ScoreModel:
    """Learn the score of equilibrium snapshots.

    Parameters
    ----------
    snapshots : one set (one system, one temperature) or several, whose losses are added: other
        sizes and compositions, and temperatures, of which one energy holds them all (see
        `sets`). The first one names the model and gives its temperature
    config : see `TrainConfig`; the default takes six minutes on two cores
    seed : of weights, batches, noise and the held-out frames
    progress : called with the name of an expert, the fraction done and a note; True: shown on
        standard error
    directory : keeps checkpoints; a second call with the same snapshots, config and seed
        goes on from them
    baseline : of `potentials.baseline.find_baseline`: the energy of the smallest noise is what is
        to be added to it
    ranks : that train together (see `io.ranks`), the experts one after the other; each calls this
        with the same, and has the model. Rank 0 writes to ``directory``, and shows the progress

    Raises
    ------
    ValueError : snapshots or config that cannot be trained on, not together, or not in memory; more
        ranks than a batch has snapshots, or ranks that differ
    RankError : another rank is gone
    RuntimeError : a training process failed, with its last words
    """
    if directory is not None and Path(directory).is_file():
        raise ValueError(f"{directory} is a file; expected a folder, to keep checkpoints in")
    config, started, ranks = config or TrainConfig(), time.monotonic(), ranks or Ranks()
    sets, place = joined(as_sets(snapshots)), resolve_device(ranks.device(device))
    batch_sizes(sets, config.batch_size, ranks.size)
    if ranks.size > 1:
        facts = {"seed": seed, "data": joint_hash(sets), "directory": str(directory)}
        ranks.alike(facts | config.model_dump(mode="json"), "ranks must train alike")
    experts = tuple(plan(sets, config, baseline=baseline is not None))
    for expert in experts:
        largest = max(len(part.system) for part in sets)
        check_training(expert.network, config.batch_size, largest)
    named = None if baseline is None else f"{baseline.name} {baseline.options or ''}".strip()
    job = Job(experts=experts, config=config, seed=seed, device=str(place), baseline=named)
    processes = min(config.processes or os.cpu_count() or 1, len(experts))
    if place.type != "cpu" or ranks.size > 1:
        processes = 1
    progress = progress if ranks.leads else False
    shown = nullcontext(progress) if callable(progress) else Bars(progress)
    with tempfile.TemporaryDirectory() as scratch, shown as report:
        folder = Path(directory if directory and ranks.leads else scratch).absolute()
        if baseline is not None:
            sets = _with_baseline(baseline, sets, folder, seed, report, ranks)
        if directory is not None or processes > 1:
            ranks.first(partial(write_job, folder, sets, job))
        if processes > 1:
            fit_in_processes(job, folder, processes, report)
        else:
            fit_here(job, sets, folder, report, ranks)
        networks, cards = zip(*[load_best(folder, expert) for expert in experts], strict=True)
    card = Card.describe(sets, list(cards), seed=seed, config=config.model_dump(mode="json"))
    card.training["seconds"] = round(time.monotonic() - started, 1)
    peaks = [max(entry.get("peak_memory_MB", 0) for entry in c.history) for c in cards]
    if any(peaks):  # those trained side by side hold their memory at the same time
        card.training["peak_memory_MB"] = sum(sorted(peaks)[-processes:])
    card.training["device"] = str(place)
    if ranks.size > 1:
        card.training["ranks"] = ranks.size
    model = ScoreModel(card, list(networks))
    if baseline is not None:
        card.baseline = BaselineCard.of(baseline, sets[0])
        model.baseline = baseline.bind
    model.card.lambda_max = max(largest_curvature(model, part, seed=seed) for part in sets)
    card.force_error = compare_forces(model.expert(card.sigma_min), sets[0])
    if baseline is None:
        kelvins = configurational_temperatures(model.expert(card.sigma_min), card.sigma_min, sets)
        for described, kelvin in zip(card.systems, kelvins, strict=True):
            described.configurational_temperature_K = round(kelvin, 1)
    return model


def _with_baseline(
    baseline: Baseline, sets: Sets, folder: Path, seed: int, report, ranks: Ranks
) -> Sets:
    """The sets with the values of the baseline, which the folder keeps; rank 0 computes them."""
    folder.mkdir(parents=True, exist_ok=True)
    told = []

    def done(fraction: float) -> None:
        report(f"baseline {baseline.name}", fraction, None)

    for n, part in enumerate(sets):
        file = folder / f"baseline.{n}.npz"
        evaluate = partial(evaluate_baseline, baseline, part, file=file, seed=seed, report=done)
        told.append(ranks.in_turn(evaluate, file))
    return Sets(told)
