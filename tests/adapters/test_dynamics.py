"""The ASE dynamics: one evaluation per step, the chain of `sampling.run`, refusals."""

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from argon_atoms import (
    STEP,
    Boost,
    Cliff,
    Count,
    Counted,
    Swirl,
    argon,
    attached,
    cluster,
    crystal,
    network,
)
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms, FixBondLength, FixCom
from ase.io import Trajectory, read
from ase.units import fs, kB
from messages import names

from diffmd_ase.adapters.batch import BatchReverseDiffusion
from diffmd_ase.adapters.calculator import ScoreCalculator
from diffmd_ase.adapters.dynamics import ReverseDiffusion
from diffmd_ase.adapters.log import ConfigurationalTemperature
from diffmd_ase.noise import Noise
from diffmd_ase.potentials.analytic import Harmonic
from diffmd_ase.potentials.ase_calculator import AsePotential
from diffmd_ase.potentials.curvature import measured_stiffness
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.sampling.kernels import DivergedError
from diffmd_ase.sampling.run import advance, run
from diffmd_ase.system import System


def counted(make=cluster):
    atoms = make()
    potential = Counted(argon(System.from_atoms(atoms)))
    atoms.calc = ScoreCalculator(potential)
    return atoms, potential


def chain(atoms, n_steps, kernel=None, seed=7, h=1 / 2000):
    """Positions after n steps of `sampling.run`."""
    potential = argon(System.from_atoms(atoms))
    kernel = kernel or EulerMaruyama(potential, kT=30.0 * kB, h=h)
    *_, (state, _) = run(kernel, torch.tensor(atoms.positions), n_steps, noise=Noise(seed))
    return state.x.numpy()


class TestSameChain:
    def test_is_run(self):
        atoms = attached()
        start = atoms.copy()
        assert ReverseDiffusion(atoms, **STEP).run(20) is True
        assert np.array_equal(atoms.positions, chain(start, 20))

    @pytest.mark.parametrize("make", [cluster, crystal])
    def test_batch_is_single(self, make):
        images = [make() for _ in range(3)]
        for i, image in enumerate(images):
            image.rattle(0.02, seed=i)
        alone = images[0].copy()
        images[0].calc = ScoreCalculator(argon)
        alone.calc = ScoreCalculator(argon)
        assert BatchReverseDiffusion(images, **STEP).run(20) is True
        ReverseDiffusion(alone, **STEP).run(20)
        np.testing.assert_allclose(images[0].positions, alone.positions, atol=1e-12)
        assert abs(images[1].positions - images[2].positions).max() > 0.05

    def test_restart_is_uninterrupted(self, tmp_path):
        atoms = attached()
        ReverseDiffusion(atoms, trajectory=str(tmp_path / "whole.traj"), **STEP).run(20)

        again = attached()
        ReverseDiffusion(again, trajectory=str(tmp_path / "parts.traj"), **STEP).run(8)
        again = read(tmp_path / "parts.traj")
        again.calc = ScoreCalculator(argon)
        dyn = ReverseDiffusion(
            again, trajectory=str(tmp_path / "parts.traj"), append_trajectory=True, **STEP
        )
        dyn.nsteps = 8
        dyn.run(12)
        assert dyn.nsteps == dyn.max_steps == 20
        assert np.array_equal(again.positions, atoms.positions)
        whole, parts = read(tmp_path / "whole.traj@:"), read(tmp_path / "parts.traj@:")
        assert len(whole) == len(parts) == 21  # no frame twice
        assert all(
            np.array_equal(a.positions, b.positions) for a, b in zip(whole, parts, strict=True)
        )

    def test_step_count_set_by_the_user(self):
        """The noise is that of the step count, whenever it is set."""
        atoms = attached()
        dyn = ReverseDiffusion(atoms, **STEP)
        dyn.run(2)
        x = torch.tensor(atoms.positions)
        dyn.nsteps = 100
        dyn.run(1)
        state = replace(dyn.kernel.init(x), step=100)
        assert np.array_equal(atoms.positions, advance(dyn.kernel, state, Noise(7))[0].x.numpy())

    def test_restart_from_a_state(self):
        atoms = attached()
        dyn = ReverseDiffusion(atoms, **STEP)
        dyn.run(8)
        state, seed = dyn.state, dyn.noise.seed
        assert state.step == 8 and state.x.shape == (4, 3)
        dyn.run(12)
        other = attached()
        second = ReverseDiffusion(other, temperature_K=30.0, spring=1000.0, rng=seed)
        second.state = state
        assert second.nsteps == 8 and np.array_equal(other.positions, state.x.numpy())
        second.run(12)
        assert np.array_equal(other.positions, atoms.positions)

    def test_batch_restart_from_a_state(self):
        def images():
            batch = [attached(), cluster(), cluster()]
            for i, image in enumerate(batch):
                image.rattle(0.02, seed=i)
            return batch

        whole, parts = images(), images()
        BatchReverseDiffusion(whole, **STEP).run(10)
        dyn = BatchReverseDiffusion(parts, **STEP)
        dyn.run(4)
        state, fresh = dyn.state, images()
        second = BatchReverseDiffusion(fresh, **STEP)
        second.state = state
        second.run(6)
        for a, b in zip(whole, fresh, strict=True):
            np.testing.assert_allclose(a.positions, b.positions, atol=1e-12)

    def test_emt_attached(self):
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.05, seed=1)
        atoms.calc = EMT()
        dyn = ReverseDiffusion(atoms, temperature_K=300, spring=3000, rng=1)
        dyn.run(10)
        start = bulk("Cu", cubic=True)
        start.rattle(0.05, seed=1)
        x, kT = torch.tensor(start.positions), 300 * kB
        kernel = EulerMaruyama(AsePotential(EMT(), System.from_atoms(start)), kT=kT, h=1 / 6000)
        *_, (state, _) = run(kernel, x, 10, noise=Noise(1))
        np.testing.assert_allclose(atoms.positions, state.x.numpy(), atol=1e-12)

    def test_model_of_the_package(self):
        """A network in float32: forces of the model, positions in float64."""
        atoms = cluster()
        model = network(System.from_atoms(atoms), kT=300 * kB)
        start = atoms.copy()
        atoms.calc = ScoreCalculator(model, device="cpu")
        dyn = ReverseDiffusion(atoms, temperature_K=300, rng=1)
        assert float(dyn.kernel.h) * 2000 == pytest.approx(0.2)
        assert "model card" in dyn.todict()["step-source"]
        dyn.run(5)
        kernel = EulerMaruyama(model.potential(device="cpu"), kT=300 * kB, h=dyn.kernel.h)
        *_, (state, _) = run(kernel, torch.tensor(start.positions), 5, noise=Noise(1))
        assert np.array_equal(atoms.positions, state.x.numpy())


