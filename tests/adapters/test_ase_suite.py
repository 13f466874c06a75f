"""ASE's own tests, imported from ``ase.test`` and run on our classes.

`drop_in` is EMT behind our calculator, so that a test written for EMT meets our cache,
conversions and error handling with numbers it knows. Where a step of 1 fs is outside the
stability of an overdamped step, the same body runs with a stable one.
"""

from functools import partial
from importlib import import_module
from types import SimpleNamespace

import matplotlib
import pytest
from ase.build import bulk
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.emt import EMT
from ase.calculators.tip3p import TIP3P
from ase.data import s22
from ase.md.logger import MDLogger
from ase.units import fs

from diffmd_ase.adapters.calculator import ScoreCalculator
from diffmd_ase.adapters.dynamics import ReverseDiffusion
from diffmd_ase.potentials.analytic import LennardJones
from diffmd_ase.potentials.ase_calculator import AsePotential

matplotlib.use("Agg")


def drop_in(**options) -> ScoreCalculator:
    return ScoreCalculator(lambda system: AsePotential(EMT(**options), system))


@pytest.fixture
def suite(request):
    """Loads a module of ase.test, whose marks must be known first."""
    for mark in ("calculator: ASE", "optimize: ASE"):
        request.config.addinivalue_line("markers", mark)
    return lambda name: import_module(f"ase.test.{name}")


@pytest.fixture
def testdir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


class TestCalculator:
    def test_traj(self, suite, testdir):
        ase_traj = suite("calculator.test_traj")
        ase_traj.test_h2_traj(SimpleNamespace(calc=drop_in), testdir)

    def test_finite_differences(self, suite, monkeypatch):
        ase_fd = suite("calculator.test_fd")
        monkeypatch.setattr(ase_fd, "EMT", drop_in)
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.1)
        ase_fd.test_fd(atoms.copy())
        ase_fd.test_analytical_forces(atoms.copy())
        ase_fd.test_analytical_stress(atoms.copy())

    def test_stress_shape(self, suite):
        """The total in both shapes; then the test asks for stresses of single atoms.

        Those do not exist for an energy that is not a sum over atoms, and the error says so.
        """
        ase_stress = suite("test_stress")
        atoms = bulk("Ar", "fcc", a=5.26)
        atoms.calc = ScoreCalculator(partial(LennardJones, epsilon=0.0104, sigma=3.4))
        with pytest.raises(PropertyNotImplementedError):
            ase_stress.test_stress_voigt_shape(atoms)
        assert atoms.get_stress(voigt=False).shape == (3, 3)

    def test_stress_and_cell_relaxation(self, suite, testdir):
        ase_stress = suite("test_stress")
        atoms = bulk("X", "fcc", a=ase_stress.a0)
        atoms.calc = ScoreCalculator(partial(LennardJones, epsilon=1.0, sigma=1.0))
        ase_stress.test_stress(atoms)

    def test_stress_of_a_crystal(self, suite, monkeypatch):
        ase_emt_stress = suite("emt.test_emt_stress")
        monkeypatch.setattr(ase_emt_stress, "EMT", drop_in)
        ase_emt_stress.test_emt_stress()

    def test_logging(self, suite, monkeypatch, testdir):
        ase_logging = suite("test_loggingcalc")
        import matplotlib.pyplot as plt

        monkeypatch.setattr(ase_logging, "EMT", drop_in)
        figure = plt.figure()
        ase_logging.test_loggingcalc(testdir, figure)
        plt.close("all")

    def test_singlepoint(self, suite, monkeypatch, testdir):
        ase_singlepoint = suite("test_singlepointcalc")
        monkeypatch.setattr(ase_singlepoint, "EMT", drop_in)
        ase_singlepoint.test_singlepointcalc(testdir)

    @pytest.mark.parametrize(
        "name", ["test_stress", "test_conflicting_fields", "test_save_calc_results"]
    )
    def test_extxyz(self, suite, name, monkeypatch, testdir):
        ase_extxyz = suite("fio.test_extxyz")
        monkeypatch.setattr(ase_extxyz, "EMT", drop_in)
        getattr(ase_extxyz, name)()

    @pytest.mark.parametrize("dbtype", ["json", "db"])
    def test_db(self, suite, dbtype, monkeypatch, testdir):
        ase_db2 = suite("db.test_db2")
        monkeypatch.setattr(ase_db2, "EMT", drop_in)
        ase_db2.test_db2(testdir, dbtype)

    @pytest.mark.filterwarnings("ignore:The default method has changed")
    @pytest.mark.parametrize(
        "name", ["test_no_shared_calc", "test_raising_parallel_errors", "test_freeze_method"]
    )
    def test_neb(self, suite, name, monkeypatch):
        ase_neb = suite("neb.test_shared_calculator_neb")
        monkeypatch.setattr(ase_neb, "EMT", drop_in)
        case = ase_neb.TestNEB()
        case.setup_class()
        getattr(case, name)()

    def test_mixing(self, suite, monkeypatch):
        ase_mixing = suite("test_mixingcalc")
        monkeypatch.setattr(ase_mixing, "EMT", drop_in)
        for name in sorted(n for n in dir(ase_mixing) if n.startswith("test_")):
            getattr(ase_mixing, name)()


