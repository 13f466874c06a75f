"""Trained on 31 atoms of copper at 300 and 700 K, run on 107 and 499 atoms at 500 K.

One energy of all snapshots, each set through its own kT, against EMT, which made them, at a
temperature, size and lattice constant that no snapshot has. Beside it energies of one of the two
temperatures, and one of both sets whose temperatures were forgotten (500 K for all), which must
fail. Walkers of 107 atoms are corrected to the model's own energy by Metropolis steps.

    python benchmarks/copper_transfer.py --data folder     # fourteen minutes on one core
    python benchmarks/copper_transfer.py --data folder     # again, with its sets: eight
"""

import warnings
from pathlib import Path

import numpy as np
import torch
from copper_fidelity import compared, plain_walkers, sample, with_errors
from make_copper import crystal, draw
from shared import command_line, parsed, save_snapshots

from diffmd_ase import Snapshots, System
from diffmd_ase.io.json_text import to_json
from diffmd_ase.score.training import train
from diffmd_ase.units import kT_from_temperature

RUN_K = 500.0
SETS = {  # temperature (K), repeats of the cubic cell, frames
    "small_300": (300.0, 2, 1500),
    "small_700": (700.0, 2, 1500),
    "large_500": (RUN_K, 3, 400),
}


def lattice(temperature_K):
    """Å, near zero pressure: linear between 3.59 at rest and 3.68 at 900 K."""
    return 3.59 + 1e-4 * temperature_K


def exact(folder, name, seed):
    """Frames of hybrid Monte Carlo, kept in ``folder``."""
    path = folder / f"{name}.npz"
    if not path.exists():
        kelvin, repeat, frames = SETS[name]
        atoms = crystal(repeat, lattice=lattice(kelvin))
        x, energies, forces, _ = draw(frames, seed, atoms=atoms, temperature_K=kelvin)
        save_snapshots(path, atoms, x, energies, forces, temperature_K=kelvin)
    return path


def facts(model, reference):
    """Rows (name, EMT, model, goal in %) of 107 atoms at 500 K, force error and acceptance."""
    x, kT, a = reference["positions"], kT_from_temperature(RUN_K), lattice(RUN_K)
    rest = crystal(3, lattice=a)
    potential = model.potential(System.from_atoms(rest), device="cpu", dtype=torch.float64)
    h = 0.4 / (model.card.lambda_max * model.card.kT / kT)
    starts = torch.as_tensor(x[:: len(x) // 16][:16])
    *walkers, acceptance = sample(potential, starts, kT, h, 2000, 10)
    rows = compared(potential, walkers, (x, reference["energies"]), rest, a)
    forces = potential(torch.as_tensor(x)).forces.numpy()
    error = ((forces - reference["forces"]) ** 2).mean() / (reference["forces"] ** 2).mean()
    return rows, 100 * float(error) ** 0.5, acceptance


def main():
    parser = command_line(__doc__)
    parser.add_argument("--data", type=Path, default=Path("."), help="folder of the sets")
    options = parsed(parser)
    warnings.simplefilter("ignore")  # rejected moves repeat frames; the last model is wrong
    options.data.mkdir(parents=True, exist_ok=True)
    paths = [exact(options.data, name, seed) for seed, name in enumerate(SETS, 1)]
    cold, hot = (Snapshots.read(path) for path in paths[:2])
    with np.load(paths[2]) as archive:
        reference = dict(archive)
    lost = [Snapshots(part.system, part.positions, RUN_K) for part in (cold, hot)]
    models = {"300 and 700 K": [cold, hot], "300 K": cold, "700 K": hot, "labels lost": lost}
    result = {}
    for name, sets in models.items():
        model = train(sets, device="cpu")
        rows, error, acceptance = facts(model, reference)
        result[name] = {
            "rows": with_errors(rows),
            "force_error_percent": error,
            "acceptance": float(acceptance),
            "configurational_K": [s.configurational_temperature_K for s in model.card.systems],
            "training_s": model.card.training["seconds"],
        }
        if name == "300 and 700 K":
            result[name]["499 atoms"] = plain_walkers(model, RUN_K, lattice(RUN_K))
    if options.json:
        print(to_json(result))
        return
    print(f"{'107 atoms at 500 K; errors of models of':36}{'EMT':>9}", end="")
    print("".join(f"{name:>15}" for name in models) + "   goal")
    for n, (row, emt, *_, goal) in enumerate(result["300 K"]["rows"]):
        errors = "".join(f"{result[name]['rows'][n][3]:+13.2f} %" for name in models)
        print(f"{row:36}{emt:9.4f}{errors}   {goal:g} %")
    errors = "".join(f"{result[name]['force_error_percent']:13.2f} %" for name in models)
    print(f"{'forces, root mean square':45}{errors}")
    for name, one in result.items():
        kelvin = ", ".join(f"{t:g}" for t in one["configurational_K"])
        print(f"{name}: sets by their forces at {kelvin} K; training {one['training_s']:.0f} s")
    kept, spread = result["300 and 700 K"]["499 atoms"]
    print(
        f"499 atoms: {kept} of 4 walkers after 1000 steps, U - EMT varies by {spread:.2f} meV/atom"
    )


if __name__ == "__main__":
    main()
