"""The ASE calculator: conversions, cache, refusals."""

import copy
import json
import pickle

import numpy as np
import pytest
import torch
from argon_atoms import ARGON, Boost, Counted, Swirl, argon, cluster, crystal, network
from ase import Atoms
from ase.build import molecule
from ase.calculators import calculator as ase_calculators
from ase.calculators.calculator import (
    CalculationFailed,
    CalculatorSetupError,
    InputError,
    PropertyNotImplementedError,
    external_calculators,
    get_calculator_class,
)
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.calculators.lj import LennardJones as AseLennardJones
from ase.io import read, write
from ase.io.jsonio import encode
from ase.mep.neb import NEB
from ase.outputs import Properties
from messages import names

from diffmd_ase.adapters.calculator import ScoreCalculator, register
from diffmd_ase.potentials.analytic import Harmonic
from diffmd_ase.potentials.committee import Mean
from diffmd_ase.system import System


class TestNumbers:
    @pytest.mark.parametrize("make", [cluster, crystal])
    def test_same_as_ase(self, make):
        atoms, reference = make(), make()
        atoms.calc = ScoreCalculator(argon)
        reference.calc = AseLennardJones(**ARGON)
        assert atoms.get_potential_energy() == pytest.approx(reference.get_potential_energy())
        np.testing.assert_allclose(atoms.get_forces(), reference.get_forces(), atol=1e-12)
        if make is crystal:
            np.testing.assert_allclose(atoms.get_stress(), reference.get_stress(), atol=1e-12)

    @pytest.mark.parametrize("make", [cluster, crystal])
    def test_finite_differences(self, make):
        atoms = make()
        atoms.calc = ScoreCalculator(argon)
        np.testing.assert_allclose(
            calculate_numerical_forces(atoms, 1e-4), atoms.get_forces(), atol=1e-8
        )
        if make is crystal:
            np.testing.assert_allclose(
                calculate_numerical_stress(atoms, 1e-5), atoms.get_stress(), atol=1e-9
            )

    @pytest.mark.parametrize("make", [cluster, crystal])
    @pytest.mark.usefixtures("float64")
    def test_finite_differences_of_a_network(self, make):
        atoms = make()
        atoms.calc = ScoreCalculator(
            network(System.from_atoms(atoms)), device="cpu", dtype="float64"
        )
        forces = atoms.get_forces()
        assert abs(forces).max() > 1e-4
        np.testing.assert_allclose(calculate_numerical_forces(atoms, 1e-4), forces, atol=1e-7)
        if make is crystal:
            stress = atoms.get_stress()
            np.testing.assert_allclose(calculate_numerical_stress(atoms, 1e-4), stress, atol=1e-8)

    def test_types(self, default_dtype):
        atoms = crystal()
        for dtype in ("float32", torch.float64, None):
            atoms.calc = ScoreCalculator(network(System.from_atoms(atoms)), dtype=dtype)
            atoms.get_stress()
            results = atoms.calc.results
            assert type(results["energy"]) is float and type(results["free_energy"]) is float
            assert results["forces"].dtype == results["stress"].dtype == np.float64
            assert results["forces"].shape == (4, 3) and results["stress"].shape == (6,)
            Properties(results)
            encode(atoms.calc.todict())
        assert torch.get_default_dtype() is default_dtype

    def test_batch_is_single(self):
        images = [cluster(), crystal(), cluster(), crystal()]
        images[2].rattle(0.1, seed=2)
        calc = ScoreCalculator(argon)
        for stress in (False, True):
            some = images if not stress else [images[1], images[3]]
            for atoms, result in zip(some, calc.predict_batch(some, stress=stress), strict=True):
                atoms.calc = ScoreCalculator(argon)
                assert result["energy"] == pytest.approx(atoms.get_potential_energy(), abs=1e-13)
                np.testing.assert_allclose(result["forces"], atoms.get_forces(), atol=1e-13)
                if stress:
                    np.testing.assert_allclose(result["stress"], atoms.get_stress(), atol=1e-13)
        assert calc.predict_batch([]) == []


