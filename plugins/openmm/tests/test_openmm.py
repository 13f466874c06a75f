"""The OpenMM plugin against OpenMM itself, ASE, and the data it has made."""

import argparse
import copy
import importlib.util
import json
import pickle
import queue
from concurrent.futures import ProcessPoolExecutor
from importlib import resources
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.calculators.calculator import CalculationFailed
from ase.calculators.fd import calculate_numerical_forces
from ase.io import read

from diffmd_ase import EulerMaruyama, Noise, System, load_potential, run
from diffmd_ase.geometry import dihedrals
from diffmd_ase.sampling.kernels import DivergedError
from diffmd_ase.testing import assert_zscore, check_equivariant, check_potential

openmm = pytest.importorskip("openmm")
plugin = pytest.importorskip("diffmd_openmm")

KJ_PER_MOL = units.kJ / units.mol
HYDROGENS = (1, 2, 3, 7, 9, 11, 12, 13, 17, 19, 20, 21)
BONDED = (0, 0, 0, 6, 8, 10, 10, 10, 16, 18, 18, 18)
PDB = resources.files("diffmd_openmm") / "alanine-dipeptide.pdb"
DATA = resources.files("diffmd_ase") / "data" / "alanine-dipeptide.npz"


@pytest.fixture(scope="module")
def molecule():
    return plugin.alanine_dipeptide()


@pytest.fixture
def atoms(molecule):
    return molecule[0].copy()


@pytest.fixture
def potential(molecule):
    return plugin.OpenMMPotential(System.from_atoms(molecule[0]), molecule[1])


@pytest.fixture
def x(atoms):
    atoms.rattle(0.05, seed=1)
    return torch.tensor(atoms.positions)


def argon(cell=20.0, count=8, pbc=True):
    """Lennard-Jones argon in OpenMM, and the atoms."""
    made = openmm.System()
    force = openmm.NonbondedForce()
    for _ in range(count):
        made.addParticle(39.948)
        force.addParticle(0.0, 0.34, 1.0)
    if pbc:
        force.setNonbondedMethod(openmm.NonbondedForce.CutoffPeriodic)
        force.setCutoffDistance(0.9)
        force.setUseDispersionCorrection(False)
    made.addForce(force)
    rng = np.random.default_rng(2)
    grid = 3.6 * np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)])[:count]
    positions = grid + rng.normal(0, 0.1, (count, 3))
    atoms = Atoms(f"Ar{count}", positions=positions, cell=np.eye(3) * cell if pbc else None)
    atoms.pbc = pbc
    return atoms, made


def test_conformance(potential, x):
    check_potential(potential, x, translation_invariant=True)
    check_equivariant(potential, x, reflections=True)


def test_numbers_of_openmm_itself(molecule, x, potential):
    """Energy and forces by OpenMM's own units module, with ASE's kJ/mol and nm."""
    context = openmm.Context(
        molecule[1],
        openmm.VerletIntegrator(0.001),
        openmm.Platform.getPlatformByName("Reference"),
    )
    context.setPositions([openmm.Vec3(*row) * 0.1 for row in x.tolist()] * openmm.unit.nanometer)
    state = context.getState(getEnergy=True, getForces=True)
    energy = state.getPotentialEnergy() / openmm.unit.kilojoule_per_mole
    forces = np.array(
        state.getForces() / (openmm.unit.kilojoule_per_mole / openmm.unit.nanometer)
    ).reshape(22, 3)
    value = potential(x)
    assert float(value.energy) == pytest.approx(energy * KJ_PER_MOL, rel=1e-12)
    np.testing.assert_allclose(value.forces, forces * KJ_PER_MOL / units.nm, rtol=0, atol=1e-9)
    # 1 kJ/mol is 0.010364 eV: the units themselves, by hand
    assert float(value.energy) == pytest.approx(energy * 0.01036427, rel=1e-6)


def test_cpu_platform_is_single_precision(molecule, x, potential):
    exact = potential(x)
    single = plugin.OpenMMPotential(potential.system, molecule[1], platform="CPU")(x)
    assert float((single.forces - exact.forces).abs().max()) < 1e-4 * float(
        exact.forces.abs().max()
    )


