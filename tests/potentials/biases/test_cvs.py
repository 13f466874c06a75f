"""Collective variables: PLUMED's values, exact derivatives, batches, images, bad input."""

import math

import numpy as np
import pytest
import torch
from plumed_oracle import Oracle

from diffmd_ase.potentials.biases.cvs import (
    RMSD,
    Angle,
    Coordination,
    Distance,
    Function,
    NativeContacts,
    Position,
    Torsion,
    join,
)
from diffmd_ase.potentials.biases.restraints import Restraint
from diffmd_ase.system import System
from diffmd_ase.testing import check_potential

N = 10
FREE = System([6] * N, np.arange(1.0, N + 1))
# skewed enough that rounding fractional coordinates alone misses the shortest image
CELL = np.array([[7.0, 0.0, 0.0], [3.4, 6.0, 0.0], [-3.0, 2.9, 6.5]])
PERIODIC = System([6] * N, np.arange(1.0, N + 1), CELL, True)
SYSTEMS = {"free": FREE, "periodic": PERIODIC}
REFERENCE = np.round(np.random.default_rng(5).normal(size=(N, 3)) * 1.5, 3)
WEIGHTS = np.round(np.random.default_rng(6).uniform(0.5, 2.0, N), 2)


def variables(system):
    return {
        "position": Position(system, 3, 1),
        "distance": Distance(system, [[0, 1], [2, 7]], name=("d1", "d2")),
        "angle": Angle(system, [[0, 1, 2], [9, 3, 5]]),
        "torsion": Torsion(system, [[0, 1, 2, 3], [4, 7, 6, 9]]),
        "coordination": Coordination(system, [0, 1, 2], [3, 4, 5, 6], r_0=2.0, nn=6, mm=10),
        "within": Coordination(system, range(6), r_0=1.5, d_0=0.4, name="within"),
        "contacts": NativeContacts(system, [[0, 5], [1, 7], [2, 8]], [1.8, 2.2, 2.5]),
        "rmsd": RMSD(system, REFERENCE, weights=WEIGHTS),
        "function": Function(system, lambda x: x[..., 0, :].square().sum(-1).sin()),
    }


def positions(seed=0, *shape):
    """Near the reference, so that the molecule can be made whole atom by atom."""
    rng = np.random.default_rng(seed)
    return torch.tensor(REFERENCE + 0.3 * rng.normal(size=(*shape, N, 3)))


@pytest.mark.parametrize("where", SYSTEMS)
@pytest.mark.parametrize("name", variables(FREE))
def test_derivatives(name, where):
    """As the forces of a restraint far from its centre, which is linear in ds/dx."""
    cv = variables(SYSTEMS[where])[name]
    bias = Restraint(cv, at=[0.3] * len(cv), kappa=0.4, slope=0.7)
    check_potential(bias, positions(), rtol=1e-7)


def test_join_is_one_after_the_other():
    parts = list(variables(FREE).values())
    cv, x = join(parts), positions(1, 2, 3)
    s, back = cv.vjp(x)
    assert len(cv) == 12 and s.shape == (2, 3, 12)
    torch.testing.assert_close(s, torch.cat([p(x) for p in parts], -1), rtol=0, atol=0)
    for i in (0, 4, 11):
        g = torch.zeros(2, 3, 12)
        g[..., i] = 1.0
        nudge = 1e-6 * back(g)
        change = (cv(x + nudge) - cv(x - nudge))[..., i] / 2e-6
        torch.testing.assert_close(change, back(g).square().sum((-2, -1)), rtol=1e-5, atol=1e-9)


def test_float32_positions_lose_nothing():
    x = positions(2)
    cv = variables(FREE)["torsion"]
    assert cv(x.float()).dtype == torch.float64
    assert torch.equal(cv(x.float()), cv(x.float().double()))


PDB = "ATOM  {:5d}  C   ALA A{:4d}    {:8.3f}{:8.3f}{:8.3f}{:6.2f}{:6.2f}"


