"""A dear target, drafted by a cheap potential: how many steps for each wait, and is the law right?

    python benchmarks/speculative_targets.py amber14|copper|xtb [--steps 384] [--workers 2] [--json]

The chain is that of the target in law (`sampling.speculative`); the draft is a potential, corrected
by its last known error. ``amber14`` (needs ``plugins/openmm``) is drafted by the shipped model that
learned it, ``copper``, 31 atoms and a vacancy at 900 K, is the shipped model drafted by EMT of ASE,
as LSD has it (arXiv 2606.02455), and EMT drafted by the model, and ``xtb``, GFN2-xTB of alanine
dipeptide (``pip install tblite``), is drafted by the model of amber14 and what a force field fitted
to energies and forces of 250 frames adds to it, as in `alchemy_xtb.py`; networks are compiled.

Printed are steps in a round, and how many times faster than the loop a pool of 1, 2, 8 and W
processes would be, by CPU times of one structure of target and draft: a round takes W drafts, one
after the other, and ceil(W/K) structures of the target (simulated). Then the rejections that the
draft would have without correction; and of the noise that the steps had, recovered from the chain,
z of its mean square and of its product with forces, and p of a Kolmogorov–Smirnov test. With
``--workers`` K the loop of ``xtb`` and windows in a pool of K processes are timed by the wall
clock, in turn.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from ase.units import kB
from scipy import stats
from shared import alternating, parsed, ratios, timing_options, versions
from torch import Tensor

from diffmd_ase.io.json_text import to_json
from diffmd_ase.noise import Noise
from diffmd_ase.potentials.ase_calculator import AsePotential
from diffmd_ase.potentials.base import Potential
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.sampling.rounds import Count
from diffmd_ase.sampling.run import run
from diffmd_ase.sampling.speculative import Speculative
from diffmd_ase.score.model import ScoreModel
from diffmd_ase.score.networks.gradients import Compiled
from diffmd_ase.score.networks.inputs import Inputs
from diffmd_ase.score.snapshots import Snapshots
from diffmd_ase.state import Evaluation, State
from diffmd_ase.system import System

WORKERS, KT = (1, 2, 8), 300.0 * kB


def alanine() -> tuple[ScoreModel, Snapshots, Tensor]:
    model, frames = ScoreModel.load("alanine-dipeptide"), Snapshots.read("alanine-dipeptide")
    return model, frames, torch.as_tensor(frames.positions[0].astype(float))


def amber14() -> Iterator[tuple[str, EulerMaruyama, Potential, Tensor]]:
    from diffmd_openmm import OpenMMPotential, alanine_dipeptide

    atoms, openmm_system = alanine_dipeptide()
    target = OpenMMPotential(System.from_atoms(atoms), openmm_system)
    model, _, x = alanine()
    draft = model.potential(target.system, device="cpu", compile=True)
    for h in (2e-5, 1e-4):
        kernel = EulerMaruyama(target, kT=model.card.kT, h=h, mean_free=True)
        yield "amber14, drafted by its model", kernel, draft, x


def copper() -> Iterator[tuple[str, EulerMaruyama, Potential, Tensor]]:
    from ase.calculators.emt import EMT
    from make_copper import crystal

    model, atoms = ScoreModel.load("copper-vacancy"), crystal()
    system = System.from_atoms(atoms)
    learned = model.potential(system, device="cpu", dtype=torch.float64, compile=True)
    emt, x = AsePotential(EMT(), system), torch.as_tensor(atoms.positions)
    h = 0.2 / model.card.lambda_max
    for name, target, draft in (
        ("model of copper, drafted by EMT", learned, emt),
        ("EMT, drafted by the model", emt, learned),
    ):
        yield name, EulerMaruyama(target, kT=model.card.kT, h=h, mean_free=True), draft, x


class Fitted(Potential):
    """A network of energies in kT at 300 K, float64, compiled."""

    def __init__(self, network, system: System):
        self.system, self._inputs = system, Inputs.of(system)
        self._compiled, self._sigma = Compiled(network.double()), torch.zeros(1).double()

    def __call__(self, x: Tensor, *, stress: bool = False) -> Evaluation:
        flat = x.detach().double().reshape(-1, *x.shape[-2:])
        (slope,), energy = self._compiled(flat, None, self._sigma, self._inputs)
        return Evaluation(
            (KT * energy).reshape(x.shape[:-2]).to(x), (-KT * slope).reshape(x.shape).to(x)
        )


def xtb(workers: int = 1) -> Iterator[tuple[str, EulerMaruyama, Potential, Tensor]]:
    from alchemy_xtb import LABELS, Case, Counted, stone_of
    from tblite.ase import TBLite

    model, frames, x = alanine()
    calculator = TBLite(method="GFN2-xTB", verbosity=0)
    target = AsePotential(calculator, frames.system, processes=workers)
    learned = model.potential(frames.system, device="cpu", compile=True)
    case = Case(frames, learned, Counted(target), Path(), 0)
    stone = stone_of(case, [case.label(case.frames(LABELS, 0))])
    draft = learned + Fitted(stone.network, frames.system)
    for h in (2e-5, 1e-4):
        kernel = EulerMaruyama(target, kT=model.card.kT, h=h, mean_free=True)
        yield "GFN2-xTB, drafted by a model of its labels", kernel, draft, x


CASES: dict[str, Callable[..., Iterator[tuple[str, EulerMaruyama, Potential, Tensor]]]] = {
    "amber14": amber14,
    "copper": copper,
    "xtb": xtb,
}


def relaxed(kernel: EulerMaruyama, draft: Potential, x: Tensor) -> State:
    """After 256 steps, made in windows."""
    return Speculative(kernel, draft).run(x, 256, noise=Noise(8), window=32)[1].state


def seconds(potential: Potential, x: Tensor) -> float:
    """CPU time of one structure, the median of some that differ by a step's noise."""
    moved = iter(x + 5e-3 * Noise(1).normal(torch.arange(8), x.expand(8, *x.shape)))
    calls = {"": lambda: potential(next(moved))}
    return float(np.median(alternating(calls, 7, clock=time.process_time)[""]))


