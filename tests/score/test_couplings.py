"""Couplings of coordinates: found where they are, left out where they are not, safe outside."""

import numpy as np
import pytest
import torch
from ase import units

from diffmd_ase.score.couplings import GROUPS
from diffmd_ase.score.force_field import MechanicsPrior
from diffmd_ase.score.force_field_fit import fit_prior
from diffmd_ase.score.force_field_tables import coupling_tables, parameter_numbers, term_tables
from diffmd_ase.score.label_fit import fit_labels
from diffmd_ase.score.networks.molecule import MechanicsConfig, MechanicsNetwork
from diffmd_ase.score.shrinkage import choose_ridges, solve
from diffmd_ase.score.snapshots import Snapshots
from diffmd_ase.system import System

KT = 300 * units.kB
# a bent molecule X-Y-X in kT: two bonds (Å), one angle (rad), all of them coupled
MEAN = np.array([1.4, 1.4, 1.9])
PLAIN = np.diag([500.0, 500.0, 40.0])
COUPLED = PLAIN + np.array([[0, 120.0, 45.0], [120.0, 0, 45.0], [45.0, 45.0, 0]])


def bent(rng, stiffness, count):
    """Exact draws (count, 3, 3) of ½ uᵀ K u, with the volume element r² r'² sin θ."""
    u = rng.multivariate_normal(MEAN, np.linalg.inv(stiffness), 4 * count)
    weight = (u[:, 0] * u[:, 1]) ** 2 * np.sin(u[:, 2])
    r, s, angle = u[rng.uniform(size=len(u)) < weight / (1.8**4)][:count].T
    x = np.zeros((count, 3, 3))
    x[:, 1, 0] = r
    x[:, 2, 0], x[:, 2, 1] = s * np.cos(angle), s * np.sin(angle)
    rotation = np.linalg.qr(rng.normal(size=(count, 3, 3)))[0]
    return np.einsum("mij,mnj->mni", rotation, x)


def forces(energy, x):
    x = torch.as_tensor(x).double().requires_grad_()
    return -torch.autograd.grad(energy(x).sum(), x)[0]


def exact(stiffness):
    def energy(x):
        a, b = x[:, 1] - x[:, 0], x[:, 2] - x[:, 0]
        r, s = a.norm(dim=-1), b.norm(dim=-1)
        u = torch.stack([r, s, ((a * b).sum(-1) / (r * s)).arccos()], -1) - torch.tensor(MEAN)
        return 0.5 * ((u @ torch.tensor(stiffness)) * u).sum(-1)

    return energy


def fitted(x, **more):
    return fit_prior(
        Snapshots(System(np.array([16, 1, 1]), np.ones(3)), x, 300), sigma=0.002, **more
    )


def relative_error(tables, stiffness, x):
    prior = MechanicsPrior(tables).double()
    true = forces(exact(stiffness), x)
    return float((forces(lambda p: prior(p.transpose(-1, -2)), x) - true).norm() / true.norm())


def test_couplings_are_found(rng):
    x, test = bent(rng, COUPLED, 6000), bent(rng, COUPLED, 1000)
    tables = fitted(x)
    assert "products" in tables
    with_couplings = relative_error(tables, COUPLED, test)
    plain = {k: v for k, v in tables.items() if k not in ("products", "strengths")}
    assert with_couplings < 0.05 < 0.15 < relative_error(plain, COUPLED, test)


def test_what_the_data_do_not_pay_for_is_left_out(rng):
    tables = fitted(bent(rng, PLAIN, 3000))
    assert "products" not in tables
    assert relative_error(tables, PLAIN, bent(rng, PLAIN, 1000)) < 0.05


# O-H...O in kT: Morse potentials of both bonds, and a spring between the oxygens, whose length
# depends on where the proton is
DEPTH, RANGE, LENGTH, APART, STRETCH, PULL = 60.0, 2.2, 0.98, 2.45, 0.04, 0.15


def hopping(rng, count):
    """(count, 3, 3) of the proton, first, and of both oxygens: at one, at the other, between."""
    r, q = rng.uniform(0.9, 1.65, (2, 20 * count))
    apart = rng.normal(APART + PULL * (r - q) ** 2, STRETCH)
    r, q, apart = np.stack([r, q, apart])[:, (r + q < apart + 0.15) & (r + q > apart)][:, :count]
    x = np.zeros((count, 3, 3))
    cosine = (r**2 + q**2 - apart**2) / (2 * r * q)
    x[:, 1, 0], x[:, 2, 0], x[:, 2, 1] = r, q * cosine, q * np.sqrt(1 - cosine**2)
    return x


