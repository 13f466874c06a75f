"""A step of training of a molecule's networks, compiled and as written.

    python benchmarks/speeds/training.py [--pairs 5] [--json]

Loss and gradient of a batch of 256 snapshots of the shipped molecule: of the pair network, which
draws i.i.d. samples, and of the perceptron on the fitted force field.
"""

from __future__ import annotations

import torch
from row import NAME, Row, in_turn, printed

from diffmd_ase.score.fit import frames_of
from diffmd_ase.score.loss_gradient import LossGradient
from diffmd_ase.score.networks.build import build
from diffmd_ase.score.objective import Objective
from diffmd_ase.score.plan import plan
from diffmd_ase.score.settings import TrainConfig
from diffmd_ase.score.snapshots import Snapshots

BATCH, STEPS = 256, 5


def rows(options) -> list[Row]:
    snapshots, found = Snapshots.read(NAME).take(slice(0, 2000)), []
    for expert, what in zip(
        plan(snapshots, TrainConfig()),
        ("the perceptron on a force field", "the pair network"),
        strict=True,
    ):
        network = build(expert.network, snapshots, sigma=expert.sigma[0])
        objective = Objective(expert, (snapshots,), "cpu")
        batch = [frames_of(snapshots, False, "cpu")[:BATCH]]
        slow, fast = (
            _steps(LossGradient(network, objective, compiled), batch) for compiled in (False, True)
        )
        words = f"a step of training, {what}, {BATCH} snapshots: as written over compiled"
        timing = {"rounds": options.pairs, "each": STEPS, "unit": "a step"}
        found.append(in_turn(words, slow, fast, goal=None, **timing))
    return found


def _steps(gradient: LossGradient, batch):
    def go() -> None:
        for step in range(STEPS):
            gradient(batch, torch.Generator().manual_seed(step))

    return go


if __name__ == "__main__":
    printed(__doc__, rows)