class TestEvaluations:
    def test_one_per_step(self, tmp_path):
        """With trajectory, log and a user who reads everything."""
        atoms, potential = counted()
        dyn = ReverseDiffusion(
            atoms, trajectory=str(tmp_path / "a.traj"), logfile=str(tmp_path / "a.log"), **STEP
        )
        judged = potential.count  # a few, for a step that was given
        assert judged <= 12
        for _ in dyn.irun(10):
            atoms.get_potential_energy()
            atoms.get_forces()
            dyn.state  # noqa: B018
        assert potential.count - judged == 11
        dyn.run(10)
        assert potential.count - judged == 21
        frames = read(tmp_path / "a.traj@:")
        assert len(frames) == 21
        for frame in frames:
            fresh = attached()
            fresh.positions = frame.positions
            assert frame.get_potential_energy() == pytest.approx(fresh.get_potential_energy())
            np.testing.assert_allclose(frame.get_forces(), fresh.get_forces(), atol=1e-12)

    def test_one_per_step_and_walker(self, tmp_path):
        atoms, potential = counted()
        images = [atoms, cluster(), cluster()]
        dyn = BatchReverseDiffusion(
            images, trajectory=str(tmp_path / "a.traj"), logfile=str(tmp_path / "a.log"), **STEP
        )
        judged = potential.count  # one walker will do
        assert judged <= 12
        dyn.run(5)
        assert potential.count - judged == 6 * 3
        frames = read(tmp_path / "a.traj@:")
        assert len(frames) == 6 * 3
        assert [f.info["walker"] for f in frames[:4]] == [0, 1, 2, 0]
        assert [f.info["step"] for f in frames[::3]] == [0, 1, 2, 3, 4, 5]
        last = attached()
        last.positions = frames[-1].positions
        assert np.array_equal(frames[-1].positions, images[2].positions)
        assert frames[-1].get_potential_energy() == pytest.approx(last.get_potential_energy())

    def test_other_calculators(self):
        class Calls(EMT):
            calls = 0

            def calculate(self, *args, **kwargs):
                type(self).calls += 1
                super().calculate(*args, **kwargs)

        atoms = bulk("Cu", cubic=True)
        atoms.calc = Calls()
        dyn = ReverseDiffusion(atoms, temperature_K=300, spring=3000, rng=1)
        judged = Calls.calls
        for _ in dyn.irun(10):
            atoms.get_potential_energy()
        assert Calls.calls - judged == 11

    def test_default_step_says_what_it_cost(self, caplog):
        atoms, potential = counted()
        with caplog.at_level(logging.INFO):
            dyn = ReverseDiffusion(atoms, temperature_K=30)
        assert f"with {potential.count} extra evaluations" in dyn.todict()["step-source"]
        assert f"drew the seed {dyn.noise.seed}" in caplog.text
        assert dyn.step_size.source in caplog.text

    def test_user_moves_the_atoms(self):
        atoms, potential = counted()
        dyn = ReverseDiffusion(atoms, **STEP)
        judged = potential.count
        dyn.run(3)
        atoms.rattle(0.1, seed=4)
        moved = atoms.positions.copy()
        dyn.run(1)
        assert potential.count - judged == 4 + 2
        kernel, noise = dyn.kernel, Noise(7)
        state = replace(kernel.init(torch.tensor(moved)), step=3)  # the noise goes on
        assert np.array_equal(atoms.positions, advance(kernel, state, noise)[0].x.numpy())

    def test_user_changes_calculator_or_cell(self):
        atoms = attached(crystal)
        dyn = ReverseDiffusion(atoms, **STEP)
        dyn.run(2)
        atoms.set_cell(atoms.cell * 1.01, scale_atoms=True)
        dyn.run(1)
        fresh = atoms.copy()
        fresh.calc = ScoreCalculator(argon)
        np.testing.assert_allclose(dyn.state.forces, fresh.get_forces(), atol=1e-12)
        atoms.calc = ScoreCalculator(Harmonic(0.5))
        dyn.run(1)
        np.testing.assert_allclose(dyn.state.forces, -0.5 * atoms.positions, atol=1e-12)
        np.testing.assert_allclose(atoms.get_forces(), -0.5 * atoms.positions, atol=1e-12)

    def test_user_moves_a_walker(self):
        images = [attached(), cluster()]
        dyn = BatchReverseDiffusion(images, **STEP)
        dyn.run(2)
        images[1].positions += 0.5
        before = images[1].positions.copy()
        dyn.run(1)
        assert abs(images[1].positions - before).max() < 0.5


