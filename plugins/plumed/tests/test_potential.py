"""The potential: exact values, purity, memory, walkers."""

import math
import os
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import units
from ase.calculators.fd import calculate_numerical_forces
from ase.geometry import find_mic
from ase.md.langevin import Langevin
from ase.optimize import BFGS
from diffmd_plumed import (
    ASE_UNITS,
    Driver,
    PlumedPotential,
)
from six_atoms import COLVAR, CVS, HILLS, KT, METAD, SYSTEM, hills

from diffmd_ase import BatchReverseDiffusion, ReverseDiffusion, ScoreCalculator
from diffmd_ase.noise import Noise
from diffmd_ase.potentials.analytic import Harmonic
from diffmd_ase.potentials.biases.recorded import Frozen
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.sampling.kernels import DivergedError
from diffmd_ase.sampling.metropolis import Metropolis
from diffmd_ase.sampling.run import advance, run
from diffmd_ase.system import System
from diffmd_ase.testing import check_potential


class TestPotential:
    def test_conformance(self, make, x, rng):
        potential = make(METAD)
        for step in range(1, 9):
            potential.update(x + 0.05 * torch.tensor(rng.normal(size=(6, 3))), step)
        beside = x + 0.3 * torch.tensor(rng.normal(size=(6, 3)))
        assert potential(beside).forces.abs().max() > 1e-3
        check_potential_with_steps(potential, beside, 8)

    def test_stress_and_forces_in_a_cell(self, make, x, rng):
        cell = np.diag([8.0, 9.0, 10.0]) + 0.3 * rng.normal(size=(3, 3))
        system = System([6] * 6, [12.0] * 6, cell, [True] * 3)
        lines = [*CVS, "RESTRAINT ARG=d,t AT=0.1,1 KAPPA=100,10"]
        check_potential(
            make(lines, system),
            x,
            factory=lambda strained: make(lines, strained),
            translation_invariant=True,
        )
        potential, batch = make(lines, system), torch.stack([x, 1.1 * x])
        stress = potential(batch, stress=True).stress
        singles = torch.stack([potential(frame, stress=True).stress for frame in batch])
        assert torch.equal(stress, singles) and stress.abs().min() > 0

    def test_shortest_distance_in_a_cell(self, make):
        """Rows of the cell are its vectors: they differ from the columns."""
        cell = np.array([[6.0, 0, 0], [2.5, 7.0, 0], [1.0, -2.0, 8.0]])
        x = torch.tensor([[0.2, 0.1, 0.3], [4.4, 6.0, 5.0]], dtype=torch.float64)
        _, exact = find_mic((x[1] - x[0]).numpy(), cell)
        assert exact < 0.9 * float((x[1] - x[0]).norm())
        lines = [CVS[0], "RESTRAINT ARG=d AT=0 KAPPA=2"]
        energy = float(make(lines, System([6, 6], [12.0] * 2, cell, [True] * 3))(x).energy)
        assert energy * ASE_UNITS.energy == pytest.approx((0.1 * exact) ** 2, rel=1e-10)

    def test_charges(self, make, x):
        q = np.array([0.5, -0.3, 0.2, 0.1, -0.1, -0.4])
        lines = ["p: DIPOLE GROUP=1-6", "RESTRAINT ARG=p AT=0 KAPPA=2"]
        energy = float(make(lines, charges=q)(x).energy) * ASE_UNITS.energy
        assert energy == pytest.approx(0.01 * np.square(q @ x.numpy()).sum(), rel=1e-10)

    @pytest.mark.parametrize("atoms", [9, 132, 1000])
    def test_masses(self, make, rng, atoms):
        """A mass-weighted CV: the pointer to the masses must stay good."""
        masses = rng.uniform(1, 50, atoms)
        system = System([1] * atoms, masses)
        x = torch.tensor(rng.normal(size=(atoms, 3)))
        lines = [
            f"c: COM ATOMS=2-{atoms}",
            "d: DISTANCE ATOMS=1,c",
            "RESTRAINT ARG=d AT=0 KAPPA=50",
        ]
        value = make(lines, system)(x)
        com = (masses[1:, None] * x.numpy()[1:]).sum(0) / masses[1:].sum()
        d = np.linalg.norm(x.numpy()[0] - com)
        exact = 0.5 * 50 * (0.1 * d) ** 2 / ASE_UNITS.energy
        assert float(value.energy) == pytest.approx(exact, rel=1e-12)
        assert float(value.forces[0].norm()) == pytest.approx(2 * exact / d, rel=1e-10)

    @pytest.mark.parametrize("atoms", [9, 132, 1000])
    def test_energy_bias(self, make, rng, atoms):
        """V = κ(U − U₀)²/2 has forces κ(U − U₀) F: they are scaled, not lost."""
        system = System([1] * atoms, [1.0] * atoms)
        model = Harmonic(0.7, system=system)
        x = torch.tensor(rng.normal(size=(2, atoms, 3)))
        bias = make(["e: ENERGY", "RESTRAINT ARG=e AT=3 KAPPA=0.01"], system)
        assert bias.needs_base
        base, total = model(x), (model + bias)(x)
        u = base.energy * ASE_UNITS.energy
        exact = base.energy + 0.005 * (u - 3).square() / ASE_UNITS.energy
        torch.testing.assert_close(total.energy, exact, rtol=1e-10, atol=0)
        scale = (1 + 0.01 * (u - 3))[:, None, None]
        torch.testing.assert_close(total.forces, scale * base.forces, rtol=1e-9, atol=1e-9)
        with pytest.raises(ValueError, match="energy"):
            bias(x)

    def test_energy_bias_in_a_run(self, make):
        system = System([1] * 3, [1.0] * 3)
        lines = ["e: ENERGY", "m: METAD ARG=e SIGMA=1 HEIGHT=1 PACE=2"]
        bias = make(lines, system)
        sampler = Metropolis(EulerMaruyama(Harmonic(0.5, system=system) + bias, kT=KT, h=0.02))
        start = torch.zeros(2, 3, 3).double()
        *_, (state, _) = run(sampler, start, 10, noise=Noise(0))
        assert len(hills(bias)) == 10
        expected = Harmonic(0.5)(state.x).energy * ASE_UNITS.energy
        np.testing.assert_allclose(bias.values()["e"], expected, rtol=1e-10)

    def test_energy_of_walkers_that_are_rejected_for_long(self, make):
        """Nobody evaluates them again, and their hills need their energy."""
        system = System([1] * 3, [1.0] * 3)
        bias = make(["e: ENERGY", "m: METAD ARG=e SIGMA=1 HEIGHT=1 PACE=20"], system)
        model = Harmonic(0.5, system=system)
        x = torch.ones(2, 3, 3).double()
        (model + bias)(x)
        for step in range(1, 21):
            (model + bias)(x + step)  # proposals
            bias.update(x, step)
        assert hills(bias)[:, 1].tolist() == pytest.approx([2.25 * ASE_UNITS.energy] * 2)
        with pytest.raises(ValueError, match="not known: evaluate model"):
            bias.update(x - 1, 40)

    def test_units_canary(self, make, x, tmp_path):
        """κ and r₀ in nm and kJ/mol; with UNITS in Å and eV; ENERGY in both."""
        r = float((x[0] - x[1]).norm())
        plain = make([CVS[0], "RESTRAINT ARG=d AT=0.1 KAPPA=100"])(x).energy
        assert float(plain) == pytest.approx(0.5 * 100 * (0.1 * r - 0.1) ** 2 / 96.48533, rel=1e-6)
        ase = ["UNITS LENGTH=A ENERGY=96.48533212331002", CVS[0], "RESTRAINT ARG=d AT=1 KAPPA=2"]
        assert float(make(ase)(x).energy) == pytest.approx((r - 1) ** 2, rel=1e-7)
        with Driver(0, ["t: TIME"], timestep=1.0, directory=tmp_path) as driver:
            driver.watch("t")
            driver.evaluate(step=2**40)
            assert driver.get_value("t") == pytest.approx(2**40 * 0.010180506, rel=1e-6)

    def test_no_box_without_pbc(self, make):
        """A cell without pbc is not a box."""
        system = System([6, 6], [12.0] * 2, np.diag([10.0] * 3), [False] * 3)
        x = torch.tensor([[0.0, 0, 0], [9.0, 0, 0]])
        lines = [CVS[0], "RESTRAINT ARG=d AT=0 KAPPA=1 SLOPE=0"]
        assert float(make(lines, system)(x).energy) == pytest.approx(
            0.5 * 0.81 / 96.48533, rel=1e-6
        )

    def test_working_directory_is_left_alone(self, make, x):
        before = os.getcwd()
        potential = make(METAD)
        potential.update(x, 1)
        assert os.getcwd() == before and not Path("HILLS").exists()


