"""What is trained: the choices of a user, and the experts that follow from the snapshots.

An expert is an energy network for a range of noise levels. A molecule gets two: `fine`, at
the smallest noise, whose energy drives molecular dynamics, and `broad`, over all noise
levels, for i.i.d. reverse diffusion. Metals and noble gases, solids and surfaces of up to three
elements, and molecular liquids have a `fine` one in closed form, and small clusters of metals a
`broad` one. Anything else, and several sets of molecules, get one equivariant network; of several
temperatures it learns the smallest noise only, since there alone the density of noised snapshots
is that of one energy.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
from ase.data import chemical_symbols
from pydantic import BaseModel, ConfigDict, Field

from .force_field_tables import multiplied
from .label_units import force_doubt
from .networks.build import NetworkConfig
from .networks.embedded import EmbeddedConfig
from .networks.equivariant_config import EquivariantConfig
from .networks.liquid import LiquidConfig
from .networks.molecule import MechanicsConfig, PairConfig
from .sets import as_sets
from .settings import TrainConfig
from .snapshots import Snapshots
from .spacing import (
    bond_width,
    broken_bond,
    extent,
    mean_neighbours,
    nearest_neighbours,
    pair_widths,
    vibration,
)

__all__ = ["Expert", "TrainConfig", "plan"]

# the broad expert begins at this multiple of the smallest noise, still below every bond
_BROAD = 5.0
# every second of its noise levels is drawn from here, in units of the largest: noise as large as
# the molecule leaves its shape open, smaller noise decides it, and samples go wrong there
_SHAPES = (0.08, 0.6)
# its rate of learning, over that of the settings: half of the steps to the same held-out loss
_FAST = 10.0
# elements whose bonds have directions, or whose atoms pair up: densities alone do not see that
_COVALENT = {1, 5, 6, 7, 8, 9, 14, 15, 16, 17, 32, 33, 34, 35, 50, 51, 52, 53, 84, 85}
_SMALL = 60  # atoms, of what may be drawn i.i.d. from pair distances
_SHELLS = 2.3  # mean distances to the nearest neighbour: four shells of fcc
_AUTO_WEIGHT = 100.0  # of labels, where it does not follow from a closed form: errors of 0.14
_ANGULAR = 0.65  # of the cutoff: one and a half of the nearest distance
_ELEMENTS = 3  # of solids with angular terms, at most
_RIGID = 2e-3  # Å: bonds at room temperature vary ten times as much


class Expert(BaseModel):
    """One energy network, its noise levels, and the weights of the terms of `SetLoss`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str  # of its checkpoint, and in reports
    sigma: tuple[float, float]  # lowest and highest noise level in Å
    focus: tuple[float, float] | None = Field(
        None, description="every second noise level is drawn from here"
    )
    network: NetworkConfig
    denoising: float = 1.0
    torsional: float = 0.0
    contrastive: float = 0.0
    force_weight: float | Literal["auto"] = 0.0
    corrects: bool = Field(False, description="adds its energy to that of a baseline")
    mirror: float = 0.0  # the contrastive one of mirror images
    clip: float = 50.0  # largest norm of a gradient
    rate: float = Field(1.0, description="of its learning, over that of the settings")


