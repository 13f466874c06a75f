"""A training on ranks: what each process of torchrun does in the tests of such.

torchrun … ranked_training.py train PREFIX [steps=12] [how=stops|dies|differs] [batch_size=16] …
"""

import os
import signal
import sys
from tempfile import TemporaryDirectory

import numpy as np
import ranked_run
import torch
from ase.build import molecule

from diffmd_ase.io.ranks import Ranks
from diffmd_ase.score.snapshots import Snapshots
from diffmd_ase.score.training import TrainConfig, train
from diffmd_ase.system import System

SEED = 3
TINY = {"steps": 12, "batch_size": 16, "width": 8, "evaluations": 4, "processes": 1}
TINY |= {"max_minutes": 1e4, "validation_fraction": 0.2}


def peroxide():
    atoms = molecule("H2O2")
    rng = np.random.default_rng(0)
    x = atoms.positions + 0.03 * rng.normal(size=(200, 4, 3))
    return Snapshots(System.from_atoms(atoms), x, 300)


def config(**more):
    return TrainConfig(**{**TINY, **more})


class Dying(Ranks):
    """Rank 1 is killed in its eighth step."""

    steps = 0

    def mean(self, value):
        self.steps += 1
        if self.rank == 1 and self.steps == 8:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().mean(value)


def stop(name, fraction, note):
    """After the validation of step 6."""
    if fraction >= 5 / 12:
        raise ValueError("stopped, as it was told to")


def go(folder, ranks=None, *, how=None, seed=SEED, **more):
    return train(
        peroxide(),
        config=config(**more),
        seed=seed,
        device="cpu",
        progress=stop if how == "stops" else False,
        directory=folder,
        ranks=ranks,
    )


def rank(kind, prefix, *words):
    torch.set_default_dtype(torch.float32)
    options = dict(word.split("=") for word in words if "=" in word)
    how = options.pop("how", None)
    folder = options.pop("folder", prefix)
    numbers = {name: int(value) for name, value in options.items()}
    with (Dying if how == "dies" else Ranks).started(timeout=60.0) as ranks:
        numbers["seed"] = SEED + (how == "differs") * ranks.rank
        go(folder, ranks, how=how, **numbers).save(f"{prefix}.{ranks.rank}.safetensors")


if __name__ == "__main__":
    if "RANK" not in os.environ:  # what is imported on first use, once for all that are forked
        torch.set_num_threads(1)
        with TemporaryDirectory() as scratch:
            go(scratch, steps=1)
    ranked_run.main(sys.argv[1:], rank)
