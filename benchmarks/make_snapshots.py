"""Snapshots of a molecule, a crystal or a slab by any calculator, exact, with energies and forces.

Hybrid Monte Carlo, as in `make_copper.py`: there is no error of the time step. Each walker writes
a file of its own, which a second call goes on with, also to more frames. The walkers of
OUTPUT-held-out.npz gave no frame to OUTPUT.npz: what is judged by them is judged on trajectories
that it has not seen.

    pip install tblite                                                   # or chgnet, openmm
    python benchmarks/make_snapshots.py ethanol --frames 5000 -o ethanol.npz   # 10 minutes
    python benchmarks/make_snapshots.py trialanine --frames 10000 -o trialanine.npz
    python benchmarks/make_snapshots.py silicon --frames 300 --walkers 5 -o silicon.npz
    python benchmarks/make_snapshots.py oxygen-on-copper --frames 300 -o slab.npz

A model of a few hundred of these frames makes many more, still exact: its own dynamics proposes,
all walkers in one batch, and one call of the calculator decides (delayed acceptance).

    diffmd train ethanol.npz --force-weight auto -o ethanol.safetensors
    python benchmarks/make_snapshots.py ethanol --frames 50000 --draft ethanol.safetensors
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from ase import Atoms, units
from ase.build import add_adsorbate, bulk, fcc111, molecule
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.optimize import BFGS
from make_copper import trajectory
from shared import (
    counts_of,
    files_of,
    frames_of,
    merged,
    parsed,
    part,
    save_frames,
    save_snapshots,
    snapshot_options,
    walk_all,
)

from diffmd_ase import Noise, ScoreModel, Snapshots
from diffmd_ase.potentials.ase_calculator import AsePotential
from diffmd_ase.sampling.combine import Mixture
from diffmd_ase.sampling.delayed import DelayedAcceptance
from diffmd_ase.sampling.hamiltonian import MALT
from diffmd_ase.sampling.moves import TorsionRotation
from diffmd_ase.score.topology import Topology

BURN_IN = 20  # frames
HOT = 2.0  # times the temperature, in the first half of them
BLOCK = 50  # frames between two files
# of the draft; masses are free where only configurations count: equal ones let the step grow
TRAJECTORY = {"timestep": 2.5 * units.fs, "n_leapfrog": 20, "friction": 0.002 / units.fs}
TRAJECTORIES, MASS = 6, 12.0  # before a call of the calculator, on average; u


class Made(NamedTuple):
    """Atoms and what makes their snapshots."""

    atoms: Atoms
    calculator: Callable[[], object]
    temperature_K: float = 300.0
    timestep: float = 0.8 * units.fs
    steps: tuple[int, int] = (15, 45)  # of one move


def xtb():
    """GFN2-xTB."""
    from tblite.ase import TBLite

    return TBLite(method="GFN2-xTB", verbosity=0)


def chgnet():
    """CHGNet's energies of DFT."""
    from chgnet.model.dynamics import CHGNetCalculator

    return CHGNetCalculator(use_device="cpu", verbose=False)


def malonaldehyde() -> Atoms:
    """The enol with its hydrogen bond."""
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


def trialanine() -> Made:
    """ACE-ALA-ALA-ALA-NME, 42 atoms, amber14 with the implicit water OBC2."""
    from diffmd_openmm import OpenMMCalculator
    from openmm import app, unit

    topology, positions = peptide(3)
    field = app.ForceField("amber14-all.xml", "implicit/obc2.xml")
    system = field.createSystem(topology, nonbondedMethod=app.NoCutoff, removeCMMotion=False)
    numbers = [atom.element.atomic_number for atom in topology.atoms()]
    atoms = Atoms(numbers, positions.value_in_unit(unit.angstrom))
    return Made(atoms, lambda: OpenMMCalculator(system, platform="CPU"))


