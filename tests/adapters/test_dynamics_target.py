"""Metropolised steps through ASE: exact at any step and drift, evaluated once, honest files."""

import json
import math

import numpy as np
import pytest
import torch
from argon_atoms import STEP, Cliff, Count, Counted, Swirl, argon, attached, cluster
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones as AseLennardJones
from ase.constraints import FixAtoms, FixCom
from ase.io import read
from ase.io.trajectory import Trajectory
from ase.md.langevin import Langevin
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from ase.units import fs, kB
from messages import names

from diffmd_ase import MonteCarlo
from diffmd_ase.adapters.batch import BatchReverseDiffusion
from diffmd_ase.adapters.calculator import ScoreCalculator
from diffmd_ase.adapters.dynamics import ReverseDiffusion
from diffmd_ase.noise import Noise
from diffmd_ase.potentials.analytic import Harmonic
from diffmd_ase.potentials.ase_calculator import AsePotential
from diffmd_ase.potentials.base import Potential
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.sampling.metropolis import Metropolis
from diffmd_ase.sampling.run import run
from diffmd_ase.system import System

KT = 300 * kB


class Spring(Calculator):
    """``½ k |x|²``, as somebody else's calculator; counts; fails beyond ``edge``."""

    implemented_properties = ("energy", "forces")

    def __init__(self, k, edge=np.inf):
        super().__init__()
        self.k, self.edge, self.calls = k, edge, 0

    def calculate(self, atoms=None, properties=("energy",), system_changes=()):
        super().calculate(atoms, properties, system_changes)
        self.calls += 1
        x = self.atoms.positions
        if abs(x).max() > self.edge:
            raise RuntimeError("SCF did not converge")
        self.results = {"energy": 0.5 * self.k * float((x**2).sum()), "forces": -self.k * x}


def walkers(count, n_atoms=1, k=1.0, seed=0):
    """Exact draws of the Boltzmann law of ``Spring(k)`` at 300 K."""
    rng = np.random.default_rng(seed)
    return [
        Atoms(f"He{n_atoms}", rng.normal(scale=math.sqrt(KT / k), size=(n_atoms, 3)))
        for _ in range(count)
    ]


def z_of_variance(images, k):
    """How far the variance of the walkers is from kT/k, in standard errors."""
    x = np.concatenate([image.positions.ravel() for image in images]) / math.sqrt(KT / k)
    return (np.mean(x**2) - 1.0) / math.sqrt(2.0 / x.size)


class TestExact:
    """A wrong drift, a large step: with the target the variance is exact, without it is not."""

    H_LAMBDA = 0.5

    def images(self, target, **options):
        """Independent walkers, started at the exact law, so any error is the kernel's."""
        images = walkers(150, n_atoms=4)
        images[0].calc = Spring(0.6)  # 40 % too soft
        h = self.H_LAMBDA * KT
        dyn = BatchReverseDiffusion(
            images, temperature_K=300, spring=1 / (2 * h), rng=3, target=target, **options
        )
        dyn.run(12)
        return images, dyn

    def test_reference(self):
        images, dyn = self.images(Spring(1.0))
        assert abs(z_of_variance(images, 1.0)) < 4
        assert 0.3 < dyn.acceptance < 0.999

    def test_of_several_steps(self):
        images, dyn = self.images(Harmonic(1.0), proposal_steps=3)
        assert abs(z_of_variance(images, 1.0)) < 4
        assert 0.1 < dyn.acceptance < 0.999

    def test_model(self):
        """To the model's own energy: its stiffness, without the bias of the step."""
        images = walkers(150, n_atoms=4, k=1.4)
        images[0].calc = Spring(1.4)
        BatchReverseDiffusion(images, temperature_K=300, spring=1 / KT, rng=3, target="model").run(
            12
        )
        assert abs(z_of_variance(images, 1.4)) < 4

    def test_bias_is_part_of_it(self):
        images = walkers(150, n_atoms=4, k=1.5)
        images[0].calc = Spring(1.4)
        dyn = BatchReverseDiffusion(
            images, temperature_K=300, spring=1 / KT, rng=3, target=Spring(1.0), bias=Harmonic(0.5)
        )
        dyn.run(12)
        assert abs(z_of_variance(images, 1.5)) < 4
        assert abs(z_of_variance(images, 1.0)) > 4

    def test_without_target_it_is_wrong(self):
        """Negative control: the same run uncorrected is twice too wide."""
        images, dyn = self.images(None)
        assert abs(z_of_variance(images, 1.0)) > 4
        assert math.isnan(dyn.acceptance)


