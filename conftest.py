"""Fixtures of all tests: torch's default precision, one thread, GPU tests skipped without one.

``DIFFMD_TEST_DTYPE`` is torch's default dtype in every test: float64, the reference, or float32,
which is what users have (``make test32``). ``DIFFMD_TEST_UNTIL`` is a moment (`time.time`)
after which no test is begun: ``.ci/run`` has a limit, and says what it left out.
"""

import os
import time

import numpy as np
import pytest
import torch

from diffmd_ase.libraries import quiet_pymbar

quiet_pymbar()  # before a library of the tests imports it, and JAX with it

# one thread per process: two OpenMP threads on a shared box are slower than one
torch.set_num_threads(1)

_DTYPES = {"float64": torch.float64, "float32": torch.float32}
_DTYPE = os.environ.get("DIFFMD_TEST_DTYPE", "float64")
_UNTIL = float(os.environ.get("DIFFMD_TEST_UNTIL", "inf"))


def pytest_configure():
    if _DTYPE not in _DTYPES:
        raise pytest.UsageError(f"DIFFMD_TEST_DTYPE={_DTYPE}: expected one of {[*_DTYPES]}")


def pytest_report_header():
    return f"torch's default dtype: {_DTYPE} (DIFFMD_TEST_DTYPE)"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    if time.time() > _UNTIL:
        pytest.skip("no time was left for it (DIFFMD_TEST_UNTIL)")


@pytest.fixture(autouse=True)
def default_dtype():
    """torch's default dtype in a test; the package itself never touches it."""
    torch.set_default_dtype(_DTYPES[_DTYPE])
    yield _DTYPES[_DTYPE]
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def float64(default_dtype):
    """For a test of exact arithmetic: float64 is torch's default, whatever was chosen."""
    torch.set_default_dtype(torch.float64)


@pytest.fixture
def rng():
    return np.random.default_rng(20251121)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(20251121)


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)