def test_alanine_dipeptide(molecule):
    atoms, made = molecule
    assert atoms.get_chemical_formula() == "C6H12N2O2"
    assert made.getNumConstraints() == 0 and not made.usesPeriodicBoundaryConditions()
    np.testing.assert_allclose(
        [made.getParticleMass(i) / openmm.unit.dalton for i in range(22)],
        atoms.get_masses(),
        atol=0.02,
    )
    np.testing.assert_allclose(atoms.positions, read(PDB).positions)
    forces = plugin.OpenMMPotential(System.from_atoms(atoms), made)(_x(atoms)).forces
    assert float(forces.abs().max()) < 0.2  # minimised; a PDB keeps three digits
    # backbone atoms of the torsions, and the natural hand: N, C, CB seen from H
    assert [atoms.symbols[i] for i in plugin.PHI + plugin.PSI] == list("CNCCNCCN")
    ca, n, c, cb = (atoms.positions[i] for i in (8, 6, 14, 10))
    assert np.dot(n - ca, np.cross(c - ca, cb - ca)) > 1.0


def _x(atoms):
    return torch.tensor(atoms.positions)


def test_non_finite_positions_name_the_walker(potential, x):
    batch = x.expand(4, 22, 3).clone()
    batch[2, 5, 0] = torch.nan
    value = potential(batch)
    assert torch.isnan(value.energy).tolist() == [False, False, True, False]
    assert torch.isfinite(value.forces[[0, 1, 3]]).all()
    h = torch.full((4, 22), 1e-5, dtype=torch.float64)
    h[1] = 1e40  # this walker goes where nothing is finite
    kernel = EulerMaruyama(potential, kT=0.0258, h=h)
    with pytest.raises(DivergedError) as caught:
        list(run(kernel, x.expand(4, 22, 3).clone(), 50, noise=Noise(1)))
    assert caught.value.walkers == [1]
    assert caught.value.survivors.walkers.tolist() == [0, 2, 3]


def test_non_finite_positions_where_openmm_would_raise():
    """The CPU platform raises for NaN in a periodic box, which would lose all walkers."""
    atoms, made = argon()
    potential = plugin.OpenMMPotential(System.from_atoms(atoms), made, platform="CPU")
    batch = _x(atoms).expand(2, 8, 3).clone()
    batch[0, 3] = torch.nan
    assert torch.isnan(potential(batch).energy).tolist() == [True, False]


def test_failure_inside_openmm_names_the_structure():
    if not hasattr(openmm, "PythonForce"):
        pytest.skip("needs a force that can fail: OpenMM >= 8.5")
    made = openmm.System()
    made.addParticle(1.0)
    made.addForce(openmm.PythonForce(_fails_beyond_10))
    potential = plugin.OpenMMPotential(System([1], [1.0]), made)
    x = torch.tensor([[[1.0, 0.0, 0.0]], [[20.0, 0.0, 0.0]]])
    assert torch.isfinite(potential(x[:1]).energy).all()
    with pytest.raises(RuntimeError, match="structure 1 of the batch: too far"):
        potential(x)


def _fails_beyond_10(state):
    positions = state.getPositions(asNumpy=True) / openmm.unit.angstrom
    if np.abs(positions).max() > 10.0:
        raise RuntimeError("too far")
    return 0.0, np.zeros_like(positions)


def test_copies_and_pickles_have_their_own_context(potential, x):
    for other in (copy.deepcopy(potential), pickle.loads(pickle.dumps(potential))):
        assert other._context is not potential._context
        assert torch.equal(other(x).forces, potential(x).forces)


def test_periodic():
    atoms, made = argon()
    potential = plugin.OpenMMPotential(System.from_atoms(atoms), made)
    x = _x(atoms)
    check_potential(potential, x, translation_invariant=True)
    moved = x.clone()
    moved[0] += torch.tensor([20.0, -20.0, 40.0])  # an image is the same structure
    torch.testing.assert_close(potential(moved).forces, potential(x).forces)


def pair(cell):
    """Two argon atoms 9.7 Å apart, beyond the cutoff of 9 Å, and nearer across the boundary."""
    atoms, made = argon(cell=cell, count=2)
    atoms.positions = [[0.0, 0.0, 0.0], [9.7, 0.0, 0.0]]
    return atoms, made


