"""Every tutorial runs from start to end, warnings being errors; each asserts its own number."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

NEEDS = {"08": "tblite"}  # what tests do not install
SCRIPTS = sorted((Path(__file__).parents[1] / "tutorials").glob("*.py"))


def test_there_are_tutorials():
    assert [s.name[:2] for s in SCRIPTS] == [f"{n:02d}" for n in range(1, len(SCRIPTS) + 1)]
    for script in SCRIPTS:
        text = script.read_text()
        assert text.startswith("# %% [markdown]\n# # "), f"{script.name} is a percent script"
        assert re.search(r"^ *assert ", text, re.MULTILINE), f"{script.name} checks no number"


@pytest.mark.tutorial
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda s: s.stem)
def test_tutorial(script, tmp_path):
    if needed := NEEDS.get(script.name[:2]):
        pytest.importorskip(needed, reason=f"pip install {needed}")
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