def plan(
    snapshots: Snapshots | Iterable[Snapshots], config: TrainConfig, *, baseline: bool = False
) -> list[Expert]:
    """The experts for one or several sets; the one that drives dynamics comes first.

    Parameters
    ----------
    config : what the user chose; the rest follows from the snapshots
    baseline : the energy of the smallest noise is what is added to that of another potential

    Raises
    ------
    ValueError : a network that cannot be of these snapshots, forces asked for where there are none,
        or in another unit, rigid bonds, atoms that do not move, no range of noise levels
    """
    sets = as_sets(snapshots)
    system, kind = sets[0].system, config.network
    elements = {int(z) for part in sets for z in part.system.numbers}
    if kind == "auto":
        large = system.periodic or len(system) > _SMALL or len(sets) > 1
        kind = "equivariant" if large else "pair"
        if large and len(sets) == 1 and _of_molecules(sets[0]):
            kind = "liquid"
        broken = ""
        if kind != "equivariant" and _COVALENT & elements and not baseline:
            broken = next(filter(None, map(_spoiled, sets)), "")
        if broken:
            warnings.warn(
                f"{broken}: a closed form holds one set of bonds, and these frames spoil that of "
                "the others; leave them out, or give network='equivariant', which takes far longer",
                stacklevel=3,
            )
        if not _COVALENT & elements or (kind == "equivariant" and _solid(sets, elements)):
            kind = "embedded"
    if kind == "pair" and (system.periodic or len(sets) > 1):
        raise ValueError(
            "network='pair' is for one isolated molecule at one temperature; use 'equivariant'"
        )
    if kind == "liquid" and (len(sets) > 1 or sets[0].molecules is None):
        why = f"{len(sets)} sets" if len(sets) > 1 else "bonds that go on without end"
        raise ValueError(
            f"network='liquid' is for one set of snapshots of molecules, not {why}; use "
            "'equivariant'"
        )
    weight = config.force_weight
    said = f"force_weight={weight if weight == 'auto' else format(weight, 'g')}"
    unlabelled = [part.source for part in sets if not part.labelled.any()]
    if weight and len(unlabelled) == len(sets):
        raise ValueError(
            f"{said}, but {', '.join(unlabelled)} holds no forces: "
            "give frames with forces, or force_weight=0"
        )
    for part in sets if weight else ():
        if wrong := force_doubt(part):
            raise ValueError(f"{said}, but {wrong}")
    first, *others = _experts(sets, config, kind, elements)
    steps = [isinstance(e.network, MechanicsConfig | PairConfig) for e in (first, *others)]
    if config.compile == "on" and not any(steps):
        raise ValueError(
            f"compile='on', but the step of a network of kind '{kind}' is not compiled: its "
            "neighbours are others in each batch, or a closed form leaves nothing to train; use "
            "'auto'"
        )
    if baseline:
        first = _correcting(first)
    if weight == "auto" and not isinstance(first.network, MechanicsConfig | LiquidConfig):
        weight = _AUTO_WEIGHT
    # larger noise hides what a frame says of forces: labels made those networks worse
    return [first.model_copy(update={"force_weight": weight}), *others]


def _spoiled(part: Snapshots) -> str:
    """The bond that a closed form cannot have, in words; "" where there is none."""
    if part.system.periodic or not len(part.topology.loose):
        return broken_bond(part)
    if multiplied(len(part.system)):
        return ""
    i, j = part.topology.loose[0].tolist()
    one, other = (f"{chemical_symbols[part.system.numbers[n]]}{n}" for n in (i, j))
    return f"{part.source}: {one} and {other} are bound in some of {len(part)} snapshots only"


def _correcting(expert: Expert) -> Expert:
    """What is added to a baseline: a closed form alone, which needs its energies once."""
    if isinstance(expert.network, EquivariantConfig):
        raise ValueError(
            "a baseline is for what has a closed form, molecules of up to 60 atoms and metals; an "
            "equivariant network learns all noise levels at once: train it without a baseline"
        )
    changed: dict[str, Any] = {"corrects": True, "torsional": 0.0, "contrastive": 0.0}
    if isinstance(expert.network, MechanicsConfig):
        changed["network"] = expert.network.model_copy(update={"depth": 0})
    return expert.model_copy(update=changed)


