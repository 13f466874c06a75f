"""The fitted force field: exact where the energy is in its basis, and safe outside the data."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import units
from ase.build import molecule
from chains import chain_energy, chains, minus_gradient

from diffmd_ase.score.force_field import MechanicsPrior
from diffmd_ase.score.force_field_fit import fit_prior
from diffmd_ase.score.force_field_tables import parameter_numbers
from diffmd_ase.score.linear_form import square
from diffmd_ase.score.snapshots import Snapshots
from diffmd_ase.system import System
from diffmd_ase.testing import assert_zscore


def snapshots(x, numbers):
    numbers = np.asarray(numbers)
    return Snapshots(System(numbers, np.ones(len(numbers))), x, 300)


def of(statistics):
    """Energy (B,) in kT of positions (B, N, 3), in float64."""
    prior = MechanicsPrior(statistics).double()
    return lambda x: prior(x.transpose(-1, -2))


@pytest.fixture(scope="module")
def dipeptide():
    data = Snapshots.read("alanine-dipeptide").take(slice(0, 1500))
    return data, fit_prior(data, sigma=0.0014)


@pytest.fixture(scope="module")
def chain():
    data = snapshots(chains(np.random.default_rng(1), 12_000), [6] * 4)
    return data, fit_prior(data, sigma=0.002)


# --------------------------------------------------------------------- closed form


def relative_error(energy, x):
    exact = minus_gradient(chain_energy, x)
    return float((minus_gradient(energy, x) - exact).square().mean() / exact.square().mean())


def test_an_energy_in_the_basis_is_recovered(chain, rng):
    _, statistics = chain
    assert [len(statistics[k]) for k in ("bonds", "angles", "torsions", "free")] == [3, 2, 1, 1]
    x = torch.as_tensor(chains(rng, 2000))
    assert relative_error(of(statistics), x) < 3e-4
    # the check sees a mistake of ten per cent
    assert relative_error(of({**statistics, "theta": 1.1 * statistics["theta"]}), x) > 2e-3


def test_forces_of_the_snapshots_fix_the_parameters(rng):
    """From a hundredth of the snapshots, and better than without; wrong ones do harm."""
    x, test = chains(rng, 120), torch.as_tensor(chains(rng, 2000))
    labels = 300 * units.kB * minus_gradient(chain_energy, torch.as_tensor(x)).numpy()

    def error(forces, weight):
        data = replace(snapshots(x, [6] * 4), forces=forces)
        return relative_error(of(fit_prior(data, sigma=0.002, force_weight=weight)), test)

    blind, seeing = error(None, 0.0), error(labels, 100.0)
    assert seeing < 1e-3 < 0.1 * blind
    assert error(labels, 0.0) == blind
    assert error(-labels, 100.0) > 1


def test_soft_modes_are_recovered(chain, rng):
    """The angular score of the torsion, which stiff bonds would drown."""
    from diffmd_ase.score.torsion_moves import Moves

    data, statistics = chain
    x = torch.as_tensor(chains(rng, 2000))
    moves, rotor = Moves(data.topology), torch.zeros(2000, dtype=torch.long)
    assert len(moves) == 1
    fitted, exact = (
        moves.angular_score(x, minus_gradient(e, x), rotor) for e in (of(statistics), chain_energy)
    )
    assert float((fitted - exact).square().mean() / exact.square().mean()) < 0.005


def test_parameters_of_a_spring_within_their_errors():
    """A diatomic: k/2 (r - r0)² from independent sets of snapshots, |z| < 4."""
    k, r0, sigma, fits = 200.0, 1.1, 0.002, []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        r = r0 + rng.normal(size=40_000) / np.sqrt(k)
        r = r[rng.uniform(size=len(r)) < (r / (r0 + 0.5)) ** 2][:1000]
        u = rng.normal(size=(len(r), 3))
        x = np.zeros((len(r), 2, 3))
        x[:, 1] = r[:, None] * u / np.linalg.norm(u, axis=1, keepdims=True)
        statistics = fit_prior(snapshots(x, [7, 7]), sigma=sigma, seed=seed)
        linear, square = (statistics["theta"] * statistics["unit"]).tolist()
        fits.append((2 * square, float(statistics["bond_mean"]) - linear / (2 * square)))
    # noise of variance σ² on both ends softens the spring: 1/k → 1/k + 2σ²
    assert_zscore(np.array(fits), [k / (1 + 2 * k * sigma**2), r0])
    with pytest.raises(AssertionError, match="z = "):
        assert_zscore(np.array(fits), [1.1 * k, r0])


def test_symmetry_ties_parameters(dipeptide):
    data, statistics = dipeptide
    parameter = statistics["theta"] * statistics["unit"]
    orbits = parameter_numbers(MechanicsPrior(statistics), data.topology)
    for n in range(int(orbits.max()) + 1):
        assert len(parameter[orbits == n].unique()) == 1
    assert int(orbits.max()) + 1 < 0.6 * len(parameter)
    # the C-H bonds of a methyl group share one spring, those of two groups do not
    bonds, numbers = statistics["bonds"].tolist(), data.system.numbers
    groups: dict[int, list[int]] = {}
    for (i, j), orbit in zip(bonds, orbits.tolist(), strict=False):
        if sorted(numbers[[i, j]]) == [1, 6]:
            groups.setdefault(i if numbers[i] == 6 else j, []).append(orbit)
    methyl = [set(g) for g in groups.values() if len(g) == 3]
    assert len(methyl) == 3 and all(len(g) == 1 for g in methyl) and len(set.union(*methyl)) == 3


def test_energy_keeps_the_symmetry_of_the_molecule(dipeptide):
    data, statistics = dipeptide
    x, energy = torch.as_tensor(data.positions[:20]), of(statistics)
    for order in data.topology.permutations[::5]:
        assert torch.allclose(energy(x[:, order]), energy(x), rtol=0, atol=1e-4)


def test_fit_depends_on_nothing_but_data_and_seed(chain):
    data, _ = chain
    part = data.take(slice(0, 500))
    first, again, other = (fit_prior(part, sigma=0.002, seed=s)["theta"] for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    torch.set_default_dtype(torch.float32)
    assert torch.equal(fit_prior(part, sigma=0.002, seed=0)["theta"], first)


# ------------------------------------------------------------------- the machinery


@pytest.mark.parametrize("which", ["dipeptide", "chain"])
@pytest.mark.usefixtures("float64")
def test_jacobian_is_the_derivative_of_the_features(which, request):
    data, statistics = request.getfixturevalue(which)
    prior = MechanicsPrior(statistics).double()
    orbits = parameter_numbers(prior, data.topology)
    size = int(orbits.max()) + 1
    planes = torch.as_tensor(data.positions[:2]).transpose(-1, -2)
    jacobian = prior.jacobian(planes, orbits, size)

    def features(p):
        from diffmd_ase.score.force_field import COORDINATES

        q = {k: COORDINATES[k](*prior.vectors(k, p)) for k in COORDINATES}
        every = torch.cat([f for k in q for f in prior.features(k, q[k])], dim=-1)
        return torch.zeros(len(p), size).index_add(1, orbits, every)

    exact = torch.autograd.functional.jacobian(lambda p: features(p).sum(0), planes).flatten(2)
    assert torch.allclose(jacobian, exact, rtol=1e-9, atol=1e-9)
    arrows = torch.randn(planes.shape, generator=torch.Generator().manual_seed(0))
    along = prior.along(planes, arrows, orbits, size)
    expected = torch.einsum("fbd,bd->fb", exact, arrows.flatten(1))
    assert torch.allclose(along, expected, rtol=1e-8, atol=1e-8)


def test_forces_are_minus_the_gradient(dipeptide):
    data, statistics = dipeptide
    energy, x = of(statistics), torch.as_tensor(data.positions[:3])
    forces = minus_gradient(energy, x)
    generator = torch.Generator().manual_seed(0)
    # in the data, and where the walls push (0.3 Å away)
    for amplitude in (0.0, 0.3):
        point = x + amplitude * torch.randn(x.shape, generator=generator)
        forces = minus_gradient(energy, point)
        for _ in range(5):
            v, h = torch.randn(x.shape, generator=generator), 1e-6
            slope = (energy(point + h * v) - energy(point - h * v)) / (2 * h)
            exact = -(forces * v).sum((1, 2))
            assert torch.allclose(slope, exact, rtol=1e-4, atol=1e-3)


@pytest.mark.usefixtures("float64")
def test_rigid_motions_and_reflections(dipeptide, chain):
    generator = torch.Generator().manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=generator)).Q
    rotation = rotation * torch.linalg.det(rotation)
    for data, statistics in (dipeptide, chain):
        x, energy = torch.as_tensor(data.positions[:10]), of(statistics)
        moved = x @ rotation.T + torch.tensor([3.0, -20.0, 7.0])
        assert torch.allclose(energy(moved), energy(x), rtol=0, atol=1e-9)
        forces = minus_gradient(energy, x)
        assert torch.allclose(minus_gradient(energy, moved), forces @ rotation.T, atol=1e-7)
    # an achiral chain is the same in the mirror
    assert torch.allclose(energy(-x), energy(x), rtol=0, atol=1e-9)


def test_the_other_hand_is_behind_a_wall(dipeptide):
    data, statistics = dipeptide
    x, energy = torch.as_tensor(data.positions), of(statistics)
    assert (energy(-x) - energy(x)).min() > 100
    # no wall is felt in the data
    wall = of({**statistics, "theta": 0 * statistics["theta"]})
    assert (wall(x) == 0).all() and (wall(-x) > 100).all()


def lines_and_heaps(x):
    """Positions that no dynamics should see, and some day does."""
    n = x.shape[0]
    line = torch.zeros_like(x)
    line[:, 0] = 1.2 * torch.arange(n)
    overlap = x.clone()
    overlap[1] = overlap[0]
    overlap[-1] = overlap[2]
    near = x.clone()
    near[3] = near[0] + 1e-5
    return {
        "all at one point": torch.zeros_like(x),
        "in line": line,
        "two pairs on top of each other": overlap,
        "very near": near,
        "squeezed": 0.2 * x,
        "blown up": 50 * x,
        "flat": x * torch.tensor([1.0, 1.0, 0.0]),
    }


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("which", ["dipeptide", "chain"])
def test_finite_everywhere(which, dtype, request):
    data, statistics = request.getfixturevalue(which)
    prior = MechanicsPrior(statistics).to(dtype)
    for name, x in lines_and_heaps(torch.as_tensor(data.positions[0])).items():
        x = x[None].to(dtype)
        assert torch.isfinite(prior(x.transpose(-1, -2))).all(), name
        forces = minus_gradient(lambda p: prior(p.transpose(-1, -2)), x)
        assert torch.isfinite(forces).all(), name


def test_walls_push_overlapping_atoms_apart(chain):
    """Along the shortest path to a clash the energy rises; it never falls into 1/r¹²."""
    data, statistics = chain
    i, j = statistics["free"][0].tolist()
    x, energy = torch.as_tensor(data.positions[:1]), of(statistics)
    wall = of({**statistics, "theta": 0 * statistics["theta"]})
    apart = x[:, j] - x[:, i]
    length = float(apart.norm())
    energies = []
    for r in (0.9 * float(statistics["shortest"][0]), 1.0, 0.1):
        y = x.clone()
        y[:, j] = y[:, i] + apart * (r / length)
        energies.append(float(wall(y)))
        assert abs(float(energy(y))) < 1e7
    exact = [0.5 * ((float(statistics["shortest"][0]) - r) / 0.05) ** 2 for r in (1.0, 0.1)]
    assert energies[0] > 1 and energies[1:] == pytest.approx(exact, rel=1e-5)


def test_walls_are_close_to_the_snapshots(dipeptide):
    """0.3 Å below the shortest distance of far atoms, 15 % below that of near ones."""
    data, statistics = dipeptide
    i, j = statistics["free"].T
    x = torch.as_tensor(data.positions)
    least = (x[:, i] - x[:, j]).norm(dim=-1).amin(0)
    gap = least - statistics["shortest"]
    # distances that symmetry exchanges share the wall of the shortest
    assert gap.min() == pytest.approx(0.15 * float(least.min()), rel=0.1)
    alone = [tuple(pair) == (0, 18) for pair in statistics["free"].tolist()]
    assert gap[alone].item() == pytest.approx(0.3, abs=1e-4)
    assert least[alone].item() > 3.0


@pytest.mark.parametrize("name", ["H2", "H2O", "NH3", "C2H2"])
def test_molecules_without_some_of_the_terms(rng, name):
    atoms = molecule(name)
    x = atoms.positions + 0.02 * rng.normal(size=(200, len(atoms), 3))
    statistics = fit_prior(snapshots(x, atoms.numbers), sigma=0.001)
    energy, ideal = of(statistics), torch.as_tensor(atoms.positions[None])
    assert torch.isfinite(minus_gradient(energy, ideal)).all()


@pytest.mark.parametrize("rows", [5, 191, 300])
def test_a_product_with_itself(rows):
    a = torch.randn(rows, 70, generator=torch.Generator().manual_seed(rows))
    assert torch.allclose(square(a), a @ a.T, rtol=1e-5, atol=1e-4)
