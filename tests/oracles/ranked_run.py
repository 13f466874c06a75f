"""A run on ranks, by its kind: what each process of torchrun does in the tests of ranks.

torchrun … ranked_run.py KIND PREFIX STEPS [restart] [chunk=2] [walkers=8] [timeout=60]
"""

import json
import os
import signal
import socket
import sys
from importlib.metadata import version

import numpy as np
import torch

from diffmd_ase.io import ranks as ranks_module
from diffmd_ase.io.ranks import Ranks
from diffmd_ase.io.trajectory import RunInfo
from diffmd_ase.potentials.base import Potential
from diffmd_ase.potentials.biases.cvs import Distance
from diffmd_ase.potentials.biases.hills import Grid
from diffmd_ase.potentials.biases.metadynamics import Metadynamics
from diffmd_ase.potentials.biases.opes import OPES
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.sampling.exchange import ReplicaExchange
from diffmd_ase.sampling.metropolis import Metropolis
from diffmd_ase.simulation.outside import Outside
from diffmd_ase.simulation.settings import Files
from diffmd_ase.simulation.simulate import simulate
from diffmd_ase.state import Evaluation
from diffmd_ase.system import System

SYSTEM = System(np.array([1, 8, 1]), np.array([1.0, 16.0, 1.0]))
H, KT, EVERY = 0.01, 1.0, 5


class Together(Potential):
    """``Σ x⁴/4``, with a little of what the others of the batch do.

    So do, in the last digit, networks, whose sums depend on the batch that they are computed in.
    """

    system = SYSTEM

    def __call__(self, x):
        forces = -x.pow(3) + 1e-3 * x.mean(0, keepdim=True)
        return Evaluation(x.pow(4).sum((-2, -1)) / 4, forces)


class Beyond(Outside):
    """Walkers end that come too far, as those do that no snapshot tells of."""

    def look(self, kernel, state):
        outside = state.x.abs().amax((1, 2)) > 1.2
        self.counted += len(outside)
        self.frames += int(outside.sum())
        return outside


def bias(kind, **more):
    cv = Distance(SYSTEM, [[0, 1]])
    if kind == "opes":
        return OPES(cv, kT=KT, sigma=0.3, barrier=5.0, pace=5, **more)
    grid = Grid([80], [0.0], [20.0])
    return Metadynamics(cv, kT=KT, sigma=0.3, height=0.5, pace=5, biasfactor=8, grid=grid, **more)


def kernel(kind, walkers, term=None):
    potential = Together() if term is None else Together() + term
    kT = KT
    if kind == "exchange":
        kT = torch.tensor([1.0, 1.3, 1.7, 2.2]).repeat(walkers // 4)
    plain = EulerMaruyama(potential, kT=kT, h=H)
    if kind in ("plain", "stop") or term is not None:
        return plain
    accepted = Metropolis(plain)
    return ReplicaExchange(accepted, 4, every=5) if kind == "exchange" else accepted


def go(kind, prefix, steps, ranks=None, *, walkers=8, chunk=2, restart=False, bad=(), **options):
    # as arrays of files are: not row behind row
    x = 0.1 * torch.arange(9.0)[:, None].repeat(1, walkers).reshape(3, 3, walkers).permute(2, 0, 1)
    for walker in bad:
        x[walker] = 50.0  # h x² = 25: grows without bound
    term = None
    if kind in ("hills", "opes"):
        file = (ranks or Ranks()).file(f"{prefix}.HILLS")
        term = bias(kind, file=file, restart=restart)
    info = RunInfo(seed=3, kT=KT, h=H, kinetics_valid=True)
    outside = Beyond(SYSTEM, stop=True) if kind == "stop" else None
    return simulate(
        kernel(kind, walkers, term),
        SYSTEM,
        None if restart else x,
        steps,
        files=Files(str(prefix)),
        info=info,
        every=EVERY,
        walkers=torch.arange(walkers) + 5,
        restart=restart,
        warm_up=10 if kind == "adapted" else 0,
        ranks=ranks,
        chunk=chunk,
        outside=outside,
        **options,
    )


def misbehave(ranks, how):
    """What rank 1 does after step 40."""

    def progress(step, alive):
        if ranks.rank == 1 and step >= 40:
            if how == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "sleeps":
                os.kill(os.getpid(), signal.SIGSTOP)
            if how == "fails":
                raise ValueError("as it was told to")
            os.kill(os.getpid(), signal.SIGINT)

    return progress


def rank(kind, prefix, steps, *words):
    options = dict(word.split("=") for word in words if "=" in word)
    how = options.pop("how", None)
    if how == "version" and os.environ["RANK"] == "1":
        ranks_module.version = lambda name: f"{version(name)}.other"
    timeout = float(options.pop("timeout", 60.0))
    bad = [int(w) for w in options.pop("bad", "").split(",") if w]
    with Ranks.started(timeout=timeout) as ranks:
        go(
            kind,
            prefix,
            int(steps),
            ranks,
            restart="restart" in words,
            bad=bad,
            progress=misbehave(ranks, how) if how else None,
            **{name: int(value) for name, value in options.items()},
        )


def forked(size, act, *words):
    """Exit codes of ``act`` in so many processes; what they raised goes to standard error."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for number in range(size):
        child = os.fork()
        if child == 0:
            place = {"RANK": number, "WORLD_SIZE": size, "MASTER_PORT": port}
            os.environ.update({name: str(value) for name, value in place.items()})
            os.environ["MASTER_ADDR"] = "127.0.0.1"
            code = 0
            try:
                act(*words)
            except BaseException as error:
                code = 1
                print(f"{words[1]}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(code)
        children.append(child)
    codes = []
    for child in children:
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        for other in children[len(codes) :] if codes[-1] else ():
            os.kill(other, signal.SIGCONT)  # one that sleeps
    return codes


def main(arguments, act=rank):
    if "RANK" in os.environ:
        act(*arguments)
        return
    for job in " ".join(arguments).split(" / "):
        size, *words = job.split()
        print(json.dumps([words[1], forked(int(size), act, *words)]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
