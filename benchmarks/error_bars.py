"""Do error bars of forces hold what they say?

Closed forms of several parts of the snapshots: of all components of the forces of held-out frames
two thirds should be within one standard error of the right ones, where the energy lies in the form.
Elsewhere the error of the form comes on top.

    python benchmarks/make_snapshots.py ethanol -o ethanol.npz
    python benchmarks/error_bars.py ethanol.npz ethanol-held-out.npz --frames 1000 --seeds 3
"""

import warnings

import numpy as np
import torch
from learning_curve import fitted
from shared import command_line, parsed

from diffmd_ase import Snapshots
from diffmd_ase.io.json_text import to_json
from diffmd_ase.score.networks.inputs import Inputs
from diffmd_ase.score.uncertainty import force_errors

SOME = 200  # held-out frames


def compared(network, held_out: Snapshots) -> dict[str, float]:
    """Which part of the components is within one and two errors; what was said and found."""
    told = Inputs.of(held_out.system, dtype=torch.float64)
    x = torch.as_tensor(held_out.positions)
    said = force_errors(network, x, told)
    x = x.requires_grad_()
    slopes = torch.autograd.grad(told.energy(network)(x, x.new_zeros(len(x))).sum(), x)[0]
    moving = held_out.moving
    off = np.abs(-slopes.numpy() - held_out.reduced_forces)[:, moving]
    said, size = said.detach().numpy()[:, moving], np.linalg.norm(held_out.reduced_forces)
    return {
        "within one": float((off < said).mean()),
        "within two": float((off < 2 * said).mean()),
        "said": float(np.linalg.norm(said) / size),
        "found": float(np.linalg.norm(off) / size),
    }


def main():
    parser = command_line(__doc__)
    parser.add_argument("snapshots", help="forces of them are not used")
    parser.add_argument("held_out", help="with forces")
    parser.add_argument("--frames", type=int, nargs="*", default=[300, 1000])
    parser.add_argument("--seeds", type=int, default=3)
    options = parsed(parser)
    warnings.simplefilter("ignore", UserWarning)
    every, held_out = (Snapshots.read(p) for p in (options.snapshots, options.held_out))
    held_out = held_out.take(slice(None, None, max(1, len(held_out) // SOME)))
    held_out = held_out.with_structure(None, every.moving)
    rows = []
    for count in options.frames:
        for seed in range(options.seeds):
            chosen = np.random.default_rng(seed).permutation(len(every))[:count]
            network, _ = fitted(every.take(np.sort(chosen)), 0.0, seed)
            rows.append({"frames": len(chosen), "seed": seed, **compared(network, held_out)})
            if not options.json:
                print(
                    "{frames:6d} frames, seed {seed}: {within one:.1%} within one error, "
                    "{within two:.1%} within two; relative error of forces {found:.3f}, "
                    "{said:.3f} by the errors".format(**rows[-1]),
                    flush=True,
                )
    if options.json:
        print(to_json(rows))


if __name__ == "__main__":
    main()