def check_potential_with_steps(potential, x, step):
    """`check_potential`, for one that has learned: its own update starts at step 1."""

    class Later(type(potential)):
        def update(self, x, more):
            return super().update(x, step + more)

    potential.__class__ = Later
    check_potential(potential, x)


class TestMemory:
    def test_many_evaluations_and_one_commit_are_one_hill(self, make, x):
        potential = make(METAD)
        for step in range(1, 5):
            for shift in range(25):
                potential(x + 0.01 * shift)
            assert potential.update(x, step) is (step == 4)
        rows = hills(potential)
        assert len(rows) == 1
        assert rows[0, 1] == pytest.approx(0.1 * float((x[0] - x[1]).norm()), rel=1e-12)
        with pytest.raises(ValueError, match="step 4 after step 4"):
            potential.update(x, 4)

    def test_evaluated_again_only_where_something_happens(self, make, x):
        potential = make([*CVS, HILLS, COLVAR.replace("STRIDE=2", "STRIDE=6")])
        potential._instances.require(1)
        [driver] = potential._instances.drivers
        steps = []
        original = driver.calculate
        driver.calculate = lambda *a: (steps.append(potential._instances.step), original(*a))[1]
        for step in range(1, 13):
            potential.update(x, step)
        assert [s for s in steps if s > 0 and (s % 4 == 0 or s % 6 == 0)] == [4, 6, 8, 12]
        assert len(steps) == 5  # and one quiet step that PLUMED takes for its first

    def test_a_schedule_changes_the_bias_at_every_step(self, make, x):
        """A chain keeps the energy of its state until it is told that the bias has changed."""
        moving = "MOVINGRESTRAINT ARG=d STEP0=0 AT0=0 KAPPA0=0 STEP1=10 AT1=0 KAPPA1=20"
        potential = make([CVS[0], moving, "PRINT ARG=d FILE=COLVAR STRIDE=7"])
        d = 0.1 * float((x[0] - x[1]).norm())
        for step in range(1, 13):
            assert potential.update(x, step)
            exact = 0.5 * 2 * min(step, 10) * d**2
            assert float(potential(x).energy) * ASE_UNITS.energy == pytest.approx(exact, rel=1e-10)

    @pytest.mark.parametrize("pace", [1, 3])
    def test_no_hill_is_swallowed_or_doubled(self, make, x, pace):
        lines = [CVS[0], f"m: METAD ARG=d SIGMA=0.1 HEIGHT=1 PACE={pace}"]
        potential = make(lines)
        for step in range(1, 7):
            potential.update(x.expand(4, 6, 3), step)
        times = hills(potential)[:, 0] / 0.010180506
        expected = [s for s in range(1, 7) if s % pace == 0 for _ in range(4)]
        np.testing.assert_allclose(times, expected, rtol=1e-6)

    def test_rejected_move_deposits_at_the_old_state(self, make, x):
        lines = [CVS[0], "m: METAD ARG=d SIGMA=0.02 HEIGHT=0.2 PACE=1"]
        bias = make(lines)
        model = Harmonic(30.0, centre=x, system=SYSTEM)
        kernel = Metropolis(EulerMaruyama(model + bias, kT=KT, h=4e-4))
        state, rejected, noise = kernel.init(x.clone()), 0, Noise(2)
        for number in range(60):
            old = state
            state, info = advance(kernel, state, noise)
            d = 0.1 * float((state.x[0] - state.x[1]).norm())
            assert hills(bias)[number, 1] == pytest.approx(d, rel=1e-12)
            if not info.accepted:
                rejected += 1
                assert torch.equal(state.x, old.x)
            # the state's energy is that of the bias after the hill
            exact = (model + bias)(state.x).energy
            torch.testing.assert_close(state.energy, exact, rtol=0, atol=1e-12)
        assert 5 < rejected < 55
        assert len(hills(bias)) == 60

    def test_plain_ase_dynamics(self, make, x):
        """A hill for each step that Langevin completes; none of BFGS, energies, differences."""
        bias = make([CVS[0], "m: METAD ARG=d SIGMA=0.1 HEIGHT=0.2 PACE=2"])
        atoms = SYSTEM.to_atoms(x.numpy())
        atoms.calc = ScoreCalculator(Harmonic(1.0, centre=x, system=SYSTEM), bias=bias)
        words = {"temperature_K": 300, "friction": 0.1, "fixcm": False}
        dyn = Langevin(atoms, 1 * units.fs, rng=np.random.RandomState(0), **words)
        dyn.attach(bias.observer(dyn))
        seen = []
        dyn.attach(lambda: seen.append(0.1 * atoms.get_distance(0, 1)))
        dyn.run(8)
        assert hills(bias)[:, 1].tolist() == pytest.approx(seen[2::2], rel=1e-12)
        biased = atoms.get_forces()
        numerical = calculate_numerical_forces(atoms, eps=1e-5)
        np.testing.assert_allclose(biased, numerical, atol=1e-6)
        BFGS(atoms, logfile=None).run(fmax=0.05, steps=20)
        assert len(hills(bias)) == 4

    @pytest.mark.parametrize("target", [None, "model"])
    @pytest.mark.parametrize("walkers", [1, 3])
    def test_files_are_there_after_a_run(self, make, x, walkers, target):
        """Who reads COLVAR next finds it whole, and a frozen bias adds nothing to it."""
        lines = [CVS[0], "m: METAD ARG=d SIGMA=0.1 HEIGHT=0.2 PACE=2"]
        bias = make([*lines, "PRINT ARG=d,m.bias FILE=COLVAR"])
        images = [SYSTEM.to_atoms(x.numpy()) for _ in range(walkers)]
        images[0].calc = ScoreCalculator(Harmonic(1.0, centre=x, system=SYSTEM))
        kind = BatchReverseDiffusion if walkers > 1 else ReverseDiffusion
        system = images if walkers > 1 else images[0]
        words = {"temperature_K": 300, "mobility": 1.0, "timestep": 0.01, "target": target}
        kind(system, bias=bias, rng=1, **words).run(6)
        grown = np.loadtxt(bias.directory / "COLVAR")
        assert len(grown) == (1 + 6) * walkers  # not flushed, they are in a buffer
        before = bias(x).energy
        kind(system, bias=Frozen(bias), rng=1, **words).run(6)
        assert len(np.loadtxt(bias.directory / "COLVAR")) == len(grown)
        assert torch.equal(bias(x).energy, before) and before > 0


