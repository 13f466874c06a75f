"""Discovery: real distributions on the path, found without importing them."""

import importlib
import subprocess
import sys

import pytest
import torch
from messages import names

from diffmd_ase import Potential, System, load_potential
from diffmd_ase.plugins import GROUP, installed_potentials
from diffmd_ase.testing import check_potential

SYSTEM = System([1, 8, 1], [1.0, 16.0, 1.0])
GOOD = """
from diffmd_ase import Evaluation, Potential

class Well(Potential):
    def __init__(self, system, *, k):
        self.system, self.k = system, k

    def __call__(self, x, *, stress=False):
        return Evaluation(0.5 * self.k * x.square().sum((-2, -1)), -self.k * x)
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Put a distribution on the path, as an installer would: a module and its metadata."""

    def _install(distribution, name, value, source, *, version="1.2"):
        folder = tmp_path / distribution
        metadata = folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
        )
        (metadata / "entry_points.txt").write_text(f"[{GROUP}]\n{name} = {value}\n")
        module = value.partition(":")[0]
        (folder / f"{module}.py").write_text(source)
        monkeypatch.syspath_prepend(str(folder))
        importlib.invalidate_caches()
        # imported modules of one test must not serve the next
        monkeypatch.delitem(sys.modules, module, raising=False)

    return _install


def test_installed_plugin_is_found_and_loaded(install):
    install("well-plugin", "well", "plugin_well:Well", GOOD)
    assert installed_potentials()["well"] == "well-plugin 1.2"
    assert "plugin_well" not in sys.modules  # looking imports nothing
    potential = load_potential("well", SYSTEM, k=2.0)
    assert isinstance(potential, Potential)
    assert potential.system is SYSTEM
    check_potential(potential, torch.tensor([[0.1, 0.2, 0.3]] * 3))


def test_function_as_factory(install):
    source = GOOD + "\ndef soft(system):\n    return Well(system, k=0.1)\n"
    install("soft-plugin", "soft", "plugin_soft:soft", source)
    assert load_potential("soft", SYSTEM).k == 0.1


def test_options_of_the_factory_are_checked_by_it(install):
    install("well-plugin", "well", "plugin_options:Well", GOOD)
    with pytest.raises(TypeError, match="stiffness"):
        load_potential("well", SYSTEM, stiffness=2.0)


def test_unknown_name_lists_what_is_installed(install):
    install("well-plugin", "well", "plugin_unused:Well", GOOD)
    with pytest.raises(LookupError, match=names("'wel'", "well (well-plugin 1.2)")):
        load_potential("wel", SYSTEM)


@pytest.mark.parametrize(
    ("value", "source", "reason"),
    [
        ("plugin_a:Well", "import no_such_module_anywhere", "no_such_module_anywhere"),
        ("plugin_b:Well", "raise RuntimeError('no licence')", "RuntimeError: no licence"),
        ("plugin_c:Wall", GOOD, "no attribute 'Wall'"),
        ("plugin_d:Well", "def", "SyntaxError"),
    ],
)
def test_broken_plugin_is_an_import_error(install, value, source, reason):
    install("broken-plugin", "broken", value, source)
    assert "broken" in installed_potentials()
    with pytest.raises(ImportError, match=f"'broken'.*broken-plugin 1.2.*{reason}"):
        load_potential("broken", SYSTEM)


def test_two_distributions_of_one_name(install):
    install("first-plugin", "well", "plugin_first:Well", GOOD)
    install("second-plugin", "well", "plugin_second:Well", GOOD)
    with pytest.raises(
        LookupError, match=names("'well'", "first-plugin 1.2", "second-plugin 1.2", "uninstall")
    ):
        load_potential("well", SYSTEM, k=1.0)


def test_factory_that_gives_something_else(install):
    install("odd-plugin", "odd", "plugin_odd:make", "def make(system):\n    return 3\n")
    with pytest.raises(TypeError, match=r"odd-plugin 1\.2 gave int, expected a"):
        load_potential("odd", SYSTEM)


def test_import_of_the_package_looks_for_no_plugins():
    code = (
        "import sys, diffmd_ase; print(sorted(m for m in sys.modules if m.startswith('diffmd_')))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "['diffmd_ase', 'diffmd_ase._moved']"


@pytest.mark.parametrize("name", ["template", "openmm"])
def test_our_plugins_are_discovered_when_installed(name):
    pytest.importorskip(f"diffmd_{name}")
    assert installed_potentials()[name].startswith(f"diffmd-{name} ")


def test_template_conforms():
    pytest.importorskip("diffmd_template")
    springs = load_potential("template", SYSTEM, pairs=[(0, 1), (1, 2)], length=1.0)
    x = torch.tensor([[0.0, 0.0, 0.0], [1.1, 0.2, -0.1], [1.5, 1.0, 0.3]])
    check_potential(springs, x, translation_invariant=True)
