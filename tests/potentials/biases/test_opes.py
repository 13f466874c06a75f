"""OPES in torch: PLUMED's numbers and files, exact derivatives, restarts, bad input."""

import math

import numpy as np
import pytest
import torch
from ase import units
from plumed_oracle import Oracle

from diffmd_ase.potentials.biases.components import Components
from diffmd_ase.potentials.biases.cvs import Distance, Function, join
from diffmd_ase.potentials.biases.opes import OPES, OPESExplore
from diffmd_ase.potentials.ladder import Ladder
from diffmd_ase.system import System
from diffmd_ase.testing import check_potential

KT, KJ = 0.0258, units.mol / units.kJ
SYSTEM = System([6] * 2, [12.0] * 2)
PHI = Function(
    SYSTEM,
    lambda x: torch.atan2(x[..., 0, 0].sin(), x[..., 0, 0].cos()),
    names="phi",
    domains=[(-math.pi, math.pi)],
)
CV = join([PHI, Function(SYSTEM, lambda x: x[..., 1, 0], names="b")])
KINDS = {"OPES_METAD": OPES, "OPES_METAD_EXPLORE": OPESExplore}


def positions(seed, *shape):
    return torch.tensor(np.random.default_rng(seed).normal(size=(*shape, 2, 3)) * 1.2)


def opes(kind="OPES_METAD", **options):
    settings = {"kT": KT, "sigma": [0.3, 0.4], "barrier": 0.4, "pace": 2}
    return KINDS[kind](CV, **settings | options)


def learn(bias, steps, walkers=3, first=1):
    for step in range(first, first + steps):
        bias.update(positions(step, walkers), step)
    return bias


def without_edge(bias, s):
    """dV/ds as PLUMED 2.11 has it: the kernel's edge is in the slope, where it does not belong.

    There ``dK/ds = -K (s - c)/σ²`` with K = h (e^-z - e^-z_cut), while K's derivative has
    h e^-z in place of K.
    """
    centres, sigmas, heights = bias.components
    scaled = CV.difference(s[:, None], centres) / sigmas
    z = 0.5 * scaled.square().sum(-1)
    near = z < 0.5 * bias._cutoff**2
    edge = math.exp(-0.5 * bias._cutoff**2)
    extra = ((near * heights * edge)[..., None] * scaled / sigmas).sum(1)
    norm = bias._norm * bias.zed
    value = bias._components(s)[0] / norm + bias.epsilon
    return bias.kT * bias._prefactor / norm * extra / value[:, None]


