"""Symmetries, smoothness and derivatives of the energy networks; neighbours against ASE."""

import math

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.neighborlist import neighbor_list
from messages import names
from pydantic import ValidationError

from diffmd_ase.score.neighbours import edges, envelope
from diffmd_ase.score.networks.build import build
from diffmd_ase.score.networks.equivariant import EquivariantConfig
from diffmd_ase.score.networks.molecule import MechanicsConfig, PairConfig
from diffmd_ase.score.snapshots import Snapshots
from diffmd_ase.score.spacing import mean_neighbours
from diffmd_ase.system import System

ACHIRAL, CHIRAL = "ethanol", "dipeptide"


def rattled(name):
    atoms = molecule(name)
    rng = np.random.default_rng(0)
    x = atoms.positions + 0.03 * rng.normal(size=(200, len(atoms), 3))
    return Snapshots(System.from_atoms(atoms), x, 300)


@pytest.fixture(scope="module")
def data():
    made = {ACHIRAL: rattled("CH3CH2OH")}
    return {**made, CHIRAL: Snapshots.read("alanine-dipeptide").take(slice(0, 300))}


@pytest.fixture(scope="module")
def made(data):
    """Networks by (kind, molecule); random weights everywhere, so that no term is asleep."""
    out = {}
    for name, snapshots in data.items():
        numbers = snapshots.system.numbers
        equivariant = EquivariantConfig(
            channels=4,
            elements=tuple(sorted(set(numbers.tolist()))),
            cutoff=4.0,
            chiral=snapshots.topology.chiral,
            l_max=2 if name == ACHIRAL else 1,
            layers=2 if name == ACHIRAL else 3,
        )
        for config in (MechanicsConfig(width=16), PairConfig(width=16), equivariant):
            torch.manual_seed(0)
            network = build(config, snapshots, sigma=0.002)
            for parameter in network.parameters():
                parameter.data += 0.1 * torch.randn(parameter.shape).to(parameter)
            out[config.kind, name] = network.requires_grad_(False)
    return out


KINDS = ["mechanics", "pair", "equivariant"]
# the force field is for the smallest noise
SIGMA = {"mechanics": 0.002, "pair": 0.3, "equivariant": 0.3}


class Case:
    """A network with its molecule: energy and forces of (B, N, 3)."""

    def __init__(self, made, data, kind, name, dtype=torch.float64):
        self.network = made[kind, name].to(dtype)
        self.sigma = SIGMA[kind]
        self.numbers = torch.as_tensor(data[name].system.numbers)
        self.x = torch.as_tensor(data[name].positions[:5]).to(dtype)

    def energy(self, x, sigma=None):
        level = x.new_full((len(x),), self.sigma) if sigma is None else sigma
        return self.network(x, level, numbers=self.numbers)

    def forces(self, x):
        x = x.detach().requires_grad_()
        return -torch.autograd.grad(self.energy(x).sum(), x)[0]


@pytest.fixture(
    params=[(k, n) for k in KINDS for n in (ACHIRAL, CHIRAL)], ids=lambda p: "-".join(p)
)
def case(request, made, data):
    return Case(made, data, *request.param)


def rotation(seed=0):
    q = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(seed))).Q
    return q * torch.linalg.det(q)


# ----------------------------------------------------------------------- symmetries


@pytest.mark.usefixtures("float64")
def test_rigid_motions(case):
    r, shift = rotation(), torch.tensor([1.0, -7.0, 3.0])
    moved = case.x @ r.T + shift
    energy = case.energy(case.x)
    assert (case.energy(moved) - energy).abs().max() <= 1e-10 * max(1.0, energy.abs().max())
    forces = case.forces(case.x)
    assert (case.forces(moved) - forces @ r.T).abs().max() <= 1e-9 * forces.abs().max()
    # nothing pushes or turns the whole
    assert forces.sum(1).abs().max() <= 1e-9 * forces.abs().max()
    assert torch.linalg.cross(case.x, forces).sum(1).abs().max() <= 1e-8 * forces.abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_rigid_motions_in_single_precision(made, data, kind):
    case = Case(made, data, kind, CHIRAL, torch.float32)
    r, x = rotation().float(), case.x - case.x.mean(1, keepdim=True)
    energy = case.energy(x)
    scale = energy.abs().max().clamp(min=1.0)
    assert energy.dtype == torch.float32
    assert (case.energy(x @ r.T + 2.0) - energy).abs().max() <= 1e-5 * scale * (
        # a spring of 10⁴ kT/Å² feels the rounding of positions, 1e-7 Å
        20 if kind == "mechanics" else 1
    )
    case.network.double()


