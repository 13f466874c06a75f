"""Calls of a reference per effective sample: delayed acceptance against MALA on the reference.

    diffmd train alanine-dipeptide -o model.safetensors
    python benchmarks/delayed_acceptance.py model.safetensors [--walkers 64] [--steps 60] [--json]

The target of both is alanine dipeptide in OpenMM's amber14 at 300 K. MALA is driven by the
reference's own forces, its h tuned for the largest h times acceptance. In delayed
acceptance ``--inner`` Metropolised Langevin trajectories on the learned energy propose, and
one call of the reference decides. Effective samples of every bond, angle and backbone
torsion are arviz-stats' bulk ESS over all walkers, calls are those that `Info` counts for
each walker. Walkers start from snapshots with φ < 0 and stay there (the barrier is about
14 kT). MALA is too slow for ψ to forget its start: its ESS there is about that of the starts
alone, so that the ratio is a lower bound. Goal: at least 5 times fewer calls.

Then the distribution of each observable is compared with the snapshots: the Jensen–Shannon
divergence (nats, histograms) of draws so far apart that they are independent, against its
sampling floor, the divergences of as many snapshots from the other snapshots, 100 times. At
the floor 95 % of the observables lie below its 95 % quantile. The same for the learned energy
alone, which shows what the correction removes.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from arviz_stats.base import array_stats
from ase import units
from diffmd_openmm import PHI, PSI, OpenMMPotential, alanine_dipeptide
from shared import command_line, parsed

from diffmd_ase.analysis.divergence import jensen_shannon
from diffmd_ase.analysis.observables import angle_triples
from diffmd_ase.geometry import angles, dihedrals, distances
from diffmd_ase.io.json_text import to_json
from diffmd_ase.noise import Noise
from diffmd_ase.sampling.delayed import DelayedAcceptance
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.sampling.hamiltonian import MALT
from diffmd_ase.sampling.kernels import Kernel
from diffmd_ase.sampling.metropolis import Metropolis
from diffmd_ase.sampling.run import run
from diffmd_ase.score.model import ScoreModel
from diffmd_ase.score.snapshots import Snapshots
from diffmd_ase.system import System

H_GRID = (4e-5, 6e-5, 9e-5, 1.3e-4, 1.9e-4)  # Å²
# masses are free where only configurations count: equal ones let the time step grow
TRAJECTORY = {
    "timestep": 2.5 * units.fs,
    "n_leapfrog": 20,
    "friction": 0.002 / units.fs,
    "masses": 12.0,
}
BINS, SPLITS = 30, 100


class Observables:
    """Columns of every bond, angle, and φ, ψ as cosine and sine, from positions."""

    def __init__(self, bonds: np.ndarray):
        self.bonds, self.triples = bonds, angle_triples(bonds)
        self.groups = (
            ["bonds"] * len(bonds) + ["angles"] * len(self.triples) + ["φ"] * 2 + ["ψ"] * 2
        )

    def __call__(self, x) -> np.ndarray:
        x = np.asarray(x)
        torsions = dihedrals(x, [PHI, PSI])
        pairs = np.stack((np.cos(torsions), np.sin(torsions)), -1).reshape(*x.shape[:-2], 4)
        return np.concatenate((distances(x, self.bonds), angles(x, self.triples), pairs), -1)


def sample(kernel: Kernel, x, steps: int, observables: Observables, seed: int) -> dict:
    """Observables (walkers, steps, n), acceptance, calls per walker and step, seconds."""
    rows, accepted, counts = [], 0.0, np.zeros(2)
    start = time.perf_counter()
    for state, info in run(kernel, x, steps, noise=Noise(seed)):
        rows.append(observables(state.x))
        accepted += float(info.accepted.double().mean()) / steps
        made = (info.drift_evaluations, info.target_evaluations)
        counts += [float(torch.as_tensor(n).double().mean()) / steps for n in made]
    values = np.stack(rows, 1)
    return {
        "values": values,
        "acceptance": accepted,
        "drift_calls": counts[0],
        "target_calls": counts[1],
        "seconds": time.perf_counter() - start,
        "ess": effective(values),
    }


def effective(values: np.ndarray, method: str = "bulk") -> np.ndarray:
    """ESS (n,) of each column of (walkers, steps, n)."""
    options = {"prob": (0.05, 0.95)} if method == "tail" else {}
    return np.array(
        [
            array_stats.ess(values[..., i], chain_axis=0, draw_axis=1, method=method, **options)
            for i in range(values.shape[-1])
        ]
    )


def tuned(potential, kT: float, x) -> Metropolis:
    """MALA with the largest h times acceptance of a short pilot."""

    def gain(h: float) -> float:
        kernel = Metropolis(EulerMaruyama(potential, kT, h))
        infos = [info for _, info in run(kernel, x, 30, noise=Noise(1))]
        return h * float(torch.stack([i.accepted for i in infos]).double().mean())

    return Metropolis(EulerMaruyama(potential, kT, max(H_GRID, key=gain)))


def divergences(values, ess, pool, rng) -> tuple[np.ndarray, np.ndarray]:
    """JS of each observable from the pool (n,), and of the pool's own subsets (SPLITS, n)."""
    walkers, steps, columns = values.shape
    found, floor = np.empty(columns), np.empty((SPLITS, columns))
    for i in range(columns):
        stride = min(steps, int(np.ceil(walkers * steps / ess[i])))
        edges = np.quantile(pool[:, i], np.linspace(0, 1, BINS + 1))[1:-1]
        bins = np.searchsorted(edges, pool[:, i])
        whole = np.bincount(bins, minlength=BINS)
        # the last of each stride: the start is an exact sample already
        draws = np.searchsorted(edges, values[:, stride - 1 :: stride, i].ravel())
        found[i] = jensen_shannon(np.bincount(draws, minlength=BINS), whole)
        for split in range(SPLITS):
            chosen = rng.choice(bins, min(len(draws), len(bins) // 2), replace=False)
            part = np.bincount(chosen, minlength=BINS)
            floor[split, i] = jensen_shannon(part, whole - part)
    return found, floor


def judged(result: dict, pool: np.ndarray, groups: list[str], rng) -> dict:
    """By group: mean JS, mean floor, and how many lie below the floor's 95 % quantile."""
    values = result["values"]
    # a histogram has centre, width and tails: the least effective of them counts
    ess = np.min([result["ess"], effective(values, "sd"), effective(values, "tail")], axis=0)
    found, floor = divergences(values, ess, pool, rng)
    below = found <= np.quantile(floor, 0.95, axis=0)
    return {
        group: {
            "js": float(found[columns].mean()),
            "floor": float(floor[:, columns].mean()),
            "below": f"{int(below[columns].sum())}/{len(columns)}",
        }
        for group, columns in grouped(groups).items()
    }


def grouped(groups: list[str]) -> dict[str, list[int]]:
    return {g: [i for i, name in enumerate(groups) if name == g] for g in dict.fromkeys(groups)}


def measure(path: Path, walkers: int, steps: int, mala_steps: int, inner: int) -> dict:
    snapshots = Snapshots.read("alanine-dipeptide")
    kT = snapshots.kT
    atoms, openmm_system = alanine_dipeptide()
    reference = OpenMMPotential(System.from_atoms(atoms), openmm_system)
    learned = ScoreModel.load(path).potential(dtype=torch.float64)

    rng = np.random.default_rng(0)
    frames = snapshots.positions.astype(float)
    frames = rng.permutation(frames[dihedrals(frames, [PHI])[:, 0] < 0.0])
    observables = Observables(snapshots.topology.bonds)
    start = torch.from_numpy(frames[:walkers].copy())
    pool = observables(frames[walkers:])

    proposal = MALT(learned, kT=kT, **TRAJECTORY)
    mala = tuned(reference, kT, start)
    runs = {
        "MALA on the reference": (mala, mala_steps),
        "delayed acceptance": (DelayedAcceptance(proposal, reference, n_inner=inner), steps),
        "learned energy alone": (proposal, steps * inner),
    }
    results = {
        name: sample(kernel, start, count, observables, seed)
        for seed, (name, (kernel, count)) in enumerate(runs.items())
    }
    # one target: every evaluation of MALA's drift is a call
    calls = {
        "MALA on the reference": mala_steps * results["MALA on the reference"]["drift_calls"],
        "delayed acceptance": steps * results["delayed acceptance"]["target_calls"],
    }
    per_call = {name: results[name]["ess"] / (walkers * count) for name, count in calls.items()}
    plain, delayed = (per_call[name] for name in calls)
    ratio = delayed / plain
    groups = grouped(observables.groups)
    fewer = {g: float(np.median(ratio[columns])) for g, columns in groups.items()}
    fewer["slowest"] = float(delayed.min() / plain.min())
    fewer["least of all"] = float(ratio.min())
    return {
        "h": mala.proposal.h,
        "walkers": walkers,
        "inner": inner,
        "calls": {name: walkers * count for name, count in calls.items()},
        "acceptance": {name: r["acceptance"] for name, r in results.items()},
        "seconds": {name: r["seconds"] for name, r in results.items()},
        "ess_per_call": {
            name: {g: float(np.median(v[c])) for g, c in groups.items()}
            | {"slowest": float(v.min())}
            for name, v in per_call.items()
        },
        "fewer_calls": fewer,
        "distributions": {
            name: judged(results[name], pool, observables.groups, rng)
            for name in ("delayed acceptance", "learned energy alone")
        },
    }


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--walkers", type=int, default=64)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--mala-steps", type=int, default=10_000)
    parser.add_argument("--inner", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    options = parsed(parser)
    result = measure(
        options.model, options.walkers, options.steps, options.mala_steps, options.inner
    )
    if options.json:
        print(to_json(result))
        return
    for name, acceptance in result["acceptance"].items():
        calls = result["calls"].get(name, 0)
        print(
            f"{name:22s} acceptance {acceptance:.2f}   {calls:9.0f} calls of the reference   "
            f"{result['seconds'][name]:6.1f} s"
        )
    print(f"\neffective samples per call (medians; MALA with h = {result['h']:g} Å²)")
    plain, delayed = result["ess_per_call"].values()
    for group, fewer in result["fewer_calls"].items():
        if group in plain:
            print(
                f"  {group:8s} MALA {plain[group]:.2e}   delayed {delayed[group]:.2e}   "
                f"{fewer:8.1f} times fewer calls"
            )
    print(f"  of all observables at least {result['fewer_calls']['least of all']:.1f} times")
    print("\ndivergence from the snapshots, its sampling floor, below its 95 % quantile")
    for name, rows in result["distributions"].items():
        for group, row in rows.items():
            print(f"  {name:22s} {group:7s} {row['js']:.4f}  {row['floor']:.4f}  {row['below']}")


if __name__ == "__main__":
    main()