class TestSameChain:
    @pytest.mark.parametrize("proposal_steps", [1, 2])
    def test_is_run(self, proposal_steps):
        atoms = attached()
        start = torch.tensor(atoms.positions)
        target = Harmonic(0.05)
        dyn = ReverseDiffusion(atoms, target=target, proposal_steps=proposal_steps, **STEP)
        dyn.run(20)
        system = System.from_atoms(atoms)
        proposal = EulerMaruyama(argon(system), kT=30 * kB, h=1 / 2000)
        kernel = Metropolis(proposal, target, proposal_steps)
        states = list(run(kernel, start, 20, noise=Noise(7)))
        assert np.array_equal(atoms.positions, states[-1][0].x.numpy())
        accepted = [bool(info.accepted) for _, info in states]
        assert dyn.acceptance == pytest.approx(np.mean(accepted))

    def test_batch_is_single_and_restart_is_uninterrupted(self):
        def images():
            batch = [attached(), cluster(), cluster()]
            for i, image in enumerate(batch):
                image.rattle(0.02, seed=i)
            return batch

        target = Harmonic(0.02)
        alone, whole, parts = images()[0], images(), images()
        ReverseDiffusion(alone, target=target, **STEP).run(20)
        BatchReverseDiffusion(whole, target=target, **STEP).run(20)
        np.testing.assert_allclose(whole[0].positions, alone.positions, atol=1e-10)
        first = BatchReverseDiffusion(parts, target=target, **STEP)
        first.run(8)
        second = BatchReverseDiffusion(again := images(), target=target, **STEP)
        second.state = first.state
        second.run(12)
        for a, b in zip(whole, again, strict=True):
            assert np.array_equal(a.positions, b.positions)

    def test_fixed_atoms_and_centre_of_mass(self):
        atoms = attached()
        atoms.set_constraint(FixAtoms([1]))
        held = atoms.positions[1].copy()
        ReverseDiffusion(atoms, target="model", **STEP).run(10)
        assert np.array_equal(atoms.positions[1], held)
        atoms = attached()
        atoms.set_masses([1.0, 2.0, 3.0, 4.0])
        atoms.set_constraint(FixCom())
        com = atoms.get_center_of_mass()
        ReverseDiffusion(atoms, target="model", **STEP).run(10)
        np.testing.assert_allclose(atoms.get_center_of_mass(), com, atol=1e-12)
        with pytest.raises(ValueError, match=names("FixCom", "eV/Å", "drop FixCom")):
            ReverseDiffusion(atoms, target=Harmonic(1.0), **STEP).run(1)