@pytest.mark.parametrize("kind", KINDS)
def test_mirror_images(made, data, kind):
    chiral = Case(made, data, kind, CHIRAL)
    difference = (chiral.energy(-chiral.x) - chiral.energy(chiral.x)).abs()
    # the network of all noise levels is even: the hand is chosen at the end
    assert difference.max() < 1e-10 if kind == "pair" else difference.min() > 1e-6
    achiral = Case(made, data, kind, ACHIRAL)
    energy = achiral.energy(achiral.x)
    assert (achiral.energy(-achiral.x) - energy).abs().max() <= 1e-10 * energy.abs().max()


def test_like_atoms_may_be_exchanged(made, data):
    """Exactly, for any order of the atoms; forces go with them."""
    for name in (ACHIRAL, CHIRAL):
        case = Case(made, data, "equivariant", name)
        energy, forces = case.energy(case.x), case.forces(case.x)
        order = torch.randperm(case.x.shape[1], generator=torch.Generator().manual_seed(1))
        case.numbers = case.numbers[order]
        assert torch.allclose(case.energy(case.x[:, order]), energy, rtol=0, atol=1e-10)
        assert torch.allclose(case.forces(case.x[:, order]), forces[:, order], rtol=0, atol=1e-9)


def test_elements_are_told_apart(made, data):
    case = Case(made, data, "equivariant", ACHIRAL)
    energy = case.energy(case.x)
    case.numbers = torch.where(case.numbers == 8, 6, case.numbers)
    assert (case.energy(case.x) - energy).abs().min() > 1e-3


# ----------------------------------------------------- batches, derivatives, smoothness


def test_batch_is_single(case):
    together = case.energy(case.x), case.forces(case.x)
    for n in range(len(case.x)):
        alone = case.energy(case.x[n : n + 1]), case.forces(case.x[n : n + 1])
        scale = together[1].abs().max()
        assert abs(alone[0][0] - together[0][n]) <= 1e-11 * together[0].abs().max()
        assert (alone[1][0] - together[1][n]).abs().max() <= 1e-11 * scale


def test_noise_levels_may_differ_within_a_batch(made, data):
    for kind in ("pair", "equivariant"):
        case = Case(made, data, kind, CHIRAL)
        sigma = torch.tensor([0.002, 0.02, 0.2, 2.0, 4.0])
        together = case.energy(case.x, sigma)
        for n in range(5):
            alone = case.energy(case.x[n : n + 1], sigma[n : n + 1])[0]
            assert abs(alone - together[n]) <= 1e-10 * max(1.0, together[n].abs())
        assert (case.energy(case.x, sigma.flip(0)) - together)[0].abs() > 1e-3


def test_forces_by_finite_differences(case):
    generator = torch.Generator().manual_seed(0)
    forces = case.forces(case.x)
    for _ in range(4):
        v, h = torch.randn(case.x.shape, generator=generator), 1e-4
        near = case.energy(case.x + h * v) - case.energy(case.x - h * v)
        far = case.energy(case.x + 2 * h * v) - case.energy(case.x - 2 * h * v)
        slope = (8 * near - far) / (12 * h)
        assert torch.allclose(slope, -(forces * v).sum((1, 2)), rtol=1e-5, atol=1e-4)


def test_second_derivatives_exist(case):
    """Training differentiates the score by the weights, the step size needs the curvature."""
    x = case.x[:1].requires_grad_()
    for parameter in case.network.parameters():
        parameter.requires_grad_()
    (gradient,) = torch.autograd.grad(case.energy(x).sum(), x, create_graph=True)
    (curvature,) = torch.autograd.grad(gradient.square().sum(), x, retain_graph=True)
    assert torch.isfinite(curvature).all() and curvature.abs().max() > 0
    weights = list(case.network.parameters())
    grads = torch.autograd.grad(gradient.square().sum(), weights, allow_unused=True)
    case.network.requires_grad_(False)
    assert all(torch.isfinite(g).all() for g in grads if g is not None)
    # only what is a constant of the energy may be unused: biases of linear last layers
    unused = [w for w, g in zip(weights, grads, strict=True) if g is None]
    assert all(w.ndim <= 1 for w in unused)


