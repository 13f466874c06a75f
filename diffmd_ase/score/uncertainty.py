"""How well are the parameters of a closed form known, and the forces that follow from them?

    V = (G + P)⁻¹ (Σ + c P) (G + P)⁻¹        c = tr(Σ (G + P)⁻¹) / tr(G (G + P)⁻¹)
    δF = (JᵀVJ)^½

with the moments G of all frames, the covariance Σ of the gradient of their loss, and the penalty P
that held parameters back. A penalty is a prior, with the covariance c P⁻¹ where noise is c times
G: what it keeps from a parameter is an error as well.

It is the statistical part: the error of a form in which the true energy lies. Snapshots that carry
forces tell what comes on top, the misfit of the form.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import numpy as np
import torch
from ase.data import chemical_symbols
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from .losses import score
from .networks.embedded import EmbeddedNetwork
from .networks.inputs import Inputs
from .networks.liquid import LiquidNetwork
from .networks.molecule import MechanicsNetwork
from .snapshots import Snapshots

__all__ = [
    "MOST_PARAMETERS",
    "ForceError",
    "compare_forces",
    "covariance",
    "force_errors",
    "root",
]

MOST_PARAMETERS = 1500
"""Of a form whose covariance is kept: it is the square of that in a file."""
_NUMBERS = 2e7  # of slopes, at a time
_Error = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_SOME, _AT_ONCE = 200, 20  # snapshots


def covariance(gram: Tensor, penalty: Tensor, noise: Tensor) -> Tensor:
    """V (F, F) of this module's equation, in the units of what is given.

    Parameters
    ----------
    gram : G (F, F) of all frames, or its mean: then V is that of one frame
    penalty : P (F, F), likewise
    noise : Σ (F, F), likewise
    """
    inverse = torch.linalg.inv(gram + penalty)
    size = (inverse * noise).sum() / (inverse * gram).sum()
    both = inverse @ (noise + size * penalty) @ inverse
    return 0.5 * (both + both.T)


def root(unit: Tensor, covariance: Tensor) -> Tensor:
    """R (F, F), float32, with ``RRᵀ`` the ``covariance`` (F, F), given in units ``unit`` (F,)."""
    values, vectors = torch.linalg.eigh(covariance)
    return (unit[:, None] * (vectors * values.clamp_min(0).sqrt())).float()


def force_errors(network: nn.Module, x: Tensor, told: Inputs) -> Tensor | None:
    """Standard errors δF (B, N, 3) of the score at ``x`` (B, N, 3), in 1/Å.

    None of a ``network`` that does not know the covariance of its parameters.

    Parameters
    ----------
    network : of a model
    x : positions in Å
    told : of the system
    """
    known = _known(network, told)
    if known is None:
        return None
    spread, slopes = known
    most = max(1, int(_NUMBERS / (spread.shape[0] * x[0].numel())))
    with torch.no_grad():
        parts = [
            torch.einsum("fbd,fg->gbd", slopes(part), spread).square().sum(0).sqrt()
            for part in x.split(most)
        ]
        return torch.cat(parts).unflatten(-1, (3, -1)).transpose(-1, -2)


class ForceError(BaseModel):
    """How far the forces of a model are off, over some snapshots; see `compare_forces`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    statistical: _Error = Field(description="sqrt(⟨δF²⟩ / ⟨F²⟩)")
    found: _Error | None = Field(
        None, description="sqrt(⟨|F - F_label|²⟩ / ⟨F²⟩) of snapshots that carry forces"
    )
    misfit: dict[str, _Error] = Field(
        default_factory=dict,
        description="of each element what was found beyond δF, a component in eV/Å",
    )


def compare_forces(network: nn.Module, snapshots: Snapshots) -> ForceError | None:
    """What the covariance of the parameters says of forces, and forces that snapshots carry.

    Of all atoms that move; a baseline is part of F. None of a ``network`` that does not know.

    Parameters
    ----------
    network : in kT of these
    snapshots : some of them are looked at, those with forces if there are any
    """
    rows = np.flatnonzero(snapshots.labelled) if snapshots.labelled.any() else None
    rows = np.arange(len(snapshots)) if rows is None else rows
    some = snapshots.take(rows[:: max(1, len(rows) // _SOME)])
    told, x = Inputs.of(snapshots.system), torch.as_tensor(some.positions, dtype=torch.float32)
    errors = force_errors(network, x, told)
    if errors is None:
        return None
    energy, moving = told.energy(network), snapshots.moving
    own = torch.cat([score(energy, y, y.new_zeros(len(y)))[1] for y in x.split(_AT_ONCE)]).numpy()
    own, said = own.astype(float)[:, moving], errors.double().numpy()[:, moving]
    if some.baseline is not None:
        own = own + some.baseline.forces[:, moving] / some.kT
    size = np.linalg.norm(own)
    statistical = float(np.linalg.norm(said) / size)
    if not some.labelled.any():
        return ForceError(statistical=statistical)
    off = own - some.reduced_forces[:, moving]
    numbers, misfit = snapshots.system.numbers[moving], {}
    for z in np.unique(numbers):
        beyond = np.mean((off**2 - said**2)[:, numbers == z])
        misfit[chemical_symbols[z]] = float(some.kT * max(0.0, beyond) ** 0.5)
    return ForceError(
        statistical=statistical, found=float(np.linalg.norm(off) / size), misfit=misfit
    )


def _known(network: nn.Module, told: Inputs) -> tuple[Tensor, Callable[[Tensor], Tensor]] | None:
    """R of `root`, and the slopes J (F, B, 3N) at positions (B, N, 3)."""
    if isinstance(network, MechanicsNetwork) and network.prior.remembers:
        prior, count = network.prior, len(network.prior.centre)
        return prior.spread, lambda x: prior.jacobian(x.transpose(-1, -2), prior.parameter, count)
    if isinstance(network, EmbeddedNetwork) and network.energy.known:
        energy = network.energy
        return energy.spread, lambda x: energy.jacobian(x, *told)
    if isinstance(network, LiquidNetwork) and network.energy.known:
        liquid = network.arranged(told.numbers.cpu().numpy())
        return liquid.energy.spread, lambda x: liquid.jacobian(x, told.cell, told.pbc)
    return None
