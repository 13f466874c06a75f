"""PLUMED's bias on variables of torch: equal to PLUMED on atoms, restarts, walkers, bad input."""

from functools import partial

import numpy as np
import pytest
import torch
from diffmd_plumed import Driver, PlumedCVPotential, PlumedInputError, PlumedPotential
from four_atoms import KT, SYSTEM, X, check_continued, check_same_files, kernel_of

from diffmd_ase.noise import Noise
from diffmd_ase.potentials.biases.cvs import Distance, Function, Torsion
from diffmd_ase.sampling.run import run

CVS = [Torsion(SYSTEM, [0, 1, 2, 3], name="t"), Distance(SYSTEM, [0, 3], name="d")]
ON_ATOMS = ["t: TORSION ATOMS=1,2,3,4", "d: DISTANCE ATOMS=1,4"]
BIASES = {
    "METAD": "b: METAD ARG=t,d SIGMA=0.3,0.02 HEIGHT=1 PACE=5 BIASFACTOR=10",
    "METAD, grid": "b: METAD ARG=t,d SIGMA=0.3,0.02 HEIGHT=1 PACE=5 BIASFACTOR=10 "
    "GRID_MIN=-pi,0 GRID_MAX=pi,1",
    "OPES_METAD": "b: OPES_METAD ARG=t,d PACE=5 SIGMA=0.3,0.02 BARRIER=20",
    "MOVINGRESTRAINT": "b: MOVINGRESTRAINT ARG=t,d AT0=0.1,0.2 AT1=0.2,0.3 KAPPA0=50,500 "
    "STEP0=0 STEP1=50",
}
PRINT = "PRINT ARG=t,d,b.bias FILE=COLVAR STRIDE=2"


def bias(lines, folder, cvs=CVS, **options):
    return PlumedCVPotential(cvs, lines, kT=KT, timestep=1.0, directory=folder, **options)


def test_values_are_read_at_every_evaluation(tmp_path):
    """PLUMED copies what is PUT once a step: it must be given again."""
    lines = ["x: PUT PERIODIC=NO UNIT=number", "r: RESTRAINT ARG=x AT=0 KAPPA=2"]
    with Driver(0, lines, timestep=1.0, directory=tmp_path) as driver:
        for step, value in ((0, 1.0), (0, 2.0), (1, 3.0)):
            driver.set_value("x", value)
            bias = driver.evaluate(step=step).bias * driver.units.energy
            assert bias == pytest.approx(value**2, rel=1e-12)
            assert driver.value_force("x")[0] == pytest.approx(-2 * value, rel=1e-12)


@pytest.mark.parametrize("name", BIASES)
def test_equal_to_plumed_on_atoms(name, tmp_path):
    """Energies, forces and files of a run of three walkers, with lengths and a period."""
    theirs = PlumedPotential(
        SYSTEM,
        [*ON_ATOMS, BIASES[name], PRINT],
        kT=KT,
        timestep=1.0,
        directory=tmp_path / "theirs",
    )
    ours = bias([BIASES[name], PRINT], tmp_path / "ours")
    start = X.expand(3, 4, 3).clone()
    largest = 0.0
    ours.begin(start, 0)
    for state, _ in run(kernel_of(theirs), start, 40, noise=Noise(3)):
        ours.update(state.x, state.step)
        (e, f, _), (energy, forces, _) = ours(state.x), theirs(state.x)
        torch.testing.assert_close(e, energy, rtol=0, atol=1e-10)
        torch.testing.assert_close(f, forces, rtol=0, atol=1e-10)
        largest = max(largest, float(forces.abs().max()))
    assert largest > 0.01
    for potential in (ours, theirs):
        potential.finalize()
    check_same_files(tmp_path / "ours", tmp_path / "theirs", rtol=1e-9)


# on the pace, where the step that is repeated prints; off it, where the next update is a hill
@pytest.mark.parametrize("cut, stride", [(30, 2), (23, 25)])
@pytest.mark.parametrize("walkers", ["shared", "independent"])
@pytest.mark.parametrize("name", BIASES)
def test_continued_is_uninterrupted(name, walkers, cut, stride, tmp_path):
    lines = [BIASES[name], PRINT.replace("STRIDE=2", f"STRIDE={stride}")]
    make = partial(bias, lines, walkers=walkers)
    # PLUMED multiplies the heights of well-tempered hills back: see docs/reliability.md
    rounded = 1e-12 if name.startswith("METAD") else 0.0
    check_continued(make, tmp_path, steps=40, cut=cut, rtol=rounded)


