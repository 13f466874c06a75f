"""Alanine dipeptide from amber14 to GFN2-xTB, in vacuum at 300 K: the quantum correction.

    pip install tblite
    python benchmarks/alchemy_xtb.py [--output FILE.npz] [--steps 400] [--minutes 5]

amber14 costs nothing beside xTB, and so carries the walkers: a step at λ is `INNER` Metropolis
steps with amber14 as one proposal, which the coupling accepts or rejects (delayed acceptance,
exact), for one call of xTB. At λ = 0 the shipped snapshots are samples of amber14. Windows at
λ > 0 run side by side, `WALKERS` each.

Printed are ΔF by MBAR with its verdict, and by exponential averages from window to window upwards
and downwards, which must agree within 0.3 kT; the calls of xTB; and the calls for an effective
sample of the gap, beside those of plain windows, with one call for each Metropolis step of the
coupling itself: 5 × fewer is the goal. A second call goes on from FILE; none runs longer than
asked for.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from ase.units import kB
from diffmd_openmm import OpenMMPotential, alanine_dipeptide

from diffmd_ase import Alchemical, EulerMaruyama, Metropolis, Noise, Snapshots
from diffmd_ase.analysis.alchemy.estimates import estimate
from diffmd_ase.analysis.alchemy.samples import CoupledSamples
from diffmd_ase.analysis.statistics import statistical_inefficiency
from diffmd_ase.io.atomic import replacing
from diffmd_ase.potentials.ase_calculator import AsePotential
from diffmd_ase.sampling.delayed import DelayedAcceptance
from diffmd_ase.sampling.kernels import Kernel
from diffmd_ase.sampling.run import advance

KT = 300.0 * kB
LAMBDAS = np.array([0.0, 0.08, 0.2, 0.35, 0.5, 0.65, 0.8, 0.92, 1.0])
WALKERS, INNER, H, SKIP = 1, 30, 1e-4, 0.2


class Windows:
    """The windows at λ > 0 by one kind of step, on disk as far as they have come.

    ``gaps`` (T, B) are U_xtb - U_amber in eV, ``x`` (B, N, 3) where walkers are.
    """

    def __init__(self, path: Path, start: np.ndarray):
        self.path, self.x, self.gaps, self.seconds = path, start, [], 0.0
        if path.exists():
            with np.load(path) as file:
                self.x, self.seconds = file["x"], float(file["seconds"])
                self.gaps = list(file["gaps"])

    def run(self, kernel: Kernel, amber: OpenMMPotential, lam, steps: int, until: float, seed: int):
        """To ``steps`` in all, or until the clock says ``until``; no call of xTB but the step's."""
        noise, begun = Noise(seed), time.monotonic()
        state = kernel.init(torch.tensor(self.x))
        state = type(state)(**(vars(state) | {"step": len(self.gaps)}))
        while len(self.gaps) < steps and time.monotonic() < until:
            state, _ = advance(kernel, state, noise)
            self.gaps.append(((state.energy - amber(state.x).energy) / lam).numpy())
            if len(self.gaps) % 20 == 0 or len(self.gaps) == steps or time.monotonic() >= until:
                self.x, now = state.x.numpy(), time.monotonic()
                self.seconds, begun = self.seconds + now - begun, now
                with replacing(self.path) as part, part.open("wb") as file:
                    np.savez(file, x=self.x, gaps=self.gaps, seconds=self.seconds)

    def inefficiency(self) -> float:
        """Steps for an effective sample, the mean over windows."""
        series = np.array(self.gaps)[int(SKIP * len(self.gaps)) :]
        return float(np.mean([statistical_inefficiency(column) for column in series.T]))


def one_way(gaps: list[np.ndarray]) -> tuple[float, float]:
    """Sums of exponential averages between windows, upwards and downwards, in kT."""
    up = down = 0.0
    for k, width in enumerate(np.diff(LAMBDAS)):
        up -= np.log(np.mean(np.exp(-width * (gaps[k] - gaps[k].mean())))) - width * gaps[k].mean()
        above = gaps[k + 1]
        down += np.log(np.mean(np.exp(width * (above - above.mean())))) + width * above.mean()
    return float(up), float(down)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("alchemy_xtb.npz"))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--plain-steps", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    from tblite.ase import TBLite

    torch.set_num_threads(1)
    until = time.monotonic() + 60 * options.minutes
    snapshots = Snapshots.read("alanine-dipeptide")
    amber = OpenMMPotential(snapshots.system, alanine_dipeptide()[1])
    xtb = AsePotential(TBLite(method="GFN2-xTB", verbosity=0), snapshots.system, failures="reject")
    lam = torch.tensor(LAMBDAS[1:]).repeat(WALKERS)
    coupling = Alchemical(amber, xtb, lam)
    chosen = np.linspace(0, len(snapshots) - 1, len(lam)).astype(int)
    start = snapshots.positions[chosen].astype(float)

    inner = Metropolis(EulerMaruyama(amber, kT=KT, h=H, mean_free=True))
    delayed = Windows(options.output, start)
    delayed.run(
        DelayedAcceptance(inner, coupling, INNER), amber, lam, options.steps, until, options.seed
    )
    plain = Windows(options.output.with_suffix(".plain.npz"), start)
    direct = Metropolis(EulerMaruyama(coupling, kT=KT, h=H, mean_free=True))
    plain.run(direct, amber, lam, options.plain_steps, until, options.seed + 1)

    ends = options.output.with_suffix(".start.npz")
    if not ends.exists():
        at_zero = np.linspace(50, len(snapshots) - 1, 300).astype(int)
        x = torch.tensor(snapshots.positions[at_zero], dtype=torch.float64)
        with replacing(ends) as part, part.open("wb") as file:
            np.savez(file, gaps=(xtb(x).energy - amber(x).energy).numpy())
    with np.load(ends) as file:
        free = file["gaps"]
    kept = np.array(delayed.gaps)[int(SKIP * len(delayed.gaps)) :]
    K = len(LAMBDAS)
    gaps = [free, *(kept[:, k :: K - 1].ravel() for k in range(K - 1))]
    length = min(len(kept), len(free))
    first = free[np.linspace(0, len(free) - 1, length).astype(int)][:, None]
    columns = np.concatenate((first, kept[:length]), 1)
    at = np.concatenate(([0.0], np.tile(LAMBDAS[1:], WALKERS)))[None].repeat(length, 0)
    result = estimate(CoupledSamples(np.zeros_like(columns), columns, at, KT))
    up, down = one_way([g / KT for g in gaps])
    calls = len(delayed.gaps) * len(lam) + len(free)
    print(f"ΔF(amber14 → GFN2-xTB) - const = {result.best.value:.2f} ± {result.best.error:.2f} kT")
    print(f"upwards {up:.2f}, downwards {down:.2f} kT; {calls} calls of xTB")
    for verdict in result.verdicts:
        print("✓" if verdict["good"] else "✗", verdict["text"])
    cost = [run.inefficiency() for run in (delayed, plain)]
    print(f"calls for an effective sample: {cost[0]:.1f} delayed, {cost[1]:.1f} plain")
    print(f"{cost[1] / cost[0]:.1f} x fewer (goal 5 x)")
    return 0 if abs(up - down) < 0.3 and cost[1] > 5 * cost[0] else 1


if __name__ == "__main__":
    sys.exit(main())