class TestEvaluations:
    def test_drift_and_target_once_per_step(self, tmp_path):
        """With trajectory, log, and a user who reads everything, rejections or not."""
        atoms = cluster()
        drift = Counted(argon(System.from_atoms(atoms)))
        atoms.calc, target = ScoreCalculator(drift), Spring(0.5)
        dyn = ReverseDiffusion(
            atoms, target=target, bias=Harmonic(0.01), logfile=tmp_path / "log",
            trajectory=str(tmp_path / "a.traj"), **STEP,
        )  # fmt: skip
        for _ in dyn.irun(20):
            atoms.get_potential_energy()
            dyn.state  # noqa: B018
        assert 0 < dyn.acceptance < 1
        assert drift.count == 21
        # an ASE calculator knows the energies of the start when it is asked again
        assert target.calls == 21

    def test_rejections_with_a_plain_calculator(self, tmp_path):
        """ASE's cache has seen the proposal; frames and reads are those of the state."""
        atoms = Atoms("He", [[0.1, 0.0, 0.0]])
        calc = Spring(1.0)
        atoms.calc = calc
        dyn = ReverseDiffusion(
            atoms, temperature_K=300, spring=0.5 / KT, rng=1, target="model",
            trajectory=str(tmp_path / "a.traj"),
        )  # fmt: skip
        dyn.run(40)
        assert 0.2 < dyn.acceptance < 0.9
        assert calc.calls == 41
        frames = read(tmp_path / "a.traj@:")
        assert len(frames) == 41
        for frame in frames:
            x = frame.positions
            assert frame.get_potential_energy() == pytest.approx(0.5 * float((x**2).sum()))
            np.testing.assert_allclose(frame.get_forces(), -x, atol=1e-15)

    def test_same_calculator_as_target_is_the_model(self):
        atoms = Atoms("He", [[0.1, 0.0, 0.0]])
        atoms.calc = calc = Spring(1.0)
        ReverseDiffusion(atoms, temperature_K=300, spring=1 / KT, rng=1, target=calc).run(10)
        assert calc.calls == 11


class TestFiles:
    def test_energies_and_log(self, tmp_path):
        """Frames keep the calculator's energy; the target's is in info, without the bias."""
        images = [attached(), cluster()]
        images[1].rattle(0.02, seed=1)
        dyn = BatchReverseDiffusion(
            images, target=Harmonic(0.05), bias=Harmonic(0.02), logfile=tmp_path / "log",
            trajectory=str(tmp_path / "a.traj"), **STEP,
        )  # fmt: skip
        dyn.run(20)
        assert 0 < dyn.acceptance < 1
        fresh = attached()
        frames = read(tmp_path / "a.traj@:")
        assert len(frames) == 2 * 21
        for frame in frames:
            fresh.positions = frame.positions
            x = torch.tensor(frame.positions)
            assert frame.get_potential_energy() == pytest.approx(fresh.get_potential_energy())
            expected = float(Harmonic(0.05)(x).energy)
            assert frame.info["target_energy"] == pytest.approx(expected)
        rows = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
        names = "Step D*t[A^2] Walkers Epot[eV] Bias[eV] Etarget[eV] Accept Failed Evals/s"
        assert rows[0] == names.split()
        last = dict(zip(rows[0], map(float, rows[-1]), strict=True))
        x = torch.tensor(np.stack([image.positions for image in images]))
        assert last["Etarget[eV]"] == pytest.approx(
            float(Harmonic(0.05)(x).energy.mean()), abs=1e-4
        )
        assert last["Bias[eV]"] == pytest.approx(float(Harmonic(0.02)(x).energy.mean()), abs=1e-4)
        assert last["Accept"] == pytest.approx(dyn.acceptance, abs=1e-4)

    def test_info_of_a_single_one(self, tmp_path):
        atoms = attached()
        ReverseDiffusion(
            atoms, target=Harmonic(0.05), trajectory=str(tmp_path / "a.traj"), **STEP
        ).run(5)
        frames = read(tmp_path / "a.traj@:")
        assert len(frames) == 6
        for frame in frames:
            x = torch.tensor(frame.positions)
            energy = float(Harmonic(0.05)(x).energy)
            assert frame.info["target_energy"] == pytest.approx(energy)

    def test_todict(self):
        dyn = ReverseDiffusion(attached(), target=EMT(), proposal_steps=2, **STEP)
        said = json.loads(json.dumps(dyn.todict()))
        assert said["target"] == "EMT" and said["proposal-steps"] == 2
        assert said["adaptation"] is None
        assert ReverseDiffusion(attached(), target="model", **STEP).todict()["target"] == "model"
        assert ReverseDiffusion(attached(), **STEP).todict()["target"] is None


