"""The potential energy that is biased: known where it was evaluated."""

from __future__ import annotations

import hashlib

import numpy as np
from torch import Tensor

from diffmd_ase.state import Evaluation

__all__ = ["Bases", "frames_of"]

_KEPT = 4  # batches that are evaluated in one step: proposals, delayed stages, refreshes


class Bases:
    """Energies and forces of the biased potential, by position.

    A bias on ENERGY learns at positions that were evaluated in this step, or long before: a
    walker whose moves are rejected is not evaluated again. Energies are in eV, forces in eV/Å.

    Raises
    ------
    ValueError : a base without an energy; positions where it is not known
    """

    def __init__(self):
        self._recent: dict[str, tuple[float, np.ndarray]] = {}
        self._current: dict[str, tuple[float, np.ndarray]] = {}

    def remember(self, frames: np.ndarray, base: Evaluation | None) -> None:
        """Keep the base (B,) at frames (B, N, 3); raises ``ValueError`` without an energy."""
        if base is None or base.energy is None:
            raise ValueError("ENERGY is biased: add the bias to a potential with an energy")
        energies = base.energy.detach().reshape(-1).cpu().double().tolist()
        values = zip(energies, frames_of(base.forces), strict=True)
        past = list(self._recent.items())[-(_KEPT - 1) * len(frames) :]
        self._recent = dict(past) | dict(zip(map(_key, frames), values, strict=True))

    def settle(self, frames: np.ndarray) -> None:
        """These are the positions of the walkers until the next step is completed."""
        every = self._current | self._recent
        self._current = {key: every[key] for key in map(_key, frames) if key in every}

    def of(self, frame: np.ndarray) -> tuple[float, np.ndarray]:
        """Energy and forces at a frame; raises ``ValueError`` where they are not known."""
        key = _key(frame)
        for energies in (self._recent, self._current):
            if key in energies:
                return energies[key]
        raise ValueError(
            "ENERGY is biased, and the energy at the positions to learn from is not known: "
            "evaluate model + bias there first"
        )

    def checkpoint(self) -> dict[str, list]:
        """What is known of the walkers, JSON values."""
        return {key: [energy, f.tolist()] for key, (energy, f) in self._current.items()}

    def restore(self, saved: dict[str, list]) -> None:
        self._current = {key: (energy, np.array(f)) for key, (energy, f) in saved.items()}


def frames_of(x: Tensor) -> np.ndarray:
    """(*batch, N, 3) as float64 (frames, N, 3) on the CPU."""
    return x.detach().reshape(-1, *x.shape[-2:]).cpu().double().numpy()


def _key(frame: np.ndarray) -> str:
    return hashlib.blake2b(frame.tobytes(), digest_size=16).hexdigest()
