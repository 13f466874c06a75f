"""The step size h from everything a user may say instead."""

import numpy as np
import pytest
import torch
from ase import units as ase_units

from diffmd_ase import units


def test_thermal_energy_is_that_of_ase():
    assert units.kT_from_temperature(300.0) == 300.0 * ase_units.kB
    for bad in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="kelvin"):
            units.kT_from_temperature(bad)


def test_unit_mobility_gives_timestep_beta_over_2k():
    """Δt = β/(2k): the spring and the clock are one number."""
    kT, k = 0.025, 3.7e3
    timestep = 1 / (kT * 2 * k)
    assert units.h_from_mobility(kT=kT, timestep=timestep, mobility=1.0) == pytest.approx(
        units.h_from_spring(k), rel=1e-15
    )


def test_spring_and_step_are_inverse():
    h = np.array([1e-5, 2e-4, 1.0])
    np.testing.assert_allclose(units.h_from_spring(units.spring_from_h(h)), h, rtol=1e-15)


def test_schedule_limits():
    """No spring: the denoising move itself. A strong spring: 1/(2κ)."""
    assert units.h_from_schedule(eta=0.3, kappa=0.0) == 0.3
    assert units.h_from_schedule(eta=0.3, kappa=1e9) == pytest.approx(0.5e-9, rel=1e-6)
    eta, kappa = torch.tensor([0.1, 0.2]), torch.tensor([5.0, 7.0])
    total = units.spring_from_h(units.h_from_schedule(eta=eta, kappa=kappa))
    torch.testing.assert_close(total, kappa + 1 / (2 * eta))


def test_ase_units_make_h_in_square_angstrom():
    """1 fs, 0.01/fs, hydrogen at 300 K: h = 2.5e-2 Å², far beyond a bond's (0.03 Å)²."""
    mobility = 1 / (1.008 * 0.01 / ase_units.fs)
    h = units.h_from_mobility(
        kT=units.kT_from_temperature(300), timestep=ase_units.fs, mobility=mobility
    )
    assert h == pytest.approx(2.47e-2, rel=0.01)
