"""The torture kit, small: nothing is lost, and what is silent is seen."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="work is done in forked processes"),
    pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="an installed package has no benchmarks"),
]


def kit(folder, *words):
    command = [sys.executable, str(BENCHMARKS / "reliability.py"), "--folder", str(folder), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    rows = (folder / "results.jsonl").read_text().splitlines()
    return done, [json.loads(row) for row in rows]


def test_kills(tmp_path):
    chosen = ["GHMC", "metadynamics, independent", "OPES"]
    done, rows = kit(tmp_path, "--only", "kills", "--kills", "9", "--kinds", *chosen)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {row["what"] for row in rows} == set(chosen) and sum(row["kills"] for row in rows) >= 9
    again, same = kit(tmp_path, "--only", "kills", "--kills", "9", "--kinds", *chosen)
    assert again.returncode == 0 and same == rows  # nothing is done twice


def test_damage_and_nan(tmp_path):
    words = ["--only", "damage", "NaN", "--flips", "40", "--cuts", "20", "--poisoned", "2"]
    done, rows = kit(tmp_path, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    number = {how: sum(row["part"] == how for row in rows) for how in ("flips", "cuts", "NaN")}
    assert number["flips"] >= 80 and number["cuts"] >= 40 and number["NaN"] >= 2


def test_a_silent_flip_is_seen(tmp_path, monkeypatch):
    """The control: what does not verify is found out."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    damage = pytest.importorskip("torture.damage")
    path = tmp_path / "x.npy"
    damage.READ["plain"] = lambda path: ("", [damage.np.load(path)])
    damage.np.save(path, damage.np.arange(500.0))
    good, expected = path.read_bytes(), damage.read("plain", path)
    bad = bytearray(good)
    bad[-3] ^= 1
    path.write_bytes(bad)
    assert damage.verdict("plain", path, expected)[0] == "silent"
    path.write_bytes(good)
    assert damage.verdict("plain", path, expected) == ("same", "")
    path.write_bytes(good[:-9])
    assert damage.verdict("plain", path, expected)[0] == "refused"