def _experts(sets, config: TrainConfig, kind: str, elements: set[int]) -> list[Expert]:
    system = sets[0].system
    tempered = len({part.temperature_K for part in sets}) > 1
    ranges = [_noise_range(part, config, fine=kind != "equivariant" or tempered) for part in sets]
    low, high = min(r[0] for r in ranges), max(r[1] for r in ranges)
    if kind == "embedded":
        nearest = [nearest_neighbours(part) for part in sets] if config.cutoff is None else []
        cutoff = config.cutoff or round(_SHELLS * max(nearest), 2)
        angular = round(_ANGULAR * cutoff, 2) if _COVALENT & elements else 0.0
        metal = EmbeddedConfig(cutoff=cutoff, angular=angular)
        fine = Expert(name="fine", sigma=(low, low), network=metal)
        cluster = len(sets) == 1 and len(system) <= _SMALL and not system.periodic
        return [fine, _broad(low, high)] if cluster else [fine]
    if kind == "liquid":
        liquid = LiquidConfig() if config.cutoff is None else LiquidConfig(cutoff=config.cutoff)
        return [Expert(name="fine", sigma=(low, low), network=liquid)]
    if kind == "equivariant":
        cutoff = config.cutoff or 4.5
        chiral = not system.periodic and any(part.topology.chiral for part in sets)
        network = EquivariantConfig(
            channels=config.channels,
            layers=3 if chiral else 2,
            cutoff=cutoff,
            elements=tuple(sorted(elements)),
            neighbours=round(float(np.mean([mean_neighbours(p, cutoff) for p in sets])), 2),
            chiral=chiral,
        )
        if tempered:
            weights = {"denoising": low**-2, "clip": 1000.0}
            return [Expert(name="fine", sigma=(low, low), network=network, **weights)]
        return [Expert(name="all", sigma=(low, high), network=network, mirror=1.0 * chiral)]
    fine = Expert(
        name="fine",
        sigma=(low, low),
        network=MechanicsConfig(width=config.width),
        denoising=low**-2,
        torsional=config.torsion_weight,
        contrastive=config.contrastive_weight,
        clip=1000.0,
    )
    return [fine, _broad(low, high)]


def _solid(sets, elements: set[int]) -> bool:
    """Bonds that go on without end, of few elements: angular terms grow with their square."""
    endless = all(part.system.periodic and part.molecules is None for part in sets)
    return endless and len(elements) <= _ELEMENTS


def _of_molecules(snapshots: Snapshots) -> bool:
    """Several molecules of a size that has a force field, none of their atoms held."""
    kinds = snapshots.molecules
    if kinds is None or not snapshots.moving.all():
        return False
    return max(len(k.numbers) for k in kinds) <= _SMALL and sum(len(k.atoms) for k in kinds) > 1


def _broad(low: float, high: float) -> Expert:
    """For i.i.d. samples of one molecule or cluster."""
    least = min(_BROAD * low, 0.5 * high)
    focus = max(least, _SHAPES[0] * high), _SHAPES[1] * high
    return Expert(name="broad", sigma=(least, high), focus=focus, network=PairConfig(), rate=_FAST)


def _noise_range(snapshots: Snapshots, config: TrainConfig, fine: bool) -> tuple[float, float]:
    if len(snapshots.system) < 2:
        raise ValueError(
            f"{snapshots.source} holds one atom: nothing acts on it that could be learned; give "
            "snapshots of two atoms or more"
        )
    if snapshots.system.periodic:
        # vibration about the mean sites; melts are bounded by 1 Å
        if not snapshots.moving.any():
            raise ValueError(f"{snapshots.source}: no atom moves, all frames are the same")
        amplitude = vibration(snapshots)
        # atoms of a melt wander: what bends the energy is how far they vibrate, 0.15 Å at most
        low = 0.05 * min(amplitude, 0.15) if fine else 0.2 * min(amplitude, 0.5)
        high = 1.0
        stiffest = bond_width(snapshots) if _COVALENT & {*snapshots.system.numbers} else None
        if stiffest is not None:
            _check_rigid(snapshots, *stiffest, config)
            low = min(low, (0.05 if fine else 0.2) * stiffest[1])
    else:
        pairs, std = pair_widths(snapshots)
        low, high = 0.05 * float(std.min()), max(4.0, 2.5 * extent(snapshots))
        _check_rigid(snapshots, pairs[std.argmin()], float(std.min()), config)
    low, high = config.sigma_min or low, config.sigma_max or high
    if not 0 < low < high:
        raise ValueError(f"noise levels from {low:g} to {high:g} Å: need 0 < sigma_min < sigma_max")
    return round(low, 5), round(high, 3)


def _check_rigid(snapshots: Snapshots, pair, width: float, config: TrainConfig) -> None:
    # of a handful of frames the width says nothing
    if len(snapshots) >= 10 and width < _RIGID and config.sigma_min is None:
        i, j = pair
        raise ValueError(
            f"the distance of atoms {i} and {j} hardly varies (std {width:.1e} Å): it "
            "was constrained, and a rigid bond has no finite force; sample without "
            "constraints, or give sigma_min, at which the model then smooths it"
        )
