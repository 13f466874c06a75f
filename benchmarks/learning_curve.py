r"""Error of forces against the number of snapshots: alone, with labels, above a baseline.

The force field of the smallest noise, which the closed form gives, without any network. Held-out
frames come from walkers that gave none to the fit. Beside the errors stands what p parameters and
N frames of d degrees of freedom leave where the true energy lies in the form, sqrt(2p/(N d)).

    python benchmarks/make_snapshots.py ethanol -o ethanol.npz
    python benchmarks/learning_curve.py ethanol.npz ethanol-held-out.npz --baseline gfn1 \
        --plot ethanol.png
"""

import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from shared import command_line, parsed

from diffmd_ase import Snapshots, TrainConfig
from diffmd_ase.potentials.baseline import find_baseline
from diffmd_ase.potentials.named import find_potential
from diffmd_ase.score.baseline import evaluate_baseline
from diffmd_ase.score.networks.build import build, parameter_count
from diffmd_ase.score.networks.embedded import EmbeddedConfig
from diffmd_ase.score.networks.inputs import Inputs
from diffmd_ase.score.networks.molecule import MechanicsConfig
from diffmd_ase.score.plan import plan
from diffmd_ase.validation.bench import energies_and_forces

LABELS = 100.0  # the weight of them in solids


def fitted(data: Snapshots, weight, seed: int):
    """The force field of some frames, and how many parameters it has."""
    expert = plan(data, TrainConfig())[0]
    config, sigma = expert.network, expert.sigma[0]
    if isinstance(config, MechanicsConfig):
        config = config.model_copy(update={"depth": 0})
    elif weight == "auto" and isinstance(config, EmbeddedConfig):
        weight = LABELS
    network = build(config, data, sigma=sigma, force_weight=weight, seed=seed)
    return network.double(), parameter_count(network)


def errors(network, held_out: Snapshots, base) -> tuple[float, float]:
    """Relative error of forces, and std(U - E) in kT."""
    told, energies, forces = Inputs.of(held_out.system, dtype=torch.float64), [], []
    for x in torch.as_tensor(held_out.positions).split(50):
        x = x.requires_grad_()
        some = held_out.kT * told.energy(network)(x, x.new_zeros(len(x)))
        forces.append(-torch.autograd.grad(some.sum(), x)[0])
        energies.append(some.detach())
    moving = held_out.moving
    wrong = (torch.cat(forces).numpy() + base[1] - held_out.forces)[:, moving]
    off = np.linalg.norm(wrong) / np.linalg.norm(held_out.forces[:, moving])
    gap = (torch.cat(energies).numpy() + base[0] - held_out.energies) / held_out.kT
    return float(off), float(gap.std())


def labelled(data: Snapshots, count: int, rng) -> Snapshots:
    """Forces of ``count`` frames only."""
    forces = np.full_like(data.positions, np.nan)
    chosen = rng.permutation(len(data))[:count]
    forces[chosen] = data.forces[chosen]
    return replace(data, forces=forces, checked=True).with_structure(data.topology, data.moving)


def main():
    parser = command_line(__doc__)
    parser.add_argument("snapshots", help="with forces and energies")
    parser.add_argument("held_out")
    parser.add_argument("--frames", type=int, nargs="*", default=[300, 1000, 3000])
    parser.add_argument("--labels", type=int, default=500, help="frames with forces, at most")
    parser.add_argument("--baseline", help="gfn1, emt, a model file, …")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--plot", type=Path, help="a picture of the table")
    options = parsed(parser)
    warnings.simplefilter("ignore", UserWarning)
    every, held_out = (Snapshots.read(p) for p in (options.snapshots, options.held_out))
    base = {None: (0.0, 0.0)}
    if options.baseline:
        known = find_potential(options.baseline, held_out.system, role="baseline")
        base[options.baseline] = energies_and_forces(known, held_out.positions)
        baseline = find_baseline(options.baseline, every.system)
        with tempfile.TemporaryDirectory() as folder:
            every = evaluate_baseline(baseline, every, file=Path(folder) / "baseline.npz")
    counts = [n for n in options.frames if n < len(every)] + [len(every)]
    held_out = held_out.with_structure(None, every.moving)
    rows, d = [], 3 * int(every.moving.sum()) - (3 if every.system.periodic else 6)
    for count in counts:
        for name in ("alone", "labels", "baseline", "both"):
            if name in ("baseline", "both") and not options.baseline:
                continue
            found = []
            for seed in range(options.seeds):
                rng = np.random.default_rng(seed)
                data = every.take(np.sort(rng.permutation(len(every))[:count]))
                own = base[None]
                if name in ("baseline", "both"):
                    own = base[options.baseline]
                else:
                    topology = data.topology
                    data = replace(data, baseline=None, checked=True)
                    data = data.with_structure(topology, data.moving)
                weight = 0.0
                if name in ("labels", "both"):
                    data, weight = labelled(data, options.labels, rng), "auto"
                network, p = fitted(data, weight, seed)
                found.append((*errors(network, held_out, own), p))
            force, energy, p = np.mean(found, 0)
            spread = np.std(found, 0)[0]
            rows.append((count, name, force, spread, energy, p, (2 * p / (count * d)) ** 0.5))
            print(
                f"{count:6d} {name:9s} force error {force:.3f} ± {spread:.3f}  "
                f"std(U - E) {energy:.2f} kT  p {p:.0f}  sqrt(2p/(Nd)) {rows[-1][-1]:.3f}",
                flush=True,
            )
    if options.plot:
        picture(rows, options.plot)


def picture(rows, path: Path) -> None:
    """Errors against the number of frames, with the law that they follow."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5, 4))
    for name in dict.fromkeys(row[1] for row in rows):
        own = [row for row in rows if row[1] == name]
        axes.errorbar([r[0] for r in own], [r[2] for r in own], [r[3] for r in own], label=name)
    own = [row for row in rows if row[1] == "alone"]
    axes.plot([r[0] for r in own], [r[-1] for r in own], "k:", label="sqrt(2p/(N d))")
    axes.set(xscale="log", yscale="log", xlabel="snapshots", ylabel="relative error of forces")
    counts = sorted({row[0] for row in rows})
    axes.set_xticks(counts, [str(n) for n in counts])
    axes.minorticks_off()
    errors = [n * 10.0**k for k in (-3, -2, -1) for n in (1, 2, 4)]
    low, high = axes.get_ylim()
    axes.set_yticks(seen := [e for e in errors if low < e < high], [f"{e:g}" for e in seen])
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
