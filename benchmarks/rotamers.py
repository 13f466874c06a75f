"""Populations of torsions from one start, and energies, of a model and of what made its snapshots.

Replica exchange of the learned energy and of the reference itself, both from snapshots in the
largest basin of each torsion, a basin being what lies between two minima of its density in the
snapshots: do they find the same populations? And what does the
reference say of independent samples and of Metropolis-corrected trajectories of the model: are
their mean energies those of the snapshots?

    python benchmarks/make_snapshots.py ethanol -o ethanol.npz
    diffmd train ethanol.npz -o ethanol.safetensors
    python benchmarks/rotamers.py ethanol.safetensors ethanol-held-out.npz --reference gfn2
"""

import sys

import numpy as np
from shared import command_line, parsed

from diffmd_ase import ScoreModel, Snapshots
from diffmd_ase.analysis.statistics import mean_estimate
from diffmd_ase.independent.draws import sample
from diffmd_ase.io.json_text import to_json
from diffmd_ase.potentials.named import find_potential
from diffmd_ase.validation.bench import Bench, Part, energies_and_forces
from diffmd_ase.validation.walkers import STATES, corrected_walkers, exchanged_walkers

SOME = 2000  # structures whose energies are compared
GOAL_Z, GOAL_KT = 4.0, 1.0


def populations(start, bench: Bench, basins, options) -> dict[str, tuple[float, float]]:
    """Of each mode, by ladders that all start in the largest ones, and the error over ladders."""
    topology, torsions = bench.frames.topology, bench.torsions
    x, summary = exchanged_walkers(
        start,
        steps=options.steps,
        rotors=topology.rotors,
        moved=topology.moved,
        progress=lambda done: None,
    )
    angles, found = torsions(x), {}
    print(f"  exchanges accepted: {summary.acceptance.mean(0).min():.2f} at least", file=sys.stderr)
    for n, arcs in enumerate(basins):
        for arc in arcs:
            each = arc(angles[..., n]).mean(0)
            error = each.std(ddof=1) / len(each) ** 0.5
            found[f"{torsions.names[n]} {arc}"] = float(each.mean()), float(error)
    return found


def excess(energies: np.ndarray, known: np.ndarray, kT: float) -> tuple[float, float]:
    """Mean of energies (M,) or (T, W) less that of independent ``known`` ones, in kT."""
    if energies.ndim == 2:
        mean, error = mean_estimate(energies)[:2]
    else:
        mean, error = energies.mean(), energies.std() / len(energies) ** 0.5
    both = np.hypot(error, known.std() / len(known) ** 0.5)
    return float((mean - known.mean()) / kT), float(both / kT)


def main() -> int:
    parser = command_line(__doc__)
    parser.add_argument("model", help="name or file")
    parser.add_argument("snapshots", help="with energies of the reference")
    parser.add_argument("--reference", default="gfn2", help="gfn2, emt, a model file, …")
    parser.add_argument("--ladders", type=int, default=16, help="of five temperatures")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    options = parsed(parser)
    model, snapshots = ScoreModel.load(options.model), Snapshots.read(options.snapshots)
    reference = find_potential(options.reference, model.system, role="reference")
    bench = Bench.of(model, snapshots, None, None, None, options.seed, "cpu")
    angles, inside = bench.torsions(bench.frames.positions), np.ones(len(bench.frames), bool)
    basins = [arcs if len(arcs) > 1 else [] for arcs in bench.torsions.modes]
    for arcs, phi in zip(basins, angles.T, strict=True):
        inside &= arcs[0](phi) if arcs else True
    rng = np.random.default_rng(options.seed)
    rows = rng.choice(np.flatnonzero(inside), options.ladders * STATES)
    start = bench.dynamics(rows, Part.EXCHANGE)
    known = {
        "model": populations(start, bench, basins, options),
        "reference": populations(start._replace(potential=reference), bench, basins, options),
    }
    drawn = sample(model, SOME, noise=bench.noise.child(Part.INDEPENDENT), device="cpu")
    moved = corrected_walkers(
        bench.dynamics(bench.starts(64), Part.CORRECTED), 100, lambda done: None
    )
    every = max(1, moved.energies.size // SOME)
    sets = {"independent samples": drawn.double().numpy(), "corrected MD": moved.positions[::every]}
    energies = {}
    for name, x in sets.items():
        flat = x.reshape(-1, *x.shape[-2:])
        values = energies_and_forces(reference, flat)[0].reshape(x.shape[:-2])
        energies[name] = excess(values, bench.frames.energies, bench.kT)
    return report(known, energies, options.json)


def report(known, energies, as_json: bool) -> int:
    """Print; 0 where all goals are met."""
    rows, met = [], True
    for name, (value, error) in known["model"].items():
        other, its = known["reference"][name]
        z = (value - other) / max(float(np.hypot(error, its)), 1e-3)
        met &= abs(z) < GOAL_Z
        rows.append({"mode": name, "model": value, "error": error, "reference": other,
                     "its error": its, "z": z})  # fmt: skip
    met &= all(abs(value) < GOAL_KT for value, _ in energies.values())
    if as_json:
        print(to_json({"populations": rows, "excess of energy in kT": energies}))
        return 0 if met else 1
    for row in rows:
        print(
            "{mode}: {model:.3f} ± {error:.3f}, reference {reference:.3f} ± {its error:.3f}, "
            "z {z:+.1f}".format(**row)
        )
    for name, (value, error) in energies.items():
        print(f"{name}: energy by the reference {value:+.2f} ± {error:.2f} kT above the snapshots'")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