def hopping_energy(x):
    pairs = ((0, 1), (0, 2), (1, 2))
    r, q, apart = ((x[:, i] - x[:, j]).norm(dim=-1) for i, j in pairs)
    morse = sum(DEPTH * (1 - torch.exp(-RANGE * (d - LENGTH))) ** 2 for d in (r, q))
    return morse + 0.5 * ((apart - APART - PULL * (r - q) ** 2) / STRETCH) ** 2


def test_a_proton_that_changes_its_oxygen(rng, monkeypatch):
    """A bond that breaks is none: products of distances hold both places of the proton."""
    x, test = hopping(rng, 400), hopping(rng, 200)
    labels = {
        "energies": KT * hopping_energy(torch.as_tensor(x)).numpy(),
        "forces": KT * forces(hopping_energy, x).numpy(),
    }

    def error():
        data = Snapshots(System(np.array([1, 8, 8]), np.ones(3)), x, 300, **labels)
        assert len(data.topology.bonds) == 0 and data.topology.loose.tolist() == [[0, 1], [0, 2]]
        prior, true = MechanicsPrior(fit_labels(data)).double(), forces(hopping_energy, test)
        found = forces(lambda p: prior(p.transpose(-1, -2)), test)
        return float((found - true).norm() / true.norm())

    with_products = error()
    monkeypatch.setattr("diffmd_ase.score.force_field_tables._SMALL", 0)
    assert with_products < 0.1 < 0.15 < error()


@pytest.fixture(scope="module")
def dipeptide():
    """Tables of alanine dipeptide with couplings of random strengths, tied by symmetry."""
    data = Snapshots.read("alanine-dipeptide").take(slice(0, 300))
    positions = torch.as_tensor(data.positions, dtype=torch.float32)
    plain = term_tables(data.topology, positions)
    tables, group, numbers = coupling_tables(plain, data.topology, positions)
    values = torch.randn(int(numbers.max()) + 1, generator=torch.Generator().manual_seed(0))
    tables["strengths"] = values.float()[numbers]
    return data, tables, group, numbers


def of(tables):
    prior = MechanicsPrior(tables).double()
    return lambda x: prior(x.transpose(-1, -2))


def test_every_group_has_products_that_symmetry_ties(dipeptide):
    _, _, group, numbers = dipeptide
    # all pairs of distances would be too many
    assert [GROUPS[k] for k in group.unique()] == list(GROUPS[:-1])
    assert len(numbers.unique()) < 0.7 * len(numbers)
    # what shares a parameter is of one group
    assert all(len(group[numbers == n].unique()) == 1 for n in numbers.unique())


def test_energy_keeps_the_symmetry_of_the_molecule(dipeptide):
    data, tables, *_ = dipeptide
    x, prior = torch.as_tensor(data.positions[:20]).double(), MechanicsPrior(tables).double()

    def energy(x):  # without the walls, which keep the hands of the snapshots
        planes = x.transpose(-1, -2)
        return prior(planes) - prior.terms(planes)[1]

    turns = data.topology.swaps
    assert len(turns) == 3  # two hydrogens of each methyl group, and nothing of the amides
    for order in (*data.topology.permutations[::5], *turns):
        assert torch.allclose(energy(x[:, order]), energy(x), rtol=0, atol=1e-5)
    # it is no accident: another strength for one of a pair that is exchanged
    tied = {**tables, "strengths": torch.randn_like(tables["strengths"])}
    order = data.topology.permutations[-1]
    assert not torch.allclose(of(tied)(x[:, order]), of(tied)(x), rtol=0, atol=1e-3)


