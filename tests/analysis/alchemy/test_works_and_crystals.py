"""ΔF of works that are Gaussian, and of crystals in closed form."""

import numpy as np
import pytest
from ase import units
from ase.build import bulk
from ase.thermochemistry import HarmonicThermo
from messages import names

from diffmd_ase.analysis.alchemy.einstein import (
    crystal_free_energy,
    einstein_log_z,
    harmonic_log_z,
    lattice_shifts,
)
from diffmd_ase.analysis.alchemy.plots import works_figure
from diffmd_ase.analysis.alchemy.works import from_works
from diffmd_ase.analysis.statistics import Estimate
from diffmd_ase.system import System


def gaussian(n, spread, seed=0, free=2.0):
    """Works that obey Crooks: ``w ~ N(ΔF ± s²/2, s²)``."""
    rng = np.random.default_rng(seed)
    forward = free + 0.5 * spread**2 + spread * rng.standard_normal(n)
    return forward, -free + 0.5 * spread**2 + spread * rng.standard_normal(n)


def test_gaussian_works():
    forward, backward = gaussian(2000, 1.5)
    result = from_works(forward, backward)
    assert abs(result.best.value - 2.0) < 4 * result.best.error < 0.2
    assert result.dissipated == pytest.approx((1.125, 1.125), abs=0.2)
    assert all(v["good"] for v in result.verdicts)
    assert result.numbers()["switches"] == 4000
    assert len(works_figure(forward, backward, result.best).axes) == 1


def test_the_sign_of_the_way_back_counts():
    forward, backward = gaussian(2000, 1.5)
    wrong = from_works(forward, -backward)
    assert abs(wrong.best.value - 2.0) > 10 * wrong.best.error


def test_fast_switches_are_said():
    result = from_works(*gaussian(100, 6.0))
    assert [v["good"] for v in result.verdicts] == [False, False]
    assert "switch more slowly" in result.verdicts[0]["text"]


def test_failed_switches_have_no_weight():
    forward, backward = gaussian(2000, 1.0)
    result = from_works(np.append(forward, [np.inf, np.nan]), backward)
    assert abs(result.best.value - 2.0) < 4 * result.best.error
    with pytest.raises(ValueError, match=names("1 works forward")):
        from_works([1.0], backward)


def test_both_ways_to_an_einstein_crystal():
    """N atoms on equal springs with the centre held have 3(N-1) equal modes."""
    assert einstein_log_z(2.0, 0.1, 5) == pytest.approx(harmonic_log_z([2.0] * 12, 0.1, 5))
    # as the integral over positions whose mean is at the origin, by the law of that mean
    free = 7.5 * np.log(2 * np.pi * 0.1 / 2.0)
    density = 1.5 * np.log(2.0 * 5 / (2 * np.pi * 0.1))
    assert einstein_log_z(2.0, 0.1, 5) == pytest.approx(free + density)
    with pytest.raises(ValueError, match=names("stiffness=-1.0")):
        einstein_log_z(-1.0, 0.1, 5)
    with pytest.raises(ValueError, match=names("all positive", "relax")):
        harmonic_log_z([-0.1] + [2.0] * 11, 0.1, 5)


def test_the_parts_of_a_crystal():
    """Vibrations of equal frequency, classical, as ASE has them, beside the centre's own part."""
    kT, k, mass, N, volume = 0.2, 2.0, 63.5, 500, 6000.0
    got = crystal_free_energy(
        Estimate(0.0, 0.0, 1.0), stiffness=k, kT=kT, masses=[mass] * N, volume=volume
    )
    quantum = np.sqrt(k / mass) * units._hbar * units.J * units.second
    # the classical limit of the harmonic oscillator, kT ln(ħω/kT)
    classical = 3 * N * kT * np.log(quantum / kT)
    assert got.total / N == pytest.approx(classical / N, abs=5 * kT * np.log(N) / N)
    helmholtz = HarmonicThermo([quantum] * 3).get_helmholtz_energy(kT / units.kB, verbose=False)
    assert got.total / N == pytest.approx(helmholtz, abs=0.02)
    with pytest.raises(ValueError, match="volume=0"):
        crystal_free_energy(Estimate(0, 0, 1), stiffness=k, kT=kT, masses=[mass] * N, volume=0)


def test_a_harmonic_crystal_of_equal_springs_is_an_einstein_crystal():
    given = {"kT": 0.1, "masses": [63.5] * 5, "volume": 60.0, "shifts": 1}
    none = Estimate(0.0, 0.0, 1.0)
    one = crystal_free_energy(none, stiffness=2.0, **given)
    same = crystal_free_energy(none, stiffness=[0.0] * 3 + [2.0] * 12, **given)
    assert same.total == pytest.approx(one.total)
    fewer = crystal_free_energy(none, stiffness=2.0, **(given | {"shifts": 5}))
    assert fewer.total - one.total == pytest.approx(0.1 * np.log(5))
    with pytest.raises(ValueError, match=names("shifts=6", "1 to 5")):
        crystal_free_energy(none, stiffness=2.0, **(given | {"shifts": 6}))


@pytest.mark.parametrize(
    ("atoms", "shifts"),
    [
        (bulk("Cu", cubic=True).repeat(2), 32),
        (bulk("Cu").repeat(3), 27),
        (bulk("NaCl", "rocksalt", a=5.64, cubic=True), 4),
        (bulk("Si", cubic=True), 4),
        (bulk("Mg").repeat((2, 2, 1)), 4),
    ],
)
def test_shifts_that_are_permutations(atoms, shifts):
    rng = np.random.default_rng(0)
    for amplitude in (0.0, 0.1):
        x = atoms.positions + amplitude * rng.standard_normal(atoms.positions.shape)
        assert lattice_shifts(x, System.from_atoms(atoms)) == shifts
    other = atoms.copy()
    other.symbols[0] = "Au"
    assert lattice_shifts(other.positions, System.from_atoms(other)) == 1
    other.pbc = [True, True, False]
    with pytest.raises(ValueError, match=names("periodic everywhere")):
        lattice_shifts(other.positions, System.from_atoms(other))
