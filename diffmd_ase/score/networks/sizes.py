"""How large a network is, and its training, before it is made."""

from __future__ import annotations

from ...io.limits import check_memory
from .embedded import EmbeddedConfig
from .equivariant_config import EquivariantConfig
from .liquid import LiquidConfig
from .molecule import MechanicsConfig, PairConfig

__all__ = ["check_stored", "check_training", "least_bytes"]

_Fitted = EmbeddedConfig | LiquidConfig  # in closed form, of splines
_AnyConfig = MechanicsConfig | PairConfig | _Fitted | EquivariantConfig
_COPIES = 7  # weights, their average and the best, gradients, two moments, one in the making
_KEPT = 10  # what is kept of each number for its gradients, of first and second order
_BYTES = 4


def least_bytes(config: _AnyConfig) -> int:
    """Bytes of the weights between hidden layers alone, in float32."""
    if isinstance(config, EquivariantConfig):
        return _BYTES * config.layers * config.channels * max(config.channels, config.radial)
    if isinstance(config, _Fitted):
        return _BYTES * config.functions
    return _BYTES * config.width * (1 + config.width * (config.depth - 1)) if config.depth else 0


def check_stored(config: _AnyConfig, stored: int) -> None:
    """``ValueError`` where the network of ``config`` has more weights than ``stored`` bytes."""
    need = least_bytes(config)
    if need > stored:
        raise ValueError(
            f"{stored} bytes of weights for a network ({config}) that has {need} bytes or more"
        )


def check_training(config: _AnyConfig, batch_size: int, n_atoms: int) -> None:
    """``ValueError`` where a training would not fit into memory.

    Parameters
    ----------
    config : of the network
    batch_size : snapshots of each step
    n_atoms : of a snapshot
    """
    check_memory(
        _COPIES * least_bytes(config), f"training a network ({config})", "give a smaller --width"
    )
    each = 3 * n_atoms + n_atoms * (n_atoms - 1) // 2
    if isinstance(config, EquivariantConfig):
        each = n_atoms * int(config.neighbours) * config.channels * config.layers
    elif not isinstance(config, _Fitted):
        each += config.width * config.depth
    check_memory(
        float(_BYTES * _KEPT * each) * batch_size,
        f"a step on {batch_size} snapshots of {n_atoms} atoms",
        "give a smaller --batch-size",
    )
