"""How well are the parameters of a closed form known, and the forces that follow from them?

    V = (G + P)⁻¹ (Σ + c P) (G + P)⁻¹        c = tr(Σ (G + P)⁻¹) / tr(G (G + P)⁻¹)
    δF = (JᵀVJ)^½

with the moments G of all frames, the covariance Σ of the gradient of their loss, and the penalty P
that held parameters back. A penalty is a prior, with the covariance c P⁻¹ where noise is c times
G: what it keeps from a parameter is an error as well.

It is the statistical part: the error of a form in which the true energy lies.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .networks.embedded import EmbeddedNetwork
from .networks.inputs import Inputs
from .networks.liquid import LiquidNetwork
from .networks.molecule import MechanicsNetwork

__all__ = ["MOST_PARAMETERS", "covariance", "force_errors", "root"]

MOST_PARAMETERS = 1500
"""Of a form whose covariance is kept: it is the square of that in a file."""
_NUMBERS = 2e7  # of slopes, at a time


def covariance(gram: Tensor, penalty: Tensor, noise: Tensor) -> Tensor:
    """V (F, F) of this module's equation, from G, P and Σ of all frames, in the same units."""
    inverse = torch.linalg.inv(gram + penalty)
    size = (inverse * noise).sum() / (inverse * gram).sum()
    both = inverse @ (noise + size * penalty) @ inverse
    return 0.5 * (both + both.T)


def root(unit: Tensor, covariance: Tensor) -> Tensor:
    """R (F, F), float32, with ``RRᵀ`` the ``covariance`` of parameters in these units (F,)."""
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
    spread = _spread(network)
    if spread is None:
        return None
    most = max(1, int(_NUMBERS / (spread.shape[0] * x[0].numel())))
    with torch.no_grad():
        found = []
        for part in x.split(most):
            slopes = _slopes(network, part, told)  # (F, B, 3N)
            found.append(torch.einsum("fbd,fg->gbd", slopes, spread).square().sum(0).sqrt())
        return torch.cat(found).unflatten(-1, (3, -1)).transpose(-1, -2)


def _spread(network: nn.Module) -> Tensor | None:
    if isinstance(network, MechanicsNetwork):
        return network.prior.spread if network.prior.remembers else None
    if isinstance(network, (EmbeddedNetwork, LiquidNetwork)):
        return getattr(network.energy, "spread", None)
    return None


def _slopes(network: nn.Module, x: Tensor, told: Inputs) -> Tensor:
    if isinstance(network, EmbeddedNetwork):
        return network.energy.jacobian(x, *told)
    if isinstance(network, LiquidNetwork):
        return network.arranged(told.numbers.cpu().numpy()).jacobian(x, told.cell, told.pbc)
    prior = network.prior
    return prior.jacobian(x.transpose(-1, -2), prior.parameter, len(prior.centre))
