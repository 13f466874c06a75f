"""The hop of a vacancy in copper under metadynamics: the barrier of the model, and that of EMT.

    python benchmarks/copper_hop.py [MODEL] [--moves 600] [--walkers 32] [--json]

One atom goes into the vacancy of 31 atoms at 900 K along q, its place between the four atoms of
the gate, projected on the jump; a/√2 from site to site. Walkers start on one side only and move by
`HamiltonianMonteCarlo`, accepted to the model's energy and the bias:

* well-tempered metadynamics on q, one bias for all walkers, half of the moves;
* going on from there with that bias, which no longer grows; weights exp(V/kT) give F(q) of the
  model, and exp[(V + E_model - U_EMT)/kT] that of EMT from the same frames;
* without bias, half of the moves: the control.

The other atoms stay within half a jump of their sites, and a move that breaks that is rejected:
the same condition for all. Barriers are from the lowest bin of F(q) on a side to its top. Since the
frames are the same, the difference of both is known better than either:

    F_EMT - F_model = kT ln <exp[(E_model - U_EMT)/kT]>      at the sites, minus at the top

Exit status 1 if the control crossed a tenth as often, if the barrier is not the same from both
sides (F is symmetric) within four standard errors, or if the model's is 10 % or more off.
"""

from __future__ import annotations

import sys
import time
from typing import NamedTuple

import numpy as np
import torch
from ase import Atoms
from ase.calculators.emt import EMT
from make_copper import LATTICE, TEMPERATURE_K, TIMESTEP, crystal, hopper
from shared import chain, energies, parsed, sampling_options
from torch import Tensor

from diffmd_ase.analysis.free_energy.barrier import barrier
from diffmd_ase.analysis.free_energy.grid import Axis, Basin
from diffmd_ase.analysis.free_energy.reweighting import Samples
from diffmd_ase.analysis.free_energy.surface import free_energy_surface
from diffmd_ase.geometry import Lattice
from diffmd_ase.io.json_text import to_json
from diffmd_ase.noise import Noise
from diffmd_ase.potentials.ase_calculator import AsePotential
from diffmd_ase.potentials.base import Potential
from diffmd_ase.potentials.biases.cvs import Function
from diffmd_ase.potentials.biases.hills import Grid
from diffmd_ase.potentials.biases.metadynamics import Metadynamics
from diffmd_ase.potentials.biases.recorded import Frozen
from diffmd_ase.sampling.hamiltonian import HamiltonianMonteCarlo
from diffmd_ase.score.model import ScoreModel
from diffmd_ase.state import Evaluation
from diffmd_ase.system import System

JUMP = LATTICE / np.sqrt(2)
ENDS = 0.5 * JUMP + 0.75  # of q, Å: beyond either site
PACE, GAMMA = 4, 10.0
NEAR = 0.2  # Å, of a site or the top


class Result(NamedTuple):
    """Barriers (eV) from either side with errors, effective samples, crossings of q = 0."""

    energy: str
    left: float
    left_error: float
    right: float
    right_error: float
    effective: float


class Hop:
    """An atom, the vacancy beside it and the gate between: q and what is allowed.

    The vacancy is at the origin; the atom at (0, a/2, a/2) jumps into it, q from -a/√8 to a/√8.
    """

    def __init__(self, atoms: Atoms):
        self.lattice = Lattice(System.from_atoms(atoms))
        self.sites = torch.as_tensor(atoms.positions)
        self.mover = hopper(atoms)
        origin = atoms.positions[self.mover]
        self.along = torch.as_tensor(-origin / np.linalg.norm(origin))
        from_origin, from_site = (
            self.lattice.nearest(self.sites - torch.as_tensor(place)).norm(dim=-1)
            for place in (np.zeros(3), origin)
        )
        near = (from_origin < 1.2 * JUMP) & (from_site < 1.2 * JUMP)
        near[self.mover] = False
        self.gate = near.nonzero()[:, 0]
        self.others = torch.arange(len(atoms)) != self.mover

    def q(self, x: Tensor) -> Tensor:
        """(*batch,) in Å."""
        away = self.lattice.nearest(x[..., self.mover, None, :] - x[..., self.gate, :])
        return away.mean(-2) @ self.along.to(x)

    def allowed(self, x: Tensor) -> Tensor:
        """Bool (*batch,): q between the ends, and no other atom has jumped."""
        u = self.lattice.nearest(x - self.sites.to(x))[..., self.others, :]
        u = u - u.mean(-2, keepdim=True)
        return (u.norm(dim=-1) < 0.5 * JUMP).all(-1) & (self.q(x).abs() < ENDS)


class Within(Potential):
    """Infinite where a hop does not allow positions, else zero."""

    def __init__(self, hop: Hop):
        self.hop = hop

    def __call__(self, x, *, stress=False):
        barred = torch.where(self.hop.allowed(x), 0.0, torch.inf)
        return Evaluation(barred.to(x), torch.zeros_like(x))


def sample(kernel, x, moves, hop, *, seed, every=10):
    """Frames (M, W, N, 3), accepted fraction, walkers that changed sides from frame to frame."""
    states, accepted = chain(kernel, x, moves, noise=Noise(seed), every=every)
    frames = torch.stack([state.x for state in states])
    sides = hop.q(frames) > 0
    return frames, float(accepted.mean()), int((sides[1:] != sides[:-1]).sum())