def test_periodic_images_and_the_cell_of_the_atoms():
    """The cell is that of the atoms, not the default one of OpenMM (20 Å)."""
    energies = {}
    for cell in (20.0, 18.2):
        atoms, made = pair(cell)
        before = openmm.XmlSerializer.serialize(made)
        potential = plugin.OpenMMPotential(System.from_atoms(atoms), made)
        energies[cell] = float(potential(_x(atoms)).energy)
        assert openmm.XmlSerializer.serialize(made) == before
    assert energies[20.0] == 0.0
    # Lennard-Jones at 8.5 Å, ε = 1 kJ/mol, σ = 3.4 Å
    power = (3.4 / 8.5) ** 6
    assert energies[18.2] == pytest.approx(4.0 * KJ_PER_MOL * (power**2 - power), rel=1e-9)


def test_periodic_water_from_a_file(tmp_path):
    """PME, flexible water, and a file without a cell: that of the atoms is used."""
    names = (" O  ", " H1 ", " H2 ")
    water = np.array([[0.0, 0.0, 0.0], [0.98, 0.0, 0.0], [-0.25, 0.94, 0.0]])
    positions = np.concatenate([water, water[:, [2, 0, 1]] + [2.9, 0.4, 0.8]])
    lines = [
        f"HETATM{i + 1:5d} {names[i % 3]} HOH A{i // 3 + 1:4d}    "
        f"{p[0]:8.3f}{p[1]:8.3f}{p[2]:8.3f}  1.00  0.00           {names[i % 3][1]}\n"
        for i, p in enumerate(positions)
    ]
    (tmp_path / "water.pdb").write_text("".join(lines) + "END\n")
    atoms = Atoms("OH2OH2", positions=positions, cell=np.eye(3) * 19.0, pbc=True)
    potential = load_potential(
        "openmm",
        System.from_atoms(atoms),
        pdb=tmp_path / "water.pdb",
        force_field=("amber14/tip3p.xml",),
    )
    # the reciprocal sum on a mesh is smooth enough for this, not for more
    check_potential(potential, _x(atoms), rtol=1e-4)


class TestRefused:
    def test_number_of_atoms(self, molecule):
        with pytest.raises(ValueError, match="22 particles, H2O has 3 atoms"):
            plugin.OpenMMPotential(System([1, 8, 1], [1.0, 16.0, 1.0]), molecule[1])

    def test_positions(self, potential):
        with pytest.raises(ValueError, match=r"\(3, 3\) do not fit the 22 atoms"):
            potential(torch.zeros(3, 3))

    def test_constraints(self, atoms):
        pdb = openmm.app.PDBFile(str(PDB))
        made = openmm.app.ForceField("amber14-all.xml").createSystem(
            pdb.topology, constraints=openmm.app.HBonds
        )
        with pytest.raises(ValueError, match="12 constraints.*constraints=None"):
            plugin.OpenMMPotential(System.from_atoms(atoms), made)

    def test_virtual_sites(self):
        atoms, made = argon(count=3, pbc=False)
        made.setParticleMass(2, 0.0)
        made.setVirtualSite(2, openmm.TwoParticleAverageSite(0, 1, 0.5, 0.5))
        with pytest.raises(ValueError, match="virtual sites"):
            plugin.OpenMMPotential(System.from_atoms(atoms), made)

    @pytest.mark.parametrize(("ours", "theirs"), [(False, True), (True, False)])
    def test_periodicity(self, ours, theirs):
        atoms, made = argon(pbc=theirs)
        atoms.cell = np.eye(3) * 20.0
        atoms.pbc = ours
        with pytest.raises(ValueError, match="all three directions or none"):
            plugin.OpenMMPotential(System.from_atoms(atoms), made)

    def test_two_directions(self):
        atoms, made = argon()
        atoms.pbc = (True, True, False)
        with pytest.raises(ValueError, match="all three directions or none"):
            plugin.OpenMMPotential(System.from_atoms(atoms), made)

    def test_cell_that_is_not_reduced(self):
        atoms, made = argon()
        atoms.set_cell([[0.0, 20.0, 0.0], [-20.0, 0.0, 0.0], [0.0, 0.0, 20.0]])
        with pytest.raises(ValueError, match="standard_form"):
            plugin.OpenMMPotential(System.from_atoms(atoms), made)

    def test_cell_smaller_than_the_cutoff_allows(self):
        atoms, made = argon(cell=15.0)
        with pytest.raises(ValueError, match="half the periodic box size"):
            plugin.OpenMMPotential(System.from_atoms(atoms), made)

    def test_platform(self, molecule):
        with pytest.raises(ValueError, match="no platform 'Abacus' here, only Reference"):
            plugin.OpenMMPotential(System.from_atoms(molecule[0]), molecule[1], platform="Abacus")

    def test_without_openmm(self, molecule, monkeypatch):
        monkeypatch.setattr(plugin, "openmm", None)
        with pytest.raises(ImportError, match="pip install openmm"):
            plugin.OpenMMCalculator(molecule[1])
        with pytest.raises(ImportError, match="pip install openmm"):
            plugin.alanine_dipeptide()


