"""torch's device without data: whoever asks it for a number, or mixes devices, raises."""

import copy
from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode


@contextmanager
def _copied_without_data():
    def moved(tensor, memo):
        return memo.setdefault(id(tensor), tensor.detach().to("meta"))

    kept = torch.Tensor.__deepcopy__, torch.nn.Parameter.__deepcopy__
    torch.Tensor.__deepcopy__ = torch.nn.Parameter.__deepcopy__ = moved
    try:
        yield
    finally:
        torch.Tensor.__deepcopy__, torch.nn.Parameter.__deepcopy__ = kept


def without_data(kernel, state):
    """Copies of both that have the shapes and types of numbers, and no numbers."""
    with _copied_without_data():
        kernel, state = copy.deepcopy((kernel, state))
    drift = () if kernel.drift is None else kernel.drift.terms
    for term in (*kernel.potential.terms, *drift):
        if "device" in vars(term):
            term.device = torch.device("meta")
    return kernel, state


class Operations(TorchDispatchMode):
    """Counts what is sent to the device, views left out."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))