def judged(name: str, q: Tensor, log_weights: Tensor, kT: float) -> Result:
    """Barriers of F(q) from frames (M, W)."""
    walker = torch.arange(q.shape[1]).expand(q.shape)
    s, logs, owner = (v.T.flatten().numpy() for v in (q, log_weights, walker))
    samples = Samples.of(s, logs, walker=owner, names=("q",))
    surface = free_energy_surface(samples, [Axis("q", -ENDS, ENDS, 41)], kT=kT)
    sides = Basin({"q": (-ENDS, 0.0)}), Basin({"q": (0.0, ENDS)})
    found = barrier(surface, *sides)
    if found is None:
        raise RuntimeError(f"no walker crossed under the bias ({name}): take more --moves")
    w = samples.weights
    left, right = found.from_a, found.from_b
    return Result(name, left.value, left.error, right.value, right.error, w.sum() ** 2 / (w @ w))


def difference(q: Tensor, log_weights: Tensor, gap: Tensor, kT: float) -> tuple[float, float]:
    """Barrier of EMT minus that of the model, and its error by leaving out walkers, eV."""
    weights = (log_weights - log_weights.max()).exp()
    places = (q.abs() - 0.5 * JUMP).abs() < NEAR, q.abs() < NEAR
    sums = [  # (W,): of the weights, with the gap and without, at the sites and at the top
        torch.where(place, w, 0.0).sum(0)
        for place in places
        for w in (weights * (gap - gap.mean()).exp(), weights)
    ]

    def value(of):
        site, plain_site, top, plain_top = (of(part).log() for part in sums)
        return kT * ((site - plain_site) - (top - plain_top))

    left_out = value(lambda part: part.sum() - part)
    n = len(left_out)
    error = (left_out - left_out.mean()).square().sum() * (n - 1) / n
    return float(value(torch.sum)), float(error.sqrt())


def measure(potential: Potential, atoms: Atoms, kT: float, options) -> tuple[list[Result], dict]:
    hop = Hop(atoms)
    allowed = potential + Within(hop)
    bias = Metadynamics(
        Function(System.from_atoms(atoms), hop.q, names="q", plumed_units=[0.1]),
        kT=kT,
        sigma=0.15,
        height=2.0 * kT / options.walkers,
        pace=PACE,
        biasfactor=GAMMA,
        grid=Grid([200], minimum=[-ENDS - 1.0], maximum=[ENDS + 1.0]),
    )

    def moves(target):
        return HamiltonianMonteCarlo(
            target,
            kT=kT,
            timestep=TIMESTEP,
            n_leapfrog=10,
            masses=torch.as_tensor(atoms.get_masses()),
            mean_free=True,
        )

    start = torch.as_tensor(atoms.positions).expand(options.walkers, -1, -1)
    half = options.moves // 2
    _, _, free = sample(moves(allowed), start, half, hop, seed=options.seed)
    grown, _, _ = sample(moves(allowed + bias), start, half, hop, seed=options.seed + 1)
    frames, accepted, crossed = sample(
        moves(allowed + Frozen(bias)), grown[-1], options.moves, hop, seed=options.seed + 2
    )
    frames = frames[len(frames) // 10 :]
    flat = frames.flatten(0, 1)
    emt, q = AsePotential(EMT(), System.from_atoms(atoms)), hop.q(frames)
    gap = ((energies(potential, flat) - energies(emt, flat)) / kT).reshape(q.shape)
    weights = (energies(bias, flat) / kT).reshape(q.shape)
    results = [judged("model", q, weights, kT), judged("EMT", q, weights + gap, kT)]
    value, error = difference(q, weights, gap, kT)
    about = {
        "EMT_minus_model_eV": value,
        "its_error_eV": error,
        "std_of_E_minus_U_kT": float(gap.std()),
        "frames": q.numel(),
        "acceptance": accepted,
        "crossings": {"control": free, "biased": crossed},
    }
    return results, about


def main() -> int:
    parser = sampling_options(__doc__, model="copper-vacancy")
    parser.add_argument("--moves", type=int, default=600, help="with the frozen bias")
    parser.add_argument("--walkers", type=int, default=32)
    options = parsed(parser)
    begun = time.process_time()
    model, atoms = ScoreModel.load(options.model), crystal()
    potential = model.potential(System.from_atoms(atoms), device="cpu", dtype=torch.float64)
    results, about = measure(potential, atoms, model.card.kT, options)
    about["seconds"] = time.process_time() - begun
    if options.json:
        print(to_json({"results": [r._asdict() for r in results], **about}))
    else:
        title = f"{TEMPERATURE_K:g} K"
        print(f"{title:13}{'from the start / eV':>22}{'from the other side':>22}{'ESS':>8}")
        for r in results:
            left, right = (
                f"{a:.4f} ± {b:.4f}" for a, b in ((r.left, r.left_error), (r.right, r.right_error))
            )
            print(f"{r.energy:13}{left:>22}{right:>22}{r.effective:8.0f}")
        print(
            f"EMT - model: {about['EMT_minus_model_eV']:+.4f} ± {about['its_error_eV']:.4f} eV; "
            f"E - U varies by {about['std_of_E_minus_U_kT']:.2f} kT\n"
            f"crossings: {about['crossings']['control']} without bias, "
            f"{about['crossings']['biased']} with it; acceptance {about['acceptance']:.2f}; "
            f"{about['frames']} frames, {about['seconds']:.0f} s"
        )
    ours, emt = results
    symmetric = abs(ours.left - ours.right) < 4 * np.hypot(ours.left_error, ours.right_error)
    near = abs(about["EMT_minus_model_eV"]) < 0.05 * (emt.left + emt.right)
    apart = about["crossings"]["control"] < 0.1 * about["crossings"]["biased"]
    return 0 if symmetric and near and apart else 1


if __name__ == "__main__":
    sys.exit(main())
