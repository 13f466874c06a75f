"""Snapshots of liquid water by OpenMM: flexible TIP3P with particle mesh Ewald, 300 K; resumable.

A periodic cube at 0.997 g/cm³, with ``--solute methanol`` one of its molecules more (OPLS-AA, with
OpenMM's mixing rule, amber's 1-4 factors and CHARMM's core of a polar hydrogen, which flexible
bonds need). Bonds and angles are springs, so that forces on them are
finite. The integrator samples springs without an error of the time step (Zhang et al., J. Phys.
Chem. A 123, 6056 (2019)), of which 0.4 fs are used. Frames of one walker are 1.6 ps apart. The
walkers of OUTPUT-held-out.npz gave no frame to OUTPUT.npz.

    python benchmarks/make_water.py -o water.npz    # 400 and 100 frames; 35 minutes of one core
    diffmd train water.npz -o water.safetensors
    diffmd validate water.safetensors water-held-out.npz --reference openmm \\
        --reference-options '{"xml": "water.xml"}'
"""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import molecule
from shared import (
    frames_of,
    merged,
    parsed,
    part,
    save_frames,
    save_snapshots,
    snapshot_options,
    walk_all,
)

TEMPERATURE_K, TIMESTEP = 300.0, 0.4e-3  # K, ps
STEPS, BURN_IN = 4000, 25_000  # between frames; before the first
BLOCK = 10  # frames between two files
VOLUME = {"water": 29.98, "methanol": 67.0}  # Å³ of one molecule
EV = 96.48533212  # kJ/mol
METHANOL = """<ForceField>
 <AtomTypes>
  <Type name="moh-C" class="moC" element="C" mass="12.011"/>
  <Type name="moh-H" class="moH" element="H" mass="1.008"/>
  <Type name="moh-O" class="moO" element="O" mass="15.999"/>
  <Type name="moh-HO" class="moHO" element="H" mass="1.008"/>
 </AtomTypes>
 <Residues><Residue name="MOH">
  <Atom name="C" type="moh-C"/><Atom name="O" type="moh-O"/><Atom name="H1" type="moh-H"/>
  <Atom name="H2" type="moh-H"/><Atom name="H3" type="moh-H"/><Atom name="HO" type="moh-HO"/>
  <Bond atomName1="C" atomName2="O"/><Bond atomName1="C" atomName2="H1"/>
  <Bond atomName1="C" atomName2="H2"/><Bond atomName1="C" atomName2="H3"/>
  <Bond atomName1="O" atomName2="HO"/>
 </Residue></Residues>
 <HarmonicBondForce>
  <Bond class1="moC" class2="moO" length="0.1410" k="267776.0"/>
  <Bond class1="moO" class2="moHO" length="0.0945" k="462750.4"/>
  <Bond class1="moC" class2="moH" length="0.1090" k="284512.0"/>
 </HarmonicBondForce>
 <HarmonicAngleForce>
  <Angle class1="moC" class2="moO" class3="moHO" angle="1.893682" k="460.24"/>
  <Angle class1="moH" class2="moC" class3="moO" angle="1.911136" k="292.88"/>
  <Angle class1="moH" class2="moC" class3="moH" angle="1.881465" k="276.144"/>
 </HarmonicAngleForce>
 <PeriodicTorsionForce>
  <Proper class1="moH" class2="moC" class3="moO" class4="moHO" periodicity1="3" phase1="0"
   k1="0.736384"/>
 </PeriodicTorsionForce>
 <NonbondedForce coulomb14scale="0.8333333333333334" lj14scale="0.5">
  <Atom type="moh-C" charge="0.145" sigma="0.350" epsilon="0.276144"/>
  <Atom type="moh-O" charge="-0.683" sigma="0.312" epsilon="0.711280"/>
  <Atom type="moh-H" charge="0.040" sigma="0.250" epsilon="0.125520"/>
  <Atom type="moh-HO" charge="0.418" sigma="0.04" epsilon="0.192464"/>
 </NonbondedForce>
</ForceField>"""


def edge_of(options) -> float:
    """Å."""
    more = VOLUME[options.solute] if options.solute else 0.0
    return (options.waters * VOLUME["water"] + more) ** (1 / 3)