class TestBias:
    def test_atoms_keep_their_own_energy(self, tmp_path):
        atoms = attached()
        bias = Harmonic(0.3)
        with Trajectory(tmp_path / "a.traj", "w") as traj:
            dyn = ReverseDiffusion(
                atoms, bias=bias, trajectory=traj, logfile=str(tmp_path / "log"), **STEP
            )
            dyn.run(3)
        fresh = attached()
        fresh.positions = atoms.positions
        assert atoms.get_potential_energy() == pytest.approx(fresh.get_potential_energy())
        np.testing.assert_allclose(atoms.get_forces(), fresh.get_forces(), atol=1e-12)
        total = (argon(System.from_atoms(atoms)) + bias)(torch.tensor(atoms.positions))
        np.testing.assert_allclose(dyn.state.forces, total.forces, atol=1e-12)
        row = (tmp_path / "log").read_text().splitlines()[-1].split()
        assert float(row[3]) == pytest.approx(fresh.get_potential_energy(), abs=1e-4)
        assert float(row[4]) == pytest.approx(
            float(bias(torch.tensor(atoms.positions)).energy), abs=1e-4
        )
        assert read(tmp_path / "a.traj").get_potential_energy() == pytest.approx(
            fresh.get_potential_energy()
        )

    def test_memory_learns_once_per_step(self, tmp_path):
        atoms, potential = counted()
        bias = Count()
        dyn = ReverseDiffusion(
            atoms, bias=bias, logfile=str(tmp_path / "log"), trajectory=str(tmp_path / "t"), **STEP
        )
        judged = potential.count
        for _ in dyn.irun(5):
            atoms.get_potential_energy()
        assert bias.steps == [1, 2, 3, 4, 5]
        assert potential.count - judged == 6  # only the bias was evaluated again
        assert float(dyn.state.energy) == pytest.approx(atoms.get_potential_energy() + 5)

    def test_memory_of_the_calculator(self):
        """Its bias learns as well, with and without one of the dynamics."""
        for bias in (None, Harmonic(0.3)):
            memory = Count()
            atoms = attached(bias=memory)
            ReverseDiffusion(atoms, bias=bias, **STEP).run(3)
            assert memory.steps == [1, 2, 3]
            fresh = attached()
            fresh.positions = atoms.positions
            expected = fresh.get_potential_energy() + 3
            assert atoms.get_potential_energy() == pytest.approx(expected)

    def test_bias_on_the_energy(self, tmp_path):
        """A bias of the calculator that sees the energy, and one of the dynamics."""
        atoms, log = attached(bias=Boost()), tmp_path / "log"
        dyn = ReverseDiffusion(atoms, bias=Harmonic(0.3), logfile=log, **STEP)
        dyn.run(3)
        fresh = attached(bias=Boost())
        fresh.positions = atoms.positions
        x = torch.tensor(atoms.positions)
        plain, harmonic = argon(System.from_atoms(atoms))(x), Harmonic(0.3)(x)
        assert atoms.get_potential_energy() == pytest.approx(1.5 * float(plain.energy))
        np.testing.assert_allclose(
            dyn.state.forces, 1.5 * plain.forces + harmonic.forces, atol=1e-12
        )
        row = log.read_text().splitlines()[-1].split()
        assert float(row[3]) == pytest.approx(1.5 * float(plain.energy), abs=1e-4)
        assert float(row[4]) == pytest.approx(float(harmonic.energy), abs=1e-4)

    def test_bias_of_the_calculator(self):
        atoms = attached(bias=Harmonic(0.3))
        dyn = ReverseDiffusion(atoms, **STEP)
        dyn.run(3)
        fresh = attached(bias=Harmonic(0.3))
        fresh.positions = atoms.positions
        assert atoms.get_potential_energy() == pytest.approx(fresh.get_potential_energy())
        np.testing.assert_allclose(dyn.state.forces, fresh.get_forces(), atol=1e-12)


