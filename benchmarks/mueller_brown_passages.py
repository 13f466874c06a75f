"""Mean first passage times on Müller–Brown by plain steps, extrapolated to steps of zero.

    python benchmarks/mueller_brown_passages.py --kT 23

D = 1, discs of radius 0.1 about the two deep minima. The exact times are those of a converged grid
(`tests/oracles/plane_grid.py`). Between steps a visit is not seen: times of plain steps converge in
the square root of h, where h is small against the curvature of the wells: at kT = 23 and h = 4e-3
the bias of the step itself, of order h, shows.
"""

from __future__ import annotations

import numpy as np
import torch
from shared import command_line

from diffmd_ase.analysis.kinetics.passages import Passages, passages
from diffmd_ase.io.json_text import to_json
from diffmd_ase.noise import Noise
from diffmd_ase.potentials.analytic import MuellerBrown
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.sampling.run import run

CENTRES = (-0.558, 1.442), (0.623, 0.028)
EXACT = {15: (102.8, 11.20), 20: (27.26, 5.99), 23: (17.09, 4.85)}


def measured(kT: float, h: float, walkers: int, span: float, seed: int) -> Passages:
    """From ``walkers`` that begin in both minima, over D·t = ``span`` each, a third before."""
    kernel = EulerMaruyama(MuellerBrown(scale=1.0, k=100.0), kT=kT, h=h)
    x = torch.zeros(walkers, 1, 3, dtype=torch.float64)
    x[::2, 0, :2], x[1::2, 0, :2] = (torch.tensor(c, dtype=torch.float64) for c in CENTRES)
    centres, noise = torch.tensor(CENTRES, dtype=torch.float64), Noise(seed)
    *_, (state, _) = run(kernel, x, int(span / 3 / h), noise=noise)
    seen = [
        ((s.x[:, 0, None, :2] - centres).norm(dim=-1) < 0.1).numpy()
        for s, _ in run(kernel, state, int(span / h), noise=noise)
    ]
    inside = np.stack(seen)
    return passages(inside[..., 0], inside[..., 1], h)


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--kT", type=int, default=23, choices=EXACT)
    parser.add_argument("--h", type=float, nargs="+", default=[2e-3, 1e-3, 5e-4])
    parser.add_argument("--walkers", type=int, default=2000)
    parser.add_argument("--span", type=float, default=6.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = [
        measured(float(options.kT), h, options.walkers, options.span, seed)
        for seed, h in enumerate(options.h)
    ]
    design = np.stack((np.ones(len(found)), np.sqrt(options.h)), 1)
    rows = []
    for name, exact in zip(("to_b", "to_a"), EXACT[options.kT], strict=True):
        values, errors = np.array([getattr(f, name)[:2] for f in found]).T
        weighted = design / errors[:, None]
        covariance = np.linalg.inv(weighted.T @ weighted)
        limit = float((covariance @ weighted.T @ (values / errors))[0])
        error = float(covariance[0, 0] ** 0.5)
        z = (limit - exact) / error
        rows.append({"time": name, "by_step": values, "errors": errors, "limit": limit,
                     "error": error, "exact": exact, "z": z})  # fmt: skip
        if not options.json:
            each = ", ".join(f"{v:.2f} ± {e:.2f}" for v, e in zip(values, errors, strict=True))
            print(f"{name}: {each} → {limit:.2f} ± {error:.2f}, exact {exact}, z = {z:+.1f}")
    if options.json:
        print(to_json({"kT": options.kT, "h": options.h, "rows": rows}))


if __name__ == "__main__":
    main()
