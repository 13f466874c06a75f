"""Steps of walkers, compiled and as written: plain, accepted, biased, and `diffmd run`.

    python benchmarks/speeds/dynamics.py [--pairs 5] [--json]

64 walkers of the shipped molecule on one thread. Accepted and biased steps are to keep three
quarters of the gain of plain ones. `diffmd run` is timed from the first frame on, frames and
checkpoint included; compiling, which is done once, is not counted.
"""

from __future__ import annotations

import os
import tempfile
import time

import torch
from row import NAME, Row, frames, in_turn, printed

from diffmd_ase.noise import Noise
from diffmd_ase.potentials.biases.cvs import Torsion
from diffmd_ase.potentials.biases.hills import Grid
from diffmd_ase.potentials.biases.metadynamics import Metadynamics
from diffmd_ase.sampling.delayed import DelayedAcceptance
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.sampling.kernels import Kernel
from diffmd_ase.sampling.metropolis import Metropolis
from diffmd_ase.sampling.run import run
from diffmd_ase.score.model import ScoreModel
from diffmd_ase.simulation.planned import PlannedRun
from diffmd_ase.simulation.settings import RunSettings

WALKERS, STEPS = 64, 40
H, H_ACCEPTED = 3.6e-5, 6e-5  # Å²
KEPT = 0.75  # of the gain of plain steps


def plain(potential, kT) -> Kernel:
    return EulerMaruyama(potential, kT=kT, h=H, mean_free=True)


def accepted(potential, kT) -> Kernel:
    return Metropolis(EulerMaruyama(potential, kT=kT, h=H_ACCEPTED, mean_free=True))


def delayed(potential, kT) -> Kernel:
    return DelayedAcceptance(accepted(potential, kT), potential, n_inner=5)


def biased(potential, kT) -> Kernel:
    torsions = Torsion(potential.system, [[4, 6, 8, 14], [6, 8, 14, 16]], name=("phi", "psi"))
    hills = {"sigma": 0.35, "height": 0.012, "pace": 500, "biasfactor": 10}
    return plain(potential + Metadynamics(torsions, kT=kT, grid=Grid([90, 90]), **hills), kT)


KERNELS = {
    "plain steps": plain,
    "Metropolis": accepted,
    "delayed acceptance, 5 steps inside": delayed,
    "metadynamics of φ and ψ": biased,
}


def chain(kernel: Kernel):
    """A call that makes steps, and what was accepted of them (by the time it has ended)."""
    state, seen = kernel.init(frames(WALKERS).to(_precision(kernel))), []
    noise = Noise(1)  # one for all calls: it draws ahead

    def go() -> None:
        nonlocal state
        for new, info in run(kernel, state, STEPS, noise=noise, every=STEPS):
            state = new
            seen.append(None if info.accepted is None else float(info.accepted.double().mean()))

    return go, seen


def _precision(kernel: Kernel) -> torch.dtype:
    return torch.float64 if kernel.exact else torch.float32


def steps(options) -> list[Row]:
    model, found = ScoreModel.load(NAME), []
    potentials = [model.potential(device="cpu", compile=c) for c in (False, True)]
    for name, make in KERNELS.items():
        kernels = [make(p, model.card.kT) for p in potentials]
        (slow, _), (fast, seen) = (chain(kernel) for kernel in kernels)
        goal = KEPT * found[0].value if found else None
        what = f"64 walkers, {name}: as written over compiled"
        timing = {"goal": goal, "rounds": options.pairs, "each": STEPS, "unit": "a step"}
        row = in_turn(what, slow, fast, precision=_words(kernels[0]), **timing)
        rates = [rate for rate in seen if rate is not None]
        told = f"; acceptance {sum(rates) / len(rates):.2f}" if rates else ""
        found.append(row._replace(told=row.told + told))
    return found


def _words(kernel: Kernel) -> str:
    return "float32, positions float64" if kernel.exact else "float32"


def end_to_end(options) -> Row:
    """Walker steps of `diffmd run` for a second of CPU time, from its first frame on, in turn."""
    speeds: dict[str, list[float]] = {"off": [], "on": []}
    with tempfile.TemporaryDirectory() as folder:
        here = os.getcwd()
        os.chdir(folder)
        try:
            for n in range(options.pairs):
                for word, seen in speeds.items():
                    seen.append(_run(word, f"{word}{n}"))
        finally:
            os.chdir(here)
    each = [on / off for on, off in zip(speeds["on"], speeds["off"], strict=True)]
    value = sorted(each)[len(each) // 2]
    told = f"{max(speeds['off']):,.0f} and {max(speeds['on']):,.0f} walker steps a second"
    what = "`diffmd run`, 64 walkers, a frame each 100 steps: as written over compiled"
    return Row(what, value, min(each), max(each), "≥ 3.5", value >= 3.5, told)


def _run(word: str, prefix: str) -> float:
    settings = RunSettings(
        model=NAME,
        start=NAME,
        walkers=WALKERS,
        steps=600 if word == "off" else 2400,
        prefix=prefix,
        compile=word,
        device="cpu",
    )
    planned, seen = PlannedRun.of(settings), []
    x = planned.start()
    planned.run(
        x,
        extra={},
        compiled=planned.compiled(x),
        progress=lambda done, alive: seen.append((done, time.thread_time())),
    )
    (first, begun), (last, ended) = seen[0], seen[-1]
    return WALKERS * (last - first) / (ended - begun)


def rows(options) -> list[Row]:
    return [*steps(options), end_to_end(options)]


if __name__ == "__main__":
    printed(__doc__, rows, rounds=3)