class TestAdapt:
    def test_finds_the_step_and_writes_no_warm_up(self, tmp_path):
        images = walkers(24, n_atoms=4)
        images[0].calc = Spring(1.0)
        dyn = BatchReverseDiffusion(
            images, temperature_K=300, spring=1e4, rng=1, target="model",
            trajectory=str(tmp_path / "a.traj"), logfile=tmp_path / "log",
        )  # fmt: skip
        record = dyn.adapt(200)
        assert not (tmp_path / "log").exists() and dyn.nsteps == record.end == 200
        assert float(dyn.kernel.proposal.h) == pytest.approx(record.factor / 2e4)
        assert dyn.step_size.h == pytest.approx(record.factor / 2e4)
        assert dyn.dt == pytest.approx(dyn.step_size.timestep)
        frozen = dyn.kernel
        dyn.run(50)
        assert dyn.kernel is frozen
        assert abs(dyn.acceptance - 0.574) < 0.05
        assert {f.info["step"] for f in read(tmp_path / "a.traj@:")} == set(range(201, 251))
        said = json.loads(json.dumps(dyn.todict()))
        assert said["adaptation"]["factor"] == record.factor and "adapted" in said["step-source"]

    def test_is_adaptation_of_the_kernel(self):
        """The positions after it are those of `sampling.adaptation.adapt`."""
        from diffmd_ase.sampling.adaptation import adapt

        atoms = attached()
        x = torch.tensor(atoms.positions)
        dyn = ReverseDiffusion(atoms, target="model", **STEP)
        kernel = dyn.kernel
        record = dyn.adapt(30)
        _, state, same = adapt(kernel, kernel.init(x), 30, noise=Noise(7))
        assert np.array_equal(atoms.positions, state.x.numpy()) and same == record

    def test_memory_learns_in_warm_up_too(self):
        memory = Count()
        dyn = ReverseDiffusion(attached(), target="model", bias=memory, **STEP)
        dyn.adapt(5)
        dyn.run(3)
        assert memory.steps == list(range(1, 9))

    def test_refused_without_target(self):
        with pytest.raises(TypeError, match="target="):
            ReverseDiffusion(attached(), **STEP).adapt(10)

    def test_learned_model_against_emt(self):
        """Ten lines of a user: a wrong drift, EMT as target."""
        atoms = bulk("Cu", cubic=True)
        atoms.calc = AseLennardJones(sigma=2.3, epsilon=0.4, rc=5.0)
        dyn = ReverseDiffusion(atoms, temperature_K=300, target=EMT(), rng=1)
        dyn.adapt(150)
        dyn.run(50)
        assert 0.3 < dyn.acceptance < 0.85
        fresh = atoms.copy()
        fresh.calc = EMT()
        assert atoms.info["target_energy"] == pytest.approx(fresh.get_potential_energy())


class TestFailures:
    def options(self):
        return {"temperature_K": 300, "spring": 0.5 / KT, "rng": 1}

    @pytest.mark.parametrize("place", ["target", "drift"])
    def test_rejected_and_counted(self, place, tmp_path):
        """A wall at the edge: the truncated law, nobody beyond, and a count."""
        images = [Atoms("He", np.zeros((1, 3))) for _ in range(20)]
        walled, free = Spring(1.0, edge=0.2), Spring(1.0)
        images[0].calc = walled if place == "drift" else free
        target = walled if place == "target" else free
        dyn = BatchReverseDiffusion(
            images, target=target, logfile=tmp_path / "log", **self.options()
        )
        dyn.run(30)
        assert max(abs(image.positions).max() for image in images) <= 0.2
        assert 0 < dyn.acceptance < 1
        if place == "target":
            failed = int((tmp_path / "log").read_text().split()[-2])
            assert failed == dyn.chain.physics.failed[0] == int(dyn.chain.tally.divergent.sum()) > 0

    def test_at_the_start_it_is_an_error(self):
        atoms = Atoms("He", [[1.0, 0, 0]])
        atoms.calc = Spring(1.0)
        dyn = ReverseDiffusion(atoms, target=Spring(1.0, edge=0.2), **self.options())
        with pytest.raises(ValueError, match=r"walkers \[0\].*SCF did not converge"):
            dyn.run(1)

    def test_plain_dynamics_still_raises(self):
        atoms = Atoms("He", [[0.19, 0, 0]])
        atoms.calc = Spring(1.0, edge=0.2)
        with pytest.raises(
            RuntimeError, match=names("Spring", "structure 0", "RuntimeError: SCF did not converge")
        ):
            ReverseDiffusion(atoms, **self.options()).run(50)


