"""The rooms of the package and what imports what, read from the source."""

import ast
from pathlib import Path

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
    "libraries",
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