class TestConstraints:
    @pytest.mark.parametrize("batch", [False, True])
    def test_fixed_atoms(self, batch):
        atoms = attached()
        atoms.set_constraint(FixAtoms([1, 3]))
        start = atoms.positions.copy()
        if batch:
            BatchReverseDiffusion([atoms, atoms.copy()], **STEP).run(20)
        else:
            ReverseDiffusion(atoms, **STEP).run(20)
        assert np.array_equal(atoms.positions[[1, 3]], start[[1, 3]])
        assert (atoms.positions[[0, 2]] != start[[0, 2]]).all()
        kernel = EulerMaruyama(
            argon(System.from_atoms(atoms)), kT=30 * kB, h=torch.tensor([1.0, 0, 1, 0]) / 2000
        )
        state = kernel.init(torch.tensor(start))
        for _ in range(20):
            state, _ = advance(kernel, state, Noise(7))
        np.testing.assert_allclose(atoms.positions, state.x.numpy(), atol=1e-12)

    @pytest.mark.parametrize("batch", [False, True])
    def test_centre_of_mass(self, batch):
        atoms = attached()
        atoms.set_masses([20.0, 40.0, 60.0, 30.0])
        atoms.set_constraint(FixCom())
        start, com = atoms.positions.copy(), atoms.get_center_of_mass()
        options = {"temperature_K": 30.0, "timestep": 10 * fs, "friction": 0.1 / fs, "rng": 7}
        if batch:
            dyn = BatchReverseDiffusion([atoms, atoms.copy()], **options)
        else:
            dyn = ReverseDiffusion(atoms, **options)
        dyn.run(50)
        assert abs(atoms.positions - start).max() > 0.1
        np.testing.assert_allclose(atoms.get_center_of_mass(), com, atol=1e-12)
        here = dyn.state.x if not batch else dyn.state.x[0]
        assert np.array_equal(here.numpy(), atoms.positions)
        # relative to the mean it is the mean-free chain
        kernel = EulerMaruyama(
            argon(System.from_atoms(atoms)), kT=30 * kB, h=dyn.kernel.h, mean_free=True
        )
        *_, (state, _) = run(kernel, torch.tensor(start), 50, noise=Noise(7))
        x = state.x.numpy()
        np.testing.assert_allclose(
            atoms.positions - atoms.positions.mean(0), x - x.mean(0), atol=1e-9
        )

    def test_centre_of_mass_in_a_field(self):
        atoms = attached()
        atoms.set_masses([1.0, 40.0, 12.0, 3.0])
        atoms.set_constraint(FixCom())
        with pytest.raises(ValueError, match=names("FixCom", "eV/Å", "drop FixCom")):
            ReverseDiffusion(atoms, bias=Harmonic(1.0), **STEP).run(1)

    def test_centre_of_mass_is_a_metric(self):
        """Of equal masses it is the mean: exact in any field, with any mobilities."""
        atoms = attached()
        start, mobility = atoms.positions.copy(), np.array([0.5, 1.0, 2.0, 4.0])
        atoms.set_constraint(FixCom())
        dyn = ReverseDiffusion(
            atoms, temperature_K=30, timestep=0.05, mobility=mobility, bias=Harmonic(1.0), rng=7
        )
        dyn.run(50)
        kT = 30 * kB
        potential = argon(System.from_atoms(atoms)) + Harmonic(1.0)
        h = torch.tensor(0.05 * kT * mobility)
        kernel = EulerMaruyama(potential, kT=kT, h=h, mean_free=True)
        *_, (state, _) = run(kernel, torch.tensor(start), 50, noise=Noise(7))
        np.testing.assert_allclose(atoms.positions, state.x.numpy(), atol=1e-10)

    def test_refused(self):
        atoms = attached()
        atoms.set_constraint(FixBondLength(0, 1))
        with pytest.raises(ValueError, match=names("FixBondLengths", "FixAtoms", "FixCom")):
            ReverseDiffusion(atoms, **STEP)
        atoms.set_constraint([FixAtoms([0]), FixCom()])
        with pytest.raises(ValueError, match=names("FixCom", "FixAtoms")):
            ReverseDiffusion(atoms, **STEP)
        atoms.set_constraint(FixAtoms(range(4)))
        with pytest.raises(ValueError, match="all atoms are fixed"):
            ReverseDiffusion(atoms, **STEP)


