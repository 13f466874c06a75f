"""The driver: values that are passed, calls in the wrong order, no kernel."""

import numpy as np
import pytest
from diffmd_plumed import (
    PLUMED_UNITS,
    Driver,
)
from six_atoms import CVS


class TestDriver:
    def test_values_without_atoms(self, tmp_path):
        """PUT: a value in, its bias and force out, in nm/kJ/ps."""
        lines = ["s: PUT PERIODIC=-pi,pi UNIT=number", "m: METAD ARG=s SIGMA=0.3 HEIGHT=2 PACE=1"]
        with Driver(0, lines, units=PLUMED_UNITS, timestep=0.1, directory=tmp_path) as driver:
            driver.watch("m.bias")
            for step, value in enumerate((0.0, 3.0, -3.0)):
                driver.set_value("s", value)
                driver.evaluate(step=step)
                driver.update()
            driver.set_value("s", 3.05)
            here = driver.evaluate().bias
            force = float(driver.value_force("s")[0])
            driver.set_value("s", 3.05 + 1e-6)
            above = driver.evaluate().bias
            driver.set_value("s", 3.05 - 1e-6)
            assert force == pytest.approx((driver.evaluate().bias - above) / 2e-6, rel=1e-6)
            assert here > 2.0 and driver.get_value("m.bias") == pytest.approx(here, rel=1e-4)
            with pytest.raises(ValueError, match="no PUT action"):
                driver.set_value("nobody", 1.0)
            with pytest.raises(ValueError, match="no value 'nobody'"):
                driver.watch("nobody")
            with pytest.raises(RuntimeError, match="watch"):
                driver.get_value("s")

    def test_bad_calls(self, tmp_path):
        driver = Driver(2, CVS[:1], timestep=1.0, directory=tmp_path)
        with pytest.raises(ValueError, match=r"shape \(3, 3\), expected \(2, 3\)"):
            driver.evaluate(np.zeros((3, 3)))
        with pytest.raises(ValueError, match=r"positions of atoms \[1\] are not finite"):
            driver.evaluate([[0, 0, 0], [np.nan, 0, 0]])
        with pytest.raises(RuntimeError, match="nothing was evaluated"):
            driver.update()
        driver.evaluate(np.asfortranarray(np.eye(3)[:2]))
        driver.update()
        with pytest.raises(RuntimeError, match="nothing was evaluated"):
            driver.update()
        driver.finalize()
        driver.finalize()
        with pytest.raises(RuntimeError, match="finalized"):
            driver.evaluate(np.zeros((2, 3)))

    def test_missing_kernel(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PLUMED_KERNEL", str(tmp_path / "no.so"))
        with pytest.raises(ImportError, match="PLUMED_KERNEL"):
            Driver(2, CVS[:1], timestep=1.0, directory=tmp_path)
        monkeypatch.setitem(__import__("sys").modules, "plumed", None)
        with pytest.raises(ImportError, match="pip install --no-deps hillclimber"):
            Driver(2, CVS[:1], timestep=1.0, directory=tmp_path)
