"""Positions of six atoms, and potentials whose files are closed."""

import pytest
import torch
from diffmd_plumed import PlumedPotential
from six_atoms import KT, SYSTEM


@pytest.fixture
def x(rng):
    return torch.tensor(rng.normal(size=(6, 3)) * 1.5)


@pytest.fixture
def make(tmp_path):
    """Potentials in folders of their own; all files are closed at the end."""
    made = []

    def build(lines, system=SYSTEM, **options):
        options = {"kT": KT, "timestep": 1.0, "directory": tmp_path / str(len(made)), **options}
        made.append(PlumedPotential(system, lines, **options))
        return made[-1]

    yield build
    for potential in made:
        potential.finalize()
