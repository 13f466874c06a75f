"""ASE's EMT for many structures of one crystal at a time: the same numbers, some 20 times faster.

    python benchmarks/batched_emt.py

Parameters, cutoffs and formulas are those of ``ase.calculators.emt`` (K. W. Jacobsen, P. Stoltze &
J. K. Nørskov, Surf. Sci. 366, 394 (1996)). The pairs are those of the sites, as far as atoms that
leave them by less than `ROOM` can come; what is further away has NaN and is rejected. Run as a
script it prints the largest difference from ASE, and the ratio of times.
"""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT, beta
from ase.neighborlist import neighbor_list
from torch import Tensor

from diffmd_ase import System
from diffmd_ase.potentials.ase_calculator import AsePotential
from diffmd_ase.potentials.base import Potential
from diffmd_ase.state import Evaluation

__all__ = ["ROOM", "BatchedEMT"]

ROOM = 0.9  # Å


class BatchedEMT(Potential):
    """EMT of ``atoms`` near their sites, which are the positions that they have now.

    Called with positions (*batch, N, 3) in Å; NaN where an atom is further than ``room`` from its
    site, counted from the mean displacement.
    """

    def __init__(self, atoms: Atoms, *, room: float = ROOM):
        emt = EMT()
        emt.initialize(atoms)
        self.system = System.from_atoms(atoms)
        self.room, self.sites = room, torch.tensor(atoms.positions)
        i, j, S = neighbor_list("ijS", atoms, emt.rc_list + 2 * room)
        once = (i < j) | ((i == j) & (np.sign(S @ [9, 3, 1]) > 0))
        self.i, self.j = torch.tensor(i[once]), torch.tensor(j[once])
        self.offset = torch.tensor(S[once] @ atoms.cell.array)
        self.rc, self.rc_list, self.acut = emt.rc, emt.rc_list, emt.acut
        par = {name: torch.tensor(v[emt.ia2iz]) for name, v in emt.par.items()}
        self.par = SimpleNamespace(**{n.replace("lambda", "lamda"): v for n, v in par.items()})
        n0 = self.par.n0
        self.chi = n0[self.j] / n0[self.i]

    def __call__(self, x: Tensor, *, stress: bool = False) -> Evaluation:
        batch, x = x.shape[:-2], x.reshape(-1, *x.shape[-2:]).double()
        away = x - self.sites
        away = (away - away.mean(-2, keepdim=True)).square().sum(-1).amax(-1)
        outside = torch.where(away < self.room**2, 0.0, torch.nan)  # added to what it is given
        p, i, j, chi = self.par, self.i, self.j, self.chi
        d = x[:, j] + self.offset - x[:, i]
        r = d.square().sum(-1).sqrt()
        w = torch.sigmoid(-self.acut * (r - self.rc)) * (r < self.rc_list)
        slope = self.acut * (w - 1.0)  # of ln w
        # what i has from j, and j from i
        one_i = torch.exp(-p.eta2[j] * (r - beta * p.s0[j])) * chi * w
        one_j = torch.exp(-p.eta2[i] * (r - beta * p.s0[i])) / chi * w
        two_i = p.neghalfv0overgamma2[i] * torch.exp(-p.kappa[j] * (r / beta - p.s0[j])) * chi * w
        two_j = p.neghalfv0overgamma2[j] * torch.exp(-p.kappa[i] * (r / beta - p.s0[i])) / chi * w
        sigma = torch.zeros(x.shape[:2], dtype=x.dtype)
        sigma.index_add_(1, i, one_i).index_add_(1, j, one_j)
        ds = -torch.log(sigma * p.inv12gamma1) / (beta * p.eta2)
        decay, six = torch.exp(-p.lamda * ds), 6.0 * p.V0 * torch.exp(-p.kappa * ds)
        energy = (p.E0 * (1.0 + p.lamda * ds) * decay + six - p.E0).sum(-1)
        deds = -p.E0 * p.lamda**2 * ds * decay - p.kappa * six
        deds = deds / (-beta * p.eta2 * sigma)
        along = deds[:, i] * one_i * (slope - p.eta2[j]) + deds[:, j] * one_j * (slope - p.eta2[i])
        along += two_i * (slope - p.kappa[j] / beta) + two_j * (slope - p.kappa[i] / beta)
        f = (along / r)[..., None] * d
        forces = torch.zeros_like(x).index_add_(1, i, f).index_add_(1, j, -f)
        energy = energy + (two_i + two_j).sum(-1) + outside
        forces = forces + outside[:, None, None]
        return Evaluation(energy.reshape(batch), forces.reshape(*batch, *x.shape[-2:]))


def main() -> int:
    torch.set_num_threads(1)
    atoms = bulk("Cu", cubic=True).repeat(2)
    atoms.symbols[0] = "Au"
    fast, slow = BatchedEMT(atoms), AsePotential(EMT(), System.from_atoms(atoms))
    noise = torch.randn(8, len(atoms), 3, generator=torch.Generator().manual_seed(0)).double()
    x = torch.tensor(atoms.positions) + 0.15 * noise
    results, times = [], []
    for potential in (fast, slow):
        begun = time.thread_time()
        results.append(potential(x))
        times.append(time.thread_time() - begun)
    pairs = zip(results[0][:2], results[1][:2], strict=True)
    worst = max(float((a - b).abs().max()) for a, b in pairs)
    print(f"largest difference {worst:.1e} eV or eV/Å; {times[1] / times[0]:.0f} times faster")
    return 0 if worst < 1e-9 else 1


if __name__ == "__main__":
    raise SystemExit(main())
