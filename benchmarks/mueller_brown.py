"""Müller–Brown from 100 000 snapshots, simulated with the learned score, by ScoreMD's metric.

    python benchmarks/mueller_brown.py [--seeds 3] [--json]

The surface at kT = 23 of its units, as in ScoreMD (Plainer et al., arXiv 2506.17139, code
github.com/noegroup/ScoreMD), which simulates its snapshots; here they are exact draws.
An energy is learned from them (`toys.py`). Walkers that all start at the deepest minimum run
Metropolis-adjusted Langevin steps on it, and give 100 000 samples nearly independent.

JS       divergence in nats of two histograms of 100 × 100 bins between the extremes of both
PMF      ``Σ_b w_b (ln p_b - ln q_b)²`` over 62 × 62 bins of [-1.8, 1.1] × [-0.5, 2] and those
         outside, w the mean of p and q, an empty bin having p = 1e-6

Two sets of exact draws do not agree either: the floor is their mean over twenty pairs, in the
bins of the comparison, since one walker far out makes the bins of JS larger and JS smaller.
Samples are compared with the snapshots, which is ScoreMD's reference, and with draws that no
training has seen. Goal: JS at most 0.001 and PMF at most 0.02 above the floor, for every seed.
"""

from __future__ import annotations

import time
from functools import cache

import numpy as np
import torch
from shared import chain, command_line, parsed
from torch import Tensor
from toys import Config, Learned, contenders, fit

from diffmd_ase.analysis.divergence import jensen_shannon
from diffmd_ase.io.json_text import to_json
from diffmd_ase.noise import Noise
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.sampling.metropolis import Metropolis
from diffmd_ase.sampling.run import run
from diffmd_ase.testing.targets import mueller_brown

SURFACE = mueller_brown(kT=23.0 * 0.035)  # of a scale of 0.035
LIMITS = ((-1.8, 1.1), (-0.5, 2.0))
N = 100_000
LOW = 0.01  # Å, the smallest noise: the narrowest well has a width of 0.075
START = (-0.558, 1.442)  # the deepest minimum
# the populations of the basins relax in about 600 steps
WALKERS, STEP, EQUILIBRATION, EVERY = 4000, 0.009, 4000, 200
PUBLISHED = {
    "ScoreMD, plain diffusion": ("0.0448(125)", "0.504(150)"),
    "ScoreMD, best": ("0.0108(8)", "0.099(4)"),
    "ScoreMD, a fresh simulation": ("0.0119(4)", "0.087(2)"),
}


def draws(seed: int) -> Tensor:
    """Exact draws (N, 1, 2)."""
    return SURFACE.sample(N, seed)[..., :2]


@cache
def pairs() -> list[tuple[np.ndarray, np.ndarray]]:
    """Twenty pairs of sets of exact draws (N, 2)."""
    sets = [draws(10_000 + n)[:, 0].numpy() for n in range(40)]
    return list(zip(sets[::2], sets[1::2], strict=True))


def js_edges(a: np.ndarray, b: np.ndarray) -> list[np.ndarray]:
    """Edges of the bins in which a and b (n, 2) are compared: of 100 between the extremes."""
    both = np.concatenate((a, b))
    return [np.linspace(low, high, 101) for low, high in zip(both.min(0), both.max(0), strict=True)]


def js_error(a: np.ndarray, b: np.ndarray, edges: list[np.ndarray]) -> float:
    """JS of the histograms of a and b (n, 2)."""
    return jensen_shannon(*(np.histogram2d(*s.T, bins=edges)[0] for s in (a, b)))


def pmf_error(a: np.ndarray, b: np.ndarray) -> float:
    """PMF error of a and b (n, 2), in (kT)²."""
    edges = [np.r_[-np.inf, np.linspace(*limits, 63), np.inf] for limits in LIMITS]
    p, q = (np.histogram2d(*s.T, bins=edges)[0].ravel() / len(s) for s in (a, b))
    occupied = (p > 0) | (q > 0)
    p, q = (np.where(s > 0, s, 1e-6)[occupied] for s in (p, q))
    w = p + q
    return float((w * np.log(p / q) ** 2).sum() / w.sum())