class TestStep:
    def h(self, **options):
        return ReverseDiffusion(attached(), temperature_K=30.0, rng=1, **options)

    def test_parametrisations(self):
        kT, m = 30 * kB, attached().get_masses()[0]
        dyn = self.h(timestep=2.0 * fs, friction=0.5 / fs)
        np.testing.assert_allclose(dyn.kernel.h, kT * 2.0 * fs / (m * 0.5 / fs))
        assert dyn.dt == 2.0 * fs and dyn.step_size.physical
        dyn = self.h(timestep=2.0, mobility=0.3)
        assert dyn.kernel.h == pytest.approx(0.3 * kT * 2.0)
        dyn = self.h(spring=250.0)
        assert dyn.kernel.h == pytest.approx(1 / 500)
        assert dyn.dt == pytest.approx(1 / kT / 500) and not dyn.step_size.physical
        dyn = self.h(spring=250.0, mobility=0.3)
        assert dyn.kernel.h == pytest.approx(1 / 500)
        assert dyn.dt == pytest.approx(1 / kT / 500 / 0.3) and dyn.step_size.physical
        dyn.run(10)
        assert dyn.get_time() == pytest.approx(10 * dyn.dt)

    def test_default(self):
        """λ of an anisotropic harmonic well is its largest constant over kT."""
        atoms = Atoms("He2", [[0.1, 0.2, 0.3], [1, 1, 1]])
        atoms.calc = ScoreCalculator(Harmonic(torch.tensor([2.0, 0.5])))
        lam = 2.0 / (300 * kB)
        dyn = ReverseDiffusion(atoms, temperature_K=300, rng=1)
        assert dyn.kernel.h == pytest.approx(0.2 / lam, rel=0.02)
        for clock in ({"mobility": 0.3}, {"friction": 2.0}):
            dyn = ReverseDiffusion(atoms, temperature_K=300, rng=1, **clock)
            assert float(torch.as_tensor(dyn.kernel.h).max()) == pytest.approx(0.2 / lam, rel=0.02)
            assert dyn.step_size.physical
        x = torch.tensor(atoms.positions)
        found, evaluations = measured_stiffness(Harmonic(2.0), x, 300 * kB)
        assert found == pytest.approx(lam) and evaluations <= 6

    def test_no_stiffness(self):
        atoms = Atoms("He", [[0, 0, 0]])
        atoms.calc = ScoreCalculator(Cliff())
        with pytest.raises(ValueError, match="give timestep and mobility, or spring"):
            ReverseDiffusion(atoms, temperature_K=300)

    def test_limits_of_a_model(self):
        atoms = cluster()
        atoms.calc = ScoreCalculator(network(System.from_atoms(atoms), kT=300 * kB))  # λ = 2000
        ReverseDiffusion(atoms, temperature_K=300, spring=1100, rng=1)
        with pytest.warns(UserWarning, match=r"h\*lambda = 1.25 .*spring=5000"):
            ReverseDiffusion(atoms, temperature_K=300, spring=800, rng=1)
        with pytest.raises(ValueError, match=r"unstable: h\*lambda = 2.5 .*spring=5000"):
            ReverseDiffusion(atoms, temperature_K=300, spring=400, rng=1)
        # half the temperature, twice the stiffness
        with (
            pytest.raises(ValueError, match="unstable"),
            pytest.warns(UserWarning, match=names("Ar4", "temperature_K=150", "300 K")),
        ):
            ReverseDiffusion(atoms, temperature_K=150, spring=800, rng=1)
        # the habit of 1 fs and 0.01/fs; the remedy it names is accepted
        habit = {"temperature_K": 300, "friction": 0.01 / fs, "rng": 1}
        atoms.set_masses([1.0] * 4)
        with pytest.raises(ValueError, match="timestep=") as error:
            ReverseDiffusion(atoms, timestep=fs, **habit)
        good = float(str(error.value).split("timestep=")[1].split(",")[0])
        assert ReverseDiffusion(atoms, timestep=good, **habit).kernel.h[0] * 2000 == pytest.approx(
            0.2, rel=0.01
        )
        # with one h per atom an error needs certainty
        atoms.set_masses([1.0, 40.0, 40.0, 40.0])
        with pytest.warns(UserWarning, match=r"h\*lambda = 0.[0-9]+ to"):
            ReverseDiffusion(atoms, timestep=0.05 * fs, **habit)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"timestep": 1.0}, "needs friction"),
            ({"timestep": 1.0, "friction": 1.0, "mobility": 1.0}, "give one of them"),
            ({"timestep": 1.0, "spring": 1.0}, "either sets the step"),
            ({"timestep": -1.0, "mobility": 1.0}, "timestep=-1.0 must be positive"),
            ({"spring": float("nan")}, "positive and finite"),
            ({"spring": np.array([1.0, 2.0, 2.0, 2.0])}, "its own time step"),
        ],
    )
    def test_contradictions(self, options, message):
        with pytest.raises(ValueError, match=message):
            self.h(**options)

    def test_other_refusals(self):
        atoms = attached()
        with pytest.raises(ValueError, match=names("temperature_K=0.0", "kelvin")):
            ReverseDiffusion(atoms, temperature_K=0.0, spring=1.0)
        with pytest.raises(TypeError, match="rng is a str"):
            ReverseDiffusion(atoms, temperature_K=300, spring=100.0, rng="x")
        with pytest.raises(TypeError, match="bias must be"):
            ReverseDiffusion(atoms, temperature_K=300, spring=100.0, bias=EMT())
        with pytest.raises(ValueError, match="no calculator"):
            ReverseDiffusion(cluster(), temperature_K=300, spring=100.0)
        atoms.positions[1] = atoms.positions[0]
        with pytest.raises(ValueError, match="overlapping"):
            ReverseDiffusion(atoms, **STEP).run(1)