def dynamics(atoms, *, logfile=None, loginterval=1, **options):
    """`ReverseDiffusion` with ASE's own logger, whose columns the borrowed tests read."""
    dyn = ReverseDiffusion(atoms, loginterval=loginterval, **options)
    if logfile is not None:
        dyn.attach(dyn.closelater(MDLogger(dyn, atoms, logfile)), loginterval)
    return dyn


# 1 fs at 300 K with this mobility: h = 1e-5 Å²
STABLE = {"temperature_K": 300, "mobility": 1e-5 / (fs * 0.02585), "rng": 1}


class TestDynamics:
    @pytest.mark.parametrize("calculator", [EMT, drop_in])
    def test_run_twice(self, suite, calculator):
        ase_md = suite("md.test_md")
        atoms = bulk("Au") * 2
        atoms.calc = calculator()
        ase_md.test_run_twice(partial(ReverseDiffusion, **STABLE), atoms)

    def test_logger(self, suite, testdir):
        ase_md_logger = suite("md.test_md_logger")
        atoms = s22.create_s22_system("Water_dimer")
        ase_md_logger.test_md((dynamics, STABLE), atoms, TIP3P(rc=9.0), testdir)

    @pytest.mark.parametrize("loginterval", [1, 2])
    @pytest.mark.parametrize("cls", [ReverseDiffusion, dynamics])
    def test_logger_interval(self, suite, cls, loginterval, testdir):
        ase_md_interval = suite("md.test_md_logger_interval")
        ase_md_interval.test_md_log_and_trajectory_length(cls, testdir, STABLE, loginterval)

    @pytest.mark.parametrize("calculator", [EMT, drop_in])
    def test_stepwise(self, suite, calculator, monkeypatch):
        ase_stepwise = suite("md.test_md_stepwise")

        def stable(atoms, timestep, temperature_K):
            return ReverseDiffusion(atoms, timestep=timestep, **STABLE)

        monkeypatch.setattr(ase_stepwise, "NPT", stable)
        start = bulk("Au", cubic=True)
        start.rattle(stdev=0.15)
        atoms = start.copy()
        atoms.calc = calculator()
        ase_stepwise.test_irun_start(start, atoms)

    @pytest.mark.parametrize("calculator", [EMT, drop_in])
    def test_call_order(self, suite, calculator, monkeypatch):
        ase_order = suite("md.test_irun_force_call_order")
        monkeypatch.setattr(ase_order, "VelocityVerlet", partial(ReverseDiffusion, **STABLE))
        atoms = bulk("Cu") * (2, 2, 2)
        atoms.calc = calculator()
        ase_order.test_irun_call_order_through_md(atoms)

    def test_position_distribution(self, suite, monkeypatch):
        """Morse O2 at 300 K, KL < 0.05, in the 1000 steps of the test: h λ = 0.2."""
        ase_distribution = suite("md.test_position_distribution")

        def stable(atoms, *, timestep, temperature_K, friction, fixcm, rng):
            return ReverseDiffusion(atoms, temperature_K=temperature_K, rng=rng)

        monkeypatch.setattr(ase_distribution, "Langevin", stable)
        ase_distribution.test_position_distribution()

    def test_position_distribution_sees_a_wrong_temperature(self, suite, monkeypatch):
        """Negative control: the same check fails at twice the temperature."""
        ase_distribution = suite("md.test_position_distribution")

        def hot(atoms, *, timestep, temperature_K, friction, fixcm, rng):
            return ReverseDiffusion(atoms, temperature_K=2 * temperature_K, rng=rng)

        monkeypatch.setattr(ase_distribution, "Langevin", hot)
        with pytest.raises(AssertionError):
            ase_distribution.test_position_distribution()