def peptide(count: int):
    """Topology and positions of capped alanines: the dipeptide, a residue put on another."""
    from importlib import resources

    from openmm import app, unit

    file = resources.files("diffmd_openmm") / "alanine-dipeptide.pdb"
    pdb = app.PDBFile(str(file))
    x = np.array(pdb.positions.value_in_unit(unit.nanometer))
    parts = {r.name: list(r.atoms()) for r in pdb.topology.residues()}
    of = {(r.name, a.name): a.index for r in pdb.topology.residues() for a in r.atoms()}
    # the end of a residue is where the next one has its beginning
    begin = [of[a] for a in (("ACE", "CH3"), ("ACE", "C"), ("ACE", "O"), ("ALA", "N"))]
    end = [of[a] for a in (("ALA", "CA"), ("ALA", "C"), ("ALA", "O"), ("NME", "N"))]
    centre, goal = x[begin].mean(0), x[end].mean(0)
    u, _, vt = np.linalg.svd((x[begin] - centre).T @ (x[end] - goal))
    turn = u @ np.diag([1.0, 1.0, np.sign(np.linalg.det(u @ vt))]) @ vt
    topology, placed = app.Topology(), []
    chain = topology.addChain()
    for name in ("ACE", *["ALA"] * count, "NME"):
        residue = topology.addResidue(name, chain)
        if name == "ALA" and len(placed) > len(parts["ACE"]):
            x = (x - centre) @ turn + goal
            # the same move again, as seen from the residue that has moved
            centre, goal = goal, (goal - centre) @ turn + goal
        for atom in parts[name]:
            topology.addAtom(atom.name, atom.element, residue)
            placed.append(x[atom.index])
    topology.createStandardBonds()
    return topology, np.array(placed) * unit.nanometer