class TestRng:
    def test_kinds(self):
        def seed(rng):
            return ReverseDiffusion(attached(), temperature_K=30, spring=100, rng=rng).noise.seed

        assert seed(5) == seed(np.int64(5)) == 5
        assert seed(np.random.default_rng(1)) == seed(np.random.default_rng(1))
        assert seed(np.random.RandomState(1)) == seed(np.random.RandomState(1))
        assert seed(None) != seed(None)

    def test_todict(self):
        dyn = ReverseDiffusion(
            attached(), temperature_K=30, timestep=1.0, friction=np.float64(2.0), bias=Harmonic(1.0)
        )
        settings = json.loads(json.dumps(dyn.todict()))
        assert settings["type"] == "molecular-dynamics"
        assert settings["md-type"] == "ReverseDiffusion"
        assert settings["seed"] == dyn.noise.seed and settings["bias"] == "Harmonic"
        assert settings["friction"] == 2.0 and len(settings["h"]) == 4
        batch = BatchReverseDiffusion([attached(), cluster()], **STEP)
        assert json.loads(json.dumps(batch.todict()))["md-type"] == "BatchReverseDiffusion"


class TestBatch:
    def test_lost_walkers(self, tmp_path):
        """The others go on as if nothing had happened."""

        def images():
            batch = [Atoms("He", [[-50.0 * (i != 2), 0, 0]]) for i in range(4)]
            batch[0].calc = ScoreCalculator(Cliff())
            return batch

        batch = images()
        dyn = BatchReverseDiffusion(
            batch, temperature_K=300, spring=2.0, rng=2, trajectory=str(tmp_path / "a.traj")
        )
        with pytest.warns(RuntimeWarning, match=r"walkers \[2\] diverged"):
            dyn.run(50)
        assert list(dyn.lost) == [2] and 0 < dyn.lost[2] <= 50
        assert dyn.nsteps == 50 and np.isfinite(batch[2].positions).all()
        frames = read(tmp_path / "a.traj@:")
        assert {f.info["walker"] for f in frames[-3:]} == {0, 1, 3}
        assert sum(f.info["walker"] == 2 for f in frames) == dyn.lost[2]
        safe = images()
        safe[2].positions[0, 0] = -50.0
        BatchReverseDiffusion(safe, temperature_K=300, spring=2.0, rng=2).run(50)
        for i in (0, 1, 3):
            assert np.array_equal(batch[i].positions, safe[i].positions)

    def test_all_lost(self):
        atoms = Atoms("He", [[0.0, 0, 0]])
        atoms.calc = ScoreCalculator(Cliff())
        with pytest.raises(DivergedError):
            BatchReverseDiffusion([atoms], temperature_K=300, spring=2.0, rng=2).run(500)
        atoms.positions = 0
        with pytest.raises(DivergedError):
            ReverseDiffusion(atoms, temperature_K=300, spring=2.0, rng=2).run(500)
        assert np.isfinite(atoms.positions).all()

    def test_survivors_keep_their_noise(self):
        """Also when they start anew, because a user has moved them."""
        batch = [Atoms("He", [[-50.0 * (i != 0), 0, 0]]) for i in range(3)]
        batch[0].calc = ScoreCalculator(Cliff())
        dyn = BatchReverseDiffusion(batch, temperature_K=300, spring=2.0, rng=2)
        with pytest.warns(RuntimeWarning, match=r"walkers \[0\]"):
            dyn.run(50)
        for i in (1, 2):
            batch[i].positions[0] = [-50.0, 0, 0]
        dyn.run(1)
        noise = Noise(2).normal(50, torch.zeros(3, 1, 3))  # h = 1/4: sqrt(2h) = 1/√2
        for i in (1, 2):
            expected = np.array([-50.0, 0, 0]) + noise[i].numpy() * 0.5**0.5
            np.testing.assert_allclose(batch[i].positions, expected, atol=1e-12)

    @pytest.mark.gpu
    def test_on_a_gpu(self):
        atoms = cluster()
        model, start = network(System.from_atoms(atoms)), atoms.positions.copy()
        found = []
        for device in ("cpu", "cuda"):
            images = [cluster() for _ in range(3)]
            images[0].calc = ScoreCalculator(model, device=device, dtype="float64")
            BatchReverseDiffusion(images, temperature_K=300, rng=1).run(5)
            found.append(np.stack([image.positions for image in images]))
        np.testing.assert_allclose(*found, atol=1e-9)
        assert abs(found[0][0] - start).max() > 0

    def test_one_file_per_walker(self, tmp_path):
        images = [attached(), cluster()]
        files = [str(tmp_path / f"{i}.traj") for i in range(2)]
        with BatchReverseDiffusion(images, trajectory=files, loginterval=2, **STEP) as dyn:
            dyn.run(4)
        for image, file in zip(images, files, strict=True):
            frames = read(f"{file}@:")
            assert [f.info["step"] for f in frames] == [0, 2, 4]
            assert np.array_equal(frames[-1].positions, image.positions)
            assert frames[-1].get_forces().shape == (4, 3)
        with pytest.raises(ValueError, match="1 trajectories for 2 walkers"):
            BatchReverseDiffusion(images, trajectory=files[:1], **STEP)

    def test_interface_of_ase(self):
        dyn = BatchReverseDiffusion([attached(), cluster()], **STEP)
        seen = []
        dyn.attach(lambda: seen.append(dyn.nsteps), interval=2)
        assert list(dyn.irun(3)) == [False, False, False, True]
        assert dyn.run(0) is True and dyn.run(1) is True
        assert seen == [0, 2, 4] and dyn.nsteps == dyn.max_steps == 4
        assert dyn.get_number_of_steps() == 4 and dyn.get_time() == 4 * dyn.dt
        walkers = dyn.atoms
        assert walkers.ndofs() == 24 and walkers.get_x().shape == (24,)
        results = attached().calc.predict_batch(dyn.images)
        forces = np.concatenate([r["forces"].ravel() for r in results])
        np.testing.assert_allclose(walkers.get_gradient(), -forces, atol=1e-12)
        assert walkers.get_value() == pytest.approx(sum(r["energy"] for r in results))
        walkers.set_x(walkers.get_x() + 0.1)
        assert dyn.state.step == 4

    def test_not_a_gradient(self, tmp_path):
        images = [cluster(), cluster()]
        images[0].calc = ScoreCalculator(Swirl())
        log = tmp_path / "log"
        BatchReverseDiffusion(
            images, logfile=str(log), trajectory=str(tmp_path / "t.traj"), **STEP
        ).run(2)
        assert log.read_text().split()[-4] == "nan"
        assert read(tmp_path / "t.traj").get_forces().shape == (4, 3)

    def test_refusals(self):
        for images, message in (
            ([], "no images"),
            ([attached(), crystal()], "image 1 differs from image 0 in pbc"),
            ([attached(), attached(bias=Harmonic(1.0))], "calculator of its own.* bias"),
        ):
            with pytest.raises(ValueError, match=message):
                BatchReverseDiffusion(images, **STEP)
        atoms = attached()
        with pytest.raises(ValueError, match="appears twice"):
            BatchReverseDiffusion([atoms, atoms], **STEP)
        other = cluster()
        other.set_constraint(FixAtoms([0]))
        with pytest.raises(ValueError, match="different constraints"):
            BatchReverseDiffusion([atoms, other], **STEP)


