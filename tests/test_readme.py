"""The README is true and short: its examples run, its commands exist."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


# The example as printed trains for minutes on 50 000 snapshots and runs 10 000 steps. The test
# runs the same lines with these budgets in place of those; each must occur exactly once.
SMALL = {
    "train(snapshots, ": "train(snapshots.take(slice(0, 300)), ",
    "max_minutes=5": "max_minutes=5, steps=20, evaluations=2",
    "dyn.run(10_000)": "dyn.run(200)",
}


def test_example(tmp_path):
    code, biased = blocks("python")  # the second goes on from the first
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    code += biased
    for printed, small in SMALL.items():
        assert code.count(printed) == 1, f"{printed} is not in the example of the README"
        code = code.replace(printed, small)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^\d+\.\d+ fs in steps of [\d.e-]+ fs$", done.stdout, re.MULTILINE)
    from ase.io import read

    hills = (tmp_path / "HILLS").read_text().splitlines()
    assert len([line for line in hills if not line.startswith("#!")]) == 4

    frames = read(tmp_path / "md.traj", ":")
    assert len(frames) == 3
    assert frames[-1].get_chemical_formula() == "C6H12N2O2"
    from diffmd_ase import ScoreModel

    assert ScoreModel.load(tmp_path / "model.safetensors").card.formula == "C6H12N2O2"


def test_every_command_is_shown():
    from typer.main import get_command

    from diffmd_ase.cli.main import app

    shown = {
        shlex.split(line)[1]
        for block in blocks("bash")
        for line in block.splitlines()
        if line.startswith("diffmd ")
    }
    assert shown == set(get_command(app).commands)


def test_it_is_for_a_first_reading():
    """900 words in all, as ``wc -w`` counts them."""
    assert len(README.split()) <= 900
