"""NaN in one walker of a batch, and whether the same numbers come out again."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import ase.io
import numpy as np
import torch
from torch import Tensor

from diffmd_ase.io.run_info import RunInfo
from diffmd_ase.io.trajectory import Trajectory
from diffmd_ase.noise import Noise
from diffmd_ase.potentials.base import Potential
from diffmd_ase.potentials.biases.metadynamics import Metadynamics
from diffmd_ase.sampling.hamiltonian import GeneralizedHMC, HamiltonianMonteCarlo
from diffmd_ase.sampling.kernels import Kernel
from diffmd_ase.sampling.metropolis import Metropolis
from diffmd_ase.sampling.run import run
from diffmd_ase.score.model import ScoreModel
from diffmd_ase.simulation.frames import read_frames
from diffmd_ase.simulation.settings import Files
from diffmd_ase.simulation.simulate import simulate
from diffmd_ase.state import Evaluation

from .kinds import KT, LEARNED_H, METADYNAMICS, SITES, SYSTEM, euler, variables, well
from .sandbox import Record

_STEPS, _WALKERS = 60, 6


class Poisoned(Potential):
    """Forces or energy of one ``walker`` are NaN from evaluation ``at`` on, as long as it lives.

    ``seen`` is the step of the first one, by ``steps``, those that were completed.
    """

    def __init__(self, inner: Potential, walker: int, at: int, part: str):
        self.system, self._inner = inner.system, inner
        self._walker, self._left, self._part = walker, at, part
        self.steps, self.seen = 0, 0

    def __call__(self, x: Tensor, **options) -> Evaluation:
        value = self._inner(x, **options)
        self._left -= 1
        if self._left >= 0 or len(x) < _WALKERS:
            return value
        self.seen = self.seen or self.steps + 1
        row = torch.arange(len(x)) == self._walker
        energy, forces = value.energy, value.forces
        if self._part == "energy":
            energy = torch.where(row, torch.nan, energy)
        else:
            forces = torch.where(row[:, None, None], torch.nan, forces)
        return Evaluation(energy, forces)


def _kernel(name: str, potential: Potential) -> Kernel:
    if name == "Metropolis":
        return Metropolis(euler(potential))
    if name == "HMC":
        return HamiltonianMonteCarlo(potential, kT=KT, timestep=2.0, n_leapfrog=4)
    if name == "GHMC":
        return GeneralizedHMC(potential, kT=KT, timestep=2.0, friction=0.1)
    if name == "metadynamics":
        potential = potential + Metadynamics(variables(), walkers="independent", **METADYNAMICS)
    return euler(potential)


def nan_walkers(count: int, seed: int, record: Record) -> None:
    """One walker turns to NaN at a random step; the others are bitwise those of a run without it.

    Metropolis kernels reject a proposal that is NaN: such a walker stays where it is.
    """
    for name in ("plain", "metadynamics", "Metropolis", "HMC", "GHMC"):
        for n in record.missing("NaN", name, count):
            rng = np.random.default_rng([seed, n])
            walker, at = int(rng.integers(_WALKERS)), int(rng.integers(2, _STEPS))
            part = "energy" if n % 2 else "forces"
            record.add("NaN", name, n, **_poisoned(name, walker, at, part))


def _poisoned(name: str, walker: int, at: int, part: str) -> dict:
    with tempfile.TemporaryDirectory() as scratch:
        lost, seen = {}, 0
        for what, first in (("whole", 10**9), ("lost", at)):
            potential = Poisoned(well(), walker, first, part)

            def progress(done, alive, potential=potential):
                potential.steps = done

            told = simulate(
                _kernel(name, potential),
                SYSTEM,
                SITES.expand(_WALKERS, 4, 3).clone(),
                _STEPS,
                files=Files(str(Path(scratch, what))),
                info=RunInfo(seed=5, kT=KT, h=5e-3, kinetics_valid=False),
                every=1,
                progress=progress,
            )
            lost, seen = told["lost"], potential.seen
        others = [w for w in range(_WALKERS) if w != walker]
        a, b = (Trajectory(Path(scratch, f"{what}.h5")).positions[:] for what in ("whole", "lost"))
        path = Path(scratch, "lost.lost.extxyz")
        kept = ase.io.read(path, ":") if path.exists() else []
        named = {str(frame.info["walker"]) for frame in kept}
    return {
        "lost": len(lost),
        "only": set(lost) <= {str(walker)},
        "bitwise": bool(np.array_equal(a[:, others], b[:, others])),
        "late": max((step - seen for step in lost.values()), default=0),
        "kept": named == set(lost),
    }


def determinism(record: Record) -> None:
    """The same seed again, another seed, walkers alone and in a batch, one thread and two."""
    for name in ("springs", "learned, plain", "learned, Metropolis"):
        for n in record.missing("determinism", name, 1):
            kernel, x = _case(name)
            batch = _chain(kernel, x)
            alone = torch.cat([_chain(kernel, x[w : w + 1], first=w) for w in range(len(x))], 1)
            torch.set_num_threads(2)
            try:
                threads = _chain(kernel, x)
            finally:
                torch.set_num_threads(1)
            record.add(
                "determinism",
                name,
                n,
                again=_sha(batch) == _sha(_chain(kernel, x)),
                other_seed=_sha(batch) != _sha(_chain(kernel, x, seed=6)),
                alone=float((batch - alone).abs().max()),
                threads=float((batch - threads).abs().max()),
            )


def _case(name: str) -> tuple[Kernel, Tensor]:
    if name == "springs":
        return euler(well()), SITES.expand(4, 4, 3).clone()
    model = ScoreModel.load("alanine-dipeptide")
    frames = read_frames("alanine-dipeptide", model)
    x = torch.as_tensor(frames.positions[:4], dtype=torch.float64)
    plain = euler(model.potential(frames.system), h=LEARNED_H)
    return (Metropolis(plain) if name.endswith("Metropolis") else plain), x


def _chain(kernel: Kernel, x: Tensor, *, first: int = 0, seed: int = 5) -> Tensor:
    state = kernel.init(x, walkers=torch.arange(first, first + len(x)))
    return torch.stack([s.x for s, _ in run(kernel, state, 100, noise=Noise(seed))])


def _sha(values: Tensor) -> str:
    return hashlib.sha256(values.numpy().tobytes()).hexdigest()