def compare(x: Tensor, y: Tensor) -> dict[str, float]:
    """Both metrics of x and y (N, 1, 2), and how far they are above the floor."""
    a, b = x[:, 0].numpy(), y[:, 0].numpy()
    edges = js_edges(a, b)
    js, pmf = js_error(a, b, edges), pmf_error(a, b)
    return {
        "js": js,
        "js above floor": js - float(np.mean([js_error(*pair, edges) for pair in pairs()])),
        "pmf": pmf,
        "pmf above floor": pmf - float(np.mean([pmf_error(*pair) for pair in pairs()])),
    }


def floor() -> dict[str, list[float]]:
    """Mean and standard deviation of both metrics over the pairs, each in its own bins."""
    rows = [(js_error(*pair, js_edges(*pair)), pmf_error(*pair)) for pair in pairs()]
    columns = zip(("js", "pmf"), np.transpose(rows), strict=True)
    return {name: [float(c.mean()), float(c.std(ddof=1))] for name, c in columns}


def right(x: Tensor) -> float:
    """Population of x > 0.2, the basin beyond both barriers from the start."""
    return float((x[:, 0, 0] > 0.2).double().mean())


def simulate(potential: Learned, seed: int) -> tuple[Tensor, float]:
    """N samples (N, 1, 2) of walkers that started in one basin, and the acceptance."""
    kernel = Metropolis(EulerMaruyama(potential, kT=1.0, h=STEP))
    x = torch.tensor([[START]], dtype=torch.float64).expand(WALKERS, 1, 2).clone()
    noise = Noise(seed)
    ((equilibrated, _),) = run(kernel, x, EQUILIBRATION, noise=noise, every=EQUILIBRATION)
    steps = N // WALKERS * EVERY
    states, accepted = chain(kernel, equilibrated, steps, noise=noise, every=EVERY)
    return torch.cat([state.x for state in states]), float(accepted.mean())


def measure(loss: str, seed: int, config: Config) -> dict:
    """Train on one set of exact draws, simulate, compare."""
    x = draws(seed)
    start = time.process_time()
    network = fit(x, contenders(x, LOW, seed)[loss], config, seed=seed)
    trained = time.process_time()
    samples, acceptance = simulate(Learned(network, LOW), seed)
    return {
        "snapshots": compare(samples, x),
        "fresh": compare(samples, draws(30_000 + seed)),
        "x > 0.2": right(samples),
        "acceptance": acceptance,
        "extremes": [samples[:, 0].amin(0).tolist(), samples[:, 0].amax(0).tolist()],
        "training": trained - start,
        "simulation": time.process_time() - trained,
    }


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8000, help="of training")
    parser.add_argument("--losses", nargs="+", default=["ranking", "plain, all noise"])
    options = parsed(parser)
    if min(options.seeds, options.steps) < 1:
        parser.error("needs a seed and a step at least")
    known = list(contenders(draws(0)[:300], LOW, 0))
    if not set(options.losses) <= set(known):
        parser.error(f"--losses {options.losses}: choose from {known}")
    config = Config(steps=options.steps)
    least, exact = floor(), right(draws(0))
    result = {"floor": least, "x > 0.2": exact}
    if not options.json:
        print(f"{'':30s} {'JS':>16s} {'PMF':>16s}")
        for name, (js, pmf) in PUBLISHED.items():
            print(f"{name:30s} {js:>16s} {pmf:>16s}")
        js, pmf = (f"{mean:.4f} ± {std:.4f}" for mean, std in least.values())
        print(f"{'two sets of exact draws':30s} {js:>16s} {pmf:>16s}   x > 0.2: {exact:.3f}")
    for loss in options.losses:
        result[loss] = []
        for seed in range(options.seeds):
            row = measure(loss, seed, config)
            result[loss].append(row)
            if options.json:
                continue
            for other in ("snapshots", "fresh"):
                found = row[other]
                js, pmf = (f"{found[k]:.4f} ({found[f'{k} above floor']:+.4f})" for k in least)
                print(f"{loss + f', {seed}, {other}':30s} {js:>16s} {pmf:>16s}   ", end="")
                print(f"x > 0.2: {row['x > 0.2']:.3f}", end="   ")
                print(f"{row['training']:.0f} s + {row['simulation']:.0f} s", flush=True)
    if options.json:
        print(to_json(result))


if __name__ == "__main__":
    main()
