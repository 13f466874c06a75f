"""Do data, independent samples and dynamics of a model agree? One card with the answer."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from .analysis import comparisons as compare
from .analysis import label_comparison as labels
from .analysis import observables as ob
from .analysis.comparisons import Torsions
from .analysis.distance_comparison import distance_lines
from .analysis.modes import Range, unphysical_frames
from .analysis.scorecard import Goals, Line, Note, Validation, line
from .analysis.statistics import mean_estimate, statistical_inefficiency
from .noise import Noise
from .potentials.base import Potential, evaluate
from .potentials.held import Held
from .potentials.learned import ScorePotential
from .sampling.iid import sample
from .score.model import ScoreModel, largest_curvature
from .score.snapshots import Snapshots
from .validation_walkers import (
    HOT,
    STATES,
    Corrected,
    corrected_walkers,
    exchanged_walkers,
    forces_and_divergence,
    plain_walkers,
)

__all__ = ["Effort", "validate"]

_FEW, _ENOUGH = 16, 1000  # independent snapshots: to compare anything, and widths within 3 %
_ORDERED = 2.0  # statistical inefficiency, as when snapshots are read
_SAME_KELVIN = 0.01
_BATCH = 500
_IID, _CORRECTED, _PLAIN, _EXCHANGE, _SMOOTHED, _PROBES = range(6)  # children of the noise
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


@dataclass(frozen=True)
class Effort:
    """How much is sampled.

    Parameters
    ----------
    samples : i.i.d. draws
    walkers : of corrected dynamics; a quarter of them of plain dynamics
    moves : trajectories of 20 steps for each walker, frames of its series
    plain_steps : of plain dynamics
    labels : snapshots that forces are compared on
    ladders, exchange_steps : of replica exchange over 5 temperatures
    """

    samples: int = 4000
    walkers: int = 256
    moves: int = 120
    plain_steps: int = 1500
    labels: int = 1000
    ladders: int = 16
    exchange_steps: int = 8000

    def __post_init__(self):
        low = {"samples": 20, "walkers": 8, "moves": 4, "labels": 20, "ladders": 2}
        for name, value in vars(self).items():
            if value < low.get(name, 1):
                raise ValueError(f"{name}={value} must be at least {low.get(name, 1)}")

    def scaled(self, factor: float) -> Effort:
        """All but walkers and ladders times ``factor``."""
        if not (math.isfinite(factor) and factor > 0):
            raise ValueError(f"effort {factor} must be positive; 1 is the default")
        return Effort(
            max(20, round(self.samples * factor)),
            self.walkers,
            max(4, round(self.moves * factor)),
            max(1, round(self.plain_steps * factor)),
            max(20, round(self.labels * factor)),
            self.ladders,
            max(100, round(self.exchange_steps * factor)),
        )


def validate(
    model: ScoreModel,
    snapshots: Snapshots,
    *,
    effort: Effort | None = None,
    goals: Goals | None = None,
    reference: Potential | None = None,
    committee: Sequence[ScoreModel] = (),
    torsions: dict[str, tuple[int, int, int, int]] | None = None,
    modes: bool = False,
    seed: int = 0,
    device: str = "auto",
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
    reference : the potential that made the snapshots, for forces, and energies where the
        snapshots have none; a part of the snapshots is evaluated
    committee : further models of the same data: is their spread the error?
    torsions : four atoms each, by name; default all about rotatable bonds of heavy atoms
    modes : sample the populations of the torsions' modes from one; minutes more
    progress : called with the finished fraction and what comes next

    Raises
    ------
    ValueError : other atoms or pbc than the model's, another temperature on the label (with
        what the forces say of it), fewer than 16 independent snapshots
    """
    begun, tell = time.monotonic(), _Stages(progress, model.system.periodic, modes)
    bench = _Bench.of(model, snapshots, effort, goals, torsions, seed, device)
    tell("the snapshots")
    log_weights, energies, lines, notes = _labels(bench, reference, committee)
    lines.append(bench.temperature(bench.effort.labels))
    samples = {}
    if snapshots.system.periodic:
        notes.append((None, "no i.i.d. samples: they start from a Gaussian, crystals do not"))
    else:
        tell("i.i.d. samples")
        samples["i.i.d."], broken = _independent(bench, tell.part)
        lines.append(broken)
    tell("corrected dynamics")
    starts = bench.starts(bench.effort.walkers)
    walkers = corrected_walkers(
        **bench.dynamics(starts, _CORRECTED), moves=bench.effort.moves, progress=tell.part
    )
    walkers = walkers._replace(positions=bench.whole(walkers.positions))
    lines += _compared(bench, samples, walkers, starts, log_weights, energies)
    tell("plain dynamics")
    lines.append(_plain(bench, tell.part))
    if modes:
        tell("exchange from one mode")
        more = _exchanged(bench, tell.part)
        lines, notes = lines + more[0], notes + more[1]
    elif bench.torsions.parted:
        notes.append((None, "populations by exchange from one mode: not asked for"))
    data = model.card.data
    facts = {
        "formula": snapshots.system.formula,
        "temperature_K": model.card.temperature_K,
        "model": {"source": data["source"], "training": _cost(model)},
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
    return Validation(facts, tuple(ordered), tuple(notes + _unknown(bench, lines)))


def _cost(model: ScoreModel) -> dict:
    """What the training took."""
    known = model.card.training
    return {k: known[k] for k in ("seconds", "peak_memory_MB", "device") if k in known}


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


@dataclass(frozen=True, eq=False)
class _Bench:
    """What is judged and how.

    ``frames``: the snapshots that are compared, none that cannot be right, independent ones;
    ``effective``: how many the snapshots are worth; ``stiffness`` λ in 1/Å².
    """

    model: ScoreModel
    potential: ScorePotential
    stiffness: float
    frames: Snapshots
    effective: float
    unphysical: dict[int, str]
    torsions: Torsions
    effort: Effort
    goals: Goals
    noise: Noise

    @classmethod
    def of(cls, model, snapshots, effort, goals, named, seed, device) -> _Bench:
        system = snapshots.system
        potential = model.potential(system, device=device)
        topology = None if system.periodic else snapshots.topology
        wrong = unphysical_frames(system, snapshots.positions, topology)
        fine = np.setdiff1d(np.arange(len(snapshots)), list(wrong))
        g = snapshots.correlation
        if system.periodic and g > _ORDERED:
            # atoms that swap or drift with the crystal change nothing that is compared
            g = statistical_inefficiency(_evaluated(potential, snapshots.positions[fine])[0])
        g = g if g > _ORDERED else 1.0
        frames = snapshots.take(fine[:: math.ceil(g)])
        if len(frames) < _FEW:
            raise ValueError(
                f"{snapshots.source}: {len(snapshots)} snapshots are worth {len(frames)} "
                f"independent ones; to compare anything it takes {_FEW} at least, for widths "
                f"within 3 % some {_ENOUGH}"
            )
        found = Torsions.find(system, topology, frames.positions, named)
        stiffness = model.card.lambda_max or largest_curvature(model, frames)
        effort, goals = effort or Effort(), goals or Goals()
        worth, noise = len(fine) / g, Noise(seed)
        bench = cls(model, potential, stiffness, frames, worth, wrong, found, effort, goals, noise)
        if abs(snapshots.temperature_K - model.card.temperature_K) > _SAME_KELVIN:
            raise ValueError(bench.another_temperature())
        return bench

    @property
    def kT(self) -> float:
        return self.model.card.kT

    def starts(self, count: int) -> np.ndarray:
        """Numbers of frames, half of them at most."""
        order = np.random.default_rng(self.noise.seed).permutation(len(self.frames))
        return order[: max(8, min(count, len(order) // 2))]

    def free(self, potential: Potential, rows: np.ndarray) -> tuple[Potential, Tensor]:
        """The potential of the atoms that move, and their positions in these frames."""
        x = torch.as_tensor(self.frames.positions[rows], device=self.potential.device)
        moving = self.frames.moving
        if moving.all():
            return potential, x
        return Held(potential, self.frames.positions[0], moving), x[:, moving]

    def whole(self, x: np.ndarray) -> np.ndarray:
        """Positions (*batch, N, 3) of all atoms, for those that move."""
        moving = self.frames.moving
        if moving.all():
            return x
        every = np.broadcast_to(self.frames.positions[0], (*x.shape[:-2], len(moving), 3)).copy()
        every[..., moving, :] = x
        return every

    def dynamics(self, rows: np.ndarray, child: int) -> dict:
        """What all walkers need that start from these frames."""
        potential, x = self.free(self.potential, rows)
        return {
            "potential": potential,
            "x": x,
            "kT": self.kT,
            "stiffness": self.stiffness,
            "mean_free": not self.frames.system.periodic,
            "noise": self.noise.child(child),
        }

    def some(self, count: int) -> np.ndarray:
        return np.arange(0, len(self.frames), max(1, len(self.frames) // count))

    def temperature(self, count: int) -> Line:
        """Of the frames, smoothed by σ₀, which is what the model knows, in its forces."""
        device = str(self.potential.device)
        potential = self.model.potential(self.frames.system, device=device, dtype=torch.float64)
        free, y = self.free(potential, self.some(count))
        noise, ids = self.noise.child(_SMOOTHED), torch.arange(len(y))
        y = y + potential.sigma * noise.normal(0, y, walkers=ids)
        probes = self.noise.child(_PROBES)
        square, divergence = forces_and_divergence(free, y, noise=probes)
        return labels.temperature_line(square / self.kT, divergence, self.goals)

    def another_temperature(self) -> str:
        """What the widths say where the labels of model and snapshots differ."""
        own, stated, seen = self.model.card.temperature_K, self.frames.temperature_K, None
        seen = self.temperature(1000)
        kelvin, error = seen.value * own, max(seen.error, 0.01) * own
        verdict = (
            "their label may be wrong"
            if abs(kelvin - own) < 3 * error
            else "the temperatures differ indeed"
            if abs(kelvin - stated) < 3 * error
            else "neither label fits"
        )
        return (
            f"{self.frames.source} states {stated:g} K, the model is of {own:g} K: give snapshots "
            f"of its temperature. By the widths of stiff bonds these look like {kelvin:.0f} ± "
            f"{seen.error * own:.0f} K to the model, so that {verdict}"
        )


def _evaluated(potential: Potential, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Energies (M,) in eV and forces (M, N, 3) in eV/Å, in parts."""
    parts = [evaluate(potential.terms, p) for p in torch.as_tensor(x).split(_BATCH)]
    energy, forces = torch.cat([p.energy for p in parts]), torch.cat([p.forces for p in parts])
    return energy.double().cpu().numpy(), forces.double().cpu().numpy()


def _labels(
    bench: _Bench, reference: Potential | None, committee
) -> tuple[np.ndarray | None, np.ndarray, list[Line], list[Note]]:
    """log weights (M,) of the frames towards the model, where they have energies; its energies
    (M,) in eV; lines and notes where energies and forces are known."""
    frames, goals, x = bench.frames, bench.goals, bench.frames.positions
    own = _evaluated(bench.potential, x)[0]
    of = partial(labels.energy_label_lines, kT=bench.kT, torsions=bench.torsions, goals=goals)
    lines: list[Line] = []
    notes: list[Note] = []
    log_weights = None
    chosen = bench.some(bench.effort.labels)
    forces = None if frames.forces is None else np.asarray(frames.forces[chosen], float)
    if frames.energies is not None:
        true = np.asarray(frames.energies, float)
        lines += of(true, own, angles=bench.torsions(x))
        log_weights = (true - own) / bench.kT
    if reference is not None:
        true, forces = _evaluated(reference, x[chosen])
        if frames.energies is None:
            lines += of(true, own[chosen], angles=bench.torsions(x[chosen]))
    if log_weights is None:
        notes.append((None, "no reweighting: the snapshots have no energies"))
    if forces is None:
        notes.append((None, "no forces: the snapshots have none, and no reference was named"))
        return log_weights, own, lines, notes
    moving = frames.moving
    forces, mine = forces[:, moving], _evaluated(bench.potential, x[chosen])[1][:, moving]
    lines += labels.force_lines(forces, mine, goals)
    if committee:
        others = [m.potential(frames.system, device=str(bench.potential.device)) for m in committee]
        spread = (_evaluated(p, x[chosen])[1][:, moving] for p in others)
        members = np.stack([mine, *spread])
        lines.append(labels.calibration_line(members, forces, goals))
    else:
        notes.append((None, "no calibration of an uncertainty: one model, no committee"))
    return log_weights, own, lines, notes


def _independent(bench: _Bench, progress) -> tuple[np.ndarray, Line]:
    """I.i.d. samples (S, N, 3), and how many of them are broken."""
    device, noise = str(bench.potential.device), bench.noise.child(_IID)
    count = bench.effort.samples
    drawn = sample(bench.model, count, noise=noise, device=device, progress=progress)
    x, frames = drawn.double().cpu().numpy(), bench.frames.positions
    topology = bench.frames.topology
    whole = np.ones(len(x), bool)
    if len(topology.bonds):
        whole &= ob.bonds_intact(x, frames, topology.bonds)
    if len(topology.centres):
        whole &= ob.correct_hand(x, frames, topology.centres)
    broken = 1.0 - whole.mean()
    error = max(np.sqrt(broken * (1 - broken) / len(x)), 1 / len(x))
    return x, line("stability", "broken i.i.d. samples", broken, error, goal=bench.goals.lost)


def _compared(
    bench: _Bench, samples: dict, walkers: Corrected, starts, log_weights, energies
) -> list[Line]:
    """Distributions of all sets against the frames that no walker started from."""
    frames, goals, seed = bench.frames.positions, bench.goals, bench.noise.seed
    system, torsions, found = bench.frames.system, bench.torsions, []
    rest = np.setdiff1d(np.arange(len(frames)), starts)
    t, w = walkers.energies.shape
    who = np.broadcast_to(np.arange(w), (t, w)).ravel()
    flat = walkers.positions.reshape(t * w, *frames.shape[1:])
    sets = {label: (x, None) for label, x in samples.items()} | {"corrected MD": (flat, who)}
    if torsions.names:
        angles = torsions(frames)
        of = {label: (torsions(x), ids) for label, (x, ids) in sets.items()}
        some = None if log_weights is None else log_weights[rest]
        found += compare.torsion_lines(torsions, angles[rest], of, some, goals, seed=seed)
        series = {label: a for label, (a, _) in of.items()}
        series["corrected MD"] = series["corrected MD"].reshape(t, w, -1)
        found += compare.free_energy_lines(torsions, angles, series, log_weights, goals)
    else:
        some = rest[:: max(1, len(rest) // 5000)]
        found += distance_lines(system, frames[some], sets, goals, seed=seed)
    if not system.periodic:
        topology, sigma = bench.frames.topology, bench.potential.sigma
        if len(topology.bonds):
            found += compare.width_lines(
                system, topology, frames, walkers.positions, sigma, goals, log_weights
            )
        off = mean_estimate(~Range(frames)(walkers.positions))
        words = "with a distance that no snapshot has, by 0.3 Å"
        name = "corrected MD off all data"
        found.append(line("stability", name, off.value, off.error, goal=goals.lost, words=words))
    return found + compare.energy_lines(
        energies[rest], walkers.energies, bench.kT, goals, seed=seed
    )


def _plain(bench: _Bench, progress) -> Line:
    starts = bench.starts(bench.effort.walkers // 4)
    steps = bench.effort.plain_steps
    found = plain_walkers(**bench.dynamics(starts, _PLAIN), steps=steps, progress=progress)
    collapsed = unphysical_frames(bench.frames.system, bench.whole(found.positions))
    lost = found.lost + len(collapsed)
    words = f"{lost} of {len(starts)} in {steps} steps, D·t = {found.diffused:.2g} Å² each"
    for walker, why in list(collapsed.items())[:1]:
        words += f"; {len(collapsed)} collapsed: survivor {walker}, {why}"
    name, goal = "lost, plain dynamics", bench.goals.lost
    return line("stability", name, lost / len(starts), 0.0, goal=goal, words=words)


def _exchanged(bench: _Bench, progress) -> tuple[list[Line], list[Note]]:
    """Populations of the modes of the model, from walkers that all start in one."""
    torsions, frames = bench.torsions, bench.frames.positions
    rotors = {n: _rotor(bench, n) for n in torsions.axes if _rotor(bench, n) is not None}
    parted = [row for row in torsions.parted if row[1] in rotors]
    if not parted:
        return [], [(None, "no exchange from one mode: no torsion of the map has two in the data")]
    n, first, known = parted[0][1], parted[0][2], torsions(frames)
    inside = np.flatnonzero(first(known[:, n]))
    count = bench.effort.ladders * STATES
    rows = np.random.default_rng(bench.noise.seed).choice(inside, count)
    start = bench.dynamics(rows, _EXCHANGE)
    del start["mean_free"]
    topology, turned = bench.frames.topology, list(rotors.values())
    x, summary = exchanged_walkers(
        **start,
        steps=bench.effort.exchange_steps,
        rotors=topology.rotors[turned],
        moved=topology.moved[turned],
        progress=progress,
    )
    near, angles = Range(frames)(x), torsions(x)
    lines = [
        compare.population_line(name, a, b, angles[..., k], near, known[:, k], bench.goals)
        for name, k, a, b in parted
    ]
    accepted, away = summary.acceptance.mean(0).tolist(), 1 - near.mean()
    told = (
        f"exchange up to {HOT * bench.model.card.temperature_K:.0f} K accepts "
        f"{min(accepted):.0%} at least; {int(summary.round_trips.sum())} round trips; "
        f"{away:.1%} of its frames have a distance that no snapshot has, where the model is an "
        "extrapolation: populations are those of all others"
    )
    return lines, [(False if away > 0.01 else None, told)]


def _rotor(bench: _Bench, torsion: int) -> int | None:
    """Number of the rotatable bond in the middle of a torsion."""
    axis = set(bench.torsions.quadruples[torsion][1:3].tolist())
    rotors = bench.frames.topology.rotors.tolist()
    return next((n for n, rotor in enumerate(rotors) if set(rotor) == axis), None)


def _unknown(bench: _Bench, lines: list[Line]) -> list[Note]:
    """Notes on what the snapshots do not hold."""
    notes: list[Note] = []
    n, torsions = bench.effective, bench.torsions
    if bench.unphysical:
        shown = "; ".join(f"{n}: {why}" for n, why in list(bench.unphysical.items())[:5])
        more = " …" if len(bench.unphysical) > 5 else ""
        told = "frames cannot be right and are left out here, but not in a training; remove them"
        notes.append((False, f"{len(bench.unphysical)} {told}: {shown}{more}"))
    told = (
        f"the snapshots are worth {n:.0f} independent ones: widths are known to "
        f"{1 / np.sqrt(2 * n):.1%}, the population of a mode of 5 % to {np.sqrt(19 / n):.0%} of it"
    )
    notes.append((None, told) if n >= _ENOUGH else (False, f"{told}; too few for most goals"))
    single = [m for m, arcs in zip(torsions.names, torsions.modes, strict=True) if len(arcs) < 2]
    if single:
        told = f"only one mode in the data of {', '.join(single)}: populations elsewhere "
        notes.append((None, told + "cannot be known from them, nor can barriers"))
    said = {one.name for one in lines}
    stuck = [m for m, *_ in torsions.parted if f"ΔF {m}: corrected MD" not in said]
    if stuck:
        told = f"corrected MD did not cross to {', '.join(stuck)}: its populations are those "
        notes.append((None, told + "of its starts and say nothing of the model"))
    kelvin = bench.model.card.temperature_K
    hot = [one for one in lines if one.group == "temperature" and one.verdict == "fail"]
    for one in hot:
        seen = f"{one.value * kelvin:.0f} ± {one.error * kelvin:.0f} K"
        told = f"the label says {kelvin:g} K, {one.name.removeprefix('T ')} it is {seen}: "
        wrong = (
            "the label of the snapshots is wrong, or the model too stiff or too soft"
            if "widths" in one.name
            else "the label of the model's data is wrong, or the labels are of another potential"
        )
        notes.append((False, told + wrong))
    return notes
