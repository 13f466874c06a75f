"""The house, held by reading the source: rooms, one direction of imports, sizes, docstrings."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import networkx
import pytest
from rooms import (
    ELSEWHERE,
    EXCEPTIONS,
    FOUNDATIONS,
    MODULES,
    imports,
    level,
    package_of,
    violations,
)

import diffmd_ase

PLUGINS = Path(__file__).parents[1] / "plugins"


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
    # results are JSON in one way; the others are read by ourselves, NaN and infinities as they are
    "json.dump": set(),
    "json.dumps": {
        "io.carried",
        "io.h5md",
        "io.json_text",
        "score.job",
        "io.tensors",
    },
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


def circles(edges) -> list[set[str]]:
    """Sets of nodes that reach each other."""
    graph = networkx.DiGraph(edges)
    return [circle for circle in networkx.strongly_connected_components(graph) if len(circle) > 1]


EDGES = [
    (name, target)
    for name, path in MODULES.items()
    for target, _, _ in imports(path.read_text(), package_of(name))
    if target in MODULES and not name.startswith(f"{target}.")  # a folder's own name
]


def test_no_circle_but_the_named_one():
    straight = [edge for edge in EDGES if edge not in EXCEPTIONS]
    assert circles(straight) == []
    rooms = [(level(a), level(b)) for a, b in straight]
    assert circles((a, b) for a, b in rooms if a != b) == []
    for edge in EXCEPTIONS:  # each closes one, or it need not be named
        assert circles([*straight, edge])


def test_the_root_holds_foundations_only():
    root = {name for name, path in MODULES.items() if "." not in name and path.stem == name}
    assert root == FOUNDATIONS | set(ELSEWHERE)


FILES = {name: path for name, path in MODULES.items()} | {
    path.relative_to(PLUGINS).as_posix(): path
    for path in sorted(PLUGINS.rglob("*.py"))
    if "tests" not in path.parts
}


@pytest.mark.parametrize("name", FILES)
def test_readable_in_one_sitting(name):
    """The aim is about 180 lines, 400 where the idea is one; beyond, it is two."""
    assert len(FILES[name].read_text().splitlines()) <= 400


def borrowed(tree: ast.AST) -> list[str]:
    """Private names of other modules of ours that a module imports or reaches for."""
    modules, wrong = set(), []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.level or node.module.startswith("diffmd_")):
            modules |= {alias.asname or alias.name for alias in node.names}
            names = [a.name for a in node.names if re.match("_[^_]", a.name)]
            wrong += [f"{node.lineno}: {name}" for name in names]
    wrong += [
        f"{node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and re.match("_[^_]", node.attr)
        and isinstance(node.value, ast.Name)
        and node.value.id in modules
    ]
    return wrong


@pytest.mark.parametrize("name", FILES)
def test_private_names_stay_at_home(name):
    assert borrowed(ast.parse(FILES[name].read_text())) == []


@pytest.mark.parametrize(
    "source", ["from .fields import _linear", "from diffmd_ase import noise\nnoise._key(3)"]
)
def test_the_check_sees_a_private_name(source):
    assert borrowed(ast.parse(source))


def test_no_test_imports_another():
    """What tests share is in tests/oracles, in a conftest.py, or in a module beside them."""
    folders = [Path(__file__).parent, *PLUGINS.glob("*/tests")]
    wrong = [
        f"{path.name}:{node.lineno} {ast.unparse(node)}"
        for folder in folders
        for path in sorted(folder.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        and "test_" in ast.unparse(node).split(" import ")[0]
    ]
    assert wrong == []


def public(tree: ast.Module) -> list[str]:
    """``__all__`` of a module."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            if isinstance(node.value, ast.List | ast.Tuple):
                return [ast.literal_eval(element) for element in node.value.elts]
    return []


# defined once, in CONTRIBUTING: a public name need not say them again
# what these mean is on one page, docs/README.md, and the same everywhere
HOUSE = set(
    "x system kT temperature_K noise walkers state seed generator rng device progress path".split()
)
OURS = {name for path in MODULES.values() for name in public(ast.parse(path.read_text()))}


def speaks(annotation: ast.expr | None) -> bool:
    """Whether a type says what it is: a documented class of ours, or an option of typer."""
    text = ast.unparse(annotation) if annotation else ""
    return bool(
        {name for name in re.findall(r"[A-Z]\w+", text)} & (OURS | {"Annotated", "Context"})
    )