class TestRefusals:
    @pytest.mark.parametrize(
        ("target", "error", "message"),
        [
            ("spring", ValueError, "expected 'model'.*EMT"),
            (3.0, TypeError, "target is a float"),
            (Harmonic(1.0, system=System.from_atoms(bulk("Cu", cubic=True))), ValueError,
             r"bound to Cu4 \(4 atoms.*System.from_atoms"),
            (Swirl(), ValueError, "has no energy"),
        ],
    )  # fmt: skip
    def test_targets(self, target, error, message):
        with pytest.raises(error, match=message):
            ReverseDiffusion(attached(), target=target, **STEP)

    def test_score_without_energy(self):
        atoms = cluster()
        atoms.calc = ScoreCalculator(Swirl())
        with pytest.raises(ValueError, match="no energy.*keep this score as the drift"):
            ReverseDiffusion(atoms, target="model", **STEP)
        # the remedy
        assert ReverseDiffusion(atoms, target=Harmonic(0.1), **STEP).run(3)

    def test_others(self):
        with pytest.raises(ValueError, match="proposal_steps=2 without a target"):
            ReverseDiffusion(attached(), proposal_steps=2, **STEP)
        with pytest.raises(ValueError, match="at least 1"):
            ReverseDiffusion(attached(), target="model", proposal_steps=0, **STEP)
        with pytest.raises(ValueError, match="memory that the target lacks"):
            ReverseDiffusion(attached(bias=Count()), target=Harmonic(1.0), **STEP)

    def test_large_steps_are_rejected_not_refused(self):
        atoms = attached()
        dyn = ReverseDiffusion(atoms, target="model", temperature_K=30, spring=0.5, rng=1)
        dyn.run(20)
        assert dyn.acceptance < 0.2 and np.isfinite(atoms.positions).all()

    def test_changed_calculator_and_cell(self):
        """The target follows the atoms."""
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.02, seed=1)
        atoms.calc = AseLennardJones(sigma=2.3, epsilon=0.4, rc=5.0)
        dyn = ReverseDiffusion(atoms, temperature_K=300, spring=1e4, target=EMT(), rng=1)
        dyn.run(2)
        atoms.set_cell(atoms.cell * 1.01, scale_atoms=True)
        dyn.run(2)
        fresh = atoms.copy()
        fresh.calc = EMT()
        assert float(dyn.state.energy) == pytest.approx(fresh.get_potential_energy())