class TestCache:
    def counted(self):
        atoms = cluster()
        potential = Counted(argon(System.from_atoms(atoms)))
        atoms.calc = ScoreCalculator(potential)
        return atoms, potential

    def test_one_evaluation(self):
        atoms, potential = self.counted()
        atoms.get_potential_energy()
        atoms.get_forces()
        atoms.get_potential_energy(force_consistent=True)
        assert potential.count == 1
        before = atoms.calc.results
        atoms.positions[0, 0] += 0.1
        assert atoms.calc.get_property("energy", atoms, allow_calculation=False) is None
        assert potential.count == 1
        atoms.get_forces()
        assert potential.count == 2 and atoms.calc.results is not before
        atoms.set_initial_magnetic_moments(np.ones(4))  # ignored by the model
        atoms.get_forces()
        assert potential.count == 2

    def test_state_is_ases(self):
        """The same answer as the comparison of ASE, for every kind of change."""
        calc = ScoreCalculator(argon)
        reference = AseLennardJones(**ARGON)
        reference.ignored_changes = calc.ignored_changes
        start = crystal()
        assert calc.check_state(start) == reference.check_state(start)
        for c in (calc, reference):
            c.calculate(start)

        def changed(atoms, name):
            match name:
                case "positions":
                    atoms.positions[0, 0] += 1e-13
                case "tiny":
                    atoms.positions[0, 0] += 1e-16
                case "nan":
                    atoms.positions[0, 0] = np.nan
                case "cell":
                    atoms.cell[0, 0] += 0.1
                case "pbc":
                    atoms.pbc[1] = False
                case "numbers":
                    atoms.numbers[1] = 10
                case "more":
                    atoms += Atoms("Ar", [[1, 1, 1]])
            return atoms

        for name in ("none", "positions", "tiny", "nan", "cell", "pbc", "numbers", "more"):
            atoms = changed(start.copy(), name)
            assert calc.check_state(atoms) == reference.check_state(atoms), name

    def test_without_atoms(self):
        atoms, _ = self.counted()
        energy = atoms.get_potential_energy()
        atoms.calc.calculate()
        assert atoms.calc.results["energy"] == energy
        with pytest.raises(CalculatorSetupError, match="no atoms"):
            ScoreCalculator(argon).calculate()

    def test_stress_refusal_keeps_results(self):
        atoms, potential = self.counted()
        atoms.get_forces()
        with pytest.raises(PropertyNotImplementedError, match="rank 0"):
            atoms.get_stress()
        atoms.get_forces()
        assert potential.count == 1

    def test_sigma_resets(self):
        atoms = cluster()
        atoms.calc = ScoreCalculator(network(System.from_atoms(atoms)))
        first = atoms.get_potential_energy()
        assert atoms.calc.set(sigma=0.5) == {"sigma": 0.5}
        assert atoms.calc.results == {}
        second = atoms.get_potential_energy()
        assert second != first
        assert atoms.calc.set(sigma=0.5) == {} and atoms.calc.results
        fresh = ScoreCalculator(network(System.from_atoms(atoms)), sigma=0.5)
        assert fresh.get_potential_energy(atoms) == second
        with pytest.raises(InputError, match=names("'sigm'", "device", "dtype", "sigma")):
            atoms.calc.set(sigm=0.1)
        with pytest.raises(ValueError, match=names("sigma=-1.0", "positive", "Å")):
            atoms.calc.set(sigma=-1.0)

    def test_no_leak_into_other_calculators(self):
        ScoreCalculator(argon)
        assert AseLennardJones().implemented_properties[:1] == ["energy"]
        assert ScoreCalculator.implemented_properties == [
            "energy",
            "free_energy",
            "forces",
            "stress",
        ]

    def test_shared_by_different_atoms(self):
        calc = ScoreCalculator(argon)
        a, b = cluster(), crystal()
        a.calc = b.calc = calc
        bound = calc.potential(a)
        for _ in range(3):
            assert a.get_potential_energy() != b.get_potential_energy()
        assert calc.potential(a) is bound
        for k in range(40):  # old ones are forgotten
            b.set_cell(b.cell * (1 + 1e-3 * k), scale_atoms=True)
            b.get_potential_energy()
        assert len(calc._bound) <= 16

    def test_neb_with_a_shared_calculator(self):
        first = Atoms("Ar3", [[0, 0, 0], [3.8, 0, 0], [1.9, 3.3, 0]])
        last = first.copy()
        last.positions[2, 1] *= -1
        images = [first, *(first.copy() for _ in range(3)), last]
        calc = ScoreCalculator(argon)
        for image in images:
            image.calc = calc
        band = NEB(images, allow_shared_calculator=True, method="improvedtangent")
        images[2].positions[2, 2] += 1.0
        band.interpolate()
        own = [image.copy() for image in images]
        for image in own:
            image.calc = ScoreCalculator(argon)
        reference = NEB(own, method="improvedtangent").get_forces()
        np.testing.assert_allclose(band.get_forces(), reference, atol=1e-12)