def slab(gold: bool) -> Made:
    """Three by three atoms of Cu(111), four layers, two of them held: with oxygen, or half gold."""
    atoms = fcc111("Cu", (3, 3, 4), vacuum=8.0, a=3.61)
    if gold:
        chosen = np.random.default_rng(0).permutation(len(atoms))[: len(atoms) // 2]
        atoms.symbols[chosen] = "Au"
        atoms.set_cell(atoms.cell * [[1.06], [1.06], [1.0]], scale_atoms=True)
    else:
        add_adsorbate(atoms, "O", 1.3, "fcc")
    atoms.set_constraint(FixAtoms(mask=atoms.get_tags() > 2))
    return Made(atoms, EMT, 300.0, 4 * units.fs, (6, 15))


def made(name: str) -> Made:
    """One of those above, or a molecule that ASE knows by its formula, by GFN2-xTB."""
    if name == "ethanol":
        return Made(molecule("CH3CH2OH"), xtb)
    if name == "malonaldehyde":
        return Made(malonaldehyde(), xtb)
    if name == "alanine-dipeptide":
        snapshots = Snapshots.read(name)
        return Made(snapshots.system.to_atoms(snapshots.positions[0]), xtb)
    if name == "trialanine":
        return trialanine()
    if name == "silicon":
        return Made(bulk("Si", a=5.46, cubic=True).repeat(2), chgnet, 300.0, 5 * units.fs, (6, 15))
    if name in ("oxygen-on-copper", "copper-gold"):
        return slab(gold=name == "copper-gold")
    return Made(molecule(name), xtb)


def walk(number: int, options, count: int) -> int:
    """Frames of one walker until there are ``count``, after those of its file; its number."""
    torch.set_num_threads(1)
    path = part(options.output, number)
    how = made(options.name)
    atoms, kT = how.atoms, how.temperature_K * units.kB
    atoms.calc = how.calculator()
    frames = frames_of(path)
    if frames[0]:
        atoms.positions = frames[0][-1]
    else:
        BFGS(atoms, logfile=None).run(fmax=0.05, steps=200)
    for n in range(len(frames[0]) or -BURN_IN, count):
        rng = np.random.default_rng([options.seed, number, n + BURN_IN])
        heat = HOT if n < -BURN_IN // 2 else 1.0
        for _ in range(options.moves):
            trajectory(atoms, rng.integers(*how.steps), heat * kT, rng, how.timestep)
        if n >= 0:
            new = atoms.positions.copy(), atoms.get_potential_energy(), atoms.get_forces()
            for column, value in zip(frames, new, strict=True):
                column.append(value)
        if n + 1 == count or (n >= 0 and (n + 1) % BLOCK == 0):
            save_frames(path, frames)
    return number


def proposals(model: ScoreModel, frames: np.ndarray):
    """Trajectories of the draft, and in turn with them rotations about one bond, where any turns.

    Parameters
    ----------
    model : the draft
    frames : (M, N, 3) in Å, which say what is bound
    """
    potential, kT = model.potential(compile=True), model.card.kT
    trajectories = MALT(potential, kT=kT, masses=MASS, mean_free=True, **TRAJECTORY)
    topology = Topology.from_positions(model.system.numbers, frames)
    kernels = [
        TorsionRotation(potential, kT, rotor[None], moved[None], mean_free=True)
        for rotor, moved in zip(topology.rotors, topology.moved, strict=True)
    ]
    weights = [1.0, *[1 / len(kernels) for _ in kernels]]
    return Mixture([trajectories, *kernels], weights) if kernels else trajectories


def drafted(options) -> None:
    """`walk` of all walkers together, from their last frames on: the draft's trajectories."""
    _, walkers, count = counts_of(options)
    parts = [frames_of(part(options.output, number)) for number in range(walkers)]
    if not all(x for x, _, _ in parts):
        raise SystemExit(f"{options.output}.parts: each of {walkers} walkers needs a first frame")
    model, how = ScoreModel.load(options.draft), made(options.name)
    target = AsePotential(how.calculator(), model.system, processes=options.processes)
    kernel = DelayedAcceptance(
        proposals(model, np.concatenate([x for x, _, _ in parts])), target, 2 * TRAJECTORIES
    )
    noise = Noise(options.seed)
    begun = min(len(x) for x, _, _ in parts)
    state = kernel.init(torch.as_tensor(np.array([x[-1] for x, _, _ in parts])))
    state = replace(state, step=begun * options.moves)
    for n in range(begun, count):
        accepted = 0.0
        for _ in range(options.moves):
            state, info = kernel.step(state, noise)
            accepted += float(info.accepted.double().mean()) / options.moves
        made_here = target(state.x)
        for frames, *values in zip(parts, state.x, made_here.energy, made_here.forces, strict=True):
            if len(frames[0]) < count:
                for column, value in zip(frames, values, strict=True):
                    column.append(value.numpy())
        if n + 1 == count or (n + 1) % BLOCK == 0:
            for number, frames in enumerate(parts):
                save_frames(part(options.output, number), frames)
            print(f"{n + 1} of {count} frames a walker, acceptance {accepted:.2f}", flush=True)


def merge(options, walkers: range, name: str) -> None:
    """The frames of some walkers, one file."""
    x, energies, forces = merged(options.output, walkers)
    how = made(options.name)
    forces = forces.astype(np.float32)
    save_snapshots(name, how.atoms, x, energies, forces, temperature_K=how.temperature_K)
    print(f"{name}: {len(x)} frames", flush=True)


def main():
    parser = snapshot_options(__doc__, output="ethanol.npz", frames=5000)
    parser.add_argument("name", nargs="?", default="ethanol", help="see `made`")
    parser.add_argument("--walkers", type=int, default=20)
    parser.add_argument("--moves", type=int, default=2, help="trajectories from frame to frame")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--draft", help="model of frames of this system, which makes further ones")
    options = parsed(parser)
    if options.draft:
        drafted(options)
        files = files_of(options)
    else:
        files = walk_all(walk, options)
    for name, walkers in files.items():
        merge(options, walkers, name)


if __name__ == "__main__":
    main()