def test_finite_where_atoms_coincide(case):
    x = case.x.clone()
    x[0, 1] = x[0, 0]
    x[1] = 0.0
    x[2] *= 0.01
    x[3] *= 100
    assert torch.isfinite(case.energy(x)).all()
    assert torch.isfinite(case.forces(x)).all()


@pytest.mark.usefixtures("float64")
def test_smooth_at_the_cutoff():
    """Energy and force of a dimer vanish at the cutoff and stay away."""
    torch.manual_seed(0)
    config = EquivariantConfig(channels=8, elements=(29,), cutoff=4.0, neighbours=1.0)
    network = build(config, None).double().requires_grad_(False)
    numbers, r = (
        torch.tensor([29, 29]),
        torch.tensor([2.5, 3.99, 3.9999, 4.0 - 1e-9, 4.0 + 1e-9, 6]),
    )
    x = torch.zeros(len(r), 2, 3)
    x[:, 1, 0] = r
    x.requires_grad_()
    energy = network(x, torch.full((len(r),), 0.1), numbers=numbers)
    force = torch.autograd.grad(energy.sum(), x)[0][:, 1, 0]
    away = (energy - energy[-1]).abs()
    assert away[0] > 1e-3 and abs(force[0]) > 1e-4
    assert away[1] < 1e-4 * away[0] and away[2] < 1e-10 and away[3:].max() < 1e-12
    assert abs(force[1]) < 1e-2 * abs(force[0]) and abs(force[2]) < 1e-6
    assert force[3:].abs().max() < 1e-12


def test_envelope():
    t = torch.tensor([0.0, 0.5, 1.0, 2.0], requires_grad=True)
    value = envelope(t)
    (slope,) = torch.autograd.grad(value.sum(), t)
    assert value.tolist() == [1.0, 0.5, 0.0, 0.0]
    assert slope.tolist() == [0.0, -1.875, 0.0, 0.0]


# ----------------------------------------------------------------------- neighbours


def listed(i, j, d):
    rows = np.concatenate([np.stack([i, j], 1), np.round(d, 7) + 0.0], axis=1)
    return rows[np.lexsort(rows.T[::-1])]


