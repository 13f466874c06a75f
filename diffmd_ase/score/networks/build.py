"""Which network a configuration asks for, made from snapshots or for weights to be loaded.

`MechanicsNetwork`  one molecule at its smallest noise: a fitted force field plus a perceptron
`PairNetwork`       one molecule at all noise levels: data-derived springs plus a perceptron
`EmbeddedNetwork`   metals, noble gases, covalent and ionic solids at their smallest noise, any size
                    and cell: a fitted potential
`LiquidNetwork`     molecular liquids and solutions at their smallest noise: fitted force fields
`EquivariantNetwork` any composition and any cell; E(3)-equivariant messages (e3nn)

All are energies in units of kT, called as ``network(x, sigma, numbers=…, cell=…, pbc=…) -> (B,)``;
the score is minus the gradient. None knows of temperatures, units of energy or ASE.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..embedded_fit import fit_embedded
from ..force_field_fit import fit_prior
from ..liquid_fit import fit_liquid
from ..sets import Sets, as_sets
from ..snapshots import Snapshots
from .embedded import EmbeddedConfig, EmbeddedNetwork
from .equivariant_config import EquivariantConfig
from .liquid import LiquidConfig, LiquidNetwork
from .molecule import (
    MechanicsConfig,
    MechanicsNetwork,
    PairConfig,
    PairNetwork,
    internal_statistics,
)
from .sizes import check_stored
from .splines import END

__all__ = ["NetworkConfig", "below", "build", "parameter_count"]

_WithTables = MechanicsConfig | PairConfig | EmbeddedConfig | LiquidConfig
_AnyConfig = _WithTables | EquivariantConfig
NetworkConfig = Annotated[_AnyConfig, Field(discriminator="kind")]


def build(
    config: _AnyConfig,
    source: Snapshots | Iterable[Snapshots] | dict[str, Tensor],
    *,
    sigma: float = 0.0,
    force_weight: float | Literal["auto"] = 0.0,
    seed: int = 0,
) -> nn.Module:
    """The network of a configuration, in float32.

    Parameters
    ----------
    source : the `Snapshots` whose statistics enter the network (a `MechanicsNetwork` fits
        its force field to them at noise level ``sigma``, and to their forces), for networks of
        any composition one set or several; or the state dictionary of a trained one, whose
        weights are about to be loaded
    sigma : Å
    force_weight : of forces that the snapshots carry, in what is fitted; "auto" of molecules
    seed : of the noise in what is fitted

    Raises ``ValueError`` for weights that are fewer than those of the configuration.
    """
    # most networks are built to be loaded: the caller's random state is left alone
    with torch.random.fork_rng(devices=[]):
        if isinstance(source, dict):
            check_stored(config, sum(t.numel() * t.element_size() for t in source.values()))
        if isinstance(config, EquivariantConfig):
            from .equivariant import EquivariantNetwork  # and e3nn, which takes seconds

            network: nn.Module = EquivariantNetwork(config)
        elif isinstance(source, dict):
            network = _empty(config, source)
        else:
            network = _fitted(config, as_sets(source), sigma, force_weight, seed)
        return network.float()


def parameter_count(network: nn.Module) -> int:
    """How many numbers of a ``network`` were fitted, in closed form or by gradients.

    What symmetry makes equal counts once.
    """
    count = sum(p.numel() for p in network.parameters())
    if isinstance(network, MechanicsNetwork):
        prior = network.prior
        if prior.remembers:
            return count + len(prior.centre)
        values = prior.unit * prior.theta
        if prior.coupled:
            values = torch.cat([values, prior.strengths])
        return count + len(values.unique())
    if isinstance(network, EmbeddedNetwork):
        energy = network.energy
        count += energy.pair.numel() + energy.embedding.numel()
        return count + (energy.angular.numel() if energy.radius else 0)
    if isinstance(network, LiquidNetwork):
        fitted = [prior.unit * prior.theta for prior in network.priors]
        fitted += [prior.strengths for prior in network.priors if prior.coupled]
        count += sum(len(values.unique()) for values in fitted)
        count += network.energy.pair[:, :-END].numel()
    return count


def below(entries: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The ``entries`` whose names begin with ``prefix``, by the rest of their names."""
    return {k.removeprefix(prefix): v for k, v in entries.items() if k.startswith(prefix)}


def _empty(config: _WithTables, state: dict[str, Tensor]) -> nn.Module:
    """With the tables of ``state``; its weights are still to be loaded."""
    if isinstance(config, EmbeddedConfig):
        return EmbeddedNetwork(config, below(state, "energy."))
    if isinstance(config, LiquidConfig):
        kinds = {name.split(".")[1] for name in state if name.startswith("species.")}
        molecules = [below(state, f"species.{n}.") for n in range(len(kinds))]
        return LiquidNetwork(config, molecules, below(state, "energy."))
    internal = below(state, "internal.")
    if isinstance(config, PairConfig):
        return PairNetwork(config, internal)
    return MechanicsNetwork(config, internal, below(state, "prior."))


def _fitted(config: _WithTables, sets: Sets, sigma: float, force_weight, seed: int) -> nn.Module:
    if isinstance(config, EmbeddedConfig):
        tables = fit_embedded(
            sets,
            cutoff=config.cutoff,
            functions=config.functions,
            angular=config.angular,
            sigma=sigma,
            force_weight=force_weight,
            seed=seed,
        )
        return EmbeddedNetwork(config, tables)
    (molecule,) = sets
    if isinstance(config, LiquidConfig):
        return fit_liquid(molecule, config, sigma=sigma, force_weight=force_weight, seed=seed)
    internal = internal_statistics(molecule)
    if isinstance(config, PairConfig):
        return PairNetwork(config, internal)
    prior = fit_prior(molecule, sigma=sigma, force_weight=force_weight, seed=seed)
    return MechanicsNetwork(config, internal, prior)
