"""Is a structure the molecule that a model knows: its bonds, the hand of its centres?

A model of one molecule knows its atoms by their order in the snapshots. The right atoms in another
order have energies of hundreds of eV, and forces to match.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

import networkx as nx
import numpy as np
import torch
from ase.data import chemical_symbols
from networkx.algorithms.isomorphism import GraphMatcher, categorical_node_match
from torch import nn

from ..geometry import distances, signed_volumes
from ..system import System
from .length_units import length_doubt
from .networks.liquid import LiquidNetwork
from .networks.molecule import MechanicsNetwork
from .topology import bond_graph

__all__ = ["Structure"]

_LONG, _SHORT = 1.4, 0.6  # times the mean length: far beyond thermal vibrations
_ORDERS = 2000  # that are tried
_SHOWN = 3


@dataclass(frozen=True, eq=False)
class Structure:
    """Bonds and centres of one molecule, as its snapshots had them.

    Parameters
    ----------
    system : of its atoms, whose images count if it is periodic
    bonds : (n, 2)
    lengths : (n,) mean length of each in Å
    centres : (C, 4) of one hand
    signs : (C,) of their signed volumes
    """

    system: System
    bonds: np.ndarray
    lengths: np.ndarray
    centres: np.ndarray
    signs: np.ndarray

    @classmethod
    def of(cls, network: nn.Module, system: System) -> Structure | None:
        """What a ``network`` knows of the atoms of a ``system``; None of one without bonds."""
        if isinstance(network, LiquidNetwork):
            return cls._of_liquid(network.arranged(system.numbers), system)
        if not isinstance(network, MechanicsNetwork) or not len(network.prior.bonds):
            return None
        p = network.prior
        tables = [p.bonds, p.bond_mean, p.centres, p.least_volume.sign()]
        return cls(system, *(t.detach().cpu().double().numpy() for t in tables))._whole()

    @classmethod
    def _of_liquid(cls, network: LiquidNetwork, system: System) -> Structure | None:
        bonds, lengths = [], []
        for n, prior in enumerate(network.priors):
            atoms = network.table("atoms", n)
            bonds.append(atoms[:, prior.bonds].flatten(0, 1))
            lengths.append(prior.bond_mean.repeat(len(atoms)))
        every, mean = torch.cat(bonds).cpu().numpy(), torch.cat(lengths).cpu().double().numpy()
        none = np.zeros((0, 4), int)
        return cls(system, every, mean, none, np.zeros(0)) if len(every) else None

    def doubt(self, x: np.ndarray) -> str | None:
        """What all of the structures ``x`` (B, N, 3) in Å have otherwise, in words with a remedy.

        None if a bond or a hand differs in none of them, or in some only.
        """
        if scaled := self.scale(x):
            return scaled
        r = distances(x, self.bonds, system=self.system) / self.lengths
        broken = (r > _LONG).all(axis=0) | (r < _SHORT).all(axis=0)
        turned = (signed_volumes(x, self.centres) * self.signs < 0).all(axis=0)
        if not (broken.any() or turned.any()):
            return None
        what = self._bonds_of(x[0], broken) if broken.any() else self._hands_of(turned)
        return f"{what}: {self._remedy(x[0])}"

    def scale(self, x: np.ndarray) -> str:
        """In which other unit than Å the structures ``x`` (B, N, 3) seem to be; "" for none."""
        return length_doubt(
            float(np.median(distances(x, self.bonds, system=self.system) / self.lengths))
        )

    def _whole(self) -> Structure:
        """The same with integer tables of atoms."""
        bonds, centres = (t.astype(int) for t in (self.bonds, self.centres))
        return Structure(self.system, bonds, self.lengths, centres, self.signs)

    def _bonds_of(self, x: np.ndarray, broken: np.ndarray) -> str:
        rows, here = self.bonds[broken], distances(x, self.bonds[broken], system=self.system)
        told = [
            f"{self._name(a)}-{self._name(b)} {r:.2f} Å (there {mean:.2f})"
            for (a, b), r, mean in zip(rows, here, self.lengths[broken], strict=True)
        ]
        more = f" and {len(told) - _SHOWN} more" if len(told) > _SHOWN else ""
        return f"bonds of this model's snapshots are broken here, {', '.join(told[:_SHOWN])}{more}"

    def _hands_of(self, turned: np.ndarray) -> str:
        atoms = dict.fromkeys(self.centres[turned, 0].tolist())
        named = ", ".join(self._name(a) for a in islice(atoms, _SHOWN))
        return f"atoms about {named} are of the other hand than in this model's snapshots"

    def _name(self, atom: int) -> str:
        return f"{chemical_symbols[self.system.numbers[atom]]}{atom}"

    def _remedy(self, x: np.ndarray) -> str:
        if self.system.periodic:  # too many molecules for all their orders
            return (
                "molecules of this model may be listed in another order of their atoms, or atoms "
                "of one after those of another: list them as its snapshots did"
            )
        orders = self._orders(x)
        right = [o for o in orders if (signed_volumes(x[o], self.centres) * self.signs > 0).all()]
        if right:
            order = max(right, key=lambda o: int((o == np.arange(len(o))).sum()))
            return (
                "the atoms are those of its molecule in another order; use "
                f"atoms[{order.tolist()}], which is that of its snapshots"
            )
        if orders:
            return (
                "it is the mirror image of its molecule, of which the model knows one hand; "
                "give a structure of that hand"
            )
        return (
            "it knows nothing of molecules that are bonded otherwise; give a structure of its "
            "own, or train a model on snapshots of this one"
        )

    def _orders(self, x: np.ndarray) -> list[np.ndarray]:
        """Orders o of the atoms in which x[o] has the bonds of the model."""
        known = nx.Graph()
        known.add_nodes_from((n, {"Z": int(z)}) for n, z in enumerate(self.system.numbers))
        known.add_edges_from(self.bonds.tolist())
        here = bond_graph(self.system.numbers, x[None])
        matcher = GraphMatcher(known, here, node_match=categorical_node_match("Z", 0))
        return [
            np.array([mapping[n] for n in range(len(x))])
            for mapping in islice(matcher.isomorphisms_iter(), _ORDERS)
        ]
