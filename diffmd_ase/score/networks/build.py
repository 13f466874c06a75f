"""Energy networks, leaf to root. An energy in units of kT; the score is minus its gradient.

`MechanicsNetwork`  one molecule at its smallest noise: a fitted force field plus a perceptron
`PairNetwork`       one molecule at all noise levels: data-derived springs plus a perceptron
`EmbeddedNetwork`   metals at their smallest noise, any size and cell: a fitted potential
`EquivariantNetwork` any composition and any cell; E(3)-equivariant messages (e3nn)

Both are called as ``network(x, sigma, numbers=…, cell=…, pbc=…) -> (B,)`` and know the noise
level σ they are asked for. Nothing here knows about temperatures, units of energy or ASE.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from ..embedded_fit import fit_embedded
from ..force_field_fit import fit_prior
from ..sets import as_sets
from .embedded import EmbeddedConfig, EmbeddedNetwork
from .equivariant import EquivariantConfig, EquivariantNetwork
from .molecule import (
    MechanicsConfig,
    MechanicsNetwork,
    PairConfig,
    PairNetwork,
    internal_statistics,
)

__all__ = ["build"]


AnyConfig = MechanicsConfig | PairConfig | EmbeddedConfig | EquivariantConfig
NetworkConfig = Annotated[AnyConfig, Field(discriminator="kind")]


def build(config: AnyConfig, source, *, sigma: float = 0.0, force_weight: float = 0.0) -> nn.Module:
    """The network of a configuration, in float32.

    ``source``: the `Snapshots` whose statistics enter the network (a `MechanicsNetwork` fits
    its prior to them at noise level ``sigma``, and to their forces), for networks of any
    composition one set or several; or the state dictionary of a trained one, whose weights are
    about to be loaded.
    """
    # most networks are built to be loaded: the caller's random state is left alone
    with torch.random.fork_rng(devices=[]):
        return _build(config, source, {"sigma": sigma, "force_weight": force_weight}).float()


def _build(config: AnyConfig, source, options: dict[str, float]) -> nn.Module:
    if isinstance(config, EquivariantConfig):
        return EquivariantNetwork(config)
    known = isinstance(source, dict)
    if isinstance(config, EmbeddedConfig):
        if known:
            tables = _below(source, "energy.")
        else:
            tables = fit_embedded(
                source, cutoff=config.cutoff, functions=config.functions, **options
            )
        return EmbeddedNetwork(config, tables)
    if not known:
        (source,) = as_sets(source)
    needs = isinstance(config, PairConfig) or config.depth > 0
    internal = None
    if needs:
        internal = _below(source, "internal.") if known else internal_statistics(source)
    if isinstance(config, PairConfig):
        return PairNetwork(config, internal)
    prior = _below(source, "prior.") if known else fit_prior(source, **options)
    return MechanicsNetwork(config, internal, prior)


def _below(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


# ------------------------------------------------------------------ noise level


# --------------------------------------------------------- networks of one molecule


# ------------------------------------------------- networks of any number of atoms
