"""What `diffmd_ase` finds of this plugin, through the metadata an installer would write."""

import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from diffmd_plumed import PlumedPotential

from diffmd_ase import System, load_potential
from diffmd_ase.cli.doctor import examine


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The distribution on the path, with the entry points of pyproject.toml."""
    pyproject = Path(__file__).parents[1] / "pyproject.toml"
    project = tomllib.loads(pyproject.read_text())["project"]
    folder = tmp_path / "diffmd_plumed-0.1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    groups = project["entry-points"].items()
    text = "\n".join(f"[{g}]\n" + "".join(f"{n} = {v}\n" for n, v in e.items()) for g, e in groups)
    (folder / "entry_points.txt").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()


def test_loaded_by_name(installed, tmp_path):
    lines = ["d: DISTANCE ATOMS=1,2", "RESTRAINT ARG=d AT=0.1 KAPPA=100"]
    options = {"input": lines, "kT": 0.0258, "timestep": 1.0, "directory": tmp_path}
    potential = load_potential("plumed", System([1, 1], [1.0, 1.0]), **options)
    assert isinstance(potential, PlumedPotential)
    x = torch.tensor([[0.0, 0, 0], [2, 0, 0]])
    assert float(potential(x).energy) == pytest.approx(0.5 / 96.48533, rel=1e-6)


def test_doctor(installed, monkeypatch):
    import plumed

    line = examine()["plumed"]
    folder = str(Path(plumed.__file__).parent)
    assert line[0] == "2" and folder in line and "opes" in line
    monkeypatch.setenv("PLUMED_KERNEL", "/nowhere/kernel.so")
    assert examine()["plumed"].startswith("MISSING: PLUMED kernel '/nowhere/kernel.so'")


def test_readme(tmp_path):
    """Its examples run as printed, and both biases learn."""
    text = (Path(__file__).parents[1] / "README.md").read_text()
    code = "".join(re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    code += """
import torch
x = torch.tensor(snapshots.positions[0])
for each in (biased, bias):
    assert each.update(x, 500) and float(each(x).energy) != 0.0
bias.flush()
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert {"HILLS", "KERNELS"} <= {path.name for path in tmp_path.iterdir()}
