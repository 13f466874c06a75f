"""Molecular liquids: whole molecules, one energy for all sizes, fitted in closed form."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from liquids import CONFIG, KELVIN, solution
from messages import names

from diffmd_ase import ScoreModel, Snapshots, System, TrainConfig, train
from diffmd_ase.score.extrapolation import coordinates_outside, extrapolation
from diffmd_ase.score.liquid_fit import _empty, _with, fit_liquid
from diffmd_ase.score.molecules import arrange, find_molecules
from diffmd_ase.score.networks.inputs import Inputs
from diffmd_ase.score.networks.liquid import LiquidConfig, LiquidNetwork
from diffmd_ase.score.plan import plan
from diffmd_ase.score.structure import Structure


def frames(rng, count=12, **options) -> Snapshots:
    atoms = solution(rng, **options)
    x = atoms.positions + 0.06 * rng.normal(size=(count, len(atoms), 3))
    return Snapshots(System.from_atoms(atoms), x, temperature_K=KELVIN)


def random_form(rng, snapshots):
    """The form of these snapshots, and parameters θ of order one of its energy."""
    form = _empty(snapshots, snapshots.molecules, CONFIG)
    return form, torch.as_tensor(rng.normal(size=form.size))


def scores(network, snapshots, x):
    """Energies (B,) and their gradients (B, N, 3), in float64."""
    told = Inputs.of(snapshots.system, dtype=torch.float64)
    x = torch.as_tensor(x, dtype=torch.float64).requires_grad_()
    energy = told.energy(network.double())(x, x.new_ones(len(x)))
    return energy.detach(), torch.autograd.grad(energy.sum(), x)[0]


def test_molecules_are_found_whole_and_across_the_boundary(rng):
    snapshots = frames(rng, skew=1.5)
    wrapped = snapshots.system.to_atoms(snapshots.positions[0])
    wrapped.wrap()
    for x in (snapshots.positions, wrapped.positions[None]):
        kinds = find_molecules(snapshots.system, x)
        assert [len(kind.atoms) for kind in kinds] == [6, 1, 1]
        assert [len(kind.bonds) for kind in kinds] == [2, 5, 0]


def test_copies_have_one_order_of_atoms(rng):
    atoms = solution(rng, others=())
    order = rng.permutation(len(atoms))
    atoms = atoms[order]
    (kind,) = find_molecules(System.from_atoms(atoms), atoms.positions[None])
    numbers = atoms.numbers[kind.atoms]
    assert (numbers == numbers[0]).all()
    lengths = [
        atoms.get_distance(*copy[bond], mic=True) for copy in kind.atoms for bond in kind.bonds
    ]
    np.testing.assert_allclose(lengths, 0.9690, atol=1e-3)


def test_bonds_without_end_are_no_molecules():
    diamond = bulk("C", "diamond", a=3.57, cubic=True).repeat(2)
    assert find_molecules(System.from_atoms(diamond), diamond.positions[None]) is None


def test_rows_of_molecules():
    water, hydroxide, proton = np.array([8, 1, 1]), np.array([8, 1]), np.array([1])
    places = arrange([water, hydroxide, proton], np.array([8, 1, 8, 1, 1, 8, 1]))
    assert [p.tolist() for p in places] == [[[2, 3, 4]], [[0, 1], [5, 6]], []]
    with pytest.raises(ValueError, match=names("OH2", "molecule by molecule")):
        arrange([water], np.array([8, 1, 8, 1]))


@pytest.mark.parametrize("skew", [0.0, 1.5])
def test_energy_is_linear_in_its_parameters(rng, skew):
    """E = f·θ + walls: the slopes of f that are fitted are those of the energy."""
    snapshots = frames(rng, skew=skew)
    form, theta = random_form(rng, snapshots)
    x = torch.as_tensor(snapshots.positions, dtype=torch.float32)
    slopes = form.jacobian(x.transpose(-1, -2))
    arrows = torch.as_tensor(rng.normal(size=x.shape)).to(x).transpose(-1, -2)
    along = form.along(x.transpose(-1, -2), arrows)
    exact = torch.einsum("fbd,bd->fb", slopes, arrows.flatten(1))
    torch.testing.assert_close(along, exact, rtol=0, atol=1e-5 * float(exact.abs().max()))
    expected = torch.einsum("fbd,f->bd", slopes, theta.float()).unflatten(-1, (3, -1))
    network = _with(form, theta)
    _, gradient = scores(network, snapshots, x)
    scale = float(gradient.abs().max())
    torch.testing.assert_close(
        expected.transpose(-1, -2).double(), gradient, rtol=0, atol=2e-4 * scale
    )


def test_forces_are_slopes_and_stress_that_of_the_cell(rng, tmp_path):
    snapshots = frames(rng, others=("Na",))
    model = train(snapshots, config=TrainConfig(validation_fraction=0.2, cutoff=4.0))
    atoms = snapshots.system.to_atoms(snapshots.positions[0])
    potential = model.potential(dtype=torch.float64)
    x = torch.as_tensor(snapshots.positions[:1])
    found = potential(x, stress=True)
    for atom, axis in ((0, 0), (1, 2), (18, 1)):
        step = torch.zeros_like(x)
        step[0, atom, axis] = 1e-4
        slope = (potential(x + step).energy - potential(x - step).energy) / 2e-4
        torch.testing.assert_close(-slope[0], found.forces[0, atom, axis], rtol=1e-6, atol=1e-6)
    energies = []
    for sign in (1, -1):
        strained = atoms.copy()
        strained.set_cell(atoms.cell * (1 + sign * 1e-5), scale_atoms=True)
        other = model.potential(System.from_atoms(strained), dtype=torch.float64)
        energies.append(float(other(torch.as_tensor(strained.positions)).energy))
    pressure = (energies[0] - energies[1]) / 2e-5 / atoms.get_volume()
    assert pressure == pytest.approx(float(found.stress[0, :3].sum()), rel=1e-5, abs=1e-8)


def test_images_and_copies_of_the_cell_change_nothing(rng):
    snapshots = frames(rng, skew=1.5)
    form, theta = random_form(rng, snapshots)
    network, x = _with(form, theta), snapshots.positions[:2]
    energy, gradient = scores(network, snapshots, x)
    jumps = rng.integers(-2, 3, size=x.shape) @ snapshots.system.cell
    moved, same = scores(network, snapshots, x + jumps)
    torch.testing.assert_close(moved, energy, rtol=1e-9, atol=1e-7)
    torch.testing.assert_close(same, gradient, rtol=1e-7, atol=1e-6)
    twice = snapshots.system.to_atoms(x[0]).repeat((2, 1, 1))
    double = Snapshots(System.from_atoms(twice), twice.positions[None], temperature_K=KELVIN)
    assert float(scores(network, double, double.positions)[0]) == pytest.approx(
        2 * float(energy[0])
    )


def test_an_atom_does_not_act_on_its_own_molecule_but_on_its_image(rng):
    """Water in a cell of 3.2 Å meets itself; in one of 20 Å it does not."""
    for edge, meets in ((3.2, True), (20.0, False)):
        atoms = Atoms(molecule("H2O"), cell=[edge] * 3, pbc=True)
        x = atoms.positions + 0.03 * rng.normal(size=(5, 3, 3))
        snapshots = Snapshots(System.from_atoms(atoms), x, temperature_K=KELVIN)
        form, theta = random_form(rng, snapshots)
        theta[form.group < form.group.max()] = 0.0
        energy, _ = scores(_with(form, theta), snapshots, x)
        assert bool((energy.abs() > 1e-3).all()) == meets


def test_snapshots_alone_give_the_force_between_molecules():
    """Exact draws of pairs that a spring holds, each atom a molecule: no labels are needed."""
    rngs = map(np.random.default_rng, range(4))
    assert np.mean([error_of_a_spring(rng) for rng in rngs]) < 0.1


def error_of_a_spring(rng) -> float:
    count, rest, width = 6000, 2.6, 0.15
    r = rng.normal(rest, width, 20 * count)
    r = r[rng.uniform(size=len(r)) < (r / (rest + 6 * width)) ** 2][:count]  # r² of the volume
    u = rng.normal(size=(count, 3))
    arm = 0.5 * r[:, None] * u / np.linalg.norm(u, axis=1, keepdims=True)
    atoms = Atoms("He2", cell=[20.0] * 3, pbc=True)
    snapshots = Snapshots(
        System.from_atoms(atoms), 10.0 + np.stack([arm, -arm], axis=1), temperature_K=KELVIN
    )
    network = fit_liquid(snapshots, LiquidConfig(cutoff=4.0, functions=16), sigma=0.001)
    _, gradient = scores(network, snapshots, snapshots.positions)
    pull = (gradient[:, 0].numpy() * 2 * arm / r[:, None]).sum(1)
    exact = (r - rest) / width**2
    return float(np.linalg.norm(pull - exact) / np.linalg.norm(exact))


def test_molecules_are_moved_further_than_their_atoms(rng):
    snapshots = frames(rng)
    form, _ = random_form(rng, snapshots)
    one, other = (torch.as_tensor(rng.normal(size=(3, len(snapshots.system)))) for _ in range(2))
    torch.testing.assert_close((form.weigh(one) * other).sum(), (one * form.weigh(other)).sum())
    within = one - one[:, :3].mean(1, keepdim=True)
    torch.testing.assert_close(form.weigh(within)[:, :3], within[:, :3])
    whole = torch.ones_like(one)
    torch.testing.assert_close(form.weigh(whole), 5 * whole)


def test_forces_of_the_form_are_found_again(rng):
    """Labels in the span of the form: what is fitted is what made them."""
    snapshots = frames(rng, count=60, others=("Na",))
    form, theta = random_form(rng, snapshots)
    network = _with(form, theta)
    _, gradient = scores(network, snapshots, snapshots.positions)
    labelled = Snapshots(
        snapshots.system,
        snapshots.positions,
        temperature_K=KELVIN,
        forces=-gradient.numpy() * snapshots.kT,
    )
    fitted = fit_liquid(labelled, CONFIG, sigma=0.003, force_weight=1e4)
    _, found = scores(fitted, snapshots, snapshots.positions)
    assert float((found - gradient).norm() / gradient.norm()) < 0.02
    chosen = fit_liquid(labelled, CONFIG, sigma=0.003, force_weight="auto")
    assert float(chosen.energy.label_weight) > 100  # labels in the span are worth all
    other = fit_liquid(labelled, CONFIG, sigma=0.003)  # these frames are not of its law
    assert float((scores(other, snapshots, snapshots.positions)[1] - gradient).norm()) > 10 * float(
        (found - gradient).norm()
    )


def test_files_and_other_sizes(rng, tmp_path):
    snapshots = frames(rng, others=("Na",))
    model = train(snapshots, config=TrainConfig(validation_fraction=0.2, cutoff=4.0))
    assert model.card.experts[0].network.kind == "liquid"
    again = ScoreModel.load(model.save(tmp_path / "m.safetensors"))
    x = torch.as_tensor(snapshots.positions)
    torch.testing.assert_close(
        again.potential()(x).energy, model.potential()(x).energy, rtol=0, atol=0
    )
    alone = solution(rng, waters=8, others=())
    assert np.isfinite(
        float(again.potential(System.from_atoms(alone))(torch.as_tensor(alone.positions)).energy)
    )
    with pytest.raises(ValueError, match=names("molecule by molecule")):
        again.potential(System.from_atoms(alone[[0, 3, 1, 2, *range(4, len(alone))]]))


def test_atoms_of_other_molecules_are_noticed(rng):
    snapshots = frames(rng, others=())
    network = fit_liquid(snapshots, CONFIG, sigma=0.003)
    known = Structure.of(network, snapshots.system)
    assert known.doubt(snapshots.positions) is None
    mixed = snapshots.positions[:, [0, 4, 2, 3, 1, *range(5, len(snapshots.system))]]
    assert "O0-H1" in known.doubt(mixed)


def test_what_no_snapshot_had_is_named(rng):
    snapshots = frames(rng, count=40)
    network = fit_liquid(snapshots, CONFIG, sigma=0.003)
    told, numbers = Inputs.of(snapshots.system), snapshots.system.numbers
    x = torch.as_tensor(snapshots.positions, dtype=torch.float32)
    assert (extrapolation(network, x, told) <= 1).all()
    assert coordinates_outside(network, x[0], numbers, told) is None
    long = x[0].clone()
    long[4] += 0.8 * (long[4] - long[3])
    assert "bond O3-H4 is 1." in coordinates_outside(network, long, numbers, told)
    near = x[0].clone()  # another molecule on top of it, in an image of the cell
    near[6:9] += near[0] - near[6] + torch.tensor([0.5, 0.0, 0.0]) + told.cell[1]
    words = coordinates_outside(network, near, numbers, told)
    assert "two molecules" in words and "nearer than any" in words
    far = extrapolation(network, torch.stack([long, near]), told)
    assert (far > 1).all()


def test_what_is_planned(rng):
    experts = plan(frames(rng), TrainConfig())
    assert [e.network.kind for e in experts] == ["liquid"]
    # far below the width of the bonds, which are 0.06 √2 Å wide here
    assert experts[0].sigma[0] < 0.006
    with pytest.raises(ValueError, match=names("liquid", "equivariant", "2 sets")):
        plan([frames(rng), frames(rng)], TrainConfig(network="liquid"))
    atoms = solution(rng, others=())
    moved = atoms.positions + 0.3 * rng.normal(size=(12, 6, 1, 3)).repeat(3, 2).reshape(12, 18, 3)
    stiff = Snapshots(System.from_atoms(atoms), moved, temperature_K=KELVIN)
    with pytest.raises(ValueError, match=names("hardly varies", "constraints")):
        plan(stiff, TrainConfig())


def test_networks_that_do_not_fit_their_tables(rng):
    snapshots = frames(rng)
    form, theta = random_form(rng, snapshots)
    network = _with(form, theta)
    tables = dict(network.energy.state_dict())
    molecules = [prior.state_dict() for prior in network.priors]
    with pytest.raises(ValueError, match=names("pair energies")):
        LiquidNetwork(CONFIG, molecules, tables | {"pair": tables["pair"][1:]})
    with pytest.raises(ValueError, match=names("once")):
        LiquidNetwork(CONFIG, molecules, tables | {"atoms_0": tables["atoms_0"] * 0})
    with pytest.raises(ValueError, match=names("3 atoms")):
        network(torch.zeros(1, 3, 3), torch.ones(1))
