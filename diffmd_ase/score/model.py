"""`ScoreModel`: energy networks with a card that says what they are.

One safetensors file: the weights of every expert, and a JSON card in its header. Nothing is
ever unpickled.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from .._moved import forward
from ..io.schema import validated
from ..io.tensors import load_tensors, save_tensors, verify
from ..system import System
from .card import SCHEMA_VERSION, Card
from .networks.build import below
from .networks.embedded import EmbeddedConfig
from .networks.equivariant_config import EquivariantConfig
from .networks.gradients import Compile, Compiled
from .networks.liquid import LiquidConfig, LiquidNetwork
from .networks.loaded import loaded
from .shipped import file_or_shipped

if TYPE_CHECKING:
    from ..potentials.learned import ScorePotential

__all__ = ["ScoreModel", "resolve_device"]

_KEY = "diffmd_card"
_WITH_DIGEST = 4  # the first schema whose files have a checksum
_TRAIN_ONE = "; train one with `diffmd train SNAPSHOTS --temperature T -o model.safetensors`"


class ScoreModel:
    """A learned score at all its noise levels.

    Parameters
    ----------
    card : what it is
    networks : one energy network for each expert of the card; the first whose range of σ
        holds the level asked for is used
    digest : SHA-256 of card and tensors of the file that it was read from; None of files of earlier
        versions, and of models from elsewhere

    Attributes
    ----------
    baseline : what finds the potential of a system that the energy of the smallest noise is added
        to, where the card names a baseline: a calculator, a potential, or a function of the system;
        None: by its name

    Raises
    ------
    ValueError : when asked for a noise level, or for a system, that it does not know
    """

    def __init__(self, card: Card, networks: list[nn.Module], *, digest: str | None = None):
        self.card, self.digest = card, digest
        self.networks = [network.eval().requires_grad_(False) for network in networks]
        self._placed: dict = {}
        self.baseline: Any = None
        self._compiled: dict = {}

    def __repr__(self) -> str:
        c = self.card
        formulas = ", ".join(dict.fromkeys(system.formula for system in c.systems))
        low, high = c.temperatures
        kelvin = f"{low:g} K" if low == high else f"{low:g}–{high:g} K"
        return f"ScoreModel({formulas}, {kelvin}, σ {c.sigma_min:g}–{c.sigma_max:g} Å)"

    @property
    def system(self) -> System:
        """The system it was trained on, the first of several."""
        c = self.card
        return System(
            np.array(c.numbers),
            np.array(c.masses),
            None if c.cell is None else np.array(c.cell),
            np.array(c.pbc),
        )

    @property
    def transferable(self) -> bool:
        """Whether other compositions of the same elements may be asked for."""
        return self.cutoff(self.card.sigma_min) is not None

    def expert(self, sigma: float) -> nn.Module:
        """The energy network for noise level ``sigma`` (Å)."""
        return self._nearest(sigma)[0]

    def cutoff(self, sigma: float) -> float | None:
        """Radius of neighbours (Å) at this noise level; None of networks of one molecule."""
        config = getattr(self.expert(sigma), "config", None)  # those of others may have none
        return (
            config.cutoff
            if isinstance(config, EmbeddedConfig | LiquidConfig | EquivariantConfig)
            else None
        )

    def level(self, sigma: float) -> float:
        """The noise level nearest to ``sigma`` that its network was trained for (Å).

        It differs only between the smallest level and the next expert, both far below the
        width of a bond.
        """
        return self._nearest(sigma)[1]

    def _nearest(self, sigma: float) -> tuple[nn.Module, float]:
        low, high = self.card.sigma_min, self.card.sigma_max
        if not low * (1 - 1e-6) <= sigma <= high * (1 + 1e-6):
            raise ValueError(
                f"{sigma=} Å is outside the noise levels of this model, {low:g} to {high:g} Å"
            )
        levels = [min(max(sigma, e.sigma[0]), e.sigma[1]) for e in self.card.experts]
        gaps = [abs(math.log(level / sigma)) for level in levels]
        best = gaps.index(min(gaps))
        return self.networks[best], levels[best]

    def network_at(
        self,
        sigma: float,
        device: torch.device,
        dtype: torch.dtype,
        numbers: np.ndarray | None = None,
    ) -> nn.Module:
        """The network for ``sigma`` on a device in a precision; copied there once.

        Of molecules, for atoms ``numbers`` (N,); default, those it was trained on. Raises
        ``ValueError`` for atoms that are none of them.
        """
        network = self.expert(sigma)
        here, told = network, b""
        if isinstance(network, LiquidNetwork) and numbers is not None:
            here, told = network.arranged(numbers), numbers.tobytes()
        place = (id(network), device, dtype, told)
        if place not in self._placed:
            self._placed[place] = copy.deepcopy(here).to(device, dtype)
        return self._placed[place]

    def compiled_at(self, network: nn.Module) -> Compiled:
        """Energy and gradient of a ``network`` of `network_at`, compiled; made once."""
        if id(network) not in self._compiled:
            self._compiled[id(network)] = Compiled(network)
        return self._compiled[id(network)]

    def potential(
        self,
        system: System | None = None,
        *,
        sigma: float | None = None,
        device: str = "auto",
        dtype: torch.dtype | None = None,
        compile: Compile = "auto",
    ) -> ScorePotential:
        """Energy and forces at one noise level, ``F = kT_train·s``.

        Parameters
        ----------
        system : default, the one it was trained on
        sigma : Å; default, the smallest, at which dynamics runs
        dtype : of the network; default float32
        compile : see `ScorePotential`

        Raises
        ------
        ValueError : elements, number of atoms, pbc or σ the model does not know
        """
        # the one import against the arrow: a model is asked for its potential
        from ..potentials.learned import ScorePotential

        return ScorePotential(
            self, system, sigma=sigma, device=device, dtype=dtype, compile=compile
        )

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file with the card as JSON in its header."""
        path = Path(path)
        tensors = {
            f"{card.name}.{key}": value
            for card, network in zip(self.card.experts, self.networks, strict=True)
            for key, value in network.state_dict().items()
        }
        card = self.card.model_copy(update={"schema_version": SCHEMA_VERSION})
        save_tensors(path, tensors, _KEY, card.model_dump(mode="json"))
        return path

    @classmethod
    def load(cls, path: str | Path) -> ScoreModel:
        """Read a model file, or a shipped model by name.

        Raises
        ------
        FileNotFoundError, ValueError : missing, truncated, foreign or newer files
        """
        path = file_or_shipped(
            path, folder="models", suffix=".safetensors", what="model file", remedy=_TRAIN_ONE
        )
        if path.is_dir():
            raise ValueError(f"{path} is a folder; expected a model file, or a shipped name")
        tensors, header = load_tensors(path, _KEY)
        if header is None:
            raise ValueError(
                f"{path.name} is a safetensors file without a diffmd card; expected a file "
                "written by ScoreModel.save or `diffmd train`"
            )
        _check_schema(header, path)
        told = header.get("sha256")
        if told is not None or header["schema_version"] >= _WITH_DIGEST:
            header = verify(path, tensors, header)
        card = validated(Card, header, path.name, "card")
        networks = []
        for expert in card.experts:
            own = below(tensors, f"{expert.name}.")
            try:
                networks.append(loaded(expert.network, own, card))
            except ValueError as error:
                raise ValueError(f"{path.name}: weights do not fit its card: {error}") from error
        return cls(card, networks, digest=told)


def _check_schema(header: dict[str, Any], path: Path) -> None:
    version = header.get("schema_version")
    if type(version) is not int:
        raise ValueError(f"{path.name} has a damaged card: schema_version is {version!r}")
    if not 1 <= version <= SCHEMA_VERSION:
        raise ValueError(
            f"{path.name} has schema version {version}, this program reads 1 to "
            f"{SCHEMA_VERSION}; upgrade diffmd-ase"
        )


def resolve_device(device: str) -> torch.device:
    """ "auto" is CUDA where there is one; a device that is not there is an error."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"{device=} is not a device; use auto, cpu, cuda or cuda:N") from error
    try:
        torch.empty(0, device=chosen if chosen.type != "cuda" else "cpu")
    except (RuntimeError, NotImplementedError) as error:
        raise ValueError(f"{device=} is not on this machine; use device='cpu' or 'auto'") from error
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"{device=}: this machine has {torch.cuda.device_count()} CUDA devices; use "
            "device='cpu' or 'auto'"
        )
    return chosen


__getattr__ = forward(__name__, "score.card score.curvature")
