"""Commands hold options and printing only."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import diffmd_ase.cli

FILES = sorted(Path(diffmd_ase.cli.__file__).parent.glob("*.py"))
LONGEST = 60  # lines of a function, options and docstring included


def too_long(source: str) -> list[str]:
    return [
        f"{node.name} has {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno + 1 > LONGEST
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_functions_are_short(path):
    assert not too_long(path.read_text())


def test_the_check_sees_a_long_function():
    body = "    pass\n" * LONGEST
    assert too_long(f"def f():\n{body}") == [f"f has {LONGEST + 1} lines"]


def test_help_needs_nothing_heavy():
    code = (
        "import sys, diffmd_ase.cli.main; heavy = {'torch', 'ase', 'e3nn', 'numpy', 'scipy'}"
        " & set(sys.modules); sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