class TestFactory:
    def test_pdb_and_xml_are_the_same(self, molecule, potential, x, tmp_path):
        path = tmp_path / "system.xml"
        path.write_text(openmm.XmlSerializer.serialize(molecule[1]))
        for options in ({"pdb": str(PDB)}, {"pdb": "alanine-dipeptide"}, {"xml": path}):
            made = load_potential("openmm", potential.system, **options)
            assert torch.equal(made(x).forces, potential(x).forces)

    def test_one_source_is_needed(self, potential):
        for options in ({}, {"pdb": "a.pdb", "xml": "a.xml"}):
            with pytest.raises(ValueError, match="exactly one"):
                load_potential("openmm", potential.system, **options)

    @pytest.mark.parametrize("option", ["pdb", "xml"])
    def test_missing_file(self, potential, option):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            load_potential("openmm", potential.system, **{option: "nowhere"})


class TestCalculator:
    def test_forces_by_finite_differences(self, molecule, atoms, x):
        atoms.calc = plugin.OpenMMCalculator(molecule[1])
        atoms.positions = x.numpy()
        numerical = calculate_numerical_forces(atoms, eps=1e-4)
        assert np.abs(atoms.get_forces()).max() > 1.0
        np.testing.assert_allclose(atoms.get_forces(), numerical, rtol=0, atol=1e-5)

    def test_equals_the_potential(self, molecule, atoms, potential, x):
        atoms.calc = plugin.OpenMMCalculator(molecule[1])
        atoms.positions = x.numpy()
        value = potential(x)
        assert atoms.get_potential_energy() == float(value.energy)
        assert atoms.get_potential_energy(force_consistent=True) == float(value.energy)
        np.testing.assert_array_equal(atoms.get_forces(), value.forces)
        assert atoms.get_forces().dtype == np.float64

    def test_cache_follows_the_positions(self, molecule, atoms):
        atoms.calc = plugin.OpenMMCalculator(molecule[1])
        before = atoms.get_potential_energy()
        atoms.positions[0, 0] += 0.1
        assert atoms.get_potential_energy() > before + 0.01

    def test_copies_pickles_and_processes(self, molecule, atoms, x):
        calculator = plugin.OpenMMCalculator(molecule[1])
        atoms.calc, atoms.positions = calculator, x.numpy()
        forces = atoms.get_forces()
        for other in (copy.deepcopy(calculator), pickle.loads(pickle.dumps(calculator))):
            atoms.calc = other
            other.reset()
            np.testing.assert_array_equal(atoms.get_forces(), forces)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            np.testing.assert_array_equal(pool.submit(_forces, atoms).result(), forces)

    def test_a_changed_cell_reaches_openmm(self):
        atoms, made = pair(20.0)
        atoms.calc = plugin.OpenMMCalculator(made)
        assert atoms.get_potential_energy() == 0.0
        atoms.set_cell(np.eye(3) * 18.2)
        assert atoms.get_potential_energy() < -1e-4

    def test_other_atoms_are_refused(self, molecule):
        atoms = Atoms("H2O", positions=np.eye(3), calculator=plugin.OpenMMCalculator(molecule[1]))
        with pytest.raises(ValueError, match="22 particles"):
            atoms.get_potential_energy()

    def test_overlap_fails_clearly(self, molecule, atoms):
        atoms.calc = plugin.OpenMMCalculator(molecule[1])
        atoms.positions[0] = atoms.positions[10]
        with pytest.raises(CalculationFailed, match="overlapping"):
            atoms.get_forces()

    def test_settings(self, molecule, atoms, x):
        calculator = plugin.OpenMMCalculator(molecule[1])
        atoms.calc, atoms.positions = calculator, x.numpy()
        exact = atoms.get_potential_energy()
        calculator.set(platform="CPU")
        assert atoms.get_potential_energy() != exact  # single precision
        assert atoms.get_potential_energy() == pytest.approx(exact, abs=1e-4)
        with pytest.raises(ValueError, match="'speed' cannot be set"):
            calculator.set(speed=3)
        with pytest.raises(ValueError, match="no platform 'Abacus'"):
            calculator.set(platform="Abacus")


