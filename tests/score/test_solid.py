"""Solids whose bonds have directions: the closed form holds them, and other forms do not."""

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import add_adsorbate, bulk, fcc111, molecule
from ase.neighborlist import neighbor_list

from diffmd_ase import Noise, ScoreModel, Snapshots, System, TrainConfig
from diffmd_ase.potentials.base import Potential
from diffmd_ase.sampling.hamiltonian import HamiltonianMonteCarlo
from diffmd_ase.sampling.run import run
from diffmd_ase.score.embedded_fit import fit_embedded
from diffmd_ase.score.neighbours import edges
from diffmd_ase.score.networks.angular import (
    DEGREES,
    RADIALS,
    Around,
    angular_energy,
    angular_slopes,
    harmonics,
    pairs_of_channels,
)
from diffmd_ase.score.networks.build import build
from diffmd_ase.score.networks.embedded import EmbeddedConfig, EmbeddedEnergy
from diffmd_ase.score.plan import plan
from diffmd_ase.score.training import train
from diffmd_ase.state import Evaluation
from diffmd_ase.testing import check_potential

T, STRETCH, BEND = 300.0, 0.15, 0.06  # K, eV/Å⁴: of the order of silicon's
SILICON = bulk("Si", a=5.43, cubic=True).repeat((2, 2, 1))  # eight atoms see few waves
KEPT = 100  # frames learned from; the rest are of other walkers


class Keating(Potential):
    """α Σ (r² - d²)² over bonds + β Σ (r·r' + d²/3)² over angles (Phys. Rev. 145, 637 (1966))."""

    def __init__(self, atoms: Atoms):
        self.system = System.from_atoms(atoms)
        i, j, shift = neighbor_list("ijS", atoms, 3.0)
        assert (np.bincount(i) == 4).all()
        order = np.argsort(i, kind="stable")
        self.source, self.image = j[order], torch.as_tensor((shift @ atoms.cell.array)[order])
        self.square = 3 / 16 * 5.43**2

    def __call__(self, x, *, stress=False):
        x = x.detach().double().requires_grad_()
        r = (x[:, self.source] + self.image).unflatten(1, (-1, 4)) - x[:, :, None]
        dots = r @ r.transpose(-1, -2)
        bonds = STRETCH * (dots.diagonal(dim1=-1, dim2=-2) - self.square).square().sum((1, 2)) / 2
        i, j = torch.triu_indices(4, 4, 1)
        angles = BEND * (dots[..., i, j] + self.square / 3).square().sum((1, 2))
        energy = bonds + angles
        return Evaluation(energy.detach(), -torch.autograd.grad(energy.sum(), x)[0])


@pytest.fixture(scope="module")
def frames() -> Snapshots:
    """200 frames."""
    true = Keating(SILICON)
    kernel = HamiltonianMonteCarlo(
        true, kT=T * units.kB, timestep=4 * units.fs, n_leapfrog=12, masses=SILICON.get_masses()
    )
    x = torch.as_tensor(SILICON.positions).expand(20, -1, -1)
    kept = [s.x for s, _ in run(kernel, x, 45, noise=Noise(3))][6::4]
    x = torch.stack(kept).transpose(0, 1).flatten(0, 1)  # walker after walker
    found = true(x)
    return Snapshots(
        System.from_atoms(SILICON), x.numpy(), temperature_K=T, energies=found.energy.numpy(),
        forces=found.forces.numpy(), source="silicon", checked=True,
    )  # fmt: skip


def error(energy: EmbeddedEnergy, frames: Snapshots) -> float:
    """Relative, of forces on frames that were not learned from."""
    late = frames.take(slice(KEPT, None))
    x = torch.as_tensor(late.positions).requires_grad_()
    cell, numbers = torch.as_tensor(late.system.cell), torch.as_tensor(late.system.numbers)
    total = energy.double()(x, numbers, cell, (True,) * 3).sum()
    forces = -late.kT * torch.autograd.grad(total, x)[0].numpy()
    return np.linalg.norm(forces - late.forces) / np.linalg.norm(late.forces)


def test_angles_pay(frames):
    """Energies of pairs and densities do not hold what directions of bonds are worth."""
    few = frames.take(slice(0, KEPT))

    def fitted(angular):
        options = {"cutoff": 3.5, "functions": 12, "sigma": 0.004, "force_weight": 100.0}
        tables = fit_embedded(few, angular=angular, **options)
        assert ("angular" in tables) == bool(angular)
        return error(EmbeddedEnergy(3.5, tables, angular=angular), frames)

    assert fitted(3.3) < 0.02
    assert fitted(0.0) > 0.08


def test_terms_that_do_not_pay_cost_nothing(rng):
    """Springs along the lines between atoms have no directions."""
    atoms = bulk("Cu", a=3.6, cubic=True).repeat(2)
    i, j, line = neighbor_list("ijD", atoms, 4.0)
    unit = line / np.linalg.norm(line, axis=1)[:, None]
    springs = np.zeros((len(atoms), 3, len(atoms), 3))
    for a, b, u in zip(i, j, unit, strict=True):
        springs[a, :, a] += np.outer(u, u)
        springs[a, :, b] -= np.outer(u, u)
    values, modes = np.linalg.eigh(springs.reshape(3 * len(atoms), -1))
    width = np.where(values > 1e-9, (T * units.kB / values.clip(1e-9)) ** 0.5, 0.0)
    radii = []
    for _ in range(2):
        x = atoms.positions + ((rng.normal(size=(60, len(width))) * width) @ modes.T).reshape(
            60, -1, 3
        )
        data = Snapshots(System.from_atoms(atoms), x, temperature_K=T, source="s", checked=True)
        tables = fit_embedded(data, cutoff=4.5, functions=12, sigma=0.01, angular=3.0)
        radii.append(EmbeddedEnergy(4.5, tables, angular=3.0).radius)
        assert ("angular" in tables) == (radii[-1] > 0)
    assert 0.0 in radii  # by luck they seem to pay in one case of four


