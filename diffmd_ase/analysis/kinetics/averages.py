"""What the error of a model does to the averages of bonds, angles and torsions of a molecule."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...geometry import angles, dihedrals, distances
from ...score.topology import Topology
from ...system import System
from ..observables import angle_triples
from .certificate import Certificate

__all__ = ["shifts_of_molecule"]


def shifts_of_molecule(certificate: Certificate, system: System) -> dict[str, dict[str, Any]]:
    """By name: ``reference`` less ``model`` averages with errors, and the ``bound`` on that.

    Bonds, cosines of angles, cosines and sines of all torsions about bonds that
    turn, of the samples of ``certificate``; Å and 1.
    Raises ``ValueError`` where it has none.
    """
    if certificate.samples is None or certificate.equilibrium is None:
        raise ValueError("no equilibrium part: the model or the reference has no energy")
    x = certificate.samples
    flat = x.reshape(-1, *x.shape[-2:])
    graph = Topology.from_positions(system.numbers, flat[:: max(1, len(flat) // 1000)])
    columns: dict[str, np.ndarray] = {}
    for row in graph.bonds.tolist():
        columns[f"distance {_atoms(row)}"] = distances(x, [row])[..., 0]
    for row in angle_triples(graph.bonds).tolist():
        columns[f"cos angle {_atoms(row)}"] = np.cos(angles(x, [row])[..., 0])
    for row in graph.torsions.tolist():
        phi = dihedrals(x, [row])[..., 0]
        columns[f"cos torsion {_atoms(row)}"] = np.cos(phi)
        columns[f"sin torsion {_atoms(row)}"] = np.sin(phi)
    result = {}
    for name, values in columns.items():
        shift = certificate.equilibrium.shift(values)
        result[name] = {
            "model": shift.model.to_dict(),
            "difference": shift.difference.to_dict(),
            "bound": shift.bound.to_dict(),
        }
    return result


def _atoms(row: list[int]) -> str:
    return ",".join(map(str, row))
