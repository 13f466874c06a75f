"""What is written is so: links, names, commands and code of every page."""

import ast
import importlib
import os
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from test_architecture import MODULES, level

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "diffmd_ase"
PAGES = [
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "plugins/*.md", "plugins/*/*.md", "benchmarks/*.md")
    for path in sorted(ROOT.glob(pattern))
]
RUN = [page for page in PAGES if page.startswith("docs/")]  # pages whose code is run


def text_of(page: str) -> str:
    return (ROOT / page).read_text()


def blocks(page: str, language: str) -> list[str]:
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", text_of(page), re.M | re.S)
    return [re.sub(rf"^{indent}", "", code, flags=re.M) for indent, code in found]


def headings(page: str) -> set[str]:
    """The anchors of a page, as GitHub makes them."""
    return {
        re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")
        for title in re.findall(r"^#+ (.+)$", text_of(page), re.MULTILINE)
    }


@pytest.mark.parametrize("page", PAGES)
def test_links(page):
    """Files that are linked to exist; anchors are headings of their page."""
    folder = (ROOT / page).parent
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        path = (folder / name).resolve() if name else ROOT / page
        assert path.exists(), f"{page}: {target} is not there"
        if anchor:
            there = path.relative_to(ROOT).as_posix()
            assert anchor in headings(there), f"{page}: {there} has no heading for #{anchor}"


@pytest.mark.parametrize(
    ("index", "pattern"),
    [
        ("docs/README.md", "docs/*.md"),
        ("plugins/README.md", "plugins/*/README.md"),
        ("benchmarks/README.md", "benchmarks/*.py"),
    ],
)
def test_an_index_names_all(index, pattern):
    folder = (ROOT / index).parent
    linked = {(folder / t).resolve() for t in re.findall(r"\]\(([^)#\s]+)", text_of(index))}
    there = {path for path in ROOT.glob(pattern)} - {ROOT / index}
    assert there and there <= linked, sorted(there - linked)


# ------------------------------------------------------------------------ commands

COMMANDS = [
    (page, line.split("  #")[0].strip())
    for page in PAGES
    for block in blocks(page, "bash")
    for line in block.splitlines()
    if line.startswith("diffmd ")
]


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_command_parses(page, line):
    """Name, arguments and options of every ``diffmd …``; nothing is run."""
    from typer.main import get_command

    from diffmd_ase.cli.main import app

    _, name, *arguments = shlex.split(line)
    command = get_command(app).commands[name]
    context = command.make_context(name, list(arguments))
    assert context.args == []


@pytest.mark.parametrize("page", PAGES)
def test_options_in_the_text_exist(page):
    """`--effort 0.1` is an option of some command, `diffmd train --force-weight` of that one."""
    from typer.main import get_command

    from diffmd_ase.cli.main import app

    known = {
        name: {o for parameter in command.params for o in parameter.opts}
        for name, command in get_command(app).commands.items()
    }
    for span in re.findall(r"`((?:diffmd|--)[^`\n]*)`", text_of(page)):
        command = re.match(r"diffmd ([a-z]+)", span)
        there = known[command[1]] if command else set().union(*known.values())
        asked = {word.partition("=")[0] for word in span.split() if word.startswith("--")}
        assert asked - {"--help"} <= there, f"{page}: `{span}`"


def test_a_wrong_option_is_seen():
    from typer.main import get_command

    from diffmd_ase.cli.main import app

    with pytest.raises(Exception, match="(?i)no such option"):
        get_command(app).commands["train"].make_context("train", ["x.xyz", "--temprature", "300"])


def test_make_targets_exist():
    makefile = text_of("Makefile")
    code = "\n".join(
        part for page in PAGES for part in re.findall(r"```.*?```|`[^`]+`", text_of(page), re.S)
    )
    mentioned = set(re.findall(r"\bmake ([a-z0-9]+)\b", code))
    assert {"demo", "test", "test32", "slow", "tutorials", "check"} <= mentioned
    for target in mentioned:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"make {target}"


def test_ci_runs_what_contributing_says():
    first = blocks("CONTRIBUTING.md", "bash")[0]
    targets = re.findall(r"^make (\w+)", first, re.MULTILINE)
    [listed] = re.findall(r"^targets=\(([^)]+)\)", text_of(".ci/run"), re.MULTILINE)
    assert set(listed.split()) == set(targets)


# ---------------------------------------------------------------------------- code


