"""Several sets of snapshots that one energy explains: compositions, sizes, temperatures.

    p_n(x) ∝ exp[-U(x)/kT_n]        E = U/kT_1        s_n = -(T_1/T_n) ∇E

The potential energy of all atoms does not depend on temperature: sets of several temperatures
tell of one U, each through its own kT, and the model holds at every temperature between. Losses
of score matching are added as

    Σ_n (T_n/T_1) Σ_frames [½|s_n|² + ∇·s_n]

which is, in units of 1/kT_1, ½|F|²/kT_n + ∇·F: the same stiffness is known equally well from
as many frames of any temperature, and has the same weight in each. A free energy, of coarse
grains or of a solvent averaged out, does depend on temperature: train on one temperature.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .neighbours import nearest_by_element
from .snapshots import Snapshots

__all__ = ["as_sets", "configurational_temperatures", "joint_hash", "temperings"]

_UNITS = 1.5  # nearest neighbours of one element differ less; Å and bohr differ by 1.9
_COORDINATES = 12_000  # that a temperature is measured by: about 1 %
_CONVERGED = 0.25  # of the balance that holds at the minimum
_SUSPECT = 0.1  # of a temperature: beyond the error of a fit that does not fit all sets


def as_sets(snapshots: Snapshots | Iterable[Snapshots]) -> tuple[Snapshots, ...]:
    """One set or several, the same for all functions of this package.

    Raises
    ------
    TypeError, ValueError : no sets; one of them twice; with and without periodicity; lengths
        that look like different units
    """
    sets = (snapshots,) if isinstance(snapshots, Snapshots) else tuple(snapshots)
    if not sets:
        raise ValueError("no snapshots: give at least one set")
    for part in sets:
        if not isinstance(part, Snapshots):
            raise TypeError(f"expected Snapshots or several of them, got {type(part).__name__}")
    if len(sets) > 1:
        _check_together(sets)
    return sets


def temperings(sets: tuple[Snapshots, ...]) -> tuple[float, ...]:
    """T_1/T_n of each set, which turns the score of the first into its own."""
    return tuple(sets[0].kT / part.kT for part in sets)


def joint_hash(sets: tuple[Snapshots, ...]) -> str:
    """Hash of all sets in their order; of one set, its own."""
    if len(sets) == 1:
        return sets[0].sha256
    return hashlib.sha256("".join(part.sha256 for part in sets).encode()).hexdigest()


def configurational_temperatures(
    network: nn.Module, sigma: float, sets: tuple[Snapshots, ...]
) -> list[float]:
    """The temperature (K) that each set has by the forces of ``network``.

        T = T_n ⟨|s_n|²⟩ / ⟨-∇·s_n⟩        -∇·s ≈ ε·(s₋ - s₊)/(2σ)

    which is that of its label if energy and label are right (Rugh, Phys. Rev. Lett. 78, 772
    (1997); Butler et al., J. Chem. Phys. 109, 6519 (1998)). One set always agrees with its own
    energy; of several, one with a wrong label does not: that is a warning.
    """
    found, suspects, squared, curved = [], [], 0.0, 0.0
    for part, tempering in zip(sets, temperings(sets), strict=True):
        generator = torch.Generator().manual_seed(0)
        frames = max(128, _COORDINATES // (3 * len(part.system)))
        index = torch.randperm(len(part), generator=generator)[:frames].numpy()
        squares, slopes = _virial(network, sigma, part, index, tempering, generator)
        ratio = float(squares.mean() / slopes.mean())
        error = float((squares - ratio * slopes).std() / slopes.mean()) / len(index) ** 0.5
        found.append(part.temperature_K * ratio)
        known = float(slopes.mean() / slopes.std()) * len(index) ** 0.5 > 4
        if known and abs(ratio - 1) > max(_SUSPECT, 4 * error):
            suspects.append((part, found[-1]))
        squared += len(part) / tempering * float(squares.mean())
        curved += len(part) / tempering * float(slopes.mean())
    # at the minimum of the loss of all sets their ratio is 1: elsewhere the energy is to blame
    if len(sets) > 1 and abs(squared - curved) < _CONVERGED * curved:
        for part, kelvin in suspects:
            warnings.warn(
                f"{part.source} is said to be at {part.temperature_K:g} K but fits the energy of "
                f"all sets at {kelvin:.0f} K: a wrong temperature here or in another set, "
                "snapshots out of equilibrium, or an energy that depends on temperature",
                stacklevel=3,
            )
    return found


def _virial(network, sigma, part, index, tempering, generator) -> tuple[Tensor, Tensor]:
    """|s|² and -∇·s (M,) of some frames."""
    system = part.system
    numbers = torch.as_tensor(system.numbers)
    cell = None if system.cell is None else torch.as_tensor(system.cell).float()
    moving = torch.as_tensor(part.moving)[:, None]
    squares, slopes = [], []
    for x in torch.as_tensor(part.positions[index], dtype=torch.float32).split(16):
        epsilon = torch.randn(x.shape, generator=generator, dtype=x.dtype) * moving
        level = x.new_full((len(x),), sigma)
        scores = []
        for sign in (1, -1):
            y = (x + sign * sigma * epsilon).requires_grad_()
            energy = network(y, level, numbers=numbers, cell=cell, pbc=tuple(system.pbc.tolist()))
            scores.append(-tempering * torch.autograd.grad(energy.sum(), y)[0] * moving)
        plus, minus = scores
        squares.append(0.5 * (plus.square() + minus.square()).sum((1, 2)))
        slopes.append((epsilon * (minus - plus)).sum((1, 2)) / (2 * sigma))
    return torch.cat(squares).double(), torch.cat(slopes).double()


def _check_together(sets: tuple[Snapshots, ...]) -> None:
    first = sets[0]
    hashes: dict[str, str] = {}
    known = nearest_by_element(first)
    for part in sets:
        if part.sha256 in hashes:
            twin = hashes[part.sha256]
            raise ValueError(f"{twin} and {part.source} hold the same snapshots: drop one")
        hashes[part.sha256] = part.source
        if (part.system.pbc != first.system.pbc).any():
            raise ValueError(
                f"{part.source} has pbc={part.system.pbc.tolist()} but {first.source} has "
                f"{first.system.pbc.tolist()}: train on sets of the same periodicity"
            )
        near = nearest_by_element(part)
        ratios = {z: near[z] / known[z] for z in near.keys() & known.keys()}
        if ratios and (min(ratios.values()) > _UNITS or max(ratios.values()) < 1 / _UNITS):
            z = min(ratios)
            raise ValueError(
                f"nearest neighbours are {near[z]:.2f} Å apart in {part.source} but {known[z]:.2f} "
                f"Å in {first.source}: are the positions of both in Å?"
            )
