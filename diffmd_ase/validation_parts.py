"""The parts of a validation: each adds its lines to a draft of the card."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .analysis import observables as ob
from .analysis.comparisons import (
    energy_entries,
    free_energy_entries,
    population_entry,
    torsion_entries,
    width_entries,
)
from .analysis.distance_entries import distance_entries
from .analysis.label_entries import calibration_entry, force_entries, label_entries
from .analysis.modes import Range, unphysical_frames
from .analysis.scorecard import Entry, Goals, entry
from .analysis.statistics import mean_estimate
from .noise import Noise
from .potentials.base import evaluate
from .potentials.learned import ScorePotential
from .sampling.iid import sample
from .score.model import ScoreModel
from .score.topology import Topology
from .validation_data import Data, energies_of, forces_of, measured_temperature
from .validation_runs import Corrected, corrected_walkers, exchanged_walkers, plain_walkers

__all__ = ["Bench", "Draft", "Effort"]

_ENERGIES = 50_000  # snapshots whose model energy is asked for, at most
_STATES = 5
_BATCH = 500
_IID, _CORRECTED, _PLAIN, _EXCHANGE = range(4)  # children of the noise, one for each part


@dataclass(frozen=True)
class Effort:
    """How much is sampled.

    Parameters
    ----------
    samples : i.i.d. draws
    walkers : of corrected dynamics
    moves : trajectories of 20 steps for each walker, frames of its series
    plain_steps : of plain dynamics, a quarter of the walkers
    labels : snapshots asked for forces, and of a reference potential
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
        low = {"samples": 20, "walkers": 8, "moves": 4}
        for name, value in vars(self).items():
            if value < low.get(name, 1):
                raise ValueError(f"{name}={value} must be at least {low.get(name, 1)}")

    def scaled(self, factor: float) -> Effort:
        """All lengths times ``factor``; walkers and ladders, that are run as one batch, by its
        square root."""
        if not (math.isfinite(factor) and factor > 0):
            raise ValueError(f"effort {factor} must be positive; 1 is the default")
        root = math.sqrt(factor)
        return Effort(
            max(20, round(self.samples * factor)),
            max(8, round(self.walkers * root)),
            max(4, round(self.moves * root)),
            max(1, round(self.plain_steps * factor)),
            max(20, round(self.labels * factor)),
            max(2, round(self.ladders * root)),
            max(100, round(self.exchange_steps * root)),
        )