class TestLog:
    def test_columns(self, tmp_path, capsys):
        log = tmp_path / "log"
        for _ in range(2):  # the second appends, without a header
            with ReverseDiffusion(attached(), logfile=str(log), loginterval=5, **STEP) as dyn:
                dyn.run(10)
        rows = [line.split() for line in log.read_text().splitlines()]
        assert rows[0] == "Step D*t[A^2] Walkers Epot[eV] Bias[eV] Tconf[K] Evals/s".split()
        assert [row[0] for row in rows[1:]] == ["0", "5", "10"] * 2
        assert float(rows[3][1]) == pytest.approx(10 / 2000)
        assert rows[1][5] == "nan" and float(rows[3][5]) > 0 and float(rows[3][6]) > 0
        ReverseDiffusion(attached(), logfile="-", **STEP).run(1)
        assert len(capsys.readouterr().out.splitlines()) == 3
        log.unlink()
        ReverseDiffusion(
            attached(), temperature_K=30, rng=1, timestep=fs, friction=1 / fs, logfile=log
        ).run(1)
        rows = [line.split() for line in log.read_text().splitlines()]
        assert rows[0][1] == "Time[ps]" and float(rows[-1][1]) == pytest.approx(1e-3)

    @pytest.mark.parametrize("kind", ["all", "fixed", "mean_free", "per_atom"])
    def test_configurational_temperature(self, kind):
        """A harmonic crystal: T/(1 - hλ/2) for one λ, by z-score of many walkers."""
        k, T, n = 2.0, 300.0, 4
        h = torch.full((n,), 0.1 / (k / (T * kB)))
        if kind == "fixed":
            h[0] = 0.0
        if kind == "per_atom":
            h = h * torch.tensor([0.2, 0.5, 1.0, 2.0])
        options = {"mean_free": kind == "mean_free"}
        if kind in ("all", "mean_free"):
            h = float(h[0])
        kernel = EulerMaruyama(Harmonic(k), kT=T * kB, h=h, **options)
        x = torch.full((400, n, 3), 0.1)  # off centre: fixed atoms and the mean feel a force
        state, noise, values = kernel.init(x), Noise(3), []
        for step in range(400):
            before, (state, _) = state, advance(kernel, state, noise)
            if step >= 100 and step % 20 == 0:
                estimate = ConfigurationalTemperature()
                estimate.add(kernel, before, state, noise)
                values.append(estimate.kelvin)
        h = torch.as_tensor(h).expand(n)
        moving = h[h > 0]
        # <|F|²>/<-∇·F> of the discrete chain, atom by atom
        exact = float((T / (1 - moving * k / (T * kB) / 2)).mean())
        z = (np.mean(values) - exact) / (np.std(values, ddof=1) / np.sqrt(len(values)))
        assert abs(z) < 4, (np.mean(values), exact)
        wrong = 1.1 * exact
        assert abs(np.mean(values) - wrong) / (np.std(values) / np.sqrt(len(values))) > 4


class Zero(Calculator):
    implemented_properties = ("energy", "forces")

    def calculate(self, atoms=None, properties=("energy",), system_changes=()):
        super().calculate(atoms, properties, system_changes)
        self.results = {"energy": 0.0, "forces": np.zeros((len(atoms), 3))}


def test_free_diffusion():
    """Mean square displacement 2 D t = 2 h n per coordinate, z-score."""
    images = [Atoms("He8", np.zeros((8, 3))) for _ in range(32)]
    images[0].calc = Zero()
    dyn = BatchReverseDiffusion(images, temperature_K=300, spring=50.0, rng=5)
    dyn.run(20)
    squares = np.concatenate([image.positions.ravel() for image in images]) ** 2
    exact = 2 * 20 / 100
    z = (squares.mean() - exact) / (exact * np.sqrt(2 / squares.size))
    assert abs(z) < 4