def solute(name: str):
    """Topology and positions in nm of one molecule."""
    import openmm.app as app
    from openmm import unit

    topology, atoms = app.Topology(), molecule(name.replace("methanol", "CH3OH"))
    residue = topology.addResidue("MOH", topology.addChain())
    order = [0, 1, *np.flatnonzero(atoms.numbers == 1)[[0, 2, 3, 1]]]
    if atoms.get_distance(order[1], order[-1]) > 1.1:  # the last one is bound to oxygen
        raise SystemExit(f"the atoms of {name} are in another order than expected")
    elements = {6: app.element.carbon, 8: app.element.oxygen, 1: app.element.hydrogen}
    made = [
        topology.addAtom(label, elements[int(atoms.numbers[n])], residue)
        for label, n in zip(("C", "O", "H1", "H2", "H3", "HO"), order, strict=True)
    ]
    for i, j in ((0, 1), (0, 2), (0, 3), (0, 4), (1, 5)):
        topology.addBond(made[i], made[j])
    return topology, 0.1 * atoms.positions[order] * unit.nanometer


def liquid(options):
    """Topology, ``openmm.System`` and positions (N, 3) in nm of the molecules in a cube."""
    import openmm.app as app
    from openmm import unit

    files = ["amber14/tip3p.xml", *([StringIO(METHANOL)] if options.solute else [])]
    field = app.ForceField(*files)
    first = solute(options.solute) if options.solute else (app.Topology(), [])
    model = app.Modeller(*first)
    model.addSolvent(field, model="tip3p", numAdded=options.waters)
    edge = 0.1 * edge_of(options)
    model.topology.setPeriodicBoxVectors(np.eye(3) * edge * unit.nanometer)
    system = field.createSystem(
        model.topology,
        nonbondedMethod=app.PME,
        nonbondedCutoff=min(0.487 * edge, 0.9) * unit.nanometer,
        rigidWater=False,
        removeCMMotion=False,
    )
    return model.topology, system, model.positions


def begin(run, integrator, positions, seed: int) -> None:
    """A walker at equilibrium; anew where a bare hydrogen falls onto an oxygen, which is rare."""
    import openmm as mm

    for attempt in range(5):
        run.context.reinitialize()
        run.context.setPositions(positions)
        run.minimizeEnergy(maxIterations=500)
        run.context.setVelocitiesToTemperature(TEMPERATURE_K, seed + 100_000 * attempt)
        try:
            integrator.setStepSize(0.2 * TIMESTEP)  # molecules may have been put too near
            run.step(BURN_IN // 5)
            integrator.setStepSize(TIMESTEP)
            return run.step(BURN_IN)
        except mm.OpenMMException as error:
            print(f"seed {seed}, attempt {attempt + 1}: {str(error)[:40]}", flush=True)
    raise SystemExit("no start holds: use fewer molecules or a smaller step")


def walk(number: int, options, count: int) -> int:
    """Frames of one walker until there are ``count``, after those of its file; its number."""
    import openmm as mm
    from openmm import app, unit

    path = part(options.output, number)
    topology, system, positions = liquid(options)
    integrator = mm.LangevinMiddleIntegrator(TEMPERATURE_K, 2.0, TIMESTEP)
    frames = frames_of(path)
    integrator.setRandomNumberSeed(1 + 1000 * options.seed + 100 * number + len(frames[0]) % 97)
    platform = mm.Platform.getPlatformByName("CPU")
    run = app.Simulation(topology, system, integrator, platform, {"Threads": "1"})
    seed = 1 + 1000 * options.seed + number
    if frames[0]:
        run.context.setPositions(0.1 * frames[0][-1])
        run.context.setVelocitiesToTemperature(TEMPERATURE_K, seed)
    else:
        begin(run, integrator, positions, seed)
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
            save_frames(path, frames)
    return number


def merge(options, walkers: range, name: str) -> None:
    """The frames of some walkers, one file."""
    x, energies, forces = merged(options.output, walkers)
    first = "COH3H" if options.solute else ""
    atoms = Atoms(first + "OH2" * options.waters, x[0], cell=[edge_of(options)] * 3, pbc=True)
    # an order of its own: neighbours in the file are no neighbours in time
    order = np.random.default_rng(options.seed).permutation(len(x))
    x, energies, forces = x[order].astype(np.float32), energies[order], forces[order]
    forces = forces.astype(np.float32)
    save_snapshots(name, atoms, x, energies, forces, temperature_K=TEMPERATURE_K)
    print(f"{name}: {len(x)} frames", flush=True)


def main():
    parser = snapshot_options(__doc__, output="water.npz", frames=400)
    parser.add_argument("--waters", type=int, default=32, help="molecules")
    parser.add_argument("--solute", choices=["methanol"], help="one molecule of it")
    parser.add_argument("--walkers", type=int, default=10)
    parser.add_argument("--processes", type=int, default=1)
    options = parsed(parser)
    files = walk_all(walk, options)
    import openmm

    Path(options.output).with_suffix(".xml").write_text(
        openmm.XmlSerializer.serialize(liquid(options)[1])
    )
    for name, walkers in files.items():
        merge(options, walkers, name)


if __name__ == "__main__":
    main()
