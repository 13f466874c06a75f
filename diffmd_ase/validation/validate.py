"""Do data, independent samples and dynamics of a model agree? One card with the answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import torch

from ..potentials.base import Potential
from ..potentials.learned import compiling_pays
from ..score.model import ScoreModel
from ..score.networks.gradients import Compile
from ..score.snapshots import Snapshots
from .bench import Bench, Effort, Part
from .scorecard import Goals, Validation
from .stages import (
    distributions,
    exchange_from_one_mode,
    independent_samples,
    label_lines,
    plain_dynamics,
    unknown,
)
from .walkers import corrected_walkers

__all__ = ["validate"]

_GROUPS = (
    "torsions",
    "free energy",
    "distances",
    "widths",
    "energies",
    "labels",
    "temperature",
    "uncertainty",
    "stability",
)


def validate(
    model: ScoreModel,
    snapshots: Snapshots,
    *,
    effort: Effort | None = None,
    goals: Goals | None = None,
    reference: Potential | None = None,
    committee: Sequence[ScoreModel] = (),
    torsions: Mapping[str, Sequence[int]] | None = None,
    modes: bool = False,
    seed: int = 0,
    device: str = "auto",
    compile: Compile = "auto",
    progress: Callable[[float, str], None] | None = None,
) -> Validation:
    """Compare data, i.i.d. reverse diffusion and Metropolis-corrected dynamics of a model.

    Every divergence comes with the sampling floor, what as many frames of the data have
    from its rest; every number with a standard error, and a verdict that may be that it
    cannot be told. Walkers start from snapshots, so that dynamics judges what lies within
    modes; the weights of modes are judged by energies, i.i.d. samples and, with ``modes``, by
    replica exchange that starts in one of them.

    Parameters
    ----------
    model, snapshots : of the same atoms, at one temperature
    effort : how much is sampled; default, that of `Effort`
    goals : sizes of deviations that pass
    reference : the potential that made the snapshots, for forces, and energies where the
        snapshots have none; a part of the snapshots is evaluated
    committee : further models of the same data: is their spread the error?
    torsions : four atoms each, by name; default all about rotatable bonds of heavy atoms
    modes : sample the populations of the torsions' modes from one; minutes more
    compile : networks, as of `ScorePotential`; "auto": where so many steps save what it costs
    progress : called with the finished fraction and what comes next

    Raises
    ------
    ValueError : other atoms or pbc than the model's, another temperature on the label (with
        what the forces say of it), fewer than 16 independent snapshots
    """
    begun, tell = time.monotonic(), _Stages(progress, model.system.periodic, modes)
    bench = Bench.of(model, snapshots, effort, goals, torsions, seed, device, compile)
    tell("the snapshots")
    starts = bench.starts(bench.effort.walkers)
    if compile == "auto":
        x = torch.as_tensor(bench.frames.positions[starts])
        bench.potential.compiled = compiling_pays(bench.potential, x, bench.effort.steps(modes))
    log_weights, energies, lines, notes = label_lines(bench, reference, committee)
    lines.append(bench.temperature(bench.effort.labels))
    samples = {}
    if snapshots.system.periodic:
        notes.append((None, "no i.i.d. samples: they start from a Gaussian, crystals do not"))
    else:
        tell("i.i.d. samples")
        samples["i.i.d."], broken = independent_samples(bench, tell.part)
        lines.append(broken)
    tell("corrected dynamics")
    start = bench.dynamics(starts, Part.CORRECTED)
    walkers = corrected_walkers(start, bench.effort.moves, tell.part)
    walkers = walkers._replace(positions=bench.whole(walkers.positions))
    lines += distributions(bench, samples, walkers, starts, log_weights, energies)
    tell("plain dynamics")
    lines.append(plain_dynamics(bench, tell.part))
    if modes:
        tell("exchange from one mode")
        more = exchange_from_one_mode(bench, tell.part)
        lines, notes = lines + more[0], notes + more[1]
    elif bench.torsions.parted:
        notes.append((None, "populations by exchange from one mode: not asked for"))
    data, training = model.card.data, model.card.training
    cost = {k: training[k] for k in ("seconds", "peak_memory_MB", "device") if k in training}
    facts = {
        "formula": snapshots.system.formula,
        "temperature_K": model.card.temperature_K,
        "model": {"source": data["source"], "training": cost},
        "snapshots": {
            "source": snapshots.source,
            "frames": len(snapshots),
            "effective": round(bench.effective, 1),
            "trained_on_these": snapshots.sha256 == data["sha256"],
        },
        "effort": vars(bench.effort),
        "acceptance": walkers.acceptance,
        "seed": seed,
        "seconds": round(time.monotonic() - begun, 1),
    }
    ordered = sorted(lines, key=lambda one: _GROUPS.index(one.group))
    return Validation(facts, tuple(ordered), tuple(notes + unknown(bench, lines)))


class _Stages:
    """Fractions of parts as fractions of the whole; their shares of the time are rough."""

    def __init__(self, progress, periodic: bool, modes: bool):
        self.shares = {"the snapshots": 1.0, "corrected dynamics": 4.0, "plain dynamics": 1.0}
        self.shares |= {} if periodic else {"i.i.d. samples": 6.0}
        self.shares |= {"exchange from one mode": 8.0} if modes else {}
        self.progress, self.done, self.now = progress, 0.0, ""

    def __call__(self, name: str) -> None:
        self.done += self.shares.get(self.now, 0.0)
        self.now = name
        self.part(0.0)

    def part(self, fraction: float) -> None:
        if self.progress is not None:
            done = self.done + fraction * self.shares[self.now]
            self.progress(done / sum(self.shares.values()), self.now)