class TestMonteCarlo:
    def kernel(self, atoms, h=1 / 2000):
        proposal = EulerMaruyama(argon(System.from_atoms(atoms)), kT=30 * kB, h=h)
        return Metropolis(proposal, Harmonic(0.05))

    def test_is_run(self, tmp_path):
        atoms = cluster()
        start, kernel = torch.tensor(atoms.positions), self.kernel(atoms)
        seen: list[int] = []
        with MonteCarlo(
            atoms, kernel, rng=7, trajectory=str(tmp_path / "a.traj"), logfile=tmp_path / "log",
            loginterval=5,
        ) as dyn:  # fmt: skip
            dyn.attach(lambda: seen.append(dyn.nsteps), interval=10)
            assert list(dyn.irun(2)) == [False, False, True]
            assert dyn.run(18) is True
        *_, (state, _) = run(kernel, start, 20, noise=Noise(7))
        assert np.array_equal(atoms.positions, state.x.numpy())
        assert seen == [0, 10, 20] and atoms.calc is None
        frames = read(tmp_path / "a.traj@:")
        assert [f.info["step"] for f in frames] == [0, 5, 10, 15, 20]
        assert frames[-1].get_potential_energy() == pytest.approx(float(state.energy))
        rows = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
        assert rows[0] == "Step Walkers Etarget[eV] Accept Failed Evals/s".split()
        assert float(rows[-1][3]) == pytest.approx(dyn.acceptance, abs=1e-4)
        assert json.loads(json.dumps(dyn.todict()))["kernel"] == "Metropolis"
        assert dyn.get_time() == 20

    def test_batch_restart_and_adaptation(self):
        def images():
            batch = [cluster() for _ in range(3)]
            for i, image in enumerate(batch):
                image.rattle(0.02, seed=i)
            return batch

        whole, parts = images(), images()
        kernel = self.kernel(whole[0])
        MonteCarlo(whole, kernel, rng=7).run(12)
        first = MonteCarlo(parts, kernel, rng=7)
        first.run(5)
        second = MonteCarlo(again := images(), kernel, rng=7)
        second.state = first.state
        second.run(7)
        for a, b in zip(whole, again, strict=True):
            assert np.array_equal(a.positions, b.positions)
        record = second.adapt(20)
        assert second.kernel.proposal.h == pytest.approx(record.factor / 2000)

    def test_plain_kernel(self):
        atoms = cluster()
        kernel = EulerMaruyama(argon(System.from_atoms(atoms)), kT=30 * kB, h=1 / 2000)
        dyn = MonteCarlo(atoms, kernel, rng=7)
        dyn.run(3)
        assert math.isnan(dyn.acceptance)

    def test_temperatures_go_on_with_the_walkers_that_are_left(self):
        """kT of each walker; the others are bitwise as if the lost one had never been there."""
        kT = torch.tensor([0.5, 1.0, 2.0])
        places = [-50.0, 0.9, -40.0]  # of a wall at 1 Å, behind which nothing is finite

        def images(rows):
            return [Atoms("He", [[places[i], 0, 0]]) for i in rows]

        some = images(range(3))
        dyn = MonteCarlo(some, EulerMaruyama(Cliff(), kT=kT, h=0.1), rng=2)
        with pytest.warns(RuntimeWarning, match=r"walkers \[1\] diverged"):
            dyn.run(40)
        assert list(dyn.lost) == [1] and dyn.kernel.kT.tolist() == [0.5, 2.0]
        start = EulerMaruyama(Cliff(), kT=kT[[0, 2]], h=0.1)
        x = torch.tensor(np.stack([image.positions for image in images((0, 2))]))
        first = start.init(x, walkers=torch.tensor([0, 2]))
        *_, (never, _) = run(start, first, 40, noise=Noise(2))
        left = np.stack([some[i].positions for i in (0, 2)])
        assert np.array_equal(left, never.x.numpy())
        # a user who moves the survivors, and one who brings back a state of theirs
        some[0].positions[0, 1] += 1.0
        dyn.run(1)
        again = MonteCarlo(images(range(3)), EulerMaruyama(Cliff(), kT=kT, h=0.1), rng=2)
        again.state = never
        assert again.kernel.kT.tolist() == [0.5, 2.0]
        again.run(1)

    def test_refusals(self):
        atoms = cluster()
        with pytest.raises(ValueError, match="bound to Cu4"):
            system = System.from_atoms(bulk("Cu", cubic=True))
            MonteCarlo(atoms, EulerMaruyama(Harmonic(1.0, system=system), kT=1.0, h=0.1))
        held = cluster()
        held.set_constraint(FixCom())
        with pytest.raises(ValueError, match=names("FixCom", "FixAtoms", "mean_free=True")):
            MonteCarlo(held, self.kernel(held))
        held.set_constraint(FixAtoms([0]))
        with pytest.raises(ValueError, match="h = 0"):
            MonteCarlo(held, self.kernel(held), rng=1).run(20)
        h = torch.tensor([0.0, 1.0, 1.0, 1.0]) / 2000
        assert MonteCarlo(held, self.kernel(held, h=h), rng=1).run(20)