@pytest.fixture
def around(rng):
    """Neighbours of two structures of five atoms of two elements."""
    x = torch.as_tensor(rng.normal(scale=1.5, size=(2, 5, 3)))
    source, target, vectors = edges(x, 4.0)
    element = torch.tensor([0, 1, 0, 0, 1]).repeat(2)
    begin = torch.tensor(1.2, dtype=x.dtype)
    return x, Around(vectors, source, target, element, 2, begin, 3.5)


def test_the_power_spectrum_is_a_sum_over_angles(around):
    """p_ab,l = Σ_jk φ_a(r_ij) φ_b(r_ik) P_l(cos θ_jik)."""
    _, given = around
    near = given.near()
    falls, density = near.radial(near.vectors), None
    density = near.density(falls, harmonics(near.vectors))
    unit = near.vectors / near.vectors.norm(dim=-1, keepdim=True)
    for atom in range(10):
        mine = torch.nonzero(near.target == atom)[:, 0]
        one = falls.new_zeros(len(mine), near.channels)
        for row, edge in enumerate(mine):
            first = int(near.element[near.source[edge]]) * RADIALS
            one[row, first : first + RADIALS] = falls[edge]
        cosine = unit[mine] @ unit[mine].T
        for degree in range(DEGREES + 1):
            legendre = torch.special.legendre_polynomial_p(cosine, degree)
            own = density[atom][:, degree**2 : (degree + 1) ** 2]
            assert torch.allclose(own @ own.T, one.T @ legendre @ one, atol=1e-12)


def test_slopes_are_those_of_the_energy(around, rng):
    x, given = around
    pairs = pairs_of_channels(given.channels).shape[1]
    table = torch.as_tensor(rng.normal(size=(2, DEGREES + 1, pairs)))
    moved = x.clone().requires_grad_()
    source, target, vectors = edges(moved, 4.0)
    again = given._replace(vectors=vectors, source=source, target=target)
    expected = torch.autograd.grad(angular_energy(again, table).sum(), moved)[0]
    slopes = torch.einsum("fnx,f->nx", angular_slopes(given), table.flatten())
    assert torch.allclose(slopes.reshape(expected.shape), expected, atol=1e-10)
    assert expected.abs().max() > 0.1


def test_a_model_of_it(frames, tmp_path):
    """Training, a file, forces and stress, other cells, and neither terms nor names by hand."""
    torch.set_default_dtype(torch.float64)
    some = frames.take(slice(0, KEPT))
    config = TrainConfig(processes=1, force_weight=100)
    train(some, config=config, device="cpu").save(tmp_path / "silicon.safetensors")
    model = ScoreModel.load(tmp_path / "silicon.safetensors")
    assert isinstance(model.networks[0].config, EmbeddedConfig)
    assert model.networks[0].energy.radius > 2.5
    large = SILICON.repeat((1, 1, 2))
    large.rattle(0.02, seed=1)

    def made(system):
        return model.potential(system, dtype=torch.float64)

    potential = made(System.from_atoms(large))
    check_potential(
        potential, torch.as_tensor(large.positions), dtypes=(torch.float64,), factory=made
    )
    turned = large.copy()
    turned.rotate(40, (1, 2, 3), rotate_cell=True)
    again = model.potential(System.from_atoms(turned), dtype=torch.float64)
    one, other = (
        potential(torch.as_tensor(large.positions)),
        again(torch.as_tensor(turned.positions)),
    )
    assert torch.allclose(one.energy, other.energy, atol=1e-9)
    true = Keating(large)(torch.as_tensor(large.positions)[None]).forces[0]
    assert (one.forces - true).norm() < 0.08 * true.norm()


def test_the_noise_of_a_fit_has_a_seed(rng):
    atoms = bulk("Cu", cubic=True)
    x = atoms.positions + rng.normal(scale=0.05, size=(24, 4, 3))
    data = Snapshots(System.from_atoms(atoms), x, temperature_K=T, source="x", checked=True)
    config = EmbeddedConfig(cutoff=4.0, functions=8)
    one, again, other = (build(config, data, sigma=0.005, seed=n).energy.pair for n in (0, 0, 1))
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_which_network(frames):
    def kind(atoms, **given):
        rng = np.random.default_rng(0)
        x = atoms.positions + rng.normal(scale=0.05, size=(30, len(atoms), 3))
        data = Snapshots(System.from_atoms(atoms), x, temperature_K=T, source="x", checked=True)
        return plan(data, TrainConfig(**given))[0].network

    assert kind(SILICON).angular == pytest.approx(0.65 * kind(SILICON).cutoff, abs=0.01)
    salt = bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    assert kind(salt).angular > 0
    assert kind(bulk("Cu", cubic=True)).angular == 0
    slab = fcc111("Cu", (2, 2, 3), vacuum=8.0)
    add_adsorbate(slab, "O", 1.2, "fcc")
    assert kind(slab).angular > 0
    boxed = molecule("CH3CH2OH")
    boxed.set_cell([9, 9, 9])
    boxed.pbc = True
    assert kind(boxed).kind == "equivariant"
    many = bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    many.numbers[:4] = [11, 19, 35, 17]
    assert kind(many).kind == "equivariant"