@pytest.mark.usefixtures("float64")
def test_jacobian_and_energy_agree(dipeptide):
    data, tables, _, numbers = dipeptide
    prior = MechanicsPrior(tables).double()
    base = parameter_numbers(prior, data.topology)
    orbits = torch.cat([base, int(base.max()) + 1 + numbers])
    theta = torch.randn(int(orbits.max()) + 1, generator=torch.Generator().manual_seed(1))
    count = len(base)
    theta = theta.double()
    filled = {**tables, "theta": theta[orbits[:count]], "strengths": theta[orbits[count:]]}
    full = MechanicsPrior(filled).double()
    planes = torch.as_tensor(data.positions[:2]).double().transpose(-1, -2)
    features, wall = full.terms(planes)
    assert torch.allclose(features @ theta[orbits] + wall, full(planes), rtol=1e-10)
    jacobian = full.jacobian(planes, orbits, len(theta))
    slope = torch.einsum("fbd,f->bd", jacobian, theta)
    exact_slope = -forces(lambda p: full(p.transpose(-1, -2)), planes.transpose(-1, -2))
    assert torch.allclose(slope, exact_slope.transpose(-1, -2).flatten(1), rtol=1e-8, atol=1e-8)
    arrows = torch.randn(planes.shape, generator=torch.Generator().manual_seed(0))
    along = full.along(planes, arrows, orbits, len(theta))
    expected = torch.einsum("fbd,bd->fb", jacobian, arrows.flatten(1))
    assert torch.allclose(along, expected, rtol=1e-8, atol=1e-8)


def test_couplings_level_off_far_from_the_data(dipeptide):
    data, tables, *_ = dipeptide
    plain = {k: v for k, v in tables.items() if k not in ("products", "strengths")}
    x = torch.as_tensor(data.positions[:20]).double()
    alone = [(of(tables)(s * x) - of(plain)(s * x)).abs().max() for s in (2.0, 50.0)]
    assert alone[1] < 1.01 * alone[0] + 1e-3


def test_a_model_file_keeps_them(dipeptide):
    data, tables, *_ = dipeptide
    network = MechanicsNetwork(MechanicsConfig(depth=0), {}, tables)
    again = MechanicsNetwork(
        MechanicsConfig(depth=0),
        {},
        {k.removeprefix("prior."): v for k, v in network.state_dict().items()},
    )
    again.load_state_dict(network.state_dict())
    x, sigma = torch.as_tensor(data.positions[:5]).float(), torch.full((5,), 0.0014)
    assert torch.equal(again(x, sigma), network(x, sigma))


def test_ridges_of_groups(rng):
    """Of five folds of a linear problem: a group with signal is kept, one without is not."""
    size, group = 30, torch.arange(30) // 10
    truth = torch.zeros(size, dtype=torch.float64)
    truth[:20] = torch.as_tensor(rng.normal(size=20))
    grams, drives = [], []
    for _ in range(5):
        a = torch.as_tensor(rng.normal(size=(80, size)))
        y = a @ truth + torch.as_tensor(2 * rng.normal(size=80))
        grams.append(a.T @ a / 80)
        drives.append(a.T @ y / 80)
    grams, drives = torch.stack(grams), torch.stack(drives)
    ridges, losses = choose_ridges(grams, drives, group)
    assert len(losses) == 5 and ridges[1] < 1 < 1e5 < ridges[2]
    theta = solve(grams.mean(0), drives.mean(0), ridges[group])
    without = solve(grams.mean(0), drives.mean(0), torch.full((size,), 1e-8).double())
    assert (theta - truth).norm() < (without - truth).norm()


def test_many_parameters_are_shrunk_by_fewer_trials(rng, monkeypatch):
    """Noise alone says nothing, whichever way is taken; what a group knows is kept."""
    size, count = 40, 120
    truth = np.concatenate([rng.normal(size=size) / size**0.5, np.zeros(size)])
    grams, drives = [], []
    for _ in range(5):
        x = rng.normal(size=(count, 2 * size))
        grams.append(x.T @ x / count)
        drives.append(x.T @ (x @ truth + rng.normal(size=count)) / count)
    grams, drives = (torch.tensor(np.array(part)) for part in (grams, drives))
    group = torch.arange(2 * size) // size
    slow, losses = choose_ridges(grams, drives, group)
    monkeypatch.setattr("diffmd_ase.score.shrinkage._MANY", 1)
    fast, others = choose_ridges(grams, drives, group)
    assert slow[1] > 1e5 and fast[1] > 1e5 and fast[0] < 1
    assert abs(losses.mean() - others.mean()) < 0.02 * abs(losses.mean())


def test_a_ridge_below_rounding_is_none():
    """Moments are made in float32: what they lack to be positive no ridge may fall below."""
    grams = torch.diag(torch.tensor([1.0, 1.0, -1e-6], dtype=torch.float64)).repeat(5, 1, 1)
    drives = torch.tensor([1.0, 0.5, 1e-4], dtype=torch.float64).repeat(5, 1)
    ridges, losses = choose_ridges(grams, drives, torch.zeros(3, dtype=torch.long))
    assert ridges[0] > 1e-6 and losses.isfinite().all()