class TestObserver:
    """A bias with memory under dynamics that are not ours."""

    def atoms(self, memory: Potential):
        atoms = cluster()
        model = Counted(argon(System.from_atoms(atoms)))
        atoms.calc = ScoreCalculator(model, bias=memory)
        return atoms, model

    @pytest.mark.parametrize(
        "make",
        [
            lambda a: Langevin(
                a, 1 * fs, temperature_K=30, friction=0.01 / fs, rng=np.random, fixcm=False
            ),
            lambda a: VelocityVerlet(a, 1 * fs),
            lambda a: BFGS(a, logfile=None),
        ],
        ids=["Langevin", "VelocityVerlet", "BFGS"],
    )
    def test_once_per_step(self, make):
        np.random.seed(1)  # noqa: NPY002  # ASE's Langevin
        memory = Count()
        atoms, model = self.atoms(memory)
        dyn = make(atoms)
        dyn.attach(memory.observer(dyn))
        steps = {"steps": 6} if not isinstance(dyn, BFGS) else {"fmax": 1e-9, "steps": 6}
        dyn.run(**steps)
        assert memory.steps == [1, 2, 3, 4, 5, 6]
        atoms.get_forces()
        # what has learned is felt: energy is the number of steps
        fresh = attached()
        fresh.positions = atoms.positions
        assert atoms.get_potential_energy() == pytest.approx(fresh.get_potential_energy() + 6)
        assert model.count <= 7  # only the bias was evaluated again

    def test_the_next_force_knows_the_hill(self):
        """By hand: a drift that grows with each step."""

        class Growing(Count):
            def __call__(self, x):
                value = super().__call__(x)
                return value._replace(forces=torch.ones_like(x) * len(self.steps))

        memory = Growing()
        atoms = Atoms("He", [[0.0, 0, 0]])
        atoms.calc = ScoreCalculator(Harmonic(0.0), bias=memory)
        dyn = VelocityVerlet(atoms, 1.0)
        dyn.attach(memory.observer(dyn))
        dyn.run(2)
        # hills act from the step after: v = 0, x₁ = 0, then force 1, x₂ = ½ Δt²/m
        m = atoms.get_masses()[0]
        np.testing.assert_allclose(atoms.positions, np.full((1, 3), 0.5 / m), rtol=1e-12)

    def test_again_is_once(self):
        memory = Count()
        atoms, _ = self.atoms(memory)
        dyn = VelocityVerlet(atoms, 1 * fs)
        observer = memory.observer(dyn)
        observer()
        assert memory.steps == []
        dyn.attach(observer)
        dyn.attach(observer)
        dyn.run(3)
        assert memory.steps == [1, 2, 3]

    def test_no_change_no_reset(self):
        class Silent(Count):
            def update(self, x, step):
                super().update(x, step)
                return False

        memory = Silent()
        atoms, model = self.atoms(memory)
        dyn = VelocityVerlet(atoms, 1 * fs)
        dyn.attach(memory.observer(dyn))
        dyn.run(3)
        assert memory.steps == [1, 2, 3] and model.count == 4 and memory.calls == 4


class Named(Count):
    """Says the first coordinate, and its energy: the number of updates."""

    def describe(self, x):
        return {"s": x[..., 0, 0], "bias": x.new_full(x.shape[:-2], float(len(self.steps)))}


