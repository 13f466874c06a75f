"""Independent samples of a molecule, compiled and as written.

    python benchmarks/speeds/draws.py [--pairs 3] [--json]

`independent.draws.sample`: 500 at a time, 30 noise levels instead of 150, and as many last steps
for each level as by default, so that both networks have their part of the time.
"""

from __future__ import annotations

from functools import partial

from row import NAME, Row, in_turn, printed

from diffmd_ase.independent.draws import sample
from diffmd_ase.noise import Noise
from diffmd_ase.score.model import ScoreModel

COUNT, LEVELS, LAST = 500, 30, 40


def rows(options) -> list[Row]:
    model = ScoreModel.load(NAME)
    slow, fast = (
        partial(
            sample,
            model,
            COUNT,
            noise=Noise(0),
            levels=LEVELS,
            relax_steps=LAST,
            device="cpu",
            compile=compiled,
        )
        for compiled in (False, True)
    )
    what = "independent samples, 22 atoms: as written over compiled"
    timing = {"goal": 3.0, "rounds": options.pairs, "each": COUNT, "unit": "a sample"}
    return [in_turn(what, slow, fast, told=f"{LEVELS} levels", **timing)]


if __name__ == "__main__":
    printed(__doc__, rows, rounds=3)
