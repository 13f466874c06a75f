"""The parts of a validation: labels, samples, and corrected, plain and exchanged walkers."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from ..analysis import observables as ob
from ..analysis.divergence import walker_groups
from ..analysis.modes import Range, unphysical_frames
from ..analysis.statistics import mean_estimate
from ..independent.draws import sample
from ..potentials.base import Potential
from ..simulation.prepare import prepare
from . import comparisons as compare
from . import labels
from .bench import ENOUGH, Bench, Part, energies_and_forces
from .distances import distance_lines
from .scorecard import Line, Note, line
from .walkers import HOT, STATES, Corrected, exchanged_walkers, plain_walkers

__all__ = [
    "distributions",
    "exchange_from_one_mode",
    "independent_samples",
    "label_lines",
    "plain_dynamics",
    "unknown",
]


_AT_ONCE, _WITH_BARS = 1000, 200  # frames


def independent_samples(bench: Bench, progress) -> tuple[np.ndarray, Line]:
    """I.i.d. samples (S, N, 3) in Å of the model of a ``bench``, and a line: how many are broken.

    Broken are bonds six standard deviations from those of the frames, and of a chiral molecule
    centres of the other hand.
    """
    device, noise = str(bench.potential.device), bench.noise.child(Part.INDEPENDENT)
    count = bench.effort.samples
    drawn = sample(
        bench.model, count, noise=noise, device=device, compile=bench.compile, progress=progress
    )
    x, frames = drawn.double().cpu().numpy(), bench.frames.positions
    topology = bench.frames.topology
    whole = np.ones(len(x), bool)
    if len(topology.bonds):
        whole &= ob.bonds_intact(x, frames, topology.bonds)
    if topology.chiral:  # elsewhere like atoms and both hands are as likely
        whole &= ob.correct_hand(x, frames, topology.centres)
    broken = 1.0 - whole.mean()
    error = max(np.sqrt(broken * (1 - broken) / len(x)), 1 / len(x))
    return x, line("stability", "broken i.i.d. samples", broken, error, goal=bench.goals.lost)


def distributions(
    bench: Bench, samples: dict, walkers: Corrected, starts, log_weights, energies
) -> list[Line]:
    """Distributions of all sets against the frames that no walker started from.

    Parameters
    ----------
    samples : name → i.i.d. samples (S, N, 3) in Å
    walkers : corrected ones, of all atoms
    starts : numbers of the frames that they started from
    log_weights : (M,) of the frames towards the model, or None
    energies : (M,) in eV of the model on the frames
    """
    frames, goals, seed = bench.frames.positions, bench.goals, bench.noise.seed
    system, torsions, lines = bench.frames.system, bench.torsions, []
    rest = np.setdiff1d(np.arange(len(frames)), starts)
    t, w = walkers.energies.shape
    flat = walkers.positions.reshape(t * w, *frames.shape[1:])
    sets = {label: (x, None) for label, x in samples.items()} | {
        "corrected MD": (flat, walker_groups(t, w))
    }
    if torsions.names:
        angles = torsions(frames)
        of = {label: (torsions(x), groups) for label, (x, groups) in sets.items()}
        some = None if log_weights is None else log_weights[rest]
        lines += compare.torsion_lines(torsions, angles[rest], of, some, goals, seed=seed)
        series = {label: a for label, (a, _) in of.items()}
        series["corrected MD"] = series["corrected MD"].reshape(t, w, -1)
        lines += compare.free_energy_lines(torsions, angles, series, log_weights, goals)
    else:
        some = rest[:: max(1, len(rest) // 5000)]
        lines += distance_lines(system, frames[some], sets, goals, seed=seed)
    if not system.periodic:
        topology, sigma = bench.frames.topology, bench.potential.sigma
        if len(topology.bonds):
            lines += compare.width_lines(
                system, topology, frames, walkers.positions, sigma, goals, log_weights
            )
        off = mean_estimate(~Range(frames)(walkers.positions))
        words = "with a distance that no snapshot has, by 0.3 Å"
        name = "corrected MD off all data"
        lines.append(line("stability", name, off.value, off.error, goal=goals.lost, words=words))
        lines += _extrapolated(bench, walkers.positions)
    return lines + compare.energy_lines(
        energies[rest], walkers.energies, bench.kT, goals, seed=seed
    )


def _extrapolated(bench: Bench, x: np.ndarray) -> list[Line]:
    """How many frames x (T, W, N, 3) the model itself takes for outside; of one that knows."""
    flat = torch.as_tensor(x.reshape(-1, *x.shape[-2:]))
    values = [bench.potential.extrapolation(part) for part in flat.split(_AT_ONCE)]
    if any(v is None for v in values):
        return []
    beyond = torch.cat([v for v in values if v is not None])
    off = mean_estimate((beyond > 1).numpy().reshape(x.shape[:2]))
    words = bench.potential.outside(flat[beyond.argmax()]) or "nothing is"
    name = "corrected MD outside of its snapshots"
    return [line("stability", name, off.value, off.error, goal=bench.goals.lost, words=words)]


def plain_dynamics(bench: Bench, progress) -> Line:
    """How many walkers of plain dynamics are lost, or end where nothing can be right."""
    starts = bench.starts(bench.effort.walkers // 4)
    steps = bench.effort.plain_steps
    start = bench.dynamics(starts, Part.PLAIN)
    prepared = prepare(
        start.potential,
        temperature_K=bench.model.card.temperature_K,
        stiffness=start.stiffness,
        mean_free=start.mean_free,
    )
    walkers = plain_walkers(prepared, start.x, steps=steps, noise=start.noise, progress=progress)
    collapsed = unphysical_frames(bench.frames.system, bench.whole(walkers.positions))
    lost = walkers.lost + len(collapsed)
    words = f"{lost} of {len(starts)} in {steps} steps, D·t = {walkers.diffused:.2g} Å² each"
    for walker, why in list(collapsed.items())[:1]:
        words += f"; {len(collapsed)} collapsed: survivor {walker}, {why}"
    name, goal = "lost, plain dynamics", bench.goals.lost
    return line("stability", name, lost / len(starts), 0.0, goal=goal, words=words)


def exchange_from_one_mode(bench: Bench, progress) -> tuple[list[Line], list[Note]]:
    """Populations of the modes of the model, from walkers that all start in one."""
    torsions, frames = bench.torsions, bench.frames.positions
    if bench.frames.system.periodic:
        note = "no exchange from one mode: the periodic boundary may cut the part that turns"
        return [], [(None, note)]
    rotors = {n: _rotor(bench, n) for n in torsions.axes if _rotor(bench, n) is not None}
    parted = [row for row in torsions.parted if row[1] in rotors]
    if not parted:
        return [], [(None, "no exchange from one mode: no torsion of the map has two in the data")]
    n, first, data = parted[0][1], parted[0][2], torsions(frames)
    inside = np.flatnonzero(first(data[:, n]))
    count = bench.effort.ladders * STATES
    rows = np.random.default_rng(bench.noise.seed).choice(inside, count)
    topology, turned = bench.frames.topology, list(rotors.values())
    x, summary = exchanged_walkers(
        bench.dynamics(rows, Part.EXCHANGE),
        steps=bench.effort.exchange_steps,
        rotors=topology.rotors[turned],
        moved=topology.moved[turned],
        progress=progress,
    )
    near, angles = Range(frames)(x), torsions(x)
    lines = [
        compare.population_line(name, a, b, angles[..., k], near, data[:, k], bench.goals)
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


def _rotor(bench: Bench, torsion: int) -> int | None:
    """Number of the rotatable bond in the middle of a torsion."""
    axis = set(bench.torsions.quadruples[torsion][1:3].tolist())
    rotors = bench.frames.topology.rotors.tolist()
    return next((n for n, rotor in enumerate(rotors) if set(rotor) == axis), None)


def unknown(bench: Bench, lines: list[Line]) -> list[Note]:
    """Notes on what the snapshots of a ``bench`` do not hold, and what ``lines`` could not tell."""
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
    notes.append((None, told) if n >= ENOUGH else (False, f"{told}; too few for most goals"))
    modes = zip(torsions.names, torsions.modes, strict=True)
    single = [name for name, arcs in modes if len(arcs) < 2 and not arcs[0].whole]
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


def label_lines(
    bench: Bench, reference: Potential | None, committee
) -> tuple[np.ndarray | None, np.ndarray, list[Line], list[Note]]:
    """What energies and forces tell where they are known.

    Parameters
    ----------
    reference : potential of the data, for what the snapshots lack
    committee : further models of the same data

    Returns log weights (M,) of the frames towards the model, None where they have no energies; the
    model's energies (M,) in eV; lines; notes.
    """
    frames, goals, x = bench.frames, bench.goals, bench.frames.positions
    own = energies_and_forces(bench.potential, x)[0]
    of = partial(labels.energy_label_lines, kT=bench.kT, torsions=bench.torsions, goals=goals)
    lines: list[Line] = []
    notes: list[Note] = []
    log_weights = None
    chosen = bench.some(bench.effort.labels)
    if frames.labelled.any() and not frames.labelled.all():  # of some frames only
        chosen = np.flatnonzero(frames.labelled)[: bench.effort.labels]
    forces = None if frames.forces is None else np.asarray(frames.forces[chosen], float)
    if frames.energies is not None:
        true = np.asarray(frames.energies, float)
        known = np.isfinite(true)
        lines += of(true[known], own[known], angles=bench.torsions(x[known]))
        log_weights = (true - own) / bench.kT if known.all() else None
    if reference is not None:
        true, forces = energies_and_forces(reference, x[chosen])
        if frames.energies is None:
            lines += of(true, own[chosen], angles=bench.torsions(x[chosen]))
    if log_weights is None:
        lack = "have no energies" if frames.energies is None else "do not all have energies"
        notes.append((None, f"no reweighting: the snapshots {lack}"))
    if forces is None:
        notes.append((None, "no forces: the snapshots have none, and no reference was named"))
        return log_weights, own, lines, notes
    moving = frames.moving
    forces, mine = forces[:, moving], energies_and_forces(bench.potential, x[chosen])[1][:, moving]
    lines += labels.force_lines(forces, mine, goals)
    if committee:
        others = [m.potential(frames.system, device=str(bench.potential.device)) for m in committee]
        spread = (energies_and_forces(p, x[chosen])[1][:, moving] for p in others)
        members = np.stack([mine, *spread])
        lines.append(labels.calibration_line(members, forces, goals))
    some = chosen[:_WITH_BARS]
    bars = bench.potential.force_errors(torch.as_tensor(x[some]))
    if bars is not None:
        said = bars.double().cpu().numpy()[:, moving]
        lines.append(labels.error_bar_line(said, (mine - forces)[: len(some)]))
    elif not committee:
        notes.append((None, "no calibration of an uncertainty: one model, without error bars"))
    return log_weights, own, lines, notes
