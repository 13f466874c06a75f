"""The rooms and the one direction of imports, held by reading the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import diffmd_ase

ROOT = Path(diffmd_ase.__file__).parent

# the picture of ARCHITECTURE.md: a module may import from its own room and from earlier ones
ROOMS = (
    "foundations",
    "io",
    "score",
    "potentials",
    "sampling",
    "independent",
    "analysis",
    "simulation",
    "adapters",
    "report",
    "validation",
    "cli",
    "testing",
)
FOUNDATIONS = {
    "_moved",
    "geometry",
    "noise",
    "processes",
    "progress",
    "state",
    "system",
    "units",
}
# modules at the root that belong to a later room
ELSEWHERE = {"plugins": "potentials", "__main__": "cli"}

# (module, imported module, why)
EXCEPTIONS = {
    ("score.model", "potentials.learned"): "ScoreModel.potential: a model is asked for its own",
    ("potentials.base", "adapters.observer"): "Potential.observer: a name that stays, ASE's work",
}


def modules() -> dict[str, Path]:
    """Dotted name below the package of every module but the package itself."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:
            found[name] = path
    return found


MODULES = modules()


def level(name: str) -> str:
    first = name.split(".")[0]
    if first in ROOMS:
        return first
    if first in FOUNDATIONS:
        return "foundations"
    if name in ELSEWHERE:
        return ELSEWHERE[name]
    raise AssertionError(f"{name} belongs to no room: give it one in {__file__}")


def imports(source: str, package: tuple[str, ...]) -> list[tuple[str, int, bool]]:
    """(module below diffmd_ase, line, lazy) of every import of our own; "" is the package.

    ``package`` is where relative imports start. Imports for type checkers do not count;
    lazy ones, inside functions, do.
    """
    found: list[tuple[str, int, bool]] = []

    def visit(node, lazy):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse:
                visit(child, lazy)
            return
        targets = []
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = ("diffmd_ase", *package)[: 1 + len(package) - (node.level - 1)]
                base = ".".join([*up, *filter(None, [node.module])])
            # `from . import x` may name modules
            targets = [
                deep if (deep := f"{base}.{alias.name}".partition(".")[2]) in MODULES else base
                for alias in node.names
            ]
        for target in targets:
            if target in MODULES:
                found.append((target, node.lineno, lazy))
            elif target == "diffmd_ase" or target.startswith("diffmd_ase."):
                found.append((target.partition(".")[2], node.lineno, lazy))
        inside = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(ast.parse(source), False)
    return found


def violations(name: str, source: str, package: tuple[str, ...]) -> list[str]:
    own, wrong = ROOMS.index(level(name)), []
    for target, line, lazy in imports(source, package):
        if target == "" or target.startswith("__"):
            wrong.append(f"{name}:{line} imports from the package itself")
            continue
        if ROOMS.index(level(target)) <= own:
            continue
        if lazy and (name, target) in EXCEPTIONS:
            continue
        wrong.append(f"{name}:{line} ({level(name)}) imports {target} ({level(target)})")
    return wrong


def package_of(name: str) -> tuple[str, ...]:
    parts = tuple(name.split("."))
    return parts if MODULES[name].name == "__init__.py" else parts[:-1]


def test_imports_point_one_way():
    wrong = [
        problem
        for name, path in MODULES.items()
        for problem in violations(name, path.read_text(), package_of(name))
    ]
    assert not wrong, "\n".join(wrong)


def test_the_exception_is_still_needed():
    used = {
        (name, target)
        for name, path in MODULES.items()
        for target, _, lazy in imports(path.read_text(), package_of(name))
        if lazy
    }
    assert set(EXCEPTIONS) <= used


@pytest.mark.parametrize(
    "source",
    [
        "from ..sampling.run import run",
        "from ..sampling import kernels",
        "from ..adapters import calculator",
        "import diffmd_ase.adapters.dynamics",
        "from diffmd_ase import run",
        "def f():\n    from ..adapters.calculator import ScoreCalculator",
        "from ..potentials.learned import ScorePotential",
    ],
)
def test_the_check_sees_a_wrong_import(source):
    assert violations("score.model", source, ("score",))


def test_the_check_allows_what_is_right():
    source = (
        "from __future__ import annotations\nfrom .. import units\nfrom ..noise import Noise\n"
        "from .network import build\nimport torch\n"
        "if TYPE_CHECKING:\n    from ..potentials.learned import ScorePotential\n"
        "def potential():\n    from ..potentials.learned import ScorePotential\n"
    )
    assert violations("score.model", source, ("score",)) == []


def test_import_does_no_work():
    code = (
        "import sys, diffmd_ase; heavy = {'torch', 'ase', 'e3nn', 'numpy', 'matplotlib', 'typer'}"
        " & set(sys.modules); sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_public_names_exist():
    for name in diffmd_ase.__all__:
        assert getattr(diffmd_ase, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute"):
        _ = diffmd_ase.nonsense


# what must appear nowhere in the package, as dotted names, and who may use it
FORBIDDEN = {
    "torch.set_default_dtype": set(),
    "torch.set_default_device": set(),
    "torch.load": set(),
    "torch.save": set(),
    "torch.manual_seed": {"score.fit"},  # within fork_rng, for the first weights
    "np.random.seed": set(),
    "pickle.load": set(),
    # a calculator on its way to our own worker processes, never a file
    "pickle.loads": {"potentials.ase_calculator"},
    # the report of a training process to its parent is its standard output
    "print": {"cli.main", "cli.demo", "score.job"},
    "hasattr": set(),
    "eval": set(),
    "exec": set(),
}


def calls(tree: ast.AST) -> list[tuple[str, int]]:
    return [(ast.unparse(n.func), n.lineno) for n in ast.walk(tree) if isinstance(n, ast.Call)]


@pytest.mark.parametrize("name", MODULES)
def test_nothing_forbidden(name):
    tree = ast.parse(MODULES[name].read_text())
    wrong = [
        f"{name}:{line} calls {called}"
        for called, line in calls(tree)
        if called in FORBIDDEN and name not in FORBIDDEN[called]
    ]
    wrong += [f"{name}:{n.lineno} asserts" for n in ast.walk(tree) if isinstance(n, ast.Assert)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name):
    """Every module says what it is; so does every public class and function of it."""
    source = MODULES[name].read_text()
    tree = ast.parse(source)
    assert ast.get_docstring(tree), f"{name} has no docstring"
    named = {
        ast.literal_eval(element)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        if isinstance(node.value, ast.List | ast.Tuple)
        for element in node.value.elts
    }
    silent = [
        node.name
        for node in tree.body
        if isinstance(node, ast.ClassDef | ast.FunctionDef)
        and node.name in named
        and not ast.get_docstring(node)
    ]
    assert not silent, f"{name}: no docstring on {silent}"


@pytest.mark.parametrize("name", MODULES)
def test_readable_in_one_sitting(name):
    """The aim is about 300 lines; a module beyond 650 is two modules."""
    assert len(MODULES[name].read_text().splitlines()) <= 650
