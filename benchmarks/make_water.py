"""Snapshots of liquid water by OpenMM: flexible TIP3P with particle mesh Ewald, 300 K; resumable.

A periodic cube at 0.997 g/cm³. Bonds and angles are springs, so that forces on them are finite. The
integrator samples springs without an error of the time step (Zhang et al., J. Phys. Chem. A 123,
6056 (2019)), of which 0.4 fs are used. Frames of one walker are 1.6 ps apart. The walkers of
OUTPUT-held-out.npz gave no frame to OUTPUT.npz.

    python benchmarks/make_water.py -o water.npz    # 400 and 100 frames; 30 minutes of one core
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from ase import Atoms
from shared import parsed, save_snapshots, snapshot_options

from diffmd_ase.io.atomic import replacing

TEMPERATURE_K, TIMESTEP = 300.0, 0.4e-3  # K, ps
STEPS, BURN_IN = 4000, 25_000  # between frames; before the first
BLOCK = 10  # frames between two files
HELD_OUT = 0.2  # of the walkers
EDGE = 29.98 ** (1 / 3)  # Å: of the volume of one molecule
EV = 96.48533212  # kJ/mol


def liquid(waters: int):
    """Topology, ``openmm.System`` and positions (N, 3) in nm of ``waters`` molecules in a cube."""
    import openmm.app as app
    from openmm import unit

    field = app.ForceField("amber14/tip3p.xml")
    model = app.Modeller(app.Topology(), [])
    model.addSolvent(field, model="tip3p", numAdded=waters)
    edge = 0.1 * EDGE * waters ** (1 / 3)
    model.topology.setPeriodicBoxVectors(np.eye(3) * edge * unit.nanometer)
    system = field.createSystem(
        model.topology,
        nonbondedMethod=app.PME,
        nonbondedCutoff=min(0.487 * edge, 0.9) * unit.nanometer,
        rigidWater=False,
        removeCMMotion=False,
    )
    return model.topology, system, model.positions


def walk(number: int, options, count: int) -> int:
    """Frames of one walker until there are ``count``, after those of its file; its number."""
    import openmm as mm
    from openmm import app, unit

    path = Path(f"{options.output}.parts") / f"{number}.npz"
    topology, system, positions = liquid(options.waters)
    integrator = mm.LangevinMiddleIntegrator(TEMPERATURE_K, 2.0, TIMESTEP)
    frames: list[list] = [[], [], []]
    if path.exists():
        with np.load(path) as saved:
            frames = [list(saved[key]) for key in ("positions", "energies", "forces")]
    integrator.setRandomNumberSeed(1 + 1000 * options.seed + 100 * number + len(frames[0]) % 97)
    platform = mm.Platform.getPlatformByName("CPU")
    run = app.Simulation(topology, system, integrator, platform, {"Threads": "1"})
    if frames[0]:
        run.context.setPositions(0.1 * frames[0][-1])
    else:
        run.context.setPositions(positions)
        run.minimizeEnergy(maxIterations=500)
    run.context.setVelocitiesToTemperature(TEMPERATURE_K, 1 + 1000 * options.seed + number)
    if not frames[0]:
        run.step(BURN_IN)
    while len(frames[0]) < count:
        run.step(STEPS)
        state = run.context.getState(positions=True, energy=True, forces=True)
        told = (
            state.getPositions(asNumpy=True).value_in_unit(unit.angstrom),
            state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole) / EV,
            state.getForces(asNumpy=True)._value / (10 * EV),  # kJ/mol/nm
        )
        for column, value in zip(frames, told, strict=True):
            column.append(np.array(value))
        if len(frames[0]) == count or len(frames[0]) % BLOCK == 0:
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
    edge = EDGE * options.waters ** (1 / 3)
    atoms = Atoms("OH2" * options.waters, x[0], cell=[edge] * 3, pbc=True)
    forces = forces.astype(np.float32)
    save_snapshots(name, atoms, x, energies, forces, temperature_K=TEMPERATURE_K)
    print(f"{name}: {len(x)} frames", flush=True)


def main():
    parser = snapshot_options(__doc__, output="water.npz", frames=400)
    parser.add_argument("--waters", type=int, default=32, help="molecules")
    parser.add_argument("--walkers", type=int, default=10)
    parser.add_argument("--processes", type=int, default=1)
    options = parsed(parser)
    held_out = max(1, round(HELD_OUT * options.walkers))
    learned = options.walkers - held_out
    count = -(-options.frames // learned)
    Path(f"{options.output}.parts").mkdir(exist_ok=True)
    with ProcessPoolExecutor(options.processes) as pool:
        jobs = [pool.submit(walk, n, options, count) for n in range(options.walkers)]
        for job in jobs:
            print(f"walker {job.result()} ends with {count} frames", flush=True)
    merge(options, range(learned), options.output)
    merge(options, range(learned, options.walkers), options.output.replace(".npz", "-held-out.npz"))


if __name__ == "__main__":
    main()