class TestModels:
    def test_path_pickle_and_deepcopy(self, tmp_path, monkeypatch):
        atoms = cluster()
        model = network(System.from_atoms(atoms))
        path = model.save(tmp_path / "m.safetensors")
        monkeypatch.chdir(tmp_path)
        atoms.calc = ScoreCalculator("m.safetensors", device="cpu")
        energy = atoms.get_potential_energy()
        assert ScoreCalculator.from_checkpoint(path).get_potential_energy(atoms) == energy

        twin = copy.deepcopy(atoms)
        assert twin.calc is not atoms.calc
        assert twin.calc.potential(twin) is atoms.calc.potential(atoms)  # weights shared
        twin.positions[0, 0] += 0.1
        assert twin.get_potential_energy() != energy == atoms.get_potential_energy()
        twin.calc.set(sigma=0.3)
        assert atoms.calc.parameters["sigma"] is None and atoms.get_potential_energy() == energy

        data = pickle.dumps(atoms.calc)
        assert len(data) < 4000 < path.stat().st_size  # the path, not the weights
        monkeypatch.chdir("/")
        again = pickle.loads(data)
        assert again.results["energy"] == energy
        again.reset()
        assert again.get_potential_energy(atoms) == energy

    def test_pickle_of_a_potential(self):
        atoms = cluster()
        atoms.calc = ScoreCalculator(argon(System.from_atoms(atoms)))
        energy = atoms.get_potential_energy()
        again = pickle.loads(pickle.dumps(atoms))
        again.calc.reset()
        assert again.get_potential_energy() == energy

    def test_trajectory_and_json(self, tmp_path):
        atoms = crystal()
        atoms.calc = ScoreCalculator(
            network(System.from_atoms(atoms)),
            device=torch.device("cpu"),
            dtype=torch.float32,
            sigma=np.float64(0.02),
            bias=Harmonic(0.1),
        )
        energy = atoms.get_potential_energy()
        assert json.loads(json.dumps(dict(atoms.calc.parameters))) == {
            "model": "ScoreModel",
            "device": "cpu",
            "dtype": "float32",
            "compile": "auto",
            "sigma": 0.02,
            "bias": "Harmonic",
        }
        for name in ("a.traj", "a.xyz", "a.json"):
            write(tmp_path / name, atoms)
            back = read(tmp_path / name)
            assert back.get_potential_energy() == pytest.approx(energy, abs=1e-7)
        assert read(tmp_path / "a.traj").calc.name == "diffmd"

    def test_committee(self):
        atoms = cluster()
        system = System.from_atoms(atoms)
        models = [network(system, seed) for seed in range(3)]
        single = [ScoreCalculator(m).get_potential_energy(atoms) for m in models]
        forces = [ScoreCalculator(m).get_forces(atoms) for m in models]
        atoms.calc = ScoreCalculator(models, bias=Harmonic(1.0))
        bias = Harmonic(1.0)(torch.tensor(atoms.positions))
        energy = atoms.get_potential_energy()
        details = atoms.calc.details
        assert energy == pytest.approx(np.mean(single) + float(bias.energy), abs=1e-10)
        assert details["bias_energy"] == pytest.approx(float(bias.energy))
        assert details["energy_std"] == pytest.approx(np.std(single, ddof=1))
        np.testing.assert_allclose(
            details["forces_std"], np.std(forces, axis=0, ddof=1), atol=1e-12
        )
        total = atoms.calc.potential(atoms)(torch.tensor(atoms.positions))
        assert float(total.energy) == pytest.approx(energy, abs=1e-10)
        np.testing.assert_allclose(total.forces, atoms.get_forces(), atol=1e-10)
        with pytest.raises(ValueError, match="at least 2"):
            Mean(Harmonic(1.0))
        with pytest.raises(ValueError, match="cannot be members"):
            Mean(Harmonic(1.0), Boost())

    def test_bias_on_the_energy(self):
        atoms = cluster()
        plain = ScoreCalculator(argon).get_potential_energy(atoms)
        atoms.calc = ScoreCalculator(argon, bias=Boost())
        assert atoms.get_potential_energy() == pytest.approx(1.5 * plain)
        assert atoms.calc.details["bias_energy"] == pytest.approx(0.5 * plain)
        assert atoms.calc.bias is not None

    def test_register(self):
        register()
        register()  # a second import is fine
        assert get_calculator_class("diffmd") is ScoreCalculator
        with pytest.raises(ValueError, match=names("'emt'", "ASE")):
            register("emt")
        external_calculators.pop("diffmd")
        ase_calculators.names.remove("diffmd")