class TestWalkers:
    def test_multiplexed_equals_a_sequential_reference(self, make, rng, tmp_path):
        """16 walkers in one instance; the reference sums Gaussians in numpy, in order."""
        lines = [CVS[0], "w: EXTRACV NAME=walker", "m: METAD ARG=d SIGMA=0.03 HEIGHT=1 PACE=2"]
        potential = make([*lines, "PRINT ARG=w,d,m.bias FILE=COLVAR STRIDE=2"])
        x = torch.tensor(rng.normal(size=(6, 16, 6, 3)))
        d = 0.1 * (x[..., 0, :] - x[..., 1, :]).norm(dim=-1).numpy()
        centres, expected = [], []
        for step in range(1, 7):
            potential.update(x[step - 1], step)
            for walker in range(16):
                if step % 2 == 0:
                    s = d[step - 1, walker]
                    expected.append((walker, s, gaussians(s, centres)))
                    centres.append(s)
        potential.flush()
        table = np.loadtxt(potential.directory / "COLVAR")
        np.testing.assert_allclose(table[:, 1:], expected, atol=1e-6)
        np.testing.assert_allclose(hills(potential)[:, 1], centres, rtol=1e-12)
        energy = potential(x[0]).energy * ASE_UNITS.energy
        exact = [gaussians(s, centres) for s in d[0]]
        np.testing.assert_allclose(energy, exact, rtol=1e-9)

    def test_independent_equal_single_runs(self, make, rng):
        x = torch.tensor(rng.normal(size=(8, 3, 6, 3)))
        adaptive = [CVS[0], "o: OPES_METAD ARG=d PACE=2 BARRIER=20 ADAPTIVE_SIGMA_STRIDE=4"]
        together = make(adaptive, walkers="independent")
        singles = [make(adaptive) for _ in range(3)]
        together(x[0])
        for single, own in zip(singles, x[0], strict=True):
            single(own)  # where the run starts
        for step, frame in enumerate(x, 1):
            together.update(frame, step)
            for single, own in zip(singles, frame, strict=True):
                single.update(own, step)
        energy = together(x[:2]).energy
        exact = torch.tensor([[s(f[k]).energy for k, s in enumerate(singles)] for f in x[:2]])
        assert torch.equal(energy, exact) and energy.abs().max() > 1e-6
        assert sorted(p.name for p in together.directory.iterdir()) == [
            f"walker-{k}" for k in range(3)
        ]
        together.select(torch.tensor([True, False, True]))
        together.update(x[0][[0, 2]], 9)
        singles[2].update(x[0, 2], 9)
        assert float(together(x[0][[0, 2]]).energy[1]) == float(singles[2](x[0, 2]).energy)
        with pytest.raises(ValueError, match="3 walkers, but there are 2"):
            together(x[0])

    def test_lost_walkers_keep_their_tags(self, make, x):
        lines = [CVS[0], "w: EXTRACV NAME=walker", "PRINT ARG=w,d FILE=COLVAR"]
        bias = make([*lines, "RESTRAINT ARG=d AT=0.1 KAPPA=1"])
        kernel = EulerMaruyama(Harmonic(1.0, system=SYSTEM) + bias, kT=KT, h=1e-3)
        state = kernel.init(x.expand(3, 6, 3).clone())
        state, _ = advance(kernel, state, Noise(0))
        state.x[1] = torch.inf
        with pytest.raises(DivergedError) as caught:
            advance(kernel, state, Noise(0))
        advance(kernel, caught.value.survivors, Noise(0))
        bias.flush()
        assert np.loadtxt(bias.directory / "COLVAR")[:, 1].tolist() == [0, 1, 2, 0, 1, 2, 0, 2]

    @pytest.mark.parametrize(
        "line, name",
        [
            ("e: EXTENDED_LAGRANGIAN ARG=d KAPPA=20 TAU=1", "EXTENDED_LAGRANGIAN"),
            ("m: METAD ARG=d ADAPTIVE=DIFF SIGMA=20 HEIGHT=1 PACE=5", "METAD.*adaptive widths"),
            ("o: OPES_METAD ARG=d PACE=5 BARRIER=20", "OPES_METAD.*adaptive SIGMA"),
            ("c: COORDINATION GROUPA=1 GROUPB=2 R_0=1 NLIST NL_CUTOFF=2 NL_STRIDE=5", "neighbour"),
            ("COMMITTOR ARG=d BASIN_LL1=9 BASIN_UL1=10", "COMMITTOR"),
        ],
    )
    def test_actions_of_one_trajectory_are_refused(self, make, x, line, name):
        potential = make([CVS[0], line])
        potential(x)
        with pytest.raises(ValueError, match=f"{name}.*walkers='independent'"):
            potential(x.expand(2, 6, 3))

    def test_open_files_are_limited(self, make, x):
        potential = make(METAD, walkers="independent")
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
        try:
            with pytest.raises(ValueError, match="100 independent.*ulimit -n 364"):
                potential(x.expand(100, 6, 3))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def gaussians(s, centres, sigma=0.03):
    """Hills of height 1, as PLUMED cuts them: at 2·6.25 in the exponent, stretched to 0."""
    dp2 = 0.5 * ((s - np.array(centres)) / sigma) ** 2
    edge = math.exp(-6.25)
    return float(np.where(dp2 < 6.25, (np.exp(-dp2) - edge) / (1 - edge), 0.0).sum())


def test_committor_asks_to_stop(make, x):
    potential = make([CVS[0], "COMMITTOR ARG=d BASIN_LL1=0 BASIN_UL1=10"])
    with pytest.warns(UserWarning, match="PLUMED asks to stop"):
        potential.update(x, 1)
    assert potential.stopped


@pytest.mark.parametrize("walkers", ["shared", "independent"])
def test_describe_says_what_the_input_names(tmp_path, x, walkers):
    bias = PlumedPotential(SYSTEM, METAD, kT=KT, timestep=0.1, directory=tmp_path, walkers=walkers)
    batch = torch.stack([x, 1.1 * x])
    bias(batch)
    before = bias.checkpoint()
    said = bias.describe(batch)
    distance = (batch[:, 0] - batch[:, 1]).norm(dim=-1) / 10.0  # nm, of an input without UNITS
    torch.testing.assert_close(said["d"], distance)
    assert {"d", "t"} <= set(said) and all(value.shape == (2,) for value in said.values())
    assert bias.checkpoint() == before
    torch.testing.assert_close(
        bias.describe(x[None].expand(2, -1, -1))["d"], distance[:1].expand(2)
    )
