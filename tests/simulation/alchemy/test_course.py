"""Runs of couplings whose free energy is known, by every protocol, stopped and gone on with."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.units import kB
from messages import names
from pydantic import ValidationError

from diffmd_ase.analysis.alchemy.einstein import harmonic_log_z
from diffmd_ase.analysis.alchemy.estimates import closure
from diffmd_ase.io.trajectory import Trajectory
from diffmd_ase.noise import Noise
from diffmd_ase.potentials.analytic import GaussianMixture, Harmonic, HarmonicCrystal
from diffmd_ase.potentials.ase_calculator import AsePotential
from diffmd_ase.sampling.run import run
from diffmd_ase.simulation.alchemy.course import alchemy
from diffmd_ase.simulation.alchemy.end_states import couple
from diffmd_ase.simulation.alchemy.plan import first_pass
from diffmd_ase.simulation.alchemy.settings import AlchemySettings
from diffmd_ase.system import System

pytest.importorskip("alchemlyb")

KT = 0.1
# a cell, so that nobody holds the centre of atoms in an external field
ATOM = Atoms("Ar", cell=[50, 50, 50], pbc=True)
SYSTEM = System.from_atoms(ATOM)
WELLS = Harmonic(1.0, system=SYSTEM), Harmonic(3.0, centre=[0.5, 0, 0], system=SYSTEM)
EXACT = 1.5 * np.log(3.0)
PROTOCOLS = ["windows", "exchange", "expanded", "switching", "smc"]


def coupled(start=WELLS[0], end=WELLS[1], atoms=ATOM, **options):
    return couple(start, end, atoms, temperature_K=KT / kB, **options)


def settings(tmp_path, **options):
    default = {"walkers": 8, "steps": 300, "first_pass": 100, "switch_steps": 12, "every": 5}
    named = {"start": "A", "end": "B", "structure": "none"}
    place = {"prefix": str(tmp_path / "run"), "temperature": KT / kB}
    return AlchemySettings(**(named | default | place | options))


@pytest.mark.parametrize("protocol", ["expanded"])  # the others are below, or slow
def test_two_wells(tmp_path, protocol):
    result = alchemy(settings(tmp_path, protocol=protocol), kernels=coupled())
    z = (result.best.value - EXACT) / result.best.error
    assert abs(z) < 4 and result.best.error < 0.3, result
    told = json.loads((tmp_path / "run.alchemy.json").read_text())
    assert told["dF_kT"] == pytest.approx(result.best.value)
    assert told["verdicts"] and told["evaluations_for_0.1_kT"] > 0
    assert (tmp_path / "run.png").stat().st_size > 1000 and all(map(Path.exists, result.files))
    with pytest.raises(FileExistsError, match=names("exists")):
        alchemy(settings(tmp_path, protocol=protocol), kernels=coupled())


def test_frames_keep_lambda_and_its_derivative(tmp_path):
    options = {"protocol": "windows", "windows": 3, "walkers": 2, "steps": 100, "first_pass": 40}
    alchemy(settings(tmp_path, **options), kernels=coupled())
    trajectory = Trajectory(tmp_path / "run.h5")
    lam, slope = trajectory.columns["lambda"], trajectory.columns["dudl"]
    assert lam.shape == (21, 6) and np.unique(lam).tolist() == [0.0, np.unique(lam)[1], 1.0]
    x = torch.as_tensor(trajectory.positions[:], dtype=torch.float64)
    gap = WELLS[1](x).energy - WELLS[0](x).energy
    np.testing.assert_allclose(slope, gap, atol=1e-5)
    trajectory.write(tmp_path / "one.extxyz", 2)
    import ase.io

    kept = ase.io.read(tmp_path / "one.extxyz", ":")
    assert [f.info["lambda"] for f in kept] == lam[:, 2].tolist()
    np.testing.assert_allclose([f.info["dudl"] for f in kept], slope[:, 2], rtol=1e-6)


class Stopped(Exception):
    """What an interruption is here."""


@pytest.mark.parametrize(
    ("protocol", "stage"),
    [("exchange", "sampling"), ("switching", "switching")],
)
def test_a_run_that_was_stopped_goes_on(tmp_path, protocol, stage):
    options = {
        "protocol": protocol,
        "walkers": 2 if protocol == "exchange" else 1,
        "steps": 100,
        "first_pass": 40,
        "switch_steps": 6,
    }
    whole, again = settings(tmp_path / "a", **options), settings(tmp_path / "b", **options)
    for folder in "ab":
        (tmp_path / folder).mkdir()
    expected = alchemy(whole, kernels=coupled())

    def stop(at, done):
        if at == stage and 0.3 < done < 1:
            raise Stopped

    with pytest.raises(Stopped):
        alchemy(again, kernels=coupled(), progress=stop)
    assert alchemy(again, restart=True, kernels=coupled()).best == expected.best


class Flaky(Calculator):
    """Anharmonic springs, which fail at some of their calls."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012

    def __init__(self, sites, fails):
        super().__init__()
        self.sites, self.fails, self.calls = sites, fails, 0

    def calculate(self, *args, **kwargs):
        self.calls += 1
        if self.fails(self.calls):
            raise RuntimeError("no convergence")
        super().calculate(*args, **kwargs)
        away = self.atoms.positions - self.sites
        self.results = {"energy": (away**2 + away**4).sum(), "forces": -2 * away - 4 * away**3}