class TestRefusals:
    def test_wrong_atoms(self):
        model = network(System.from_atoms(cluster()))
        atoms = molecule("H2O")
        with pytest.raises(InputError, match="knows Ar, not H, O"):
            atoms.calc = ScoreCalculator(model)
        periodic = cluster()
        periodic.cell, periodic.pbc = [20, 20, 20], True
        with pytest.raises(InputError, match="pbc"):
            periodic.calc = ScoreCalculator(model)
        atoms = cluster()
        calc = ScoreCalculator(argon(System.from_atoms(crystal())))
        with pytest.raises(InputError, match="System -> Potential"):
            atoms.calc = calc
        assert ScoreCalculator(Harmonic(1.0)).get_potential_energy(atoms) > 0  # bound to nothing

    def test_not_a_gradient(self):
        atoms = cluster()
        atoms.calc = ScoreCalculator(Swirl())
        assert atoms.get_forces().shape == (4, 3)
        for force_consistent in (False, True):
            with pytest.raises(PropertyNotImplementedError):
                atoms.get_potential_energy(force_consistent=force_consistent)
        with pytest.raises(PropertyNotImplementedError, match="not conservative"):
            atoms.calc.calculate(atoms, ["energy"])

    def test_no_stress(self):
        atoms = crystal()
        atoms.calc = ScoreCalculator(Swirl())
        with pytest.raises(PropertyNotImplementedError, match="Swirl has no stress"):
            atoms.get_stress()
        atoms.calc = ScoreCalculator(Harmonic(1.0))
        with pytest.raises(PropertyNotImplementedError, match="gives no stress"):
            atoms.get_stress()

    def test_not_finite(self):
        atoms = cluster()
        atoms.calc = ScoreCalculator(argon)
        atoms.get_forces()
        atoms.positions[1] = np.nan
        with pytest.raises(CalculationFailed, match="not finite"):
            atoms.get_forces()
        atoms.positions[1] = atoms.positions[0]
        with pytest.raises(CalculationFailed, match="overlapping"):
            atoms.get_potential_energy()

    def test_arguments(self):
        with pytest.raises(TypeError, match="model is a int"):
            ScoreCalculator(3)
        with pytest.raises(TypeError, match=names("bias", "Potential", "LennardJones")):
            ScoreCalculator(argon, bias=AseLennardJones())
        with pytest.raises(ValueError, match="empty list"):
            ScoreCalculator([])
        with pytest.raises(ValueError, match="float32 or float64"):
            ScoreCalculator(argon, dtype="float16")
        atoms = cluster()
        with pytest.raises(InputError, match="sigma=0.1 is a setting of a ScoreModel"):
            atoms.calc = ScoreCalculator(argon, sigma=0.1)
        with pytest.raises(
            FileNotFoundError,
            match=names(
                "'nowhere.safetensors'", "alanine-dipeptide", "copper-vacancy", "diffmd train"
            ),
        ):
            atoms.calc = ScoreCalculator("nowhere.safetensors")
