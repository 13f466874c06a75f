"""A network from the tensors of a file, which may be any tensors."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ...system import System
from ..card import Card
from ..extrapolation import coordinates_outside, extrapolation
from ..uncertainty import force_errors
from .build import NetworkConfig, build
from .equivariant_config import EquivariantConfig
from .inputs import Inputs

__all__ = ["loaded"]

# axes of the tables that come from a file; of all others one
_AXES = dict.fromkeys(("n_atoms", "edge", "label_weight", "chiral", "nearest"), 0)
_AXES |= dict.fromkeys(("bonds", "angles", "torsions", "impropers", "free", "centres", "pairs"), 2)
_AXES |= dict.fromkeys(("products", "spread", "whiten", "torsion_gap", "pair", "atoms", "loose"), 2)
_AXES |= dict.fromkeys(("embedding", "angular"), 3)
_TABLES = ("prior", "internal", "energy")  # parts of networks that are made of them
_APART = 1.7  # Å between the atoms of the structure that is tried


def loaded(config: NetworkConfig, state: dict[str, Tensor], card: Card) -> nn.Module:
    """The network of ``config`` with the tensors ``state``, which are tried on one structure.

    Tables of atoms come from the file: they fit if an energy of the atoms of the ``card`` is a
    finite number. Networks without tables are of the shapes of their configuration.

    Raises
    ------
    ValueError : tensors that are missing, too many, of other shapes, or not finite
    """
    if strange := [n for n, t in state.items() if not torch.isfinite(t).all()]:
        raise ValueError(f"{strange[0]} is not finite")
    for name, tensor in state.items():
        part, _, table = name.rpartition(".")
        table = table.rstrip("0123456789").rstrip("_")  # of one kind of molecules
        if table == "inner" and not tensor.ndim:  # of metals of one element
            continue
        of_tables = part in _TABLES or part.startswith("species.")
        if of_tables and tensor.ndim != _AXES.get(table, 1):
            raise ValueError(f"{name} has {tensor.ndim} axes, expected {_AXES.get(table, 1)}")
        if table in ("spread", "whiten") and len(set(tensor.shape)) != 1:
            raise ValueError(f"{name} is not square: {tuple(tensor.shape)}")
    try:
        network = build(config, state)
        network.load_state_dict(state)
        if isinstance(config, EquivariantConfig):
            return network
        cell = None if card.cell is None else np.array(card.cell)
        system = System(np.array(card.numbers), np.array(card.masses), cell, np.array(card.pbc))
        side = int(np.ceil(len(system) ** (1 / 3)))
        place = np.stack(np.unravel_index(np.arange(len(system)), (side,) * 3), axis=-1)
        x = (
            torch.tensor(_APART * place + 0.1 * np.sin(7.0 * place[:, ::-1]))
            .float()
            .repeat(2, 1, 1)
        )
        with torch.no_grad():
            energy = Inputs.of(system).energy(network)(x, x.new_full((2,), card.sigma_min))
        told = Inputs.of(system)
        far, errors = extrapolation(network, x, told), force_errors(network, x, told)
        coordinates_outside(network, x[0], system.numbers, told)
    except (AttributeError, LookupError, RuntimeError, TypeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    if energy.shape != (2,) or not torch.isfinite(energy).all():
        raise ValueError(f"energies {energy.tolist()} where two finite numbers were expected")
    for what, value, shape in (("extrapolation", far, (2,)), ("force errors", errors, x.shape)):
        if value is not None and (value.shape != shape or value.isnan().any()):
            raise ValueError(f"{what} of shape {tuple(value.shape)}, or no numbers")
    return network