@pytest.mark.parametrize("page", PAGES)
def test_python_compiles_and_imports(page):
    """Every block is Python, and what it imports is where it says, under no old name."""
    for code in blocks(page, "python"):
        tree = ast.parse(code)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and not node.level:
                if node.module.startswith("diffmd_") and node.module != "diffmd_ase":
                    pytest.importorskip(node.module.partition(".")[0])
                with warnings.catch_warnings():
                    warnings.simplefilter("error", DeprecationWarning)
                    module = importlib.import_module(node.module)
                    for alias in node.names:
                        assert hasattr(module, alias.name), f"{page}: {node.module}.{alias.name}"


@pytest.mark.parametrize("page", [page for page in RUN if blocks(page, "python")])
def test_python_runs(page, tmp_path):
    """The blocks of a page, one after the other, as one script; warnings are errors."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "".join(blocks(page, "python"))],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


# ----------------------------------------------------------------- names in the code


def defined(path: Path) -> set[str]:
    """What a file defines: ``f``, ``C``, ``C.m`` (also of a base in the same file), ``X``."""
    methods: dict[str, set[str]] = {}
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            own = {n.name for n in node.body if isinstance(n, ast.FunctionDef)}
            inherited = (methods.get(ast.unparse(base), set()) for base in node.bases)
            methods[node.name] = own.union(*inherited)
        targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names | set(methods) | {f"{c}.{m}" for c, each in methods.items() for m in each}


def where_is() -> list[tuple[str, list[str], list[str]]]:
    """Question, files and names of the rows of ARCHITECTURE's table."""
    table = text_of("ARCHITECTURE.md").partition("## Where is")[2].partition("\n## ")[0]
    rows = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("|")]
    return [
        (question.strip(), re.findall(r"`([^`]+)`", files), re.findall(r"`([^`]+)`", names))
        for question, files, names in rows[2:]
    ]


@pytest.mark.parametrize(("question", "files", "names"), where_is())
def test_where_is(question, files, names):
    """Each name is defined in a file of its row, and in every file there is one of them."""
    assert files and names
    seen: set[str] = set()
    for file in files:
        path = ROOT / file if file.startswith("plugins/") else PACKAGE / file
        assert path.is_file(), f"where is {question}: {file} is not there"
        here = defined(path) & set(names)
        assert here, f"where is {question}: {file} has none of {names}"
        seen |= here
    assert seen == set(names), f"where is {question}: {set(names) - seen} not in {files}"


def test_where_is_asks_what_a_newcomer_asks():
    questions = " ".join(question for question, _, _ in where_is())
    for words in ("Metropolis ratio", "hill added", "frame written", "--restart", "into a force"):
        assert words in questions


def test_rooms_name_their_files():
    """Every module has its word in the row of its room; a command, that of its file."""
    from typer.main import get_command

    from diffmd_ase.cli.main import app

    table = text_of("ARCHITECTURE.md").partition("## Rooms")[2].partition("\n## ")[0]
    cells = [line.split("|") for line in table.splitlines() if line.startswith("|")]
    named = {row[1].strip(" `/"): set(re.findall(r"`(\w+)`", row[3])) for row in cells}
    named["cli"] |= {*get_command(app).commands, "__main__"}
    silent = [
        name
        for name, path in MODULES.items()
        if path.name != "__init__.py" and path.stem not in named[level(name)]
    ]
    assert not silent, f"ARCHITECTURE.md does not name {silent}"


ROOMS = "io|score|potentials|sampling|independent|analysis|simulation|adapters|report|validation"


@pytest.mark.parametrize("page", PAGES)
def test_names_of_files_and_modules(page):
    """`score/losses.py`, `tests/…`, `io.run_info.RunInfo`: there, wherever a page says so."""
    if page == "CHANGELOG.md":
        pytest.skip("it tells of what was")
    for word in re.findall(r"`([\w./]+)`", text_of(page)):
        if re.fullmatch(r"[\w/]+/\w+\.py", word):
            places = (PACKAGE, ROOT, (ROOT / page).parent)
            assert any((place / word).is_file() for place in places), f"{page}: {word} is not there"
        if re.fullmatch(rf"(diffmd_ase\.)?({ROOMS})(\.\w+)+", word):
            parts = word.removeprefix("diffmd_ase.").split(".")
            n = max(n for n in range(1, len(parts) + 1) if ".".join(parts[:n]) in MODULES)
            thing = importlib.import_module("diffmd_ase." + ".".join(parts[:n]))
            for part in parts[n:]:
                assert hasattr(thing, part), f"{page}: {word}"
                thing = getattr(thing, part)