def crystal(fails, failures):
    atoms = bulk("Cu", cubic=True)
    flaky = Flaky(atoms.positions.copy(), fails)
    end = AsePotential(flaky, System.from_atoms(atoms), failures=failures)
    return couple("einstein", end, atoms, temperature_K=300.0, start_options={"k": 5.0})


def test_a_calculator_that_fails_for_good_costs_nothing(tmp_path):
    options = {"protocol": "windows", "windows": 2, "walkers": 1, "steps": 100, "first_pass": 20}
    options["temperature"] = 300.0
    with pytest.raises(RuntimeError, match=names("Flaky", "no convergence")):
        alchemy(settings(tmp_path, **options), kernels=crystal(lambda n: n == 300, "raise"))
    assert (tmp_path / "run.plan.npz").exists() and Trajectory(tmp_path / "run.h5").steps[-1] > 0
    after = alchemy(
        settings(tmp_path, **options), restart=True, kernels=crystal(lambda n: False, "raise")
    )
    (tmp_path / "other").mkdir()
    whole = alchemy(
        settings(tmp_path / "other", **options), kernels=crystal(lambda n: False, "raise")
    )
    assert after.best == whole.best


def test_structures_that_fail_are_rejected_and_counted(tmp_path):
    options = {"protocol": "windows", "windows": 2, "walkers": 1, "steps": 100, "first_pass": 20}
    options["temperature"] = 300.0
    result = alchemy(
        settings(tmp_path, **options), kernels=crystal(lambda n: n > 50 and n % 40 == 0, "reject")
    )
    [said] = [v["text"] for v in result.verdicts if "failed for" in v["text"]]
    assert "Flaky" in said and "no convergence" in said and np.isfinite(result.best.value)


def test_an_einstein_crystal_with_other_springs(tmp_path):
    """Exact, with the centre held: ``(3/2)(N-1) ln(k_B/k_A)``."""
    atoms = bulk("Cu", cubic=True)
    springs = {"start_options": {"k": 1.0}, "end_options": {"k": 3.0}}
    made = coupled("einstein", "einstein", atoms, **springs)
    result = alchemy(settings(tmp_path, protocol="exchange", start="einstein"), kernels=made)
    assert abs(result.best.value - 4.5 * np.log(3.0)) < 4 * result.best.error < 1.0
    k = 3.0  # and so the absolute one is that of the other crystal
    log_z = 4.5 * np.log(2 * np.pi * KT / k) + 1.5 * np.log(4) + np.log(atoms.get_volume() / 4)
    exact = -KT * log_z / 4
    error = result.numbers["F_error_eV_per_atom"]
    assert abs(result.numbers["F_configurational_eV_per_atom"] - exact) < 4 * error


def test_a_crystal_of_unequal_springs(tmp_path):
    """Exact again; its eigenvalues are a factor of 5 apart, as those of copper are."""
    atoms = bulk("Cu", cubic=True)
    d = np.linalg.norm(atoms.get_all_distances(mic=True, vector=True) + 1e-9, axis=-1)
    bonds = np.where((d > 1) & (d < 3), 1.0, 0.0)
    bonds[0] *= 4
    bonds[:, 0] *= 4
    K = np.kron(np.diag(bonds.sum(1)) - bonds, np.eye(3))
    end = HarmonicCrystal(K, centre=atoms.positions, system=System.from_atoms(atoms))
    made = coupled("einstein", end, atoms)
    result = alchemy(settings(tmp_path, protocol="exchange", start="einstein"), kernels=made)
    log_z = harmonic_log_z(np.linalg.eigvalsh(K), KT, 4) + np.log(atoms.get_volume() / 4)
    error, F = (result.numbers[f"F_{n}_eV_per_atom"] for n in ("error", "configurational"))
    assert abs(F + KT * log_z / 4) < 4 * error < 0.05
    assert result.numbers["lattice_shifts"] == 4


