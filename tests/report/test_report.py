"""The report: self-contained, right about samples that agree, and about samples that do not."""

import base64
import json
from html.parser import HTMLParser

import numpy as np
import pytest
from ase.build import bulk, molecule
from messages import names
from scipy.spatial.transform import Rotation

from diffmd_ase.analysis.statistics import Estimate
from diffmd_ase.report.molecule import _within
from diffmd_ase.report.report import write_report
from diffmd_ase.score.topology import Topology
from diffmd_ase.system import System

BUTANE = molecule("trans-butane")
SYSTEM = System.from_atoms(BUTANE)


def snapshots(rng, shape, right=0.2, noise=0.03):
    """Butane in two basins of its backbone torsion, and a second torsion (a methyl)."""
    x = BUTANE.positions + noise * rng.standard_normal((*np.atleast_1d(shape), 14, 3))
    flat = x.reshape(-1, 14, 3)
    topology = Topology.from_positions(SYSTEM.numbers, flat[:50])
    heavy = (SYSTEM.numbers[topology.torsions] > 1).all(1)
    k = int(np.flatnonzero(heavy)[0])
    a, b = topology.rotors[k]
    phi = np.where(rng.random(len(flat)) < right, 1.1, -1.1) + 0.3 * rng.standard_normal(len(flat))
    axis = BUTANE.positions[b] - BUTANE.positions[a]
    turn = Rotation.from_rotvec((np.pi + phi)[:, None] * axis / np.linalg.norm(axis)).as_matrix()
    moved = topology.moved[k]
    origin = flat[:, None, b]
    flat[:, moved] = (flat[:, moved] - origin) @ np.swapaxes(turn, 1, 2) + origin
    other = int(np.flatnonzero(~heavy)[0])
    names = {"phi": tuple(topology.torsions[k]), "psi": tuple(topology.torsions[other])}
    return flat.reshape(x.shape), names