class TestBiasSays:
    """Energy and variables of a bias in the log and in the frames, after it has learned."""

    @pytest.mark.parametrize(
        "target", [None, "model", Harmonic(0.05)], ids=["none", "model", "potential"]
    )
    def test_one_walker(self, tmp_path, target):
        atoms = attached()
        ReverseDiffusion(
            atoms, bias=Named(), target=target, logfile=tmp_path / "log",
            trajectory=str(tmp_path / "a.traj"), **STEP,
        ).run(4)  # fmt: skip
        frames = read(tmp_path / "a.traj@:")
        assert [f.info["s"] for f in frames] == [f.positions[0, 0] for f in frames]
        assert [f.info["bias"] for f in frames] == [0, 1, 2, 3, 4]
        energies = [f.info["bias_energy"] for f in frames]
        np.testing.assert_allclose(energies, [0, 1, 2, 3, 4], atol=1e-12)
        head, *rows = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
        s, bias = (head.index(name) for name in ("s", "bias"))
        assert [float(row[bias]) for row in rows] == [0, 1, 2, 3, 4]
        assert float(rows[-1][s]) == pytest.approx(atoms.positions[0, 0], abs=1e-4)
        assert head.index("Bias[eV]") < s

    def test_a_batch(self, tmp_path):
        images = [attached(), cluster()]
        images[1].rattle(0.02, seed=1)
        dyn = BatchReverseDiffusion(
            images, bias=Named() + Named(), logfile=tmp_path / "log",
            trajectory=str(tmp_path / "a.traj"), **STEP,
        )  # fmt: skip
        dyn.run(2)
        frames = read(tmp_path / "a.traj@:")
        assert len(frames) == 6  # three of each
        for frame in frames:
            assert frame.info["s"] == frame.positions[0, 0] == frame.info["s_1"]
            assert frame.info["bias_energy"] == pytest.approx(2 * frame.info["step"])
        head, *rows = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
        mean = np.mean([image.positions[0, 0] for image in images])
        assert float(rows[-1][head.index("s")]) == pytest.approx(mean, abs=1e-4)

    @pytest.mark.parametrize("late", [False, True])
    def test_plain_ase_dynamics(self, tmp_path, late):
        """The bias that acted, of the same positions, whenever the trajectory was attached."""
        bias, atoms = Named(), cluster()
        atoms.calc = ScoreCalculator(argon(System.from_atoms(atoms)), bias=bias)
        path = str(tmp_path / "a.traj")
        with VelocityVerlet(atoms, 1 * fs, trajectory=None if late else path) as dyn:
            dyn.attach(bias.observer(dyn))
            if late:
                dyn.attach(dyn.closelater(Trajectory(path, "w", atoms)))
            dyn.run(3)
        frames = read(path + "@:")
        assert [f.info["s"] for f in frames] == [f.positions[0, 0] for f in frames]
        assert [f.info["bias"] for f in frames] == [0, 0, 1, 2]

    def test_restart_with_memory(self):
        """State and checkpoint of the bias, in a new process: the uninterrupted run."""

        class Kept(Named):
            def __call__(self, x):
                value = super().__call__(x)
                return value._replace(forces=value.forces * len(self.steps))

            def checkpoint(self):
                return {"steps": self.steps}

            def restore(self, saved, x, step):
                self.steps = list(saved["steps"])

        def run_of(steps, bias, state=None):
            atoms = attached()
            dyn = ReverseDiffusion(atoms, bias=bias, target="model", **STEP)
            if state is not None:
                dyn.state = state
            dyn.run(steps)
            return dyn

        whole = run_of(12, Kept())
        bias, again = Kept(), Kept()
        state = run_of(5, bias).state
        again.restore(json.loads(json.dumps(bias.checkpoint())), state.x, state.step)
        parts = run_of(7, again, state)
        assert np.array_equal(whole.atoms.positions, parts.atoms.positions)
        assert again.steps == list(range(1, 13))
        forgets = run_of(7, Kept(), state)
        assert not np.array_equal(whole.atoms.positions, forgets.atoms.positions)


def test_ase_potential_of_a_bound_target():
    """A potential that a user made of a calculator is taken as it is: failures raise."""
    atoms = bulk("Cu", cubic=True)
    atoms.calc = EMT()
    system = System.from_atoms(atoms)
    dyn = ReverseDiffusion(
        atoms, temperature_K=300, spring=3000, rng=1, target=AsePotential(EMT(), system)
    )
    assert dyn.run(3)
