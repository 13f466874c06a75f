"""Fixtures of all tests: float64 by default, one thread, GPU tests skipped without one."""

import numpy as np
import pytest
import torch

# one thread per process: two OpenMP threads on a shared box are slower than one
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _float64():
    """Reference precision; the package itself never touches the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


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