def _forces(atoms):
    atoms.calc.reset()
    return atoms.get_forces()


@pytest.fixture(scope="module")
def data():
    with np.load(str(DATA)) as archive:
        return {name: archive[name] for name in archive.files}


@pytest.mark.skipif(not DATA.is_file(), reason="the data set is not there")
class TestShippedData:
    def test_energies_are_those_of_the_positions(self, data, potential):
        some = np.random.default_rng(3).choice(len(data["energies"]), 50, replace=False)
        x = torch.tensor(data["positions"][some] * float(data["scale"]))
        energies = potential(x).energy.numpy()
        assert energies.std() > 0.05
        # the file keeps float32
        np.testing.assert_allclose(data["energies"][some], energies, rtol=1e-6, atol=1e-6)
        shifted = np.roll(energies, 1)  # negative control
        assert np.abs(data["energies"][some] - shifted).max() > 0.1

    def test_form(self, data, molecule):
        positions = data["positions"]
        assert positions.dtype == np.int16 and positions.shape == (50_000, 22, 3)
        assert data["energies"].dtype == np.float32 and data["energies"].shape == (50_000,)
        assert (data["numbers"] == molecule[0].numbers).all()
        assert float(data["temperature_K"]) == 300.0
        assert DATA.stat().st_size < 8e6
        decoded = positions * float(data["scale"])
        assert np.abs(decoded.mean(1)).max() < float(data["scale"])
        # all L
        ca, n, c, cb = (decoded[:, i] for i in (8, 6, 14, 10))
        volume = np.einsum("ij,ij->i", n - ca, np.cross(c - ca, cb - ca))
        assert volume.min() > 1.0

    def test_in_random_order(self, data):
        """Neighbours in the file are no more alike than any two frames."""
        energies = data["energies"].astype(float)
        deviation = energies - energies.mean()
        correlation = (deviation[1:] * deviation[:-1]).mean() / deviation.var()
        assert abs(correlation) * np.sqrt(len(energies)) < 4.0

    def test_temperature(self, data, potential):
        """``-⟨v·F⟩ = kT ⟨∇·v⟩`` for any field v(x), exactly; here v moves each hydrogen by
        the elongation of its bond, ``∇·v = 1 + 2(r - r₀)/r``. Temperature and units."""
        x = torch.tensor(data["positions"][:8000] * float(data["scale"]))
        bonds = x[:, HYDROGENS] - x[:, BONDED]
        r = bonds.norm(dim=-1)
        elongation = r - r.mean(0)
        force = (potential(x).forces[:, HYDROGENS] * bonds).sum(-1) / r
        work, divergence = -(elongation * force).mean(-1), (1 + 2 * elongation / r).mean(-1)
        kT = units.kB * 300.0
        assert_zscore(work / kT - divergence, 0.0)
        with pytest.raises(AssertionError, match="z ="):  # negative control: 3 % in T
            assert_zscore(work / (1.03 * kT) - divergence, 0.0)

    def test_provenance(self, data):
        provenance = json.loads(str(data["provenance"]))
        assert provenance["script"] == "plugins/openmm/make_alanine_dipeptide.py"
        population = provenance["phi_positive"]
        assert population["population"] == pytest.approx(0.027, abs=1e-3)
        assert population["standard_error"] == pytest.approx(0.003, abs=1e-3)
        phi = dihedrals(data["positions"] * float(data["scale"]), np.array([plugin.PHI]))
        assert (phi > 0).mean() == pytest.approx(0.0277, abs=1e-4)
        assert min(population["sign_changes_by_seed"]) > 50
        assert provenance["energy_eV"]["mean"] == pytest.approx(data["energies"].mean(), abs=1e-4)


