"""How many samples weights are worth; means and normalising constants are tested with `smc`."""

import pytest
import torch

from diffmd_ase.independent.weights import effective_fraction


def test_effective_fraction():
    log_w = torch.tensor([[0.0] * 4, [900.0, 830.0, 830.0, 830.0]], dtype=torch.float64)
    assert effective_fraction(log_w).tolist() == pytest.approx([1.0, 0.25])
    assert float(
        effective_fraction(torch.tensor([1.0, 3.0], dtype=torch.float64).log())
    ) == pytest.approx(16 / 10 / 2)
    assert float(effective_fraction(torch.full((3,), -torch.inf))) == 0.0