def test_no_window_stays_at_the_sites():
    """There every Metropolis step of the size that suits the law goes up by many kT."""
    atoms = bulk("Cu", cubic=True).repeat(2)
    made = coupled("einstein", "einstein", atoms, start_options={"k": 2.0}, end_options={"k": 3.0})
    plan = first_pass(made, 3, 40, noise=Noise(0))
    k = torch.tensor([2.0, 2.5, 3.0]).double()
    u = 0.5 * k * (torch.as_tensor(plan.x) - made.x).square().sum((1, 2)) / KT
    freedom = 0.5 * 3 * (len(atoms) - 1)
    assert (abs(u - freedom) < 4 * freedom**0.5).all(), u
    # the negative control: from the sites
    kernel = made.kernel(torch.zeros(1), factor=2.0)
    state = kernel.init(made.x[None])
    [(last, _)] = run(kernel, state, 40, noise=Noise(0), every=40)
    assert torch.equal(last.x, state.x)


def test_a_restart_with_other_settings_is_refused(tmp_path):
    options = {"protocol": "windows", "windows": 2, "walkers": 1, "steps": 100, "first_pass": 20}
    alchemy(settings(tmp_path, **options), kernels=coupled())
    for name, value in (("windows", 3), ("protocol", "exchange"), ("seed", 4)):
        other = settings(tmp_path, **(options | {name: value}))
        with pytest.raises(ValueError, match=names("restart of", name, str(value))):
            alchemy(other, restart=True, kernels=coupled())
    longer = alchemy(
        settings(tmp_path, **(options | {"steps": 200})), restart=True, kernels=coupled()
    )
    assert len(Trajectory(tmp_path / "run.h5").steps) == 41 and longer.best.error > 0


@pytest.mark.slow
def test_a_cycle_of_three_wells_closes(tmp_path):
    """Each leg is exact, and their sum zero to 0.05 kT; not so where one leg has another end."""
    stiff, places = (1.0, 2.0, 3.0), ([0, 0, 0], [0.2, 0, 0], [0, 0.2, 0])
    ends = [Harmonic(k, centre=c, system=SYSTEM) for k, c in zip(stiff, places, strict=True)]
    ends.append(Harmonic(1.2, system=SYSTEM))  # no end of the cycle
    legs = []
    for a, b in ((0, 1), (1, 2), (2, 0), (2, 3)):
        options = {"protocol": "exchange", "walkers": 100, "steps": 200, "windows": 3}
        options |= {"prefix": str(tmp_path / f"{a}{b}"), "seed": 7 + a}
        made = alchemy(settings(tmp_path, **options), kernels=coupled(ends[a], ends[b]))
        exact = 1.5 * np.log([1.0, 2.0, 3.0, 1.2][b] / stiff[a])
        assert abs(made.best.value - exact) < 4 * made.best.error
        legs.append(made.best)
    total, z, verdict = closure(legs[:3])
    assert verdict["good"] and abs(z) < 4 and total.error <= 0.05, verdict
    assert not closure([*legs[:2], legs[3]])[2]["good"]


def test_end_states_that_differ_by_nothing_are_said(tmp_path):
    with pytest.raises(ValueError, match=names("the same everywhere")):
        alchemy(settings(tmp_path), kernels=coupled(WELLS[0], WELLS[0]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"windows": 1}, "--windows 1"),
        ({"protocol": "smc", "plain": True}, "--plain"),
        ({"protocol": "smc", "walkers": 1}, "population"),
        ({"protocol": "diffusion", "walkers": 1}, "population"),
        ({"protocol": "diffusion", "plain": True}, "--plain"),
        ({"steps": 50, "every": 10}, "20 frames"),
        ({"start_options": "[1]"}, "--start-options"),
        ({"protocol": "magic"}, "windows"),
        ({"temperature": -1.0}, "temperature"),
    ],
)
def test_settings_that_contradict_each_other(tmp_path, change, said):
    with pytest.raises(ValidationError, match=names(said)):
        settings(tmp_path, **change)