SCRIPT = Path(__file__).parents[1] / "make_alanine_dipeptide.py"


@pytest.fixture(scope="module")
def script():
    if not SCRIPT.is_file():
        pytest.skip("the script is in the repository, not in the distribution")
    spec = importlib.util.spec_from_file_location("make_alanine_dipeptide", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TestScript:
    def test_sample_goes_on_and_pack_reads_it(self, script, tmp_path, potential, capsys):
        path, reports = tmp_path / "seed-7.npz", queue.SimpleQueue()
        script.run_seed(7, 20, None, path, reports)
        first = dict(np.load(path))
        script.run_seed(7, 60, None, path, reports)
        second = dict(np.load(path))
        assert second["x"].shape == (60, 22, 3)
        assert np.array_equal(second["x"][:20], first["x"])
        assert np.abs(second["x"][20] - second["x"][19]).max() < 5.0  # the chain went on
        assert second["attempted"].tolist() == [30, 30, 30, 30]
        # the other sign of the exponent would accept nearly all
        assert 0.2 < second["accepted"].sum() / 120 < 0.6
        assert script.KB * 300.0 == pytest.approx(2.4943, abs=1e-4)  # kJ/mol
        energies = potential(torch.tensor(second["x"], dtype=torch.float64)).energy / KJ_PER_MOL
        np.testing.assert_allclose(second["e"], energies, rtol=0, atol=2e-2)
        positions, velocities, _ = script.Ladder(7, second).states()
        np.testing.assert_allclose(positions, second["positions"])
        np.testing.assert_allclose(velocities, second["velocities"])
        out = tmp_path / "packed.npz"
        script.pack(argparse.Namespace(runs=tmp_path, frames=40, output=out, note=""))
        with np.load(out) as packed:
            x = torch.tensor(packed["positions"] * float(packed["scale"]))
            np.testing.assert_allclose(packed["energies"], potential(x).energy, rtol=1e-6)
            provenance = json.loads(str(packed["provenance"]))
        assert provenance["frames_per_seed_after_discarding"] == [58]
        # what was packed is what was sampled, up to rounding to 16 bits
        known = np.linalg.norm(second["x"][:, 4] - second["x"][:, 14], axis=-1)
        distance = (x[:, 4] - x[:, 14]).norm(dim=-1).numpy()
        assert np.abs(distance[:, None] - known[None, 2:]).min(1).max() < 1e-3

    def test_align(self, script, molecule, rng):
        reference, heavy = molecule[0].positions, molecule[0].numbers > 1
        rotations = np.linalg.qr(rng.normal(size=(20, 3, 3)))[0]
        rotations *= np.sign(np.linalg.det(rotations))[:, None, None]
        x = reference @ rotations + rng.normal(size=(20, 1, 3))
        centred = reference - reference.mean(0)
        np.testing.assert_allclose(
            script.align(x, reference, heavy), np.broadcast_to(centred, x.shape), atol=1e-9
        )
        # a mirror image is rotated, not turned into the molecule
        mirrored = script.align(x * [1, 1, -1], reference, heavy)
        assert np.allclose(
            np.linalg.norm(mirrored[:, 0] - mirrored[:, 21], axis=-1),
            np.linalg.norm(reference[0] - reference[21]),
        )
        assert script.phi_is_positive(mirrored).all()

    def test_sign_of_phi_is_that_of_ase(self, script, molecule):
        x = molecule[0].positions
        positive = molecule[0].get_dihedral(*plugin.PHI) < 180.0
        found = script.phi_is_positive(np.stack((x, x * [1, 1, -1])))
        assert found.tolist() == [positive, not positive]