def test_evaluations_deposit_nothing(tmp_path):
    potential = bias([BIASES["METAD"]], tmp_path)
    for n in range(100):
        potential(X + 0.01 * n)
    potential.update(X, 5)
    potential.flush()
    assert len(np.loadtxt(tmp_path / "HILLS", ndmin=2)) == 1
    potential.finalize()


def test_forces_of_a_function_by_finite_differences(tmp_path):
    cv = Function(SYSTEM, lambda x: (x[..., 0, 0] * x[..., 1, 1]).sin() + x[..., 2, 2], names="f")
    potential = bias(["METAD ARG=f SIGMA=0.5 HEIGHT=5 PACE=1"], tmp_path, cv)
    potential.update(X + 0.2, 1)
    potential.update(X - 0.3, 2)
    generator = torch.Generator().manual_seed(1)
    direction = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    up, down = (potential(X + sign * 1e-5 * direction).energy for sign in (1, -1))
    forces = potential(X).forces
    slope = -float((forces * direction).sum())
    assert slope == pytest.approx(float(up - down) / 2e-5, rel=1e-6) and abs(slope) > 1e-3
    assert potential(X.float()).forces.dtype == torch.float32
    potential.finalize()


def test_hills_reach_over_the_period(tmp_path):
    """Two values 0.2 apart across ±π: almost the whole hill, and a force towards the seam."""
    cv = Function(SYSTEM, lambda x: x[..., 0, 0], names="t", domains=[(-np.pi, np.pi)])
    potential = bias(["METAD ARG=t SIGMA=0.4 HEIGHT=5 PACE=1"], tmp_path, cv)
    there, here = torch.zeros(2, 4, 3, dtype=torch.float64)
    there[0, 0], here[0, 0] = np.pi - 0.1, 0.1 - np.pi
    potential.update(there, 1)
    value = potential(here)
    assert float(value.energy) == pytest.approx(float(potential(there).energy) * 0.8825, rel=1e-3)
    assert value.forces[0, 0] > 0.01
    potential.finalize()


def test_nan_is_one_walkers_affair(tmp_path):
    potential = bias([BIASES["METAD"]], tmp_path)
    x = X.expand(2, 4, 3).clone()
    x[1] = np.nan
    assert potential(x).energy.isnan().tolist() == [False, True]
    with pytest.raises(ValueError, match=r"walkers \[1\] are not finite"):
        potential.update(x, 5)
    potential.finalize()


def test_outside_the_grid_is_one_walkers_affair(tmp_path):
    potential = bias([BIASES["METAD, grid"]], tmp_path)
    x = X.expand(2, 4, 3).clone()
    x[1] *= 20
    with pytest.warns(UserWarning, match="walker 1: .*the bias there is NaN"):
        assert potential(x).energy.isnan().tolist() == [False, True]
    potential.finalize()


def test_lost_walkers(tmp_path):
    potential = bias([BIASES["METAD"]], tmp_path, walkers="independent")
    x = X + 0.1 * torch.arange(3.0, dtype=torch.float64)[:, None, None] * X.roll(1, 0)
    potential.update(x, 5)
    before = potential(x)
    keep = torch.tensor([True, False, True])
    potential.select(keep)
    torch.testing.assert_close(potential(x[keep]).energy, before.energy[keep], rtol=0, atol=0)
    with pytest.raises(ValueError, match="3 walkers, but there are 2"):
        potential(x)
    potential.finalize()


def test_bad_input(tmp_path):
    with pytest.raises(PlumedInputError, match="line 2 of the input") as caught:
        bias([BIASES["METAD"], "RESTRAINT ARG=nobody AT=0 KAPPA=1"], tmp_path)
    assert caught.value.line == 2
    for line in ("t: PUT PERIODIC=NO", "UNITS LENGTH=A", "w: EXTRACV NAME=walker"):
        with pytest.raises(PlumedInputError, match="line 1 of the input.* remove it"):
            bias([line], tmp_path)
    with pytest.raises(ValueError, match="'shared' or 'independent'"):
        bias([BIASES["METAD"]], tmp_path, walkers="all")
    with pytest.warns(UserWarning, match="ABMD .* learn at every evaluation"):
        potential = bias(["ABMD ARG=d TO=1 KAPPA=1"], tmp_path)
    with pytest.raises(ValueError, match="cannot serve 2 walkers"):
        potential(X.expand(2, 4, 3))
    potential = bias([BIASES["METAD"]], tmp_path)
    potential(X)
    with pytest.raises(ValueError, match="restart=True"):
        potential.restore(potential.checkpoint(), X, 5)
    potential.update(X, 5)
    with pytest.raises(ValueError, match="completed once"):
        potential.update(X, 5)
    potential.finalize()
    with pytest.raises(FileExistsError, match="HILLS"):
        bias([BIASES["METAD"]], tmp_path)
