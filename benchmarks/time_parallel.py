"""One trajectory, many steps at a time: steps for each round, and what a step costs.

    python benchmarks/time_parallel.py rounds|times|losses [--steps 512] [--pairs 5] [--compile]
        [--json]

``rounds`` are counts, of windows W: steps for each batch that waits for another, by Picard's
iteration, by Newton's method with a Jacobian for 16 steps and for each step, and speculative with
the linear draft; plain and accepted steps. They are means over ``--steps`` and do not depend on the
machine. ``times`` is CPU time of one thread for a step, alternating in one process: the loop `run`,
a lean loop without states, Newton, speculative, and 64 walkers of which each makes the steps; with
``--compile`` all of them with the network compiled.
``losses`` is the same where it does not pay: an equivariant network, crystals, potentials in closed
form, and walkers that fill a core.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from make_copper import crystal
from shared import alternating, parsed, ratios, timing_options, versions
from torch import Tensor

from diffmd_ase.io.json_text import to_json
from diffmd_ase.noise import Noise
from diffmd_ase.potentials.analytic import LennardJones
from diffmd_ase.potentials.base import Potential, Wrapped
from diffmd_ase.sampling.ahead import predictability
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.sampling.metropolis import Metropolis
from diffmd_ase.sampling.parallel import iterate_parallel
from diffmd_ase.sampling.rounds import Count
from diffmd_ase.sampling.run import run
from diffmd_ase.sampling.speculative import Speculative
from diffmd_ase.score.model import ScoreModel
from diffmd_ase.score.networks.build import build
from diffmd_ase.score.networks.equivariant_config import EquivariantConfig
from diffmd_ase.score.networks.inputs import Inputs
from diffmd_ase.score.snapshots import Snapshots
from diffmd_ase.state import Evaluation, State
from diffmd_ase.system import System
from diffmd_ase.testing.fields import BeadChain

WINDOWS = (64, 128)
WAYS: dict[str, Callable[..., Iterator]] = {
    "run": lambda k, x, n, *, noise: run(k, x, n, noise=noise),
    "picard": lambda k, x, n, **o: iterate_parallel(k, x, n, method="picard", **o),
    "newton": iterate_parallel,
    "newton, dense": lambda k, x, n, **o: iterate_parallel(k, x, n, block=1, **o),
    "speculative": lambda k, x, n, **o: Speculative(k).iterate(x, n, **o),
}


def alanine(dtype=torch.float64, *, compiled: bool = False) -> tuple[EulerMaruyama, Tensor]:
    model, frames = ScoreModel.load("alanine-dipeptide"), Snapshots.read("alanine-dipeptide")
    potential = model.potential(frames.system, device="cpu", dtype=dtype, compile=compiled)
    h = 0.2 / model.card.lambda_max
    kernel = EulerMaruyama(potential, kT=model.card.kT, h=h, mean_free=True)
    return kernel, torch.as_tensor(frames.positions[0].astype(float)).to(dtype)


def beads(count: int) -> tuple[EulerMaruyama, Tensor]:
    chain = BeadChain(count)
    return EulerMaruyama(chain, kT=1.0, h=4e-4), chain.start()


def argon() -> tuple[EulerMaruyama, Tensor]:
    """LJ13 in units of its well and σ, at kT = 0.2; h = 0.2 of what is stable in one bond."""
    golden = (1 + 5**0.5) / 2
    corners = [(0.0, s, t * golden) for s in (1, -1) for t in (1, -1)]
    places = [(0.0, 0.0, 0.0), *(c[i:] + c[:i] for c in corners for i in range(3))]
    x = torch.tensor(places, dtype=torch.float64) * 1.08 / 1.9021
    system = System([18] * 13, [1.0] * 13)
    potential: Potential = LennardJones(system, epsilon=1.0, sigma=1.0, rc=1e3)
    return EulerMaruyama(potential, kT=0.2, h=4.4e-5), x


SYSTEMS = {
    "alanine dipeptide": alanine,
    "10 beads": lambda: beads(10),
    "22 beads": lambda: beads(22),
    "LJ13": argon,
}


def relaxed(kernel, x: Tensor) -> State:
    *_, (state, _) = run(kernel, x, 500, noise=Noise(8))
    return state


def counted(way, kernel, state: State, steps: int, window: int) -> dict:
    count, taken = Count(), []
    for _, info in WAYS[way](kernel, state, steps, noise=Noise(4), window=window, count=count):
        taken.append(1.0 if info.accepted is None else float(info.accepted.double().mean()))
    return {
        "window": window,
        "steps_in_a_round": count.gain,
        "evaluations_of_a_step": count.evaluations / steps,
        "displaced_of_a_step": count.hessian_evaluations / steps,
        "acceptance": sum(taken) / len(taken),
    }


def rounds(options) -> list[dict]:
    rows = []
    for name, make in SYSTEMS.items():
        plain, x = make()
        state = relaxed(plain, x)
        kernels = {"plain": plain, "accepted": Metropolis(plain)}
        if name == "10 beads":
            kernels |= {f"accepted, h x {f}": Metropolis(plain.scaled(f)) for f in (1.5, 4)}
        for step, kernel in kernels.items():
            start = kernel.init(state.x)
            for way in list(WAYS)[1:]:
                if way == "newton, dense" and name in ("alanine dipeptide", "22 beads"):
                    continue  # 66 displaced structures for each evaluation
                for window in WINDOWS if way != "picard" else WINDOWS[:1]:
                    row = counted(way, kernel, start, options.steps, window)
                    rows.append({"system": name, "steps": step, "way": way} | row)
                    show(options, rows[-1])
        told = predictability(plain, state.x, noise=Noise(5), n_steps=200)
        rows.append({"system": name, "lyapunov": told.exponent, "error": told.error})
        show(options, rows[-1])
    return rows


def lean(kernel: EulerMaruyama, x: Tensor, steps: int) -> None:
    """The least that a sequential loop can do: noise of all steps at once, no states."""
    kicks = kernel.kicks(torch.arange(steps), x.expand(steps, *x.shape), noise=Noise(4))
    for kick in kicks:
        x = kernel.propose_from(x, kernel.potential(x).forces, kick)


def contenders(plain: EulerMaruyama, kernel, x: Tensor, n: int) -> dict[str, tuple]:
    """By name: what makes steps, and how many."""
    many = x.expand(64, *x.shape).contiguous()

    def ran(steps: Iterator) -> None:
        for _ in steps:
            pass

    calls: dict[str, tuple] = {"run": (lambda: ran(run(kernel, x, n, noise=Noise(4))), n)}
    for name in ("newton", "speculative"):
        for window in WINDOWS:
            ahead = partial(WAYS[name], kernel, x, n, noise=Noise(4), window=window)
            calls[f"{name}, W {window}"] = (lambda ahead=ahead: ran(ahead()), n)
    each = n // 16
    calls["64 walkers"] = (lambda: ran(run(kernel, many, each, noise=Noise(4))), 64 * each)
    if kernel is plain:
        calls["lean loop"] = (lambda: lean(plain, x, n), n)
    return calls


def times(options) -> list[dict]:
    rows = []
    for dtype in (torch.float64, torch.float32):
        plain, x = alanine(dtype, compiled=options.compile)
        x = relaxed(plain, x).x
        for words, kernel in (("plain", plain), ("accepted", Metropolis(plain))):
            calls = contenders(plain, kernel, x, options.steps)
            seconds = alternating({name: c for name, (c, _) in calls.items()}, options.pairs)
            steps = {name: n for name, (_, n) in calls.items()}
            for name, spent in seconds.items():
                gain, span = ratios(seconds["run"] / steps["run"], spent / steps[name])
                ms = 1e3 * float(min(spent)) / steps[name]
                load = os.getloadavg()[0]
                row = {
                    "dtype": str(dtype)[6:],
                    "load": load,
                    "steps": words,
                    "way": name,
                    "ms_of_a_step": ms,
                }
                rows.append(row | {"times_run": gain, "span": span})
                show(options, rows[-1])
    return rows


class Burdened(Wrapped):
    """A potential at the price of an equivariant network (e3nn) of its atoms besides."""

    def __init__(self, inner: Potential):
        super().__init__(inner)
        elements = tuple(sorted(set(inner.system.numbers.tolist())))
        network = build(EquivariantConfig(channels=8, cutoff=4.0, elements=elements), None)
        self._energy = Inputs.of(inner.system).energy(network)

    def __call__(self, x: Tensor, **options) -> Evaluation:
        energy, forces, _ = self.inner(x)
        flat = x.detach().float().reshape(-1, *x.shape[-2:])
        with torch.enable_grad():
            at = flat.requires_grad_()
            cost = self._energy(at, flat.new_full((len(at),), 0.01))
            (slope,) = torch.autograd.grad(cost.sum(), at)
        return Evaluation(energy + 0.0 * cost.sum().detach(), forces + 0.0 * slope.reshape(x.shape))


def burdened() -> tuple[EulerMaruyama, Tensor]:
    kernel, x = alanine()
    return replace(kernel, potential=Burdened(kernel.potential)), x


def copper(repeat: int) -> tuple[EulerMaruyama, Tensor]:
    model, atoms = ScoreModel.load("copper-vacancy"), crystal(repeat)
    potential = model.potential(System.from_atoms(atoms), device="cpu", compile=False)
    kernel = EulerMaruyama(potential, kT=model.card.kT, h=0.2 / model.card.lambda_max)
    return kernel, torch.as_tensor(atoms.positions)


def crowd() -> tuple[EulerMaruyama, Tensor]:
    """Walkers enough to fill a core."""
    kernel, x = alanine()
    return kernel, x.expand(64, *x.shape).contiguous()


LOSSES = {
    "alanine dipeptide and an e3nn network": burdened,
    "31 atoms of copper": lambda: copper(2),
    "107 atoms of copper": lambda: copper(3),
    "10 beads, in closed form": lambda: beads(10),
    "alanine dipeptide, 64 walkers": crowd,
}


def losses(options) -> list[dict]:
    """CPU time beside `run` where a batch costs as much as its structures, or Jacobians do."""
    rows = []
    for name, make in LOSSES.items():
        kernel, x = make()
        *_, (state, _) = run(kernel, x, 20, noise=Noise(8))
        start = kernel.init(state.x)

        def calls(way: str, kernel=kernel, start=start):
            for _ in WAYS[way](kernel, start, options.steps, noise=Noise(4)):
                pass

        ways = {way: partial(calls, way) for way in ("run", "picard", "newton", "speculative")}
        seconds = alternating(ways, options.pairs)
        for way in ("picard", "newton", "speculative"):
            gain, span = ratios(seconds["run"], seconds[way])
            row = counted(way, kernel, start, options.steps, 64)
            row = {"system": name, "way": way, "times_run": gain, "span": span} | row
            row["ms_of_a_step_of_run"] = 1e3 * float(min(seconds["run"])) / options.steps
            rows.append(row)
            show(options, row)
    return rows


def show(options, row: dict) -> None:
    if not options.json:
        words = (
            f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" if k != "span" else ""
            for k, v in row.items()
        )
        print("  ".join(words), flush=True)


def main() -> None:
    parser = timing_options(__doc__, steps=512, pairs=5)
    parser.add_argument("part", choices=("rounds", "times", "losses"))
    parser.add_argument("--compile", action="store_true", help="times: of compiled networks")
    options = parsed(parser)
    rows = {"rounds": rounds, "times": times, "losses": losses}[options.part](options)
    if options.json:
        print(to_json({"versions": versions(), "rows": rows}))


if __name__ == "__main__":
    main()