class Resources(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.tags = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.found += [v for k, v in attrs if k in ("src", "href")]


@pytest.fixture
def report(tmp_path, rng):
    reference, torsions = snapshots(rng, 4000)

    def make(iid=None, trajectory=None, **options):
        numbers = write_report(
            tmp_path / "report.html",
            system=SYSTEM,
            reference=reference,
            temperature_K=300,
            iid=iid,
            trajectory=trajectory,
            torsions=options.pop("torsions", torsions),
            **options,
        )
        return numbers, (tmp_path / "report.html").read_text(encoding="utf-8")

    return make


def verdict(numbers, start, word):
    (found,) = [v for v in numbers["verdicts"] if v["text"].startswith(start) and word in v["text"]]
    return found["good"]


def test_page_is_self_contained_and_complete(report, rng):
    trajectory = snapshots(rng, (80, 10))[0]
    numbers, page = report(
        snapshots(rng, 1000)[0],
        trajectory,
        Dt=0.1 * np.arange(80),
        energies={"data": rng.normal(size=500), "md": rng.normal(size=(80, 10))},
        card={"schema": 1, "units": "<Å>"},
        training=[{"step": n, "loss": 1 / (n + 1), "validation": 2.0} for n in range(10)],
        summary={"evaluations_per_s": 1234.5, "own": [1, 2]},
    )
    resources = Resources()
    resources.feed(page)
    assert len(resources.found) >= 8
    for address in resources.found:
        assert address.startswith("data:image/png;base64,")
        assert base64.b64decode(address.split(",")[1])[:4] == b"\x89PNG"
    assert not {"link", "iframe"} & set(resources.tags)
    assert 'name="viewport"' in page and "&lt;Å&gt;" in page and "1,234" in page
    assert json.loads(json.dumps(numbers, allow_nan=False))["own"] == [1, 2]
    assert numbers["trajectory"] == {
        "frames": 80, "walkers": 10, "lost": [], "Dt_per_walker_A2": pytest.approx(7.9),
    }  # fmt: skip
    value, error = numbers["first_torsion_positive"]["data"]
    assert abs(value - 0.2) < 4 * error < 0.04
    # frames without memory: half a frame of correlation
    assert numbers["correlation_time_A2"]["phi"] == pytest.approx(0.05, rel=0.3)


def test_samples_of_the_same_law_agree(report, rng):
    numbers, _ = report(snapshots(rng, 4000)[0], snapshots(rng, (100, 20))[0])
    assert [v["text"] for v in numbers["verdicts"] if v["good"] is False] == []
    for label in ("i.i.d.", "MD"):
        d = numbers["jensen_shannon"][label]
        assert abs(d["excess"]) < 4 * d["error"]


def test_what_is_wrong_is_named(report, rng):
    wrong = snapshots(rng, 4000, right=0.9, noise=0.04)[0]
    wrong[::10, 4] += 3.0  # a broken bond in every tenth
    mirrored = snapshots(rng, (60, 10))[0] * np.array([-1.0, 1, 1])
    mirrored[30:, 3] = np.nan
    numbers, page = report(wrong, mirrored)
    assert not verdict(numbers, "i.i.d.", "free-energy map")
    assert not verdict(numbers, "i.i.d.", "population")
    assert not verdict(numbers, "i.i.d.", "bond-length")
    assert not verdict(numbers, "i.i.d.", "6 std")
    assert not verdict(numbers, "MD", "hand")
    assert not verdict(numbers, "1 of 10 walkers", "numbers [3]")
    assert numbers["bonds"]["i.i.d."]["std_ratio_max"][0] > 1.2
    assert page.count("look here") >= 6


def test_what_is_outside_is_named(report, rng):
    trajectory, _ = snapshots(rng, (40, 4))
    beyond = np.arange(160).reshape(40, 4) % 10 == 0
    words = "torsion C1–C2 is cis, never seen"
    numbers, _ = report(trajectory=trajectory, outside={"md": (beyond, words)})
    assert numbers["outside"]["MD"][0] == pytest.approx(0.1)
    told = [v for v in numbers["verdicts"] if words in v["text"]]
    assert len(told) == 1 and not told[0]["good"] and "10.00%" in told[0]["text"]


def test_all_walkers_lost(report, rng):
    numbers, _ = report(None, np.full((20, 3, 14, 3), np.nan))
    assert any("No trajectory is left" in v["text"] for v in numbers["verdicts"])


def test_no_clock_and_no_energy(report, rng):
    trajectory = snapshots(rng, (40, 8))[0]
    no_energy = {"md": np.full((40, 8), np.nan)}
    numbers, page = report(None, trajectory, energies=no_energy, kinetics_valid=False)
    assert "correlation_time_A2" not in numbers and "Memory" not in page
    assert "Energy of the model" not in page
    assert verdict(numbers, "MD", "no clock") is None


def test_basin_never_visited(report, rng):
    """A free energy that nothing was counted for is not a number; the population is none."""
    numbers, _ = report(snapshots(rng, 500, right=0.0)[0])
    assert numbers["first_torsion_positive"]["i.i.d."][0] == 0.0
    assert numbers["basin_free_energy_kT"]["i.i.d."] == [None, None]
    value, error = numbers["basin_free_energy_kT"]["data"]
    assert abs(value - np.log(0.8 / 0.2)) < 4 * error < 0.3


def test_default_torsions_are_those_of_the_heavy_bonds(report, rng):
    numbers, page = report(snapshots(rng, 500)[0], torsions=None)
    assert "torsion_pair" not in numbers  # butane has one
    assert "<h2>Torsions</h2>" in page and "C" in page


def test_periodic_system(tmp_path, rng):
    atoms = bulk("Cu", cubic=True) * (2, 2, 2)
    x = atoms.positions + 0.1 * rng.standard_normal((200, 32, 3))
    walk = atoms.positions + 0.1 * rng.standard_normal((50, 8, 32, 3))
    options = {"system": System.from_atoms(atoms), "reference": x, "temperature_K": 900}
    numbers = write_report(tmp_path / "r.html", trajectory=walk, **options)
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "Radial distribution" in page and "Displacement" in page
    assert verdict(numbers, "MD", "g(r)")
    value, error = numbers["msd_A2"]
    assert abs(value - 0.06) < 4 * error  # 2 · 3 · 0.1²
    hot = atoms.positions + 0.3 * rng.standard_normal((50, 8, 32, 3))
    numbers = write_report(tmp_path / "r.html", trajectory=hot, **options)
    assert not verdict(numbers, "MD", "g(r)")


def test_bad_input(report, rng):
    with pytest.raises(ValueError, match=names("(10, 14, 3)", "(frames, walkers, 14, 3)", "C4H10")):
        report(None, snapshots(rng, 10)[0])
    with pytest.raises(ValueError, match="not finite"):
        report(np.full((5, 14, 3), np.nan))
    with pytest.raises(ValueError, match=names("(3,)", "10 frames")):
        report(None, snapshots(rng, (10, 2))[0], Dt=np.arange(3))
    with pytest.raises(ValueError, match=names("'MD'", "'data'", "'iid'", "'md'")):
        report(energies={"MD": np.zeros(3)})


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ([(0.98, 0.01), (1.04, 0.01)], True),
        ([(0.98, 0.01), (1.052, 0.006)], None),  # two errors explain it
        ([(0.98, 0.01), (1.07, 0.006)], False),
        ([(0.92, 0.01), (1.0, 0.5)], False),
    ],
)
def test_widths_are_wrong_where_their_errors_do_not_explain_it(ratios, expected):
    estimates = [Estimate(value, error, 100.0) for value, error in ratios]
    assert _within(0.05, *estimates) is expected
