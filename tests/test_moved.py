"""Old names still work: each gives the object of its new place, and says once where that is."""

import ast
import subprocess
import sys
import warnings
from importlib import import_module

import pytest
from rooms import MODULES

from diffmd_ase._moved import MOVED

# modules that are still there and have given names away: where those are now
ALIVE = {
    name: node.value.args[1].value
    for name, path in MODULES.items()
    for node in ast.parse(path.read_text()).body
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__getattr__"
}


def offered(old: str) -> dict[str, str]:
    """Public names that are asked for at ``old``, and the module that has them now."""
    own = set() if old in MOVED else vars(import_module(f"diffmd_ase.{old}")).keys()
    names: dict[str, str] = {}
    for place in (MOVED.get(old) or ALIVE[old]).split():
        for name in import_module(f"diffmd_ase.{place}").__all__:
            if name not in own and f"{old}.{name}" not in MODULES:
                names.setdefault(name, f"diffmd_ase.{place}")
    return names


def taken(old: str, name: str):
    """``from diffmd_ase.old import name``, and what is said on it."""
    space: dict = {}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")  # as users have it: once for a line
        exec(compile(f"from diffmd_ase.{old} import {name}", "theirs.py", "exec"), space)
    return space[name], said


def test_there_is_something_to_check():
    assert len(MOVED) > 30 and len(ALIVE) > 5 and "sampling.kernels" in ALIVE
    assert not set(MOVED) & set(MODULES)  # Python would never ask for them


@pytest.mark.parametrize("old", [*MOVED, *ALIVE])
def test_old_names_are_the_new_ones(old):
    names = offered(old)
    assert names or old in ALIVE  # it may still use all that it gave away
    for name, place in names.items():
        value, said = taken(old, name)
        assert value is getattr(import_module(place), name)
        assert [warning.category for warning in said] == [DeprecationWarning]
        text = str(said[0].message)
        assert f"diffmd_ase.{old}.{name}" in text and text.endswith(place)
        assert said[0].filename == "theirs.py"  # theirs to change, not ours


@pytest.mark.parametrize(
    ("old", "name", "new"),
    [
        ("sampling.kernels", "EulerMaruyama", "sampling.euler"),
        ("system", "State", "state"),
        ("sampling.exchange", "geometric_kT", "sampling.temperature_ladder"),
        ("analysis.free_energy", "free_energy_surface", "analysis.free_energy.surface"),
    ],
)
def test_names_given_away(old, name, new):
    value, said = taken(old, name)
    assert value is getattr(import_module(f"diffmd_ase.{new}"), name)
    assert [warning.category for warning in said] == [DeprecationWarning]


@pytest.mark.parametrize("name", ["simulation.simulate", "validation.validate", "cli.main"])
def test_functions_whose_module_has_taken_their_name(name):
    """No page ever named these; the function is in the module of its name."""
    assert callable(getattr(import_module(f"diffmd_ase.{name}"), name.partition(".")[2]))


def test_what_never_was_is_an_attribute_error():
    with pytest.raises(ImportError, match="nonsense"):
        exec("from diffmd_ase.calculator import nonsense")
    with pytest.raises(AttributeError, match="sampling.kernels.*nonsense"):
        _ = import_module("diffmd_ase.sampling.kernels").nonsense
    with pytest.raises(ModuleNotFoundError, match="diffmd_ase.nowhere"):
        import_module("diffmd_ase.nowhere")


OLD_PLUGIN = """
import torch
from diffmd_ase.potentials.base import Evaluation, Potential
from diffmd_ase.potentials.cvs import Distance
from diffmd_ase.potentials.hills import Grid
from diffmd_ase.potentials.metadynamics import Metadynamics


class Springs(Potential):
    def __init__(self, system, *, k):
        self.system, self.k = system, k

    def __call__(self, x, *, stress=False):
        return Evaluation(0.5 * self.k * x.square().sum((-2, -1)), -self.k * x)


def hills(system, *, kT):
    distance = Distance(system, [0, 1], name="d")
    grid = Grid([60], [0.0], [6.0])
    return Metadynamics(distance, kT=kT, sigma=0.2, height=0.5 * kT, pace=5, grid=grid)
"""

OLD_SCRIPT = """
from ase import Atoms, units
from diffmd_ase import load_potential
from diffmd_ase.calculator import ScoreCalculator
from diffmd_ase.dynamics import ReverseDiffusion
from diffmd_ase.system import State, System
from diffmd_ase.sampling.kernels import EulerMaruyama
from diffmd_ase.storage import Trajectory

atoms = Atoms("Ar2", [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
system, kT = System.from_atoms(atoms), 300 * units.kB
atoms.calc = ScoreCalculator(load_potential("old-springs", system, k=1.0))
bias = load_potential("old-hills", system, kT=kT)
dynamics = ReverseDiffusion(atoms, temperature_K=300, spring=500.0, bias=bias, rng=1)
dynamics.run(20)
print(bias.hills[0].numel())
"""


def test_a_plugin_of_the_old_names_still_runs(tmp_path):
    """Its own distribution, found by its entry points; every warning but these is an error."""
    (tmp_path / "old_plugin.py").write_text(OLD_PLUGIN)
    about = tmp_path / "old_plugin-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: old-plugin\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[diffmd_ase.potentials]\nold-springs = old_plugin:Springs\nold-hills = old_plugin:hills\n"
    )
    script = tmp_path / "script.py"
    script.write_text(OLD_SCRIPT)  # beside the plugin: on its path
    python = [sys.executable, "-W", "error", "-W", "always::DeprecationWarning"]
    done = subprocess.run([*python, str(script)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["4"]  # hills, one in five steps
    for place in ("adapters.calculator", "adapters.dynamics", "potentials.biases.cvs", "state"):
        assert f"import it from diffmd_ase.{place}" in done.stderr
