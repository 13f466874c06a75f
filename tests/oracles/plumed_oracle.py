"""PLUMED beside our own code, in the tests only."""

import numpy as np
import pytest


class Oracle:
    """PLUMED on numbers that are given to it (PUT), or on atoms; Å and eV outside."""

    def __init__(self, lines, *, natoms=0, kT=0.0258, box=None, masses=None, folder="."):
        pytest.importorskip(
            "plumed", reason="PLUMED's python module is missing: pip install --no-deps hillclimber"
        )
        driver = pytest.importorskip("diffmd_plumed", reason="plugins/plumed is not installed")
        self.driver = driver.Driver(
            natoms, lines, kT=kT, timestep=1.0, box=box, masses=masses, directory=folder
        )

    def watch(self, *names):
        for name in names:
            self.driver.watch(name)

    def at(self, values, step):
        """Bias (eV) and -dV/dvalue (eV per unit of the value) at {label: value}; pure."""
        for name, value in values.items():
            self.driver.set_value(name, value)
        bias = self.driver.evaluate(step=step).bias
        units = self.driver.units.energy
        return bias, np.array([self.driver.value_force(name)[0] / units for name in values])

    def values(self, x, names):
        """Values of actions at positions x (N, 3)."""
        self.driver.evaluate(x, step=self.driver.step + 1)
        return np.array([self.driver.get_value(name) for name in names])
