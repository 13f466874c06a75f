"""A force field fitted to energies and forces of some structures alone, in closed form.

With the features f of `force_field` and their couplings, J = ∂f/∂x, and what energies e and forces
l, in kT, leave after a baseline,

    θ = argmin ⟨|l + Jᵀθ|²⟩ + w ⟨(δe - δfᵀθ)²⟩ + ρ|θ|²        δ: less the mean over the structures

in units of θ in which the first two terms have the diagonal one. The walls of the force field begin
outside of what the structures hold, and add nothing to them. Forces say little of how far two
basins are apart in energy; a few hundred energies say just that. No law is assumed of the
structures, so that those of any potential, and of earlier fits, may be put together: a stepping
stone between two potentials, of which one is expensive, is made in this way.

1/r⁶ and 1/r¹² have a ridge of their own. They vary by orders of magnitude over what a potential may
visit, and a few hundred structures leave them free where it matters: above a baseline that has a
repulsion a large one costs little, and keeps the sum physical.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .force_field import MechanicsPrior
from .force_field_tables import coupling_tables, parameter_numbers, term_tables
from .linear_form import Form
from .shrinkage import solve
from .snapshots import Snapshots
from .topology import Topology

__all__ = ["fit_labels"]

_AT_ONCE = 32  # frames


def fit_labels(
    snapshots: Snapshots,
    *,
    energy_weight: float = 300.0,
    ridge: float = 1e-4,
    repulsion_ridge: float | None = None,
) -> dict[str, Tensor]:
    """Tables and parameters θ of a `MechanicsPrior`, from energies and forces of ``snapshots``.

    The energy is that of the labels less a constant; where the snapshots hold the values of a
    baseline, it is what is to be added to it. Which structures there are need not follow a law.

    Parameters
    ----------
    snapshots : of one molecule that is not periodic, some hundreds, all with energies and forces
    energy_weight : w in Å⁻², of an energy over a force, both in kT
    ridge : ρ of all parameters
    repulsion_ridge : that of 1/r⁶ and 1/r¹²; default the same, or 1 above a baseline

    Raises
    ------
    ValueError : frames without energies or forces; a periodic system
    """
    energies, forces = _labels(snapshots)
    if repulsion_ridge is None:
        repulsion_ridge = ridge if snapshots.baseline is None else 1.0
    positions = torch.as_tensor(snapshots.positions, dtype=torch.float32)
    form, repulsion = _form(snapshots.topology, positions)
    planes = positions.transpose(-1, -2)
    gram = torch.zeros(form.size, form.size, dtype=torch.float64)
    drive = torch.zeros(form.size, dtype=torch.float64)
    left = forces.transpose(-1, -2).flatten(1)
    for part, known in zip(planes.split(_AT_ONCE), left.split(_AT_ONCE), strict=True):
        slopes = form.jacobian(part).flatten(1).double()
        gram += slopes @ slopes.T
        drive -= slopes @ known.flatten()
    features = form.features(planes)[0].double()
    features, wanted = features - features.mean(0), energies - energies.mean()
    gram += energy_weight * features.T @ features
    drive += energy_weight * features.T @ wanted
    unit = gram.diagonal().clamp_min(1e-20).rsqrt()
    ridges = torch.full((form.size,), float(ridge), dtype=torch.float64)
    ridges[repulsion] = repulsion_ridge
    theta = solve(unit[:, None] * gram * unit, unit * drive, ridges)
    return form.tables(unit, theta)


def _labels(snapshots: Snapshots) -> tuple[Tensor, Tensor]:
    """Energies (M,) and forces (M, N, 3) in kT, less those of the baseline."""
    if snapshots.system.periodic:
        raise ValueError(f"{snapshots.source} is periodic: expected one molecule in vacuum")
    if snapshots.energies is None or snapshots.forces is None:
        raise ValueError(f"{snapshots.source}: expected frames with energies and with forces")
    energies, forces, base = snapshots.energies, snapshots.forces, snapshots.baseline
    if base is not None:
        energies, forces = energies - base.energies, forces - base.forces
    e, f = (torch.as_tensor(v / snapshots.kT).double() for v in (energies, forces))
    unknown = ~(e.isfinite() & f.isfinite().all(-1).all(-1))
    if unknown.any():
        raise ValueError(
            f"{snapshots.source}: {int(unknown.sum())} of {len(snapshots)} frames have no energy "
            "or no forces, of their own or of the baseline: leave them out"
        )
    return e, f


def _form(topology: Topology, positions: Tensor) -> tuple[Form, Tensor]:
    """All terms with all couplings; and which parameters are those of 1/r⁶ and 1/r¹²."""
    tables = term_tables(topology, positions)
    plain = MechanicsPrior(tables)
    orbits = parameter_numbers(plain, topology)
    repulsion = orbits[len(orbits) - 2 * len(tables["free"]) :].unique()
    tables, _, tie = coupling_tables(tables, topology, positions)
    if not len(tie):
        return Form(plain, orbits, torch.zeros(int(orbits.max()) + 1, dtype=torch.long)), repulsion
    orbits = torch.cat([orbits, orbits.max() + 1 + tie])
    group = torch.zeros(int(orbits.max()) + 1, dtype=torch.long)
    return Form(MechanicsPrior(tables), orbits, group), repulsion