def parameters(node: ast.ClassDef | ast.FunctionDef, source: list[str]) -> list[str]:
    """What a caller gives, if it is more than one thing and its declaration does not say it.

    Fields of records may have a comment on their line or a string below it.
    """
    if isinstance(node, ast.FunctionDef):
        a = node.args
        every = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
        given = [x for x in every if x.arg not in ("self", "cls") and x.arg[0] != "_"]
        silent = [x.arg for x in given if x.arg not in HOUSE and not speaks(x.annotation)]
        return silent if len(given) > 1 else []
    for part in node.body:
        if isinstance(part, ast.FunctionDef) and part.name == "__init__":
            return parameters(part, source)
    record = ["dataclass" in ast.unparse(d) for d in node.decorator_list]
    record += ["NamedTuple" in ast.unparse(b) for b in node.bases]
    if not any(record):
        return []
    silent, fields = [], 0
    for part, after in zip(node.body, [*node.body[1:], None], strict=True):
        if not isinstance(part, ast.AnnAssign) or ast.unparse(part.target)[0] == "_":
            continue
        if part.value is not None and "init=False" in ast.unparse(part.value):
            continue
        fields += 1
        name, lines = ast.unparse(part.target), "".join(source[part.lineno - 1 : part.end_lineno])
        below = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        if not ("#" in lines or below or name in HOUSE or speaks(part.annotation)):
            silent.append(name)
    return silent if fields > 1 else []


def undocumented(name: str, source: str) -> list[str]:
    """Public functions and classes without a docstring, or that do not say what they take.

    Two parameters or more are listed in a section, or each is named in ``code`` or before its
    shape, ``x (B, N, 3)``, but those that their type explains and the words of the house.
    Constants and aliases of types are free.
    """
    tree, wrong = ast.parse(source), []
    names = public(tree)
    for node in tree.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef) or node.name not in names:
            continue
        said = ast.get_docstring(node) or ""
        if not said:
            wrong.append(f"{name}.{node.name} has no docstring")
            continue
        for part in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(part, ast.FunctionDef) and part.name == "__init__":
                said += "\n" + (ast.get_docstring(part) or "")
        if re.search(r"^(Parameters|Attributes)\n-+$", said, re.MULTILINE):
            continue
        code = " ".join("".join(found) for found in re.findall(r"``(.+?)``|`(.+?)`", said, re.S))
        code += " " + " ".join(re.findall(r"(\w+) \(", said))
        silent = [
            parameter
            for parameter in parameters(node, source.splitlines())
            if not re.search(rf"(?<![\w.]){re.escape(parameter)}(?!\w)", code)
        ]
        if silent:
            wrong.append(f"{name}.{node.name} does not say what {', '.join(silent)} is")
    return wrong


@pytest.mark.parametrize("name", MODULES)
def test_every_module_says_what_it_is(name):
    assert ast.get_docstring(ast.parse(MODULES[name].read_text()))


# the options of a command are documented by their help
COMMANDS = ("analyze", "certify", "converge", "fes", "path", "plumed", "train", "validate")


def test_every_public_name_is_documented():
    offenders = [
        offender
        for name, path in MODULES.items()
        for offender in undocumented(name, path.read_text())
        if not offender.startswith(tuple(f"cli.{command}.{command} " for command in COMMANDS))
    ]
    assert not offenders, "\n".join(offenders)


def test_public_names_are_there():
    """``__all__`` names what the module has, and every module with public names has one."""
    wrong = []
    for name, path in MODULES.items():
        tree = ast.parse(path.read_text())
        listed, defined = public(tree), set()
        for node in tree.body:
            for part in ast.walk(node) if not isinstance(node, ast.ClassDef) else [node]:
                if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
                    defined.add(part.id)
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                defined.add(node.name)
                if node.name[0] != "_" and not listed:
                    wrong.append(f"{name} has no __all__ for {node.name}")
            if isinstance(node, ast.ImportFrom):
                defined |= {alias.asname or alias.name for alias in node.names}
        wrong += [f"{name} has no {missing}" for missing in set(listed) - defined]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "source",
    [
        "def f(a, b):\n    pass",
        "def f(a, b):\n    'Of ``a`` alone.'",
        "class f:\n    'It has two.'\n    def __init__(self, a, *, b):\n        pass",
        "@dataclass\nclass f:\n    'Two fields.'\n    a: int  # said\n    b: int",
    ],
)
def test_the_check_sees_what_is_not_said(source):
    assert len(undocumented("m", f"__all__ = ['f']\n{source}")) == 1
    assert undocumented("m", f"__all__ = []\n{source}") == []


@pytest.mark.parametrize(
    "source",
    [
        "def f(a):\n    'One needs no more than a sentence.'",
        "def f(a, b):\n    'Sum of ``a`` and ``b``.'",
        "def f(a, b):\n    'Sum of a (B,) and b (B,).'",
        "def f(a, b):\n    '''Sum.\n\n    Parameters\n    ----------\n    a, b : numbers\n    '''",
        "@dataclass\nclass f:\n    'Two fields.'\n    a: int  # eV\n    b: int\n    'in Å'",
        "f = int",
    ],
)
def test_the_check_allows_what_is_said(source):
    assert undocumented("m", f"__all__ = ['f']\n{source}") == []