@pytest.mark.parametrize(
    "options, words",
    [
        ({}, ""),
        ({"biasfactor": 7}, "BIASFACTOR=7"),
        ({"sigma_min": [0.25, 0.3]}, "SIGMA_MIN=0.25,0.3"),
        ({"compression": 0.0}, "COMPRESSION_THRESHOLD=0"),
    ],
)
@pytest.mark.parametrize("walkers", [1, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_equal_to_plumed(kind, walkers, options, words, tmp_path):
    declared = ["phi: PUT PERIODIC=-pi,pi UNIT=number", "b: PUT PERIODIC=NO UNIT=number"]
    line = f"m: {kind} ARG=phi,b SIGMA=0.3,0.4 BARRIER={0.4 * KJ} PACE=2 FILE=THEIRS {words}"
    oracle = Oracle([*declared, line], kT=KT, folder=tmp_path)
    oracle.at({"phi": 0.0, "b": 0.0}, 0)
    oracle.driver.update()  # PLUMED swallows the first one
    names = ("rct", "zed", "neff", "nker")
    oracle.watch(*(f"m.{name}" for name in names))
    ours = opes(kind, file=tmp_path / "OURS", **options)
    for step in range(1, 82):
        x = positions(step, walkers)
        s = CV(x)
        value, slope = ours.bias(s)
        slope_there = slope + without_edge(ours, s) if step > 2 else slope
        for w, (phi, b) in enumerate(s.tolist()):
            theirs = oracle.at({"phi": phi, "b": b}, step)
            if step % 2:
                assert float(value[w]) == pytest.approx(theirs[0], abs=1e-11)
                np.testing.assert_allclose(-slope_there[w], theirs[1], rtol=0, atol=1e-10)
            else:
                oracle.driver.update()
        ours.update(x, step)
    said = ours.describe(x)
    for name in names:
        unit = KJ if name == "rct" else 1.0
        theirs = oracle.driver.get_value(f"m.{name}") / unit
        assert float(said[name][0]) == pytest.approx(theirs, rel=1e-9), name
    oracle.driver.finalize()
    theirs, mine = np.loadtxt(tmp_path / "THEIRS"), np.loadtxt(tmp_path / "OURS")
    np.testing.assert_allclose(mine[:, 1:], theirs[:, 1:], rtol=1e-9, atol=1e-11)
    headers = [(tmp_path / name).read_text().splitlines() for name in ("THEIRS", "OURS")]
    their_head, my_head = ([row for row in head if row[0] == "#"] for head in headers)
    assert [row.split()[:3] for row in my_head] == [row.split()[:3] for row in their_head]
    if walkers == 5 and ours.sigma_min.sum() == 0 and "COMP" not in words:
        assert len(ours.components[2]) < 0.9 * len(mine)


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives(kind):
    """Ours are those of V, also where PLUMED's miss the edge of the components."""
    check_potential(learn(opes(kind, barrier=0.1), 20), positions(2), rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_only_updates_deposit(kind):
    bias = opes(kind)
    for n in range(100):
        bias(positions(n, 2))
    assert not bias.update(positions(0, 2), 1) and len(bias.components[2]) == 0
    assert bias.update(positions(0, 2), 2) and len(bias.components[2]) == 2


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_restart_is_uninterrupted(kind, stored, tmp_path):
    def new(name, **more):
        return opes(kind, **({"file": tmp_path / name} if stored else {}), **more)

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
    if stored:
        assert (tmp_path / "WHOLE").read_text() == (tmp_path / "PARTS").read_text()


def column(values):
    return torch.tensor(values, dtype=torch.float64)


def test_components_that_merge_keep_height_mean_and_variance():
    cv = Function(SYSTEM, lambda x: x[..., 0, 0])
    components = Components(cv, 5.0, 1.0)
    components.add(column([0.0]), column([1.0]), 1.0)
    components.add(column([0.6]), column([0.5]), 3.0)
    assert len(components) == 1
    mean = 0.75 * 0.6
    variance = 0.25 * 1.0 + 0.75 * 0.25 + 0.75 * 0.6**2 - mean**2
    assert components.heights[0] == 4.0
    assert components.centres[0, 0] == pytest.approx(mean, abs=1e-15)
    assert components.sigmas[0, 0] == pytest.approx(math.sqrt(variance), abs=1e-15)
    components.add(column([3.0]), column([1.0]), 1.0)
    assert len(components) == 2


def test_components_merge_over_the_period():
    components = Components(PHI, 5.0, 1.0)
    components.add(column([3.1]), column([0.3]), 1.0)
    components.add(column([-3.1]), column([0.3]), 1.0)
    assert len(components) == 1 and abs(components.centres[0, 0]) == pytest.approx(math.pi)
    components.add(column([3.0]), column([0.3]), 2.0)  # of three with weights 1, 1, 2
    assert len(components) == 1 and components.centres[0, 0] == pytest.approx(0.5 * (math.pi + 3.0))
    components.add(column([-3.0]), column([0.3]), 8.0)
    middle = 0.5 * (math.pi + 3.0) + (2 * math.pi - 3.0 - 0.5 * (math.pi + 3.0)) * 8 / 12
    assert len(components) == 1 and components.centres[0, 0] == pytest.approx(middle - 2 * math.pi)
    components.add(column([3.1]), column([0.3]), 1.0)  # from the other side
    middle = (12 * middle + 3.1) / 13
    assert len(components) == 1 and components.centres[0, 0] == pytest.approx(middle - 2 * math.pi)


def test_the_running_sum_is_the_sum():
    """Z is updated one by one; here from all pairs."""
    bias = learn(opes(), 40)
    centres = bias.components[0]
    exact = float(bias._components(centres)[0].mean()) / bias._sums[0]
    assert bias.zed == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_free_energy_is_that_of_the_components(kind):
    bias = learn(opes(kind, biasfactor=10, barrier=3.0), 60)
    s = CV(positions(3, 20))
    V, F = bias.bias(s)[0], bias.free_energy(s)
    # far above ε the bias is -(1 - 1/γ) F
    deep = V > V.max() - 0.05
    flat = (V + 0.9 * F)[deep]
    assert deep.sum() > 3 and float(flat.max() - flat.min()) < 1e-4


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: opes(kT=0.0), "kT=0.0"),
        (lambda: opes(barrier=0.01), "barrier=0.01 .*kT=0.0258"),
        (lambda: opes(barrier=100.0), "barrier=100.0 .*kT=0.0258"),
        (lambda: opes(pace=0), "pace=0"),
        (lambda: opes(biasfactor=1.0), "biasfactor=1.0 .*greater than 1"),
        (lambda: opes(compression=-1.0), "compression=-1.0"),
        (lambda: opes(compression=50.0), "50.0 .*cutoff 5.76"),
        (lambda: opes(sigma=[0.1]), r"sigma=\[0.1\] .*phi, b"),
        (lambda: opes(sigma_min=0.0), "sigma_min=0.0 .*positive"),
        (lambda: opes(restart=True), "give file="),
        (lambda: opes("OPES_METAD_EXPLORE", biasfactor=math.inf), "finite biasfactor"),
        (lambda: opes().update(positions(0) * math.nan, 2), "not finite"),
    ],
)
def test_bad_input(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_file_is_in_units_of_plumed(tmp_path):
    """Lengths in nm, one row for each walker."""
    bias = OPES(
        Distance(SYSTEM, [0, 1], name="d"),
        kT=KT,
        sigma=0.5,
        barrier=0.4,
        pace=2,
        compression=0.0,
        file=tmp_path / "KERNELS",
        timestep_ps=0.002,
    )
    x = positions(3, 2)
    bias.update(x, 2)
    rows = np.loadtxt(tmp_path / "KERNELS")
    assert rows[:, 0].tolist() == [0.004, 0.004]
    np.testing.assert_allclose(rows[:, 2], 0.1 * bias.components[1][:, 0], rtol=1e-14)
    np.testing.assert_allclose(rows[:, 1], 0.1 * (x[:, 0] - x[:, 1]).norm(dim=-1), rtol=1e-14)


def test_walkers_with_biases_of_their_own():
    """By a `Ladder`: each walker learns from itself alone."""
    each, singles = Ladder([opes() for _ in range(3)]), [opes() for _ in range(3)]
    learn(each, 10)
    for step in range(1, 11):
        for single, own in zip(singles, positions(step, 3), strict=True):
            single.update(own, step)
    x = positions(50, 3)
    expected = torch.stack([single(own).energy for single, own in zip(singles, x, strict=True)])
    assert torch.equal(each(x).energy, expected) and expected.std() > 1e-3
    assert not torch.equal(each(x).energy, learn(opes(), 10)(x).energy)


def test_a_flat_target_is_allowed():
    bias = learn(opes(biasfactor=math.inf), 10)
    assert bias._prefactor == 1.0 and torch.isfinite(bias(positions(0)).energy)
