"""Energy and forces of a network, compiled and as it is written.

    python benchmarks/speeds/evaluations.py [--pairs 7] [--before FOLDER] [--json]

Each side calls its potential with the same positions. ``--before`` is the folder of a checkout of
this repository at an older commit, whose potentials of the shipped molecule and of copper take
part, in this process: those of commit 031cfff are what the goals are about.
"""

from __future__ import annotations

from functools import partial

import torch
from ase.build import bulk
from row import NAME, Row, equivariant, frames, in_turn, older, printed

from diffmd_ase.score.model import ScoreModel
from diffmd_ase.system import System

CALLS = {1: 40, 64: 12, 256: 4}
GOALS = {1: 10.0, 64: 4.5, 256: 4.0}


def before(folder: str, name: str, x: torch.Tensor, atoms=None):
    """The potential of a shipped model, of ``atoms``, as a checkout in ``folder`` has it."""
    with older(folder, {}):
        from diffmd_ase.score.model import ScoreModel as Before
        from diffmd_ase.system import System as Then

        system = None if atoms is None else Then.from_atoms(atoms)
        potential = Before.load(name).potential(system, device="cpu")
        potential(x)  # what it imports late
    return potential


def times(potential, x: torch.Tensor, count: int):
    for _ in range(count):
        potential(x)


def molecules(options) -> list[Row]:
    model, rows = ScoreModel.load(NAME), []
    written, compiled = (model.potential(device="cpu", compile=c) for c in (False, True))
    then = before(options.before, NAME, frames(2)) if options.before else None
    for count, calls in CALLS.items():
        x = frames(count)
        if count == 1:
            x = x[0]
        fast = partial(times, compiled, x, calls)
        most = f"largest difference {difference(written, compiled, x):.1e} of the largest force"
        both = {"fast": fast, "each": calls, "rounds": options.pairs}
        what = f"22 atoms, {count} in a call: as written over compiled"
        slow = partial(times, written, x, calls)
        goal = None if then else GOALS[count]
        rows.append(in_turn(what, slow, goal=goal, told=most, **both))
        if then is not None:
            what = f"22 atoms, {count} in a call: as written at 031cfff over compiled"
            slow = partial(times, then, x, calls)
            rows.append(in_turn(what, slow, goal=GOALS[count], **both))
    return rows


def difference(a, b, x) -> float:
    one, other = a(x).forces, b(x).forces
    return float((one - other).abs().max() / one.abs().max())


def copper(options) -> list[Row]:
    model, rows = ScoreModel.load("copper-vacancy"), []
    for cells, calls in ((2, 20), (5, 2)):
        atoms = bulk("Cu", cubic=True, a=3.7) * ((cells,) * 3)
        if cells == 2:
            del atoms[0]
        atoms.rattle(0.05, seed=1)
        system = System.from_atoms(atoms)
        x = torch.as_tensor(atoms.positions, dtype=torch.float32)
        slow, fast = (
            partial(times, model.potential(system, device="cpu", compile=c), x, calls)
            for c in (False, True)
        )
        both = {"fast": fast, "each": calls, "rounds": options.pairs}
        what = f"copper, {len(atoms)} atoms: as written over compiled"
        rows.append(in_turn(what, slow, goal=None if options.before else 3.0, **both))
        if options.before:
            what = f"copper, {len(atoms)} atoms: as written at 031cfff over compiled"
            slow = partial(times, before(options.before, "copper-vacancy", x, atoms), x, calls)
            rows.append(in_turn(what, slow, goal=3.0, **both))
    return rows


def e3nn(options) -> list[Row]:
    model, x = equivariant(), frames(1)[0]
    slow, fast = (
        partial(times, model.potential(device="cpu", compile=c), x, 5) for c in (False, True)
    )
    what = "e3nn network, 22 atoms: as written over compiled"
    return [in_turn(what, slow, fast, goal=3.0, rounds=options.pairs, each=5)]


def rows(options) -> list[Row]:
    return molecules(options) + copper(options) + e3nn(options)


if __name__ == "__main__":
    printed(__doc__, rows, rounds=7)
