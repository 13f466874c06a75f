"""Examples in docstrings run as printed."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest
import torch

import diffmd_ase

ROOT = Path(diffmd_ase.__file__).parent
WITH_EXAMPLES = [
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
    for path in sorted(ROOT.rglob("*.py"))
    if ">>> " in path.read_text()
]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples(name):
    torch.set_default_dtype(torch.float32)  # as users have it
    result = doctest.testmod(import_module(name))
    assert result.attempted and not result.failed


def test_there_are_some():
    assert "diffmd_ase.adapters.dynamics" in WITH_EXAMPLES