@pytest.mark.parametrize("where", SYSTEMS)
def test_values_are_plumeds(where, tmp_path):
    system = SYSTEMS[where]
    pdb = [
        PDB.format(i + 1, i + 1, *r, w, w)
        for i, (r, w) in enumerate(zip(REFERENCE, WEIGHTS, strict=True))
    ]
    (tmp_path / "reference.pdb").write_text("\n".join([*pdb, "END", ""]))
    contacts = " ".join(
        f"ATOMS{k}={i},{j} SWITCH{k}={{Q R_0=0.01 BETA=50 LAMBDA=1.8 REF={r}}} WEIGHT{k}={1 / 3}"
        for k, i, j, r in ((1, 1, 6, 0.18), (2, 2, 8, 0.22), (3, 3, 9, 0.25))
    )
    lines = {
        "p": "POSITION ATOM=4 NOPBC",
        "d1": "DISTANCE ATOMS=1,2",
        "d2": "DISTANCE ATOMS=3,8",
        "a1": "ANGLE ATOMS=1,2,3",
        "a2": "ANGLE ATOMS=10,4,6",
        "t1": "TORSION ATOMS=1,2,3,4",
        "t2": "TORSION ATOMS=5,8,7,10",
        # PLUMED's cutoff at f = 1e-5, and its stretch, are its own; D_MAX far away
        "c": "COORDINATION GROUPA=1-3 GROUPB=4-7 SWITCH={RATIONAL R_0=0.2 NN=6 MM=10 NOSTRETCH "
        "D_MAX=1000}",
        "w": "COORDINATION GROUPA=1-6 SWITCH={RATIONAL R_0=0.15 D_0=0.04 NOSTRETCH D_MAX=1000}",
        "q": f"CONTACTMAP {contacts} SUM",
        "r": f"RMSD REFERENCE={tmp_path}/reference.pdb TYPE=OPTIMAL",
    }
    names = ["p.y", *list(lines)[1:]]
    box = None if where == "free" else CELL
    oracle = Oracle(
        [*(f"{k}: {v}" for k, v in lines.items()), f"PRINT ARG={','.join(names)} FILE=COLVAR"],
        natoms=N,
        box=box,
        masses=system.masses,
        folder=tmp_path,
    )
    oracle.watch(*names)
    chosen = [v for k, v in variables(system).items() if k != "function"]
    cv = join(chosen)
    for seed in range(5):
        x = positions(seed)
        if where == "periodic":  # scattered over images; RMSD makes them whole again
            shift = np.random.default_rng(seed).integers(-2, 3, size=(N, 3)) @ CELL
            x = x + torch.tensor(shift)
        ours = cv(x).numpy() * cv.plumed_units
        np.testing.assert_allclose(ours, oracle.values(x.numpy(), names), rtol=1e-10, atol=1e-10)


def test_images_are_the_shortest():
    """Against all images of a skewed cell, written out."""
    cv = Distance(PERIODIC, [[0, 1]])
    shifts = np.array(np.meshgrid(*[range(-5, 6)] * 3)).reshape(3, -1).T @ CELL
    for seed in range(20):
        x = np.random.default_rng(seed).uniform(-10, 10, (N, 3))
        best = np.linalg.norm(x[1] - x[0] + shifts, axis=-1).min()
        assert float(cv(torch.tensor(x))) == pytest.approx(best, abs=1e-12)


def test_partial_pbc_has_images_where_it_says():
    slab = System([6, 6], [1.0, 1.0], np.diag([5.0, 5.0, 5.0]), [True, True, False])
    x = torch.tensor([[0.0, 0.0, 0.0], [4.0, 4.0, 4.0]])
    assert float(Distance(slab, [0, 1])(x)) == pytest.approx(math.sqrt(1 + 1 + 16), abs=1e-12)