def test_end_states_that_do_not_fit_are_refused():
    atoms = bulk("Cu", cubic=True)
    more = atoms.repeat((2, 1, 1))
    with pytest.raises(ValueError, match=names("end states differ", "8 atoms")):
        couple("emt", "emt", atoms, temperature_K=300, end_atoms=more)
    with pytest.raises(ValueError, match=names("another order", "atom 1", "atom 3")):
        couple("emt", "emt", atoms, temperature_K=300, end_atoms=atoms[[0, 3, 2, 1]])
    with pytest.raises(ValueError, match=names("end 'nobody'")):
        couple("emt", "nobody", atoms, temperature_K=300)
    with pytest.raises(ValueError, match=names("k (eV/Å²)", "stiff")):
        couple("einstein", "emt", atoms, temperature_K=300, start_options={"stiff": 1})
    with pytest.raises(ValueError, match=names("two Einstein crystals")):
        couple("einstein", "einstein", atoms, temperature_K=300)
    with pytest.raises(ValueError, match=names("that of the other end")):
        couple("einstein", "harmonic", atoms, temperature_K=300)
    with pytest.raises(ValueError, match=names("no options", "k")):
        couple("harmonic", "emt", atoms, temperature_K=300, start_options={"k": 1})
    atoms.positions[0] += 1.3
    with pytest.raises(ValueError, match=names("relax the crystal")):
        couple("harmonic", "emt", atoms, temperature_K=300)


def test_noise_leads_to_models_only(tmp_path):
    with pytest.raises(ValueError, match=names("--protocol diffusion", "Harmonic", "smc")):
        alchemy(settings(tmp_path, protocol="diffusion"), kernels=coupled())


@pytest.mark.slow
def test_from_noise_to_a_force_field(tmp_path):
    """ΔF of tutorial 5, which has it from dynamics and snapshots, without either."""
    openmm = pytest.importorskip("diffmd_openmm")
    atoms, amber = openmm.alanine_dipeptide()
    options = {"walkers": 6, "steps": 500, "switch_steps": 10, "temperature": 300.0}
    made = couple("alanine-dipeptide", openmm.OpenMMPotential(System.from_atoms(atoms), amber),
                  atoms, temperature_K=300.0)  # fmt: skip
    result = alchemy(settings(tmp_path, protocol="diffusion", **options), kernels=made)
    z = (result.best.value - 254.649) / np.hypot(result.best.error, 0.016)
    assert abs(z) < 4 and result.best.error < 0.3, result


def mixtures():
    """Two mixtures of Gaussians, and ΔF/kT by quadrature on a grid of one plane."""
    one, two = (
        GaussianMixture(means, variances, weights, kT=kT, system=SYSTEM)
        for means, variances, weights, kT in (
            ([[[-0.6, 0, 0]], [[0.7, 0.2, 0]]], [0.25, 0.3], [0.6, 0.4], KT),
            ([[[0.2, -0.4, 0]], [[-0.3, 0.5, 0]]], [0.35, 0.2], [0.3, 0.7], 1.3 * KT),
        )
    )
    line = torch.linspace(-4, 4, 101, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line, line)[:, None]
    log_z = [torch.logsumexp(-p(grid).energy / KT, 0) for p in (one, two)]
    return one, two, float(log_z[0] - log_z[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "protocol"),
    [*(("wells", p) for p in PROTOCOLS), ("mixtures", "exchange"), ("mixtures", "switching")],
)
def test_exact_cases_to_two_hundredths_of_kT(tmp_path, case, protocol):
    ends, exact = WELLS, EXACT
    if case == "mixtures":
        one, two, exact = mixtures()
        ends = one, two
    # nine windows: with as few as the path asks for, the quadrature of TI is not exact
    big = {"walkers": 60, "steps": 1000, "every": 10, "switch_steps": 60, "first_pass": 400}
    big["windows"] = 9
    result = alchemy(settings(tmp_path, protocol=protocol, **big), kernels=coupled(*ends))
    numbers = result.numbers
    for name in ("MBAR", "BAR", "TI", "SMC"):
        if f"{name}_kT" not in numbers:
            continue
        z = (numbers[f"{name}_kT"] - exact) / numbers[f"{name}_error_kT"]
        assert abs(z) < 4 and numbers[f"{name}_error_kT"] <= 0.02, (name, z, numbers)
