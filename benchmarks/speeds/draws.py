"""Independent samples of a molecule, compiled and as written.

    python benchmarks/speeds/draws.py [--pairs 3] [--before FOLDER] [--json]

`independent.draws.sample`: 500 at a time, 30 noise levels instead of 150, and as many last steps
for each level as by default, so that both networks have their part of the time. ``--before``: a
checkout of commit 031cfff, whose sampling takes part, as in `evaluations.py`.
"""

from __future__ import annotations

from functools import partial

from row import NAME, Row, in_turn, older, printed

from diffmd_ase.independent.draws import sample
from diffmd_ase.noise import Noise
from diffmd_ase.score.model import ScoreModel

COUNT, LEVELS, LAST = 500, 30, 40


SIZE = {"levels": LEVELS, "relax_steps": LAST, "device": "cpu"}


def before(folder: str):
    """A call that samples as a checkout in ``folder`` does."""
    kept: dict = {}
    with older(folder, kept):
        from diffmd_ase.sampling.iid import sample as draw

        from diffmd_ase.noise import Noise as Then
        from diffmd_ase.score.model import ScoreModel as Before

        model = Before.load(NAME)

    def go() -> None:
        with older(folder, kept):  # some of it is imported when it is needed
            draw(model, COUNT, noise=Then(0), **SIZE)

    return go


def rows(options) -> list[Row]:
    model = ScoreModel.load(NAME)
    slow, fast = (
        partial(sample, model, COUNT, noise=Noise(0), compile=compiled, **SIZE)
        for compiled in (False, True)
    )
    timing = {"rounds": options.pairs, "each": COUNT, "unit": "a sample"}
    timing |= {"told": f"{LEVELS} levels"}
    what = "independent samples, 22 atoms: as written over compiled"
    found = [in_turn(what, slow, fast, goal=None if options.before else 3.0, **timing)]
    if options.before:
        what = "independent samples, 22 atoms: as written at 031cfff over compiled"
        found.append(in_turn(what, before(options.before), fast, goal=3.0, **timing))
    return found


if __name__ == "__main__":
    printed(__doc__, rows, rounds=3)