def counted(kernel: EulerMaruyama, draft: Potential, start: State, steps: int, window: int) -> dict:
    """Rounds, rejections, and whether the noise of the chain is noise."""
    count, errors, noises, forces, before = Count(), [], [], [], start
    way = Speculative(kernel, draft).iterate(
        start, steps, noise=Noise(window), window=window, count=count
    )
    # what moves has 3N - 3 dimensions: the noise is known but for its mean
    scale = math.sqrt(2.0 * float(kernel.h))
    for state, _ in way:
        error = kernel.noise_of(draft(before.x).forces - before.forces)
        errors.append(math.erf(math.sqrt(float(error.square().sum()) / 8)))
        noises.append((state.x - kernel.mean(before.x, before.forces)) / scale)
        forces.append(kernel.noise_of(before.forces))
        before = state
    xi, drift, free = torch.stack(noises), torch.stack(forces), kernel.freedom(len(start.x))
    size = xi.square().sum((-2, -1))
    along = (xi * drift).sum((-2, -1)) / drift.square().sum((-2, -1)).sqrt()
    spread = math.sqrt(len(start.x) / (len(start.x) - 1))
    wait, draft_s = (seconds(p, before.x) for p in (kernel.potential, draft))
    gains = {}
    for k in (*WORKERS, window):
        spent = count.rounds * (window * draft_s + math.ceil(window / k) * wait)
        gains[f"times_loop_{k}" if k < window else "times_loop_W"] = steps * wait / spent
    return {
        "h_A2": float(kernel.h),
        "window": window,
        "steps": steps,
        "rounds": count.rounds,
        "steps_in_a_round": count.gain,
        "rejected_without_correction": sum(errors) / len(errors),
        "target_ms": 1e3 * wait,
        "draft_ms": 1e3 * draft_s,
        **gains,
        "z_square": float((size.mean() - free) / math.sqrt(2.0 * free / steps)),
        "z_along_forces": float(along.mean() * math.sqrt(steps)),
        "p_normal": float(stats.kstest((spread * xi).flatten().numpy(), "norm").pvalue),
    }


def timed(options) -> list[dict]:
    """The loop of xTB against windows in a pool, by the wall clock."""
    rows = []
    pairs = zip(xtb(), xtb(options.workers), strict=True)
    for (name, alone, draft, x), (_, pool, _, _) in pairs:
        start = relaxed(alone, draft, x)
        for window in (8, 16):
            ahead = Speculative(pool, draft)

            def loop(kernel=alone, start=start):
                for _ in run(kernel, start, options.steps, noise=Noise(4)):
                    pass

            def windows(ahead=ahead, start=start, window=window):
                ahead.run(start, options.steps, noise=Noise(4), window=window)

            calls = {"loop": loop, "windows": windows}
            seconds = alternating(calls, options.pairs, clock=time.perf_counter)
            gain, span = ratios(seconds["loop"], seconds["windows"])
            row = {"target": name, "h_A2": float(alone.h), "window": window}
            row |= {"workers": options.workers, "times_loop": gain, "from": span[0], "to": span[1]}
            row["ms_of_a_step_of_the_loop"] = 1e3 * float(min(seconds["loop"])) / options.steps
            rows.append(row)
            show(options, row)
        pool.potential.close()
    return rows


def show(options, row: dict) -> None:
    if not options.json:
        words = (f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
        print("  ".join(words), flush=True)


def main() -> None:
    parser = timing_options(__doc__, steps=384, pairs=3)
    parser.add_argument("part", choices=tuple(CASES))
    parser.add_argument("--workers", type=int, default=0, help="xtb: time a pool of so many")
    options = parsed(parser)
    if options.workers:
        rows = timed(options)
    else:
        rows = []
        for name, kernel, draft, x in CASES[options.part]():
            start = relaxed(kernel, draft, x)
            for window in (16, 64, 128):
                row = counted(kernel, draft, start, options.steps, window)
                rows.append({"target": name} | row)
                show(options, rows[-1])
    if options.json:
        print(to_json({"versions": versions(), "rows": rows}))


if __name__ == "__main__":
    main()