@pytest.mark.usefixtures("float64")
def test_rmsd_knows_rotations_but_not_mirrors():
    cv = RMSD(FREE, REFERENCE, weights=FREE.masses)
    x = torch.tensor(REFERENCE)
    angle = torch.tensor(1.1)
    turn = torch.tensor([[angle.cos(), -angle.sin(), 0], [angle.sin(), angle.cos(), 0], [0, 0, 1]])
    assert float(cv(x @ turn.T + 4.0)) < 1e-7  # square root of round-off
    assert float(cv(x * torch.tensor([1.0, 1.0, -1.0]))) > 0.5


def test_coordination_at_its_removable_singularity():
    """f(1) = nn/mm, and no noise in its neighbourhood."""
    cv = Coordination(FREE, [0], [1], r_0=2.0, nn=6, mm=15)
    x = torch.zeros(7, N, 3)
    x[:, 1, 0] = 2.0 * (1.0 + torch.tensor([0, 1e-12, 1e-6, 0.9e-4, 1.1e-4, 1e-3, -1.0e-4]))
    s, back = cv.vjp(x)
    assert float(s[0]) == 0.4
    y = x[:, 1, 0].numpy() / 2.0 - 1.0
    first = 6 * (6 - 15) / 30
    near = np.abs(y) < 1e-5
    np.testing.assert_allclose(s[near, 0], 0.4 + first * y[near], atol=1e-9)
    from decimal import Decimal, getcontext

    getcontext().prec = 50
    exact = [
        float((1 - Decimal(float(v)) ** 6) / (1 - Decimal(float(v)) ** 15)) for v in 1.0 + y[3:]
    ]
    np.testing.assert_allclose(s[3:, 0], exact, rtol=0, atol=1e-10)
    slope = back(torch.ones(7, 1))[:, 1, 0] * 2.0
    assert float(slope[0]) == pytest.approx(first, rel=1e-10)
    assert (slope - first).abs().max() < 0.02


def test_inside_d_0_a_contact_is_whole():
    cv = Coordination(FREE, [0], [1], r_0=1.0, d_0=2.0)
    x = torch.zeros(N, 3)
    x[1, 0] = 1.5
    s, back = cv.vjp(x)
    assert float(s) == 1.0 and back(torch.ones(1)).abs().max() == 0.0


@pytest.mark.usefixtures("float64")
def test_periodic_difference():
    cv = join([variables(FREE)["torsion"], variables(FREE)["position"]])
    a = torch.tensor([3.0, -3.0, 5.0])
    b = torch.tensor([-3.0, 3.0, -5.0])
    apart = torch.tensor([6 - 2 * math.pi, 2 * math.pi - 6, 10.0])
    torch.testing.assert_close(cv.difference(a, b), apart)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: Torsion(FREE, [0, 1, 2]), r"must be \(4,\)"),
        (lambda: Distance(FREE, [0, N]), "count from 0"),
        (lambda: Distance(FREE, [1, 1]), "different"),
        (lambda: Position(FREE, 0, 3), "axis=3"),
        (lambda: Coordination(FREE, [0], [0], r_0=1.0), "no pair"),
        (lambda: Coordination(FREE, [0], [1], r_0=0.0), "r_0=0.0"),
        (lambda: RMSD(FREE, REFERENCE[:3]), "do not fit"),
        (lambda: NativeContacts(FREE, [[0, 1]], [-1.0]), "positive distances"),
        (lambda: join([]), "at least one"),
        (lambda: join([Distance(FREE, [0, 1])] * 2), "two variables have one name"),
        (lambda: join([Distance(FREE, [0, 1]), Angle(PERIODIC, [0, 1, 2])]), "different systems"),
        (lambda: Distance(FREE, [0, 1])(torch.zeros(N - 1, 3)), "do not fit the 10 atoms"),
        (lambda: Function(FREE, lambda x: x)(torch.zeros(N, 3)), r"gave \(10, 3\)"),
        (lambda: Function(FREE, lambda x: x.detach().sum((-2, -1)))(torch.zeros(N, 3)), "torch"),
        (lambda: Distance(FREE, [0, 1], name=["a", "b"]), "must be 1 names"),
    ],
)
def test_bad_input(make, words):
    with pytest.raises(ValueError, match=words):
        make()
