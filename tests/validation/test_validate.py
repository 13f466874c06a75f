"""``diffmd validate``: exact draws pass, wrong models do not, and what cannot be told is said.

The model is a mixture of Gaussian clouds about two conformers of hydrogen peroxide, whose
energy, score and samples are exact at every noise level.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from messages import names
from scipy.spatial.transform import Rotation
from torch import nn

from diffmd_ase import Noise, ScoreModel, Snapshots, System
from diffmd_ase.analysis.divergence import excess_divergence, torsion_bins, torsion_rows
from diffmd_ase.analysis.modes import torsion_basins, torsion_modes, unphysical_frames
from diffmd_ase.potentials.curvature import forces_and_divergence
from diffmd_ase.score.card import Card, ExpertCard
from diffmd_ase.score.networks.molecule import PairConfig
from diffmd_ase.score.topology import Topology
from diffmd_ase.simulation.prepare import prepare
from diffmd_ase.validation.bench import Effort
from diffmd_ase.validation.comparisons import Torsions, width_lines
from diffmd_ase.validation.labels import calibration_line, error_bar_line
from diffmd_ase.validation.scorecard import Goals, judged
from diffmd_ase.validation.validate import validate
from diffmd_ase.validation.walkers import plain_walkers

WIDTH, LOW, HIGH = 0.04, 0.002, 4.0  # Å
SHARE = 0.3  # of the second conformer
TURN = np.radians(150)
SYSTEM = System.from_atoms(molecule("H2O2"))
GRAPH = Topology.from_positions(SYSTEM.numbers, molecule("H2O2").positions[None])
SMALL = Effort(
    samples=500, walkers=64, moves=40, plain_steps=40, labels=200, ladders=8, exchange_steps=800
)
KELVIN = 300.0


def conformers():
    """Two, without mean, that differ by a turn about the middle bond: (2, 4, 3) in Å."""
    x = molecule("H2O2").positions
    (a, b), moved = GRAPH.rotors[0], GRAPH.moved[0]
    axis = (x[b] - x[a]) / np.linalg.norm(x[b] - x[a])
    y = x.copy()
    y[moved] = Rotation.from_rotvec(TURN * axis).apply(x[moved] - x[b]) + x[b]
    both = np.stack([x, y])
    return both - both.mean(1, keepdims=True)


class Clouds(nn.Module):
    """``-ln Σ_k w_k exp(-|x - μ_k|²/2(s² + σ²))``, times ``scale``; dimension of x 3N - 3."""

    def __init__(self, centres, width=WIDTH, share=SHARE, scale=1.0):
        super().__init__()
        self.register_buffer("centres", torch.as_tensor(centres).float())
        self.register_buffer("weights", torch.tensor([1 - share, share]).float())
        self.width, self.scale = width, scale

    def forward(self, x, sigma, *, numbers, cell, pbc):
        x = x - x.mean(1, keepdim=True)
        d = (x[:, None] - self.centres.to(x)).square().sum((2, 3))
        energy = 0.5 * d / (self.width**2 + sigma**2)[:, None]
        return -self.scale * torch.logsumexp(self.weights.to(x).log() - energy, 1)


def draws(n, rng, *, width=WIDTH, share=SHARE):
    which = (rng.random(n) < share).astype(int)
    x = conformers()[which] + width * rng.normal(size=(n, 4, 3))
    return x - x.mean(1, keepdims=True)


def made(network, snapshots):
    """A model with this energy; the card describes the snapshots."""
    experts = [ExpertCard(name="exact", sigma=(LOW, HIGH), network=PairConfig())]
    card = Card.describe((snapshots,), experts, seed=0, config={})
    stiffness = network.scale / (network.width**2 + LOW**2)
    return ScoreModel(card.model_copy(update={"lambda_max": stiffness}), [network])


def labelled(x, *, energy=None, kelvin=KELVIN, **more):
    """Snapshots with the exact energies of the clouds."""
    frames = Snapshots(SYSTEM, x, kelvin, **more)
    u = made(energy or Clouds(conformers()), frames).potential(device="cpu", dtype=torch.float64)
    return replace(frames, energies=u(torch.as_tensor(x)).energy.numpy())


@pytest.fixture(scope="module")
def snapshots():
    return labelled(draws(6000, np.random.default_rng(3)))


@pytest.fixture(scope="module")
def exact(snapshots):
    torch.set_default_dtype(torch.float64)
    return validate(
        made(Clouds(conformers()), snapshots), snapshots, effort=SMALL, modes=True, device="cpu"
    )


def run(network, snapshots, **options):
    options = {"effort": SMALL, "device": "cpu", "seed": 1, **options}
    return validate(made(network, snapshots), snapshots, **options)


def z(line):
    return line.deviation / line.error


# ------------------------------------------------------------------ an exact model passes


def test_an_exact_model_is_nowhere_above_its_floor(exact):
    assert [line.name for line in exact.lines if line.verdict == "fail"] == []
    judged_lines = [line for line in exact.lines if line.goal is not None]
    assert len(judged_lines) > 15
    for line in judged_lines:
        if line.group != "labels" and line.error > 1e-6 and line.expected != 1.0:
            assert abs(z(line)) < 4, line
    assert exact.good is not False and "pass" in exact.words


def test_every_part_of_the_card_is_there(exact):
    groups = {line.group for line in exact.lines}
    assert groups == {
        "torsions", "free energy", "widths", "energies", "labels", "temperature", "stability"
    }  # fmt: skip
    reweighted = [line.name for line in exact.lines if line.name.endswith(": reweighted")]
    assert [name.split()[0] for name in reweighted] == ["JS", "ΔF", "std", "std", "std"]
    assert exact["std of U - E, kT"].value < 1e-5
    assert exact["lost, plain dynamics"].value == 0
    assert any("forces: the snapshots have none" in text for _, text in exact.notes)
    assert any("worth 6000 independent" in text for _, text in exact.notes)
    assert any("did not cross" in text for _, text in exact.notes)
    with pytest.raises(KeyError, match="no line 'x'"):
        exact["x"]


def test_exchange_from_one_mode_finds_the_other(exact):
    (line,) = [line for line in exact.lines if line.name.endswith("exchange")]
    assert line.error < 0.4 and abs(z(line)) < 4
    assert "the data have" in line.words


def test_the_card_is_json_without_nan(exact, tmp_path):
    read = json.loads(exact.save(tmp_path / "card.json").read_text(), parse_constant=pytest.fail)
    assert read["verdict"]["text"] == exact.words
    assert len(read["lines"]) == len(exact.lines)
    assert read["snapshots"]["trained_on_these"] is True


def test_a_seed_gives_one_card(snapshots):
    few = replace(SMALL, samples=60, walkers=8, moves=6)
    one, two = (run(Clouds(conformers()), snapshots, effort=few) for _ in range(2))
    assert one.lines == two.lines
    other = run(Clouds(conformers()), snapshots, effort=few, seed=2)
    assert one.lines != other.lines


# ------------------------------------------------------------------- wrong ones are caught


def test_a_stiffer_model_is_flagged(snapshots):
    """Energy times 1.4, as a wrong temperature in training would do."""
    found = run(Clouds(conformers(), scale=1.4), snapshots)
    assert found.good is False
    above = {line.name for line in found.lines if line.verdict == "fail"}
    assert {"std of bonds", "T by widths", "T by labelled energies"} <= above
    assert found["T by widths"].value == pytest.approx(1.4, abs=0.04)
    assert found["T by labelled energies"].value == pytest.approx(1 / 1.4, abs=1e-5)


def test_wrong_weights_of_modes_are_flagged(snapshots):
    """Forces within modes are right; only populations are not: by ln(3/7) - ln(6/4) kT."""
    found = run(Clouds(conformers(), share=0.6), snapshots)
    kinds = [line for line in found.lines if line.name.startswith("ΔF")]
    assert {line.name.split(": ")[1] for line in kinds} == {"reweighted", "i.i.d."}
    sign = -1 if kinds[0].deviation < 0 else 1
    for line in kinds:
        assert line.verdict == "fail"
        assert abs(line.deviation - sign * np.log(0.6 * 0.7 / (0.4 * 0.3))) < 4 * line.error
    offset = next(line for line in found.lines if line.name.startswith("U - E in"))
    assert abs(offset.deviation) == pytest.approx(np.log(0.6 * 0.7 / (0.4 * 0.3)), abs=1e-5)
    assert found["std of bonds"].verdict != "fail"


def test_hot_snapshots_under_a_cold_label(snapshots):
    """Frames of 1.4 times the temperature; the model, and the energies, know better."""
    hot = labelled(draws(6000, np.random.default_rng(4), width=1.4**0.5 * WIDTH))
    found = run(Clouds(conformers()), hot)
    line = found["T by widths"]
    assert line.verdict == "fail" and abs(line.value - 1.4) < 4 * line.error
    assert found["T by labelled energies"].verdict == "pass"
    assert any(good is False and "label of the snapshots" in text for good, text in found.notes)


def test_a_wrong_label_on_all_data_shows_in_the_energies(snapshots):
    """Model and snapshots agree, but U/kT of the label is not -ln p."""
    wrong = replace(snapshots, energies=1.3 * snapshots.energies)
    found = run(Clouds(conformers()), wrong)
    assert found["T by labelled energies"].value == pytest.approx(1.3, abs=1e-5)
    assert found["T by widths"].verdict != "fail"
    assert any("the model's data" in text for good, text in found.notes if good is False)


def test_a_sampler_at_another_temperature_is_flagged(rng):
    """Walkers of the exact law, and of a temperature 30 % higher."""
    frames = draws(4000, rng)
    shape = (60, 64)

    def bonds(width):
        walkers = draws(shape[0] * shape[1], rng, width=width).reshape(*shape, 4, 3)
        lines = width_lines(SYSTEM, GRAPH, frames, walkers, 0.0, Goals())
        return {line.name: line for line in lines}

    right, wrong = bonds(WIDTH), bonds(1.3**0.5 * WIDTH)
    assert set(right) == {"std of bonds", "std of 1-3 distances", "std of torsions"}
    assert all(line.verdict == "cannot be told" or line.good for line in right.values())
    assert all(line.verdict == "fail" for line in wrong.values())
    assert wrong["std of bonds"].value == pytest.approx(1.3**0.5, abs=0.05)


def test_smoothing_is_removed_from_widths(rng):
    """Walkers of the data plus noise σ₀ have the widths of the data."""
    frames, sigma = draws(20_000, rng), 0.02
    walkers = draws(20_000, rng) + sigma * rng.normal(size=(20_000, 4, 3))
    clean, raw = (
        width_lines(SYSTEM, GRAPH, frames, walkers.reshape(200, 100, 4, 3), s, Goals())
        for s in (sigma, 0.0)
    )
    assert [line.verdict for line in clean] == ["pass"] * 3
    assert [line.verdict for line in raw] == ["fail"] * 3


def test_widths_of_reweighted_frames_are_those_of_the_model(rng):
    """Weights towards the law smoothed by σ₀: its widths, and those of the data without it."""
    frames, sigma = draws(40_000, rng), 0.015
    wide = np.hypot(WIDTH, sigma) / WIDTH
    x, none = torch.as_tensor(frames), torch.zeros(1)
    narrow, smooth = (
        Clouds(conformers(), width)(x, none, numbers=None, cell=None, pbc=None).double().numpy()
        for width in (WIDTH, wide * WIDTH)
    )
    walkers = frames[:4000].reshape(40, 100, 4, 3)
    for known, expected, verdict in ((sigma, 1.0, "pass"), (0.0, wide, "fail")):
        found = width_lines(SYSTEM, GRAPH, frames, walkers, known, Goals(), narrow - smooth)
        lines = {line.name: line for line in found if line.name.endswith(": reweighted")}
        assert set(lines) == {
            f"std of {k}: reweighted" for k in ("bonds", "1-3 distances", "torsions")
        }
        assert [line.verdict for line in lines.values()] == [verdict] * 3
        for line in lines.values():
            assert line.details
            for value, error in line.details.values():
                assert abs(value - expected) < 4 * error and 0 < error < 0.01


# ----------------------------------------------------------------------- -----------verdicts


def test_verdicts():
    assert judged(0.001, 0.002, 0.01) == "pass"
    assert judged(-0.03, 0.002, 0.01) == "fail"
    assert judged(0.001, 0.02, 0.01) == "cannot be told"
    assert judged(0.011, 0.004, 0.01) == "cannot be told"
    assert judged(np.inf, np.nan, 0.01) == "cannot be told"


def test_modes_of_a_torsion(rng):
    phi = np.concatenate([rng.normal(np.pi - 0.1, 0.2, 900), rng.normal(-0.5, 0.2, 100)])
    phi = (phi + np.pi) % (2 * np.pi) - np.pi
    large, small = torsion_modes(phi)
    assert large.population == pytest.approx(0.9, abs=1e-3) and large(np.array([3.1, -3.1])).all()
    assert small.population == pytest.approx(0.1, abs=1e-3) and small(np.array([-0.5])).all()
    assert not (large(phi) & small(phi)).any() and (large(phi) | small(phi)).all()
    (one,) = torsion_modes(rng.normal(0, 0.2, 500))
    assert one.population == 1 and one.high - one.low < np.pi
    (free,) = torsion_modes(rng.uniform(-np.pi, np.pi, 2000))
    assert free.high - free.low == pytest.approx(2 * np.pi) and str(free) == "0±180°"
    cis = np.concatenate([rng.normal(0, 0.2, 20_000), np.full(10, 3.0)])
    (main,) = torsion_modes(cis)  # ten of twenty thousand are no mode, and widen nothing
    assert main(cis).sum() == 20_000 and cis[main(cis)].std() == pytest.approx(0.2, rel=0.03)


def test_basins_of_a_torsion_without_a_gap(rng):
    """Trans and gauche of a low barrier: between minima; noise makes none, and gaps come first."""
    grid = np.linspace(-np.pi, np.pi, 7200, endpoint=False)
    weights = np.exp(-1.2 * np.cos(3 * grid) - 0.6 * np.cos(grid))
    phi = rng.choice(grid, 20_000, p=weights / weights.sum())
    assert len(torsion_modes(phi)) == 1
    trans, *gauche = torsion_basins(phi)
    assert trans.population == pytest.approx(0.55, abs=0.06) and trans(np.array([3.1, -3.1])).all()
    assert [arc.population for arc in gauche] == pytest.approx([0.22, 0.22], abs=0.04)
    inside = np.array([arc(phi) for arc in (trans, *gauche)])
    assert (inside.sum(0) == 1).all()
    assert sorted(round(np.degrees(arc.low + arc.high) / 2 / 60) % 6 for arc in gauche) == [1, 5]
    for count in (60, 500, 5000):
        (free,) = torsion_basins(rng.uniform(-np.pi, np.pi, count))
        assert free.whole
    parted = np.concatenate([rng.normal(np.pi, 0.2, 900), rng.normal(-0.5, 0.2, 100)])
    assert torsion_basins(parted) == torsion_modes(parted)


def test_bins_that_frames_can_fill(rng):
    """Counting alone stays below a tenth of a nat, where 64 bins would be nearly empty."""
    angles = rng.uniform(-np.pi, np.pi, (12_000, 2))
    bins = torsion_bins(angles)
    assert bins == 32
    for count, low, high in ((bins, 0.0, 0.1), (64, 0.1, 0.7)):
        rows = torsion_rows(angles, bins=count)
        floor = excess_divergence(rows, rows[:3000]).floor
        assert low < floor < high
    assert torsion_bins(0.2 * angles) == 64
    assert torsion_bins(angles[:10]) == 8


def test_methyls_are_not_looked_at():
    """The hydroxyl group of ethanol has trans and gauche; its methyl has one mode thrice."""
    some = Snapshots.read("ethanol")
    torsions = Torsions.find(some.system, some.topology, some.positions)
    assert torsions.names == ["C0–C1–O2–H3"]
    assert [arc.population for arc in torsions.modes[0]] == pytest.approx(
        [0.47, 0.47, 0.05], abs=0.03
    )


def test_configurational_temperature_of_springs(rng):
    """⟨|F|²⟩ and ⟨-∇·F⟩ of a harmonic well, exactly."""
    frames = Snapshots(SYSTEM, draws(3000, rng, share=0.0), KELVIN)
    network = Clouds(conformers(), share=1e-12)
    potential = made(network, frames).potential(device="cpu", dtype=torch.float64)
    x = torch.as_tensor(frames.positions)
    square, divergence = forces_and_divergence(potential, x, noise=Noise(1))
    k = frames.kT / (WIDTH**2 + LOW**2)
    assert float(divergence.mean()) == pytest.approx(9 * k, rel=0.03)
    ratio = float(square.mean() / divergence.mean()) / frames.kT
    assert ratio == pytest.approx(WIDTH**2 / (WIDTH**2 + LOW**2), abs=4 * (2 / 9 / 3000) ** 0.5)


def test_lost_walkers_are_counted(rng):
    """A step beyond the limit of stability: squares grow until they overflow."""
    frames = Snapshots(SYSTEM, draws(32, rng), KELVIN)
    model = made(Clouds(conformers()), frames)
    options = {"steps": 400, "noise": Noise(1), "progress": lambda _: None}
    x = torch.as_tensor(frames.positions)
    for stiffness, lost in ((model.card.lambda_max, 0), (0.02 * model.card.lambda_max, 32)):
        potential = model.potential(device="cpu")
        prepared = prepare(potential, temperature_K=KELVIN, stiffness=stiffness, mean_free=True)
        found = plain_walkers(prepared, x, **options)
        assert found.lost == lost and len(found.positions) == 32 - lost


def test_error_bars_of_forces(rng):
    error = rng.normal(size=(200, 10, 3))
    right = error_bar_line(np.ones_like(error), error)
    assert abs(right.deviation) < 4 * right.error
    assert 66 <= float(right.words.split("%")[0]) <= 70
    assert error_bar_line(0.5 * np.ones_like(error), error).value == pytest.approx(2.0, rel=0.05)


def test_calibration_of_a_committee(rng):
    """Members and truth scatter alike: one. Three times the scatter of truth: three."""
    members = rng.normal(size=(4, 200, 10, 3))
    line = calibration_line(members, rng.normal(size=(200, 10, 3)), Goals())
    assert line.verdict == "pass" and abs(line.value - 1) < 0.05
    far = calibration_line(members, 3 * rng.normal(size=(200, 10, 3)), Goals())
    assert far.verdict == "fail"


# ------------------------------------------------------------------------------ bad input


def test_unphysical_frames_are_named_and_left_out(snapshots):
    x = snapshots.positions[:1500].copy()
    x[7, 0] += 0.8 * (x[7, 0] - x[7, 1])  # a broken bond
    broken = labelled(x)
    assert list(unphysical_frames(SYSTEM, x, broken.topology)) == [7]
    found = run(Clouds(conformers()), broken)
    (text,) = [text for good, text in found.notes if good is False and "cannot be right" in text]
    assert text.startswith("1 frames") and "7: bond" in text
    assert found["std of bonds"].verdict != "fail"


def test_overlapping_atoms(rng):
    x = bulk("Cu", "fcc", a=3.6, cubic=True).repeat(2)
    frames = x.positions + 0.05 * rng.normal(size=(5, 32, 3))
    frames[3, 0] = frames[3, 1] + [0.6, 0, 0] - x.cell[0]  # through the boundary
    ((number, why),) = unphysical_frames(System.from_atoms(x), frames).items()
    assert number == 3 and "Cu0–Cu1 overlap (0.60 Å)" in why


def test_other_atoms_temperatures_and_too_few(snapshots, rng):
    model = made(Clouds(conformers()), snapshots)
    water = System.from_atoms(molecule("H2O"))
    with pytest.raises(ValueError, match="H2O2.*not H2O"):
        validate(model, Snapshots(water, rng.normal(size=(50, 3, 3)), KELVIN), device="cpu")
    warm = Snapshots(SYSTEM, draws(2000, rng), 400.0)
    with pytest.raises(ValueError, match=r"400 K.*300 K.*(29|30)\d.*label"):
        validate(model, warm, device="cpu")
    truly = Snapshots(SYSTEM, draws(2000, rng, width=(4 / 3) ** 0.5 * WIDTH), 400.0)
    with pytest.raises(ValueError, match="look like (39|40|41).*differ indeed"):
        validate(model, truly, device="cpu")
    with pytest.raises(ValueError, match="10 snapshots are worth 10 independent"):
        validate(model, snapshots.take(np.arange(10)), device="cpu")


def test_what_is_missing_is_said(rng):
    """No energies, one mode, correlated frames, few of them."""
    x = draws(400, rng, share=0.0)
    frames = Snapshots(SYSTEM, np.repeat(x, 4, 0), KELVIN, correlation=4.0)
    found = run(Clouds(conformers(), share=1e-9), frames)
    assert {line.group for line in found.lines} >= {"torsions", "widths", "temperature"}
    assert "labels" not in {line.group for line in found.lines}
    notes = [text for _, text in found.notes]
    assert any("no energies" in text for text in notes)
    assert any("forces: the snapshots have none" in text for text in notes)
    assert any("worth 400 independent ones" in text for text in notes)
    assert any("only one mode" in text and "cannot be known" in text for text in notes)
    assert found["std of bonds"].verdict == "cannot be told"
    assert found.good is False  # too few for most goals


def test_forces_of_snapshots_and_of_a_reference(snapshots):
    few = snapshots.take(np.arange(600))
    truth = made(Clouds(conformers()), few).potential(device="cpu", dtype=torch.float64)
    forces = truth(torch.as_tensor(few.positions)).forces.numpy()
    small = replace(SMALL, samples=40, walkers=8, moves=4)
    wrong = Clouds(conformers(), scale=1.1)
    kept = run(wrong, replace(few, forces=forces), effort=small)
    named = run(wrong, replace(few, energies=None), effort=small, reference=truth)
    for found in (kept, named):
        assert found["force correlation"].value == pytest.approx(1, abs=1e-9)
        assert found["force error, relative"].value == pytest.approx(0.1, abs=1e-5)
        assert found["energy correlation"].value == pytest.approx(1, abs=1e-9)
    with pytest.raises(ValueError, match=names("(3, 4, 3)", "(600, 4, 3)")):
        replace(few, forces=forces[:3])


# ------------------------------------------------------------------------------ a crystal


class Springs(nn.Module):
    """Every atom in a well of its own."""

    def __init__(self, sites, width, scale=1.0):
        super().__init__()
        self.register_buffer("sites", torch.as_tensor(sites).float())
        self.width, self.scale = width, scale

    def forward(self, x, sigma, *, numbers, cell, pbc):
        d = (x - self.sites.to(x)).square().sum((1, 2))
        return 0.5 * self.scale * d / (self.width**2 + sigma**2)


def test_a_crystal(rng):
    atoms = bulk("Cu", "fcc", a=3.6, cubic=True).repeat((2, 1, 1))
    x = atoms.positions + 0.1 * rng.normal(size=(1500, 8, 3))
    frames = Snapshots(System.from_atoms(atoms), x, 900.0)
    few = replace(SMALL, walkers=32, moves=30)
    right, soft = (
        run(Springs(atoms.positions, 0.1, scale), frames, effort=few) for scale in (1.0, 0.7)
    )
    assert {line.group for line in right.lines} >= {"distances", "energies", "stability"}
    assert [line.name for line in right.lines if line.verdict == "fail"] == []
    assert abs(z(right["JS distances: corrected MD"])) < 4
    assert any("no i.i.d. samples" in text for _, text in right.notes)
    above = {line.name for line in soft.lines if line.verdict == "fail"}
    assert {"peaks of g(r): corrected MD", "T by widths"} <= above
    peaks = right["peaks of g(r): corrected MD"].details
    (place,) = [name for name in peaks if name.startswith("place of peak 1")]
    assert float(place.split(" at ")[1].split()[0]) == pytest.approx(3.6 / 2**0.5, abs=0.05)
