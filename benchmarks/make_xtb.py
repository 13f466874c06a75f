"""Snapshots of a molecule in vacuum by xTB, exact, with energies and forces; resumable.

Hybrid Monte Carlo, as in `make_copper.py`: there is no error of the time step. Each walker writes
a file of its own, which a second call goes on with, also to more frames. The walkers of
OUTPUT-held-out.npz gave no frame to OUTPUT.npz: what is judged by them is judged on trajectories
that it has not seen.

    pip install tblite
    python benchmarks/make_xtb.py ethanol --frames 5000 -o ethanol.npz     # 10 minutes, two cores
"""

from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.build import molecule
from ase.optimize import BFGS
from make_copper import trajectory
from shared import parsed, save_snapshots, snapshot_options

from diffmd_ase import Snapshots
from diffmd_ase.io.atomic import replacing

TEMPERATURE_K, TIMESTEP = 300.0, 0.8 * units.fs
STEPS = (15, 45)  # of one move
BURN_IN = 20  # frames
BLOCK = 50  # frames between two files
HELD_OUT = 0.2  # of the walkers


def structure(name: str) -> Atoms:
    """A molecule that ASE knows by its formula, or one of those below."""
    if name == "ethanol":
        return molecule("CH3CH2OH")
    if name == "malonaldehyde":  # the enol with its hydrogen bond
        return Atoms(
            "C3O2H4",
            [
                [0.00, -1.20, 0.0],
                [0.00, 0.20, 0.0],
                [1.17, 0.95, 0.0],
                [1.10, -1.87, 0.0],
                [2.33, 0.40, 0.0],
                [-0.92, -1.76, 0.0],
                [-0.95, 0.73, 0.0],
                [1.13, 2.04, 0.0],
                [2.20, -0.58, 0.0],
            ],
        )
    if name == "alanine-dipeptide":
        snapshots = Snapshots.read(name)
        return snapshots.system.to_atoms(snapshots.positions[0])
    return molecule(name)


def walk(number: int, options, count: int) -> int:
    """Frames of one walker until there are ``count``, after those of its file; its number."""
    from tblite.ase import TBLite

    path = Path(f"{options.output}.parts") / f"{number}.npz"
    kT = TEMPERATURE_K * units.kB
    atoms = structure(options.molecule)
    atoms.calc = TBLite(method=options.method, verbosity=0)
    if path.exists():
        with np.load(path) as saved:
            frames = [list(saved[key]) for key in ("positions", "energies", "forces")]
        atoms.positions = frames[0][-1]
    else:
        frames = [[], [], []]
        BFGS(atoms, logfile=None).run(fmax=0.05, steps=200)
    for n in range(len(frames[0]) or -BURN_IN, count):
        rng = np.random.default_rng([options.seed, number, n + BURN_IN])
        for _ in range(options.moves):
            trajectory(atoms, rng.integers(*STEPS), kT, rng, TIMESTEP)
        if n >= 0:
            new = atoms.positions.copy(), atoms.get_potential_energy(), atoms.get_forces()
            for column, value in zip(frames, new, strict=True):
                column.append(value)
        if n + 1 == count or (n >= 0 and (n + 1) % BLOCK == 0):
            x, energies, forces = map(np.array, frames)
            with replacing(path) as part, open(part, "wb") as file:
                np.savez(file, positions=x, energies=energies, forces=forces)
    return number


def merge(options, walkers: range, name: str) -> None:
    """The frames of some walkers, one file."""
    parts = [np.load(Path(f"{options.output}.parts") / f"{n}.npz") for n in walkers]
    x, energies, forces = (
        np.concatenate([part[key] for part in parts]) for key in ("positions", "energies", "forces")
    )
    atoms = structure(options.molecule)
    forces = forces.astype(np.float32)
    save_snapshots(name, atoms, x, energies, forces, temperature_K=TEMPERATURE_K)
    print(f"{name}: {len(x)} frames", flush=True)


def main():
    parser = snapshot_options(__doc__, output="ethanol.npz", frames=5000)
    parser.add_argument("molecule", nargs="?", default="ethanol", help="a name that ASE knows")
    parser.add_argument("--method", default="GFN2-xTB")
    parser.add_argument("--walkers", type=int, default=20)
    parser.add_argument("--moves", type=int, default=2, help="of 12 to 36 fs, from frame to frame")
    parser.add_argument("--processes", type=int, default=2)
    options = parsed(parser)
    held_out = max(1, round(HELD_OUT * options.walkers))
    learned = options.walkers - held_out
    count = -(-options.frames // learned)
    Path(f"{options.output}.parts").mkdir(exist_ok=True)
    with ProcessPoolExecutor(options.processes) as pool:
        jobs = [pool.submit(walk, n, options, count) for n in range(options.walkers)]
        for done, job in enumerate(as_completed(jobs), 1):
            print(
                f"walker {job.result()} ends with {count} frames ({done} of {len(jobs)})",
                flush=True,
            )
    merge(options, range(learned), options.output)
    merge(options, range(learned, options.walkers), options.output.replace(".npz", "-held-out.npz"))


if __name__ == "__main__":
    main()