@dataclass
class Draft:
    """What the parts add to; see `Validation`."""

    entries: list[Entry] = field(default_factory=list)
    notes: list[tuple[bool | None, str]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Bench:
    """What is judged and how: model, its potential at σ₀ and its stiffness λ (1/Å²), the data."""

    model: ScoreModel
    data: Data
    potential: ScorePotential
    stiffness: float
    goals: Goals
    effort: Effort
    noise: Noise
    device: str

    @property
    def kT(self) -> float:
        return self.model.card.kT

    @property
    def system(self):
        return self.data.frames.system

    @property
    def mean_free(self) -> bool:
        return not self.system.periodic

    @property
    def place(self):
        return self.potential.device


def energies_part(draft: Draft, bench: Bench) -> tuple[np.ndarray | None, np.ndarray]:
    """log weights (M,) of the frames towards the model, where they have energies; and the
    model's energies (M,) in eV."""
    frames = bench.data.frames
    own = energies_of(bench.potential, frames.positions[:_ENERGIES])
    if frames.energies is None:
        draft.left_out.append(
            "reweighting, energy correlation and offsets: the snapshots have no energies"
        )
        return None, own
    if len(own) < len(frames):
        return None, own
    true = np.asarray(frames.energies, float)
    log_weights = (true - own) / bench.kT
    angles = bench.data.torsions(frames.positions) if bench.data.torsions.names else None
    draft.entries += label_entries(true, own, bench.kT, bench.data.torsions, angles, bench.goals)
    log_weights = log_weights - log_weights.max()
    w = np.exp(log_weights)
    draft.facts["reweighting"] = {
        "effective_fraction": float(w.sum() ** 2 / (len(w) * (w**2).sum())),
        "largest_share": float(w.max() / w.sum()),
    }
    return log_weights, own


def temperature_part(draft: Draft, bench: Bench) -> None:
    frames = bench.data.frames
    few = frames.positions[:: max(1, len(frames) // bench.effort.labels)]
    draft.entries.append(
        measured_temperature(bench.model, frames, few, bench.goals, bench.noise, bench.device)
    )


def labels_part(draft: Draft, bench: Bench, reference, committee) -> None:
    """Forces, and energies if the frames have none, by the reference potential."""
    frames = bench.data.frames
    chosen = np.arange(0, len(frames), max(1, len(frames) // bench.effort.labels))
    x = frames.positions[chosen]
    forces = None if frames.forces is None else np.asarray(frames.forces[chosen], float)
    if reference is not None:
        parts = [evaluate(reference.terms, p) for p in torch.as_tensor(x).split(_BATCH)]
        forces = torch.cat([p.forces for p in parts]).double().cpu().numpy()
        if frames.energies is None:
            true = torch.cat([p.energy for p in parts]).double().cpu().numpy()
            own, angles = energies_of(bench.potential, x), bench.data.torsions(x)
            draft.entries += label_entries(
                true, own, bench.kT, bench.data.torsions, angles, bench.goals
            )
    if forces is None:
        draft.left_out.append("forces: the snapshots have none, and no reference was named")
    else:
        draft.entries += force_entries(forces, forces_of(bench.potential, x), bench.goals)
    if not committee:
        draft.left_out.append("calibration of an uncertainty: one model, no committee")
    elif forces is None:
        draft.left_out.append("calibration of the committee: no forces to compare with")
    else:
        members = [bench.potential]
        members += [m.potential(bench.system, device=bench.device) for m in committee]
        draft.entries.append(
            calibration_entry(np.stack([forces_of(p, x) for p in members]), forces, bench.goals)
        )


def independent_part(draft: Draft, bench: Bench, progress) -> np.ndarray:
    """I.i.d. samples (S, N, 3), and how many of them are broken."""
    drawn = sample(
        bench.model,
        bench.effort.samples,
        noise=bench.noise.child(_IID),
        device=bench.device,
        progress=progress,
    )
    x = drawn.double().cpu().numpy()
    topology = bench.data.topology
    if topology is not None and len(topology.bonds):
        frames = bench.data.frames.positions
        whole = ob.bonds_intact(x, frames, topology.bonds)
        if len(topology.centres):
            whole &= ob.correct_hand(x, frames, topology.centres)
        broken = 1.0 - whole.mean()
        error = max(np.sqrt(broken * (1 - broken) / len(x)), 1 / len(x))
        draft.entries.append(
            entry("stability", "broken i.i.d. samples", broken, error, goal=bench.goals.lost)
        )
    return x


def _starts(bench: Bench, count: int) -> np.ndarray:
    rng = np.random.default_rng(bench.noise.seed)
    m = len(bench.data.frames)
    return rng.permutation(m)[: max(8, min(count, m // 2))]


def _walkers(bench: Bench, rows: np.ndarray) -> Tensor:
    return torch.as_tensor(bench.data.frames.positions[rows], device=bench.place)


def corrected_part(draft: Draft, bench: Bench, progress) -> tuple[Corrected, np.ndarray]:
    starts = _starts(bench, bench.effort.walkers)
    found = corrected_walkers(
        bench.potential,
        _walkers(bench, starts),
        kT=bench.kT,
        stiffness=bench.stiffness,
        moves=bench.effort.moves,
        mean_free=bench.mean_free,
        noise=bench.noise.child(_CORRECTED),
        progress=progress,
    )
    draft.facts |= {"acceptance": found.acceptance, "timestep": found.timestep}
    return found, starts


def compared_part(
    draft: Draft, bench: Bench, samples, walkers: Corrected, starts, log_weights, energies
) -> None:
    """Distributions of all sets against the frames that no walker started from."""
    data, goals, seed = bench.data, bench.goals, bench.noise.seed
    frames = data.frames.positions
    rest = np.setdiff1d(np.arange(len(frames)), starts)
    t, w = walkers.positions.shape[:2]
    who = np.broadcast_to(np.arange(w), (t, w)).ravel()
    flat = walkers.positions.reshape(t * w, *frames.shape[1:])
    sets = {label: (x, None) for label, x in samples.items()} | {"corrected MD": (flat, who)}
    torsions = data.torsions
    if torsions.names:
        angles = torsions(frames)
        of = {label: (torsions(x), ids) for label, (x, ids) in sets.items()}
        some = None if log_weights is None else log_weights[rest]
        draft.entries += torsion_entries(torsions, angles[rest], of, some, goals, seed=seed)
        series = {label: a for label, (a, ids) in of.items() if ids is None}
        series["corrected MD"] = of["corrected MD"][0].reshape(t, w, -1)
        draft.entries += free_energy_entries(torsions, angles, series, log_weights, goals)
    else:
        some = rest[:: max(1, len(rest) // 5000)]
        draft.entries += distance_entries(bench.system, frames[some], sets, goals, seed=seed)
    if data.topology is not None and len(data.topology.bonds):
        draft.entries += width_entries(
            bench.system,
            data.topology,
            frames,
            walkers.positions,
            bench.potential.sigma,
            goals,
        )
    known = np.setdiff1d(np.arange(len(energies)), starts)
    draft.entries += energy_entries(energies[known], walkers.energies, bench.kT, goals, seed=seed)
    if not bench.system.periodic:
        outside = mean_estimate(~Range(frames)(walkers.positions))
        draft.entries.append(
            entry(
                "stability",
                "corrected MD off all data",
                outside.value,
                outside.error,
                goal=goals.lost,
                words="with a distance that no snapshot has, by 0.3 Å",
            )
        )


def plain_part(draft: Draft, bench: Bench, progress) -> None:
    starts = _starts(bench, max(8, bench.effort.walkers // 4))
    found = plain_walkers(
        bench.potential,
        _walkers(bench, starts),
        kT=bench.kT,
        stiffness=bench.stiffness,
        steps=bench.effort.plain_steps,
        mean_free=bench.mean_free,
        noise=bench.noise.child(_PLAIN),
        progress=progress,
    )
    draft.entries.append(
        entry(
            "stability",
            "lost, plain dynamics",
            found.lost / found.started,
            0.0,
            goal=bench.goals.lost,
            words=f"{found.lost} of {found.started} in {found.steps} steps of "
            f"{found.h:.2g} Å², D·t = {found.steps * found.h:.2g} Å² each",
        )
    )
    wrong = unphysical_frames(bench.system, found.positions) if len(found.positions) else {}
    if wrong:
        first, why = next(iter(wrong.items()))
        draft.notes.append(
            (False, f"{len(wrong)} walkers of plain dynamics collapsed: walker {first}, {why}")
        )


def exchange_part(draft: Draft, bench: Bench, progress) -> None:
    """Populations of the modes of the model, from walkers that all start in one."""
    data, torsions = bench.data, bench.data.torsions
    turning = [n for n in torsions.axes if _rotor(data.topology, torsions.quadruples[n]) >= 0]
    parted = [row for row in torsions.parted if row[1] in turning]
    if not parted:
        draft.left_out.append(
            "exchange from one mode: no torsion of the map is parted into modes by the data"
        )
        return
    n, first = parted[0][1], parted[0][2]
    known = torsions(data.frames.positions)
    inside = np.flatnonzero(first(known[:, n]))
    count = bench.effort.ladders * _STATES
    rows = np.random.default_rng(bench.noise.seed).choice(inside, count)
    rotors = [_rotor(data.topology, torsions.quadruples[k]) for k in turning]
    found = exchanged_walkers(
        bench.potential,
        _walkers(bench, rows),
        kT=bench.kT,
        stiffness=bench.stiffness,
        steps=bench.effort.exchange_steps,
        states=_STATES,
        rotors=data.topology.rotors[rotors],
        moved=data.topology.moved[rotors],
        noise=bench.noise.child(_EXCHANGE),
        progress=progress,
    )
    near = Range(data.frames.positions)(found.positions)
    angles = torsions(found.positions)
    for name, k, a, b in parted:
        here, there = angles[..., k], known[:, k]
        draft.entries.append(population_entry(name, a, b, here, near, there, bench.goals))
    away = 1 - near.mean()
    draft.facts["exchange"] = {
        "acceptance": [round(float(v), 3) for v in found.summary.acceptance.mean(0)],
        "round_trips": int(found.summary.round_trips.sum()),
        "away_from_snapshots": float(away),
    }
    if away > 0.01:
        draft.notes.append(
            (
                False,
                f"exchange up to {2.5 * bench.model.card.temperature_K:.0f} K finds structures "
                f"that no snapshot is near, {away:.1%} of its frames: there the model is an "
                "extrapolation; populations are those of all others",
            )
        )


def unknown_part(draft: Draft, bench: Bench) -> None:
    """Notes on what the snapshots do not hold."""
    data = bench.data
    if data.unphysical:
        shown = "; ".join(f"{n}: {why}" for n, why in list(data.unphysical.items())[:5])
        draft.notes.append(
            (
                False,
                f"{len(data.unphysical)} frames cannot be right and are left out here, but not "
                f"in a training: {shown}{' …' if len(data.unphysical) > 5 else ''}; "
                "remove them",
            )
        )
    n = data.effective
    draft.notes.append(
        (
            None if n >= 1000 else False,
            f"{len(data.whole)} snapshots are worth {n:.0f} independent ones: widths are known "
            f"to {1 / np.sqrt(2 * n):.1%}, the population of a mode of 5 % to "
            f"{np.sqrt(19 / n):.0%} of itself" + ("" if n >= 1000 else "; too few for most goals"),
        )
    )
    torsions = data.torsions
    single = [m for m, arcs in zip(torsions.names, torsions.modes, strict=True) if len(arcs) < 2]
    if single:
        draft.notes.append(
            (
                None,
                f"only one mode in the data of {', '.join(single)}: what lies elsewhere cannot "
                "be known from them",
            )
        )
    said = {line.name for line in draft.entries}
    stuck = [m for m, *_ in torsions.parted if f"ΔF {m}: corrected MD" not in said]
    if stuck:
        draft.notes.append(
            (
                None,
                f"corrected MD did not cross to {', '.join(stuck)}: its populations are those "
                "of its starts and say nothing of the model",
            )
        )
    hot = [e for e in draft.entries if e.group == "temperature" and e.verdict == "above floor"]
    if hot:
        kelvin = bench.model.card.temperature_K
        told = " and ".join(f"{e.value * kelvin:.0f} ± {e.error * kelvin:.0f} K" for e in hot)
        draft.notes.append(
            (
                False,
                f"the label says {kelvin:g} K, the snapshots look like {told}: the label of "
                "the snapshots or that of the model's data is wrong, or the model is too stiff "
                "or too soft",
            )
        )


def _rotor(topology: Topology | None, quadruple) -> int:
    """Number of the rotatable bond in the middle of a torsion, -1 if there is none."""
    if topology is None:
        return -1
    axis = {int(quadruple[1]), int(quadruple[2])}
    same = [n for n, rotor in enumerate(topology.rotors.tolist()) if set(rotor) == axis]
    return same[0] if same else -1
