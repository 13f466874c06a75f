"""How far atoms of copper move, and how fast: the shipped model, which saw only snapshots, and EMT.

    python benchmarks/copper_motion.py

31 atoms and a vacancy at 900 K, plain steps of both sides with one h and one D, all walkers from
the sites, a third of the run left out, as are walkers in which an atom was further than 1.2 Å from
its site: a vacancy that hops. Atoms are caged at these times: printed are the plateau of their mean
squared displacement, 2 Σ var(x), the integrated time of their places, and displacements at short
times, with errors and ratios. Exit 1 where plateau or time differ by 5 % and by more than
three errors.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from batched_emt import BatchedEMT
from make_copper import TEMPERATURE_K, crystal
from shared import command_line

from diffmd_ase import ScoreModel, System
from diffmd_ase.analysis.kinetics.motion import Motion, motion
from diffmd_ase.analysis.statistics import Estimate
from diffmd_ase.io.json_text import plain, to_json
from diffmd_ase.noise import Noise
from diffmd_ase.potentials.base import Potential
from diffmd_ase.sampling.run import survive
from diffmd_ase.simulation.prepare import StepRequest, prepare
from diffmd_ase.state import Evaluation
from diffmd_ase.units import spring_from_h

ROOM = 1.2  # Å


class Near(Potential):
    """Another potential, NaN where an atom is further than `ROOM` from its site."""

    def __init__(self, potential: Potential, sites: torch.Tensor):
        self.system, self.potential, self.sites = potential.system, potential, sites

    def __call__(self, x: torch.Tensor, *, stress: bool = False) -> Evaluation:
        away = x - self.sites
        away = (away - away.mean(-2, keepdim=True)).square().sum(-1).amax(-1)
        outside = torch.where(away < ROOM**2, 0.0, torch.nan).to(x)
        value = self.potential(x)
        return Evaluation(value.energy + outside, value.forces + outside[..., None, None])


def moved(potential: Potential, x: torch.Tensor, h: float, options, seed: int) -> Motion:
    """Displacements about the mean of all atoms, of the walkers without hops."""
    step, noise = StepRequest(spring=spring_from_h(h)), Noise(seed)
    kernel = prepare(potential, temperature_K=TEMPERATURE_K, step=step, x=x).kernel
    state, frames, lost = kernel.init(x, walkers=torch.arange(len(x))), [], []
    for n in range(options.steps):
        kernel, state, _ = survive(kernel, state, noise, lost.append)
        if n % options.every == 0 and n > options.steps // 3:
            place = np.full(x.shape, np.nan)
            place[state.walkers.numpy()] = state.x.numpy()
            frames.append(place)
    print(f"{len(x) - len(state.x)} of {len(x)} walkers hopped", file=sys.stderr, flush=True)
    frames = np.stack(frames)[:, state.walkers.numpy()]
    return motion(frames - frames.mean(-2, keepdims=True), h * options.every, name="Cu")


def ratio(one: Estimate, other: Estimate) -> Estimate:
    """one/other, errors independent."""
    value = one.value / other.value
    error = value * np.hypot(one.error / one.value, other.error / other.value)
    return Estimate(float(value), float(error), float("nan"))


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--walkers", type=int, default=32)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--every", type=int, default=2, help="steps between frames")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    atoms, model = crystal(), ScoreModel.load("copper-vacancy")
    system = System.from_atoms(atoms)
    x = torch.tensor(atoms.positions).repeat(options.walkers, 1, 1)
    sides = {"model": Near(model.potential(system), x[0]), "EMT": BatchedEMT(atoms, room=ROOM)}
    h = float(prepare(sides["model"], temperature_K=TEMPERATURE_K, x=x[:1]).step.h)
    found = {
        side: moved(potential, x, h, options, options.seed + n)
        for n, (side, potential) in enumerate(sides.items())
    }
    one, other = found["model"], found["EMT"]
    rows: dict[str, tuple[Estimate, Estimate]] = {}
    if None in (one.plateau, other.plateau, one.relaxation, other.relaxation):
        sys.exit(f"no plateau: {one.notes + other.notes}")
    rows["plateau (Å²)"] = one.plateau, other.plateau
    rows["relaxation (Å² of D·t)"] = one.relaxation, other.relaxation
    for at in (0.01, 0.03, 0.1):
        n = int(np.abs(one.displacements.lags - at).argmin())
        name = f"MSD at {one.displacements.lags[n]:.3g} Å² (Å²)"
        rows[name] = tuple(
            Estimate(float(m.displacements.values[n]), float(m.displacements.errors[n]), np.nan)
            for m in (one, other)
        )
    ratios = {name: ratio(*pair) for name, pair in rows.items()}
    checked = [ratios[name] for name in list(rows)[:2]]
    holds = all(abs(r.value - 1) < max(0.05, 3 * r.error) for r in checked)
    if options.json:
        print(to_json(plain({"h": h, "rows": rows, "ratios": ratios, "holds": holds})))
    else:
        print(f"h = {h:.3g} Å², {options.walkers} walkers of {options.steps * h:.2f} Å²")
        for name, (ours, theirs) in rows.items():
            print(f"{name}: model {ours}, EMT {theirs}, ratio {ratios[name]}")
    sys.exit(not holds)


if __name__ == "__main__":
    main()