@pytest.mark.parametrize("seed", range(12))
def test_edges_agree_with_ase(seed):
    """Random triclinic cells, partial pbc, atoms outside the cell, cells below the cutoff."""
    rng = np.random.default_rng(seed)
    size = (3.0, 6.0, 12.0)[seed % 3]
    cell = size * (np.eye(3) + 0.4 * rng.uniform(-1, 1, size=(3, 3)))
    if seed % 2:
        cell[0] *= -1  # a left-handed cell
    pbc = rng.uniform(size=3) < 0.7
    cutoff = (2.5, 5.0)[seed % 2]
    frames = [
        Atoms("H7", positions=rng.uniform(-2, 2, size=(7, 3)) @ cell, cell=cell, pbc=pbc)
        for _ in range(2)
    ]
    x = torch.as_tensor(np.array([a.positions for a in frames]))
    source, target, vectors = edges(x, cutoff, torch.as_tensor(cell), tuple(pbc.tolist()))
    for n, atoms in enumerate(frames):
        mine = (target // 7 == n).numpy()
        found = listed(target[mine] - 7 * n, source[mine] - 7 * n, vectors[mine].numpy())
        exact = listed(*neighbor_list("ijD", atoms, cutoff))
        assert found.shape == exact.shape
        assert np.allclose(found[:, :2], exact[:, :2]) and np.allclose(found, exact, atol=1e-6)


def test_edges_of_a_molecule():
    atoms = molecule("CH3CH2OH")
    x = torch.as_tensor(atoms.positions)[None]
    source, target, vectors = edges(x, 2.0)
    exact = listed(*neighbor_list("ijD", atoms, 2.0))
    assert np.allclose(listed(target, source, vectors.numpy()), exact)
    # a cell without pbc is only a drawing
    same = edges(x, 2.0, torch.eye(3), (False,) * 3)
    assert torch.equal(same[0], source) and torch.equal(same[2], vectors)


def copper(vacancy=False):
    atoms = bulk("Cu", cubic=True).repeat(2)
    if vacancy:
        del atoms[5]
    atoms.rattle(0.05, seed=1)
    return atoms


@pytest.fixture(scope="module")
def crystal():
    torch.manual_seed(0)
    config = EquivariantConfig(channels=4, elements=(29,), cutoff=4.0)
    return build(config, None).double().requires_grad_(False)


def energy_of(network, atoms, cell=None):
    cell = torch.as_tensor(np.array(atoms.cell)) if cell is None else cell
    x = torch.as_tensor(atoms.positions)[None]
    numbers = torch.as_tensor(atoms.numbers)
    return network(x, x.new_tensor([0.1]), numbers=numbers, cell=cell, pbc=(True,) * 3)[0]


def test_crystal_with_a_vacancy(crystal):
    """31 atoms; wrapping, whole lattice vectors and supercells change nothing."""
    atoms = copper(vacancy=True)
    assert len(atoms) == 31
    energy = energy_of(crystal, atoms)
    shifted = atoms.copy()
    shifted.positions += [1.7, -30.0, 4.4]
    wrapped = shifted.copy()
    wrapped.wrap()
    hop = atoms.copy()
    hop.positions[3] += 2 * atoms.cell[0] - atoms.cell[2]
    for other in (shifted, wrapped, hop):
        assert abs(energy_of(crystal, other) - energy) < 1e-10 * energy.abs()
    double = atoms.repeat((1, 1, 2))
    assert abs(energy_of(crystal, double) - 2 * energy) < 1e-10 * energy.abs()
    # the same network, another composition: the vacancy is seen
    assert abs(energy_of(crystal, copper()) / 32 - energy / 31) > 1e-6


def test_cells_of_a_batch_may_differ(crystal):
    atoms = copper()
    cells = torch.as_tensor(np.array(atoms.cell)) * torch.tensor([1.0, 1.03])[:, None, None]
    x = torch.as_tensor(atoms.positions) * torch.tensor([1.0, 1.03])[:, None, None]
    numbers = torch.as_tensor(atoms.numbers)
    together = crystal(x, x.new_full((2,), 0.1), numbers=numbers, cell=cells, pbc=(True,) * 3)
    for n in range(2):
        alone = crystal(
            x[n : n + 1], x.new_tensor([0.1]), numbers=numbers, cell=cells[n], pbc=(True,) * 3
        )
        assert abs(alone[0] - together[n]) < 1e-10


def test_mean_neighbours():
    atoms = bulk("Cu", cubic=True).repeat(2)
    frames = Snapshots(System.from_atoms(atoms), np.tile(atoms.positions, (3, 1, 1)), 300)
    a = 3.61
    assert mean_neighbours(frames, 0.75 * a) == 12
    assert mean_neighbours(frames, 1.1 * a) == 18
    assert mean_neighbours(frames, 0.5) == 1  # never zero


# ------------------------------------------------------------------- configurations


def test_configurations_say_what_is_wrong():
    with pytest.raises(ValidationError, match=names("cutoff", "input_value=-1.0")):
        EquivariantConfig(cutoff=-1.0)
    with pytest.raises(ValidationError, match="wdith"):
        PairConfig(wdith=3)
    with pytest.raises(ValidationError, match="layers >= 3"):
        EquivariantConfig(chiral=True, layers=2)
    assert math.isfinite(EquivariantConfig().neighbours)


@pytest.mark.parametrize("kind", KINDS)
def test_rebuilt_from_its_weights(made, data, kind):
    """The state dictionary holds all there is: no snapshots are needed to load a network."""
    case = Case(made, data, kind, CHIRAL, torch.float32)
    state = case.network.state_dict()
    again = build(case.network.config, state)
    again.load_state_dict(state)
    x, sigma = case.x, case.x.new_full((len(case.x),), case.sigma)
    assert torch.equal(again(x, sigma, numbers=case.numbers), case.energy(x))
    case.network.double()
