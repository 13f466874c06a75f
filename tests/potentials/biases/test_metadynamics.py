"""Metadynamics in torch: PLUMED's numbers, files, order of deposits, restarts, bad input."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from ase import units
from messages import names
from plumed_oracle import Oracle

from diffmd_ase.potentials.biases.cvs import Distance, Function, Torsion, join
from diffmd_ase.potentials.biases.hills import Grid
from diffmd_ase.potentials.biases.metadynamics import Metadynamics
from diffmd_ase.system import System
from diffmd_ase.testing import check_potential

KT, KJ = 0.0258, units.mol / units.kJ
SYSTEM = System([6] * 4, [12.0] * 4)
PHI = Function(
    SYSTEM,
    lambda x: torch.atan2(x[..., 0, 0].sin(), x[..., 0, 0].cos()),
    names="phi",
    domains=[(-math.pi, math.pi)],
)
LENGTH = Function(SYSTEM, lambda x: x[..., 1, 0], names="b")
CV = join([PHI, LENGTH])
GRID = Grid([40, 50], [0.0, -6.0], [0.0, 6.0])
GRIDS = {"hills": None, "grid": GRID}
SETTINGS = {"kT": KT, "sigma": [0.3, 0.4], "height": 0.01, "pace": 2, "biasfactor": 6}


def positions(seed, *shape):
    return torch.tensor(np.random.default_rng(seed).normal(size=(*shape, 4, 3)) * 1.2)


def metadynamics(grid=None, **options):
    return Metadynamics(CV, **SETTINGS | {"grid": grid} | options)


def learn(bias, steps, walkers=3, first=1):
    for step in range(first, first + steps):
        bias.update(positions(step, walkers), step)
    return bias


@pytest.mark.parametrize("biasfactor", [6, None])
@pytest.mark.parametrize("walkers", [1, 5])
@pytest.mark.parametrize("grid", GRIDS)
def test_equal_to_plumed(grid, walkers, biasfactor, tmp_path):
    """Bias, derivatives, c(t) and hills of a walk; PLUMED is given the same values."""
    tempered = "" if biasfactor is None else f"BIASFACTOR={biasfactor}"
    tabulated = "GRID_MIN=-pi,-6 GRID_MAX=pi,6 GRID_BIN=40,50 CALC_RCT" if GRIDS[grid] else ""
    line = f"m: METAD ARG=phi,b SIGMA=0.3,0.4 HEIGHT={0.01 * KJ} PACE=2 {tempered} {tabulated}"
    declared = ["phi: PUT PERIODIC=-pi,pi UNIT=number", "b: PUT PERIODIC=NO UNIT=number"]
    oracle = Oracle([*declared, line], kT=KT, folder=tmp_path)
    watched = ["m.rct"] if GRIDS[grid] and biasfactor else []
    oracle.at({"phi": 0.0, "b": 0.0}, 0)
    oracle.driver.update()  # PLUMED swallows the first one
    oracle.watch(*watched)
    ours = metadynamics(GRIDS[grid], biasfactor=biasfactor, file=tmp_path / "OURS")
    for step in range(1, 41):
        x = positions(step, walkers)
        s = CV(x)
        value, slope = ours.bias(s)
        for w, (phi, b) in enumerate(s.tolist()):
            theirs = oracle.at({"phi": phi, "b": b}, step)
            if step % 2:
                assert float(value[w]) == pytest.approx(theirs[0], abs=1e-12)
                np.testing.assert_allclose(-slope[w], theirs[1], rtol=0, atol=1e-11)
            else:
                oracle.driver.update()
        ours.update(x, step)
        if watched and step == 39:
            c = oracle.driver.get_value("m.rct") / KJ
            assert float(ours.rct) == pytest.approx(c, abs=1e-8) and c > 0.001
    assert float(value.max()) > 0.004
    oracle.driver.finalize()
    theirs, mine = np.loadtxt(tmp_path / "HILLS"), np.loadtxt(tmp_path / "OURS")
    np.testing.assert_allclose(mine[:, 1:], theirs[:, 1:], rtol=1e-10, atol=1e-12)
    assert mine[:, 0].tolist() == [step for step in range(2, 41, 2) for _ in range(walkers)]


def test_equal_to_plumed_on_atoms(tmp_path):
    """Nothing is shared: PLUMED has the positions, its own variables, and nm."""
    cv = [Torsion(SYSTEM, [0, 1, 2, 3], name="t"), Distance(SYSTEM, [0, 3], name="d")]
    grid = Grid([60, 100], [0, 0.0], [0, 12.0])
    ours = Metadynamics(cv, **SETTINGS | {"grid": grid}, file=tmp_path / "OURS")
    lines = ["t: TORSION ATOMS=1,2,3,4", "d: DISTANCE ATOMS=1,4"]
    lines += [
        f"METAD ARG=t,d SIGMA=0.3,0.04 HEIGHT={0.01 * KJ} PACE=2 BIASFACTOR=6 GRID_MIN=-pi,0 "
        "GRID_MAX=pi,1.2 GRID_BIN=60,100"
    ]
    driver = Oracle(lines, natoms=4, kT=KT, masses=SYSTEM.masses, folder=tmp_path).driver
    for step in range(81):
        x = positions(step % 7) + 0.1 * positions(step)
        energy, forces, _ = ours(x)
        theirs = driver.evaluate(x.numpy(), step=step)
        assert float(energy) == pytest.approx(theirs.bias, abs=1e-8)
        np.testing.assert_allclose(forces, theirs.forces, rtol=0, atol=1e-8)
        driver.update()
        if step:
            ours.update(x, step)
    assert theirs.bias > 0.01 and np.abs(theirs.forces).max() > 0.01
    driver.finalize()
    theirs, mine = np.loadtxt(tmp_path / "HILLS"), np.loadtxt(tmp_path / "OURS")
    np.testing.assert_allclose(mine[:, 1:], theirs[:, 1:], rtol=1e-9)
    again = Metadynamics(cv, **SETTINGS | {"grid": grid}, file=tmp_path / "OURS", restart=True)
    assert float(again(x).energy) == pytest.approx(float(ours(x).energy), rel=1e-12)


@pytest.mark.parametrize("grid", GRIDS)
def test_derivatives(grid):
    bias = learn(metadynamics(GRIDS[grid], pace=1, height=0.1), 6)
    check_potential(bias, positions(2), rtol=1e-6)


def test_hills_end_at_the_edge_of_the_grid():
    """What reaches beyond is cut off, and not put on the edge."""
    grid, exact = metadynamics(Grid([100, 400], [0, -6.0], [0, 6.0])), metadynamics()
    x = torch.zeros(3, 4, 3, dtype=torch.float64)
    x[:, 1, 0] = torch.tensor([5.95, 5.7, 5.99])
    for bias in (grid, exact):
        bias.update(x[:1], 2)
    torch.testing.assert_close(grid(x).energy, exact(x).energy, rtol=1e-5, atol=0)
    torch.testing.assert_close(grid(x).forces, exact(x).forces, rtol=0, atol=1e-5)


@pytest.mark.parametrize("walkers", ["shared", "independent"])
@pytest.mark.parametrize("grid", GRIDS)
def test_only_updates_deposit(grid, walkers):
    bias = metadynamics(GRIDS[grid], walkers=walkers)
    for n in range(100):
        bias(positions(n, 2))
    assert not bias.update(positions(0, 2), 1) and bias.hills[1].numel() == 0
    assert bias.update(positions(0, 2), 2) and bias.hills[1].numel() == 2
    assert float(bias.hills[1][0, 0]) == SETTINGS["height"]


@pytest.mark.parametrize("grid", GRIDS)
def test_walkers_deposit_one_after_the_other(grid):
    """More than a block of them, close together: each height follows from those before."""
    x = 0.2 * positions(3, 300)
    together, one_by_one = metadynamics(GRIDS[grid]), metadynamics(GRIDS[grid])
    together.update(x, 2)
    for frame in x:
        one_by_one.update(frame, 2)
    heights = together.hills[1]
    torch.testing.assert_close(heights, one_by_one.hills[1], rtol=1e-12, atol=0)
    assert heights[0, -1] < 0.5 * heights[0, 0]
    # hills of one stale bias would all have the first height
    V = together.bias(CV(x[:1]))[0]
    assert float(V[0]) < 0.7 * 300 * SETTINGS["height"]


@pytest.mark.parametrize("grid", GRIDS)
def test_independent_walkers_are_single_ones(grid):
    bias = learn(metadynamics(GRIDS[grid], walkers="independent"), 12)
    x = positions(99, 3)
    for w in range(3):
        single = metadynamics(GRIDS[grid])
        for step in range(1, 13):
            single.update(positions(step, 3)[w], step)
        torch.testing.assert_close(bias(x).energy[w], single(x[w]).energy, rtol=1e-13, atol=0)
        torch.testing.assert_close(bias(x).forces[w], single(x[w]).forces, rtol=1e-11, atol=1e-15)
    before = bias(x)
    keep = torch.tensor([True, False, True])
    bias.select(keep)
    torch.testing.assert_close(bias(x[keep]).energy, before.energy[keep], rtol=0, atol=0)
    again = metadynamics(GRIDS[grid], walkers="independent")
    again.restore(bias.checkpoint(), x[keep], 12)
    torch.testing.assert_close(again(x[keep]).energy, before.energy[keep], rtol=1e-13, atol=0)
    with pytest.raises(ValueError, match="2 walkers have biases of their own"):
        bias(x)
    with pytest.raises(ValueError, match="3 walkers, but 2"):
        bias.update(x, 20)


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("walkers", ["shared", "independent"])
@pytest.mark.parametrize("grid", GRIDS)
def test_restart_is_uninterrupted(grid, walkers, stored, tmp_path):
    """Bit for bit, with heights that HILLS scales and a length that it has in nm."""
    cv = join([PHI, Distance(SYSTEM, (0, 1), name="r")])
    limits = None if GRIDS[grid] is None else Grid([40, 50], [0.0, 0.0], [0.0, 12.0])

    def new(name, **more):
        file = {"file": tmp_path / name} if stored else {}
        settings = SETTINGS | {"grid": limits, "walkers": walkers}
        return Metadynamics(cv, **settings | file | more)

    whole = learn(new("WHOLE"), 20)
    first = learn(new("PARTS"), 10)
    saved = first.checkpoint()
    learn(first, 4, first=11)  # lost with the kill
    second = new("PARTS", **({"restart": True} if stored else {}))
    second.restore(saved, positions(10, 3), 10)
    learn(second, 10, first=11)
    x = positions(50, 3)
    assert torch.equal(second(x).energy, whole(x).energy)
    assert torch.equal(second(x).forces, whole(x).forces)
    written = sorted(tmp_path.glob("WHOLE*"))
    assert len(written) == stored * (3 if walkers == "independent" else 1)
    for path in written:
        assert path.read_bytes() == (tmp_path / path.name.replace("WHOLE", "PARTS")).read_bytes()


@pytest.mark.parametrize("stored", [False, True])
def test_killed_before_the_first_hill(stored, tmp_path):
    """There is a checkpoint, and independent walkers have no files yet."""
    more = {"walkers": "independent"} | ({"file": tmp_path / "HILLS"} if stored else {})
    saved = metadynamics(GRID, **more).checkpoint()
    second = metadynamics(GRID, restart=stored, **more)
    if stored:
        with pytest.raises(ValueError, match=names("restart=True", "HILLS.0", "checkpoint")):
            second(positions(0, 3))
    second.restore(saved, positions(0, 3), 0)
    learn(second, 4)
    assert second.hills[1].shape == (3, 2)


def test_many_deposits_are_few_tensors():
    bias = learn(metadynamics(GRID, pace=1), 600, walkers=1)
    assert len(bias._deposits) < 300 and bias.hills[1].shape == (1, 600)
    assert bias.checkpoint()["sizes"] == [1] * 600
    for step in (1, 300, 600):
        expected = CV(positions(step, 1))
        torch.testing.assert_close(bias.hills[0][0, step - 1], expected[0], rtol=1e-15, atol=1e-15)


def test_hills_alone_restart_too(tmp_path):
    """Without a checkpoint, as users of PLUMED do."""
    first = learn(metadynamics(GRID, file=tmp_path / "HILLS"), 10)
    second = metadynamics(GRID, file=tmp_path / "HILLS", restart=True)
    x = positions(50, 3)
    torch.testing.assert_close(second(x).energy, first(x).energy, rtol=0, atol=1e-14)
    with pytest.raises(ValueError, match=names("HILLS", "sigma=[0.35, 0.35]")):
        metadynamics(GRID, sigma=0.35, file=tmp_path / "HILLS", restart=True)
    with pytest.raises(ValueError, match=names("HILLS", "factor than 5")):
        metadynamics(GRID, biasfactor=5, file=tmp_path / "HILLS", restart=True)


def test_independent_files_of_different_lengths_are_refused(tmp_path):
    bias = learn(metadynamics(walkers="independent", file=tmp_path / "HILLS"), 4)
    bias.select(torch.tensor([True, False, True]))
    learn(bias, 4, walkers=2, first=5)
    again = metadynamics(walkers="independent", file=tmp_path / "HILLS", restart=True)
    with pytest.raises(ValueError, match=names("HILLS.*", "restore", "checkpoint")):
        again(positions(0, 3))
    again.restore(bias.checkpoint(), positions(8, 2), 8)
    x = positions(50, 2)
    torch.testing.assert_close(again(x).energy, bias(x).energy, rtol=0, atol=1e-14)


@pytest.mark.parametrize("biasfactor", [6, None])
def test_sum_hills_reads_the_file(biasfactor, tmp_path):
    pytest.importorskip("plumed", reason="PLUMED's python module is missing")
    bias = learn(metadynamics(biasfactor=biasfactor, file=tmp_path / "HILLS"), 30)
    command = [sys.executable, "-c", "import plumed; plumed.cli()", "sum_hills", "--hills", "HILLS"]
    grid = ["--min", "-pi,-6", "--max", "pi,6", "--bin", "20,30"]
    subprocess.run([*command, *grid], cwd=tmp_path, check=True, capture_output=True)
    table = np.loadtxt(tmp_path / "fes.dat")
    ours = bias.free_energy(torch.tensor(table[:, :2])) * KJ
    np.testing.assert_allclose(ours, table[:, 2], rtol=0, atol=1e-7)
    assert table[:, 2].min() < -1.0


def test_says_what_colvar_needs():
    bias = learn(metadynamics(GRID), 10)
    said = bias.describe(positions(0, 2))
    assert tuple(said) == bias.columns == ("phi", "b", "bias", "rbias", "rct")
    torch.testing.assert_close(said["bias"] - said["rbias"], bias.rct.expand(2))
    # c(t) by a fine sum over a bias that is known everywhere
    phi, b = (torch.linspace(-w, w, 400, dtype=torch.float64) for w in (math.pi, 6.0))
    fine = torch.cartesian_prod(phi[:-1], b)
    V = bias.bias(fine)[0] / KT
    c = KT * (torch.logsumexp(1.2 * V, 0) - torch.logsumexp(0.2 * V, 0))
    assert float(bias.rct) == pytest.approx(float(c), rel=3e-2)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"kT": 0.0}, "kT=0.0"),
        ({"height": -1.0}, "height=-1.0"),
        ({"pace": 0}, "pace=0"),
        ({"biasfactor": 1.0}, "biasfactor=1.0 .*greater than 1"),
        ({"walkers": "both"}, "'both'.*'shared' or 'independent'"),
        ({"sigma": [0.1, 0.2, 0.3]}, r"sigma=\[.*one for each of phi, b"),
        ({"sigma": [0.1, -0.2]}, r"sigma=\[0.1, -0.2\] .*positive"),
        ({"restart": True}, "give file="),
        ({"grid": Grid([40])}, r"\[40\].*one entry for each of phi, b"),
        ({"grid": Grid([40, 50])}, "b is not periodic"),
        ({"grid": Grid([10, 50], [0, -6], [0, 6])}, "phi .*0.628.* 0.3.*more bins"),
        ({"grid": Grid([40, 50], [0, 6], [0, -6])}, "b ends at -6 .*starts at 6"),
        ({"grid": GRID, "sigma": [1.0, 0.4]}, "too wide for its period"),
    ],
)
def test_bad_settings(options, words):
    with pytest.raises(ValueError, match=words):
        metadynamics(**options)


def test_bad_steps(tmp_path):
    bias = metadynamics(GRID, file=tmp_path / "HILLS")
    x = positions(0, 2)
    x[1, 1, 0] = 7.0
    with pytest.warns(
        UserWarning, match=names("b = 7", "walker 1", "-6 to 6", "UpperWall", "LowerWall")
    ):
        energy, forces, _ = bias(x)
    assert energy.isnan().tolist() == [False, True] and forces[1, 1, 0].isnan()
    assert bias(x).energy.isnan().tolist() == [False, True]  # no second warning
    with pytest.raises(ValueError, match="outside the grid"):
        bias.update(x, 2)
    x[1, 1, 0] = math.nan
    with pytest.raises(ValueError, match="not finite"):
        bias.update(x, 2)
    assert bias(x).energy.isnan().tolist() == [False, True]
    assert all(row.startswith("#!") for row in (tmp_path / "HILLS").read_text().splitlines())
    with pytest.raises(FileExistsError, match="restart=True"):
        metadynamics(file=tmp_path / "HILLS")
    with pytest.raises(FileNotFoundError, match=names("restart=True", "NONE")):
        metadynamics(file=tmp_path / "NONE", restart=True)
    with pytest.raises(ValueError, match="grid="):
        _ = metadynamics().rct
