"""The kinds of runs that leave files, each in a folder of its own, and what their files hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import torch

from diffmd_ase.cli.main import app
from diffmd_ase.cli.output import execute
from diffmd_ase.io.run_info import RunInfo
from diffmd_ase.io.tensors import load_tensors
from diffmd_ase.io.trajectory import Trajectory
from diffmd_ase.potentials.analytic import Harmonic
from diffmd_ase.potentials.base import Potential
from diffmd_ase.potentials.biases.cvs import Distance, Torsion, join
from diffmd_ase.potentials.biases.hills import Grid
from diffmd_ase.potentials.biases.metadynamics import Metadynamics
from diffmd_ase.potentials.biases.opes import OPES
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.sampling.exchange import ReplicaExchange
from diffmd_ase.sampling.hamiltonian import GeneralizedHMC, HamiltonianMonteCarlo
from diffmd_ase.sampling.kernels import Kernel
from diffmd_ase.sampling.metropolis import Metropolis
from diffmd_ase.simulation.settings import Files
from diffmd_ase.simulation.simulate import simulate
from diffmd_ase.system import System

KT = 0.0258
LEARNED_H = 2e-5  # Å², of alanine dipeptide; springs take 5e-3
SYSTEM = System(np.array([6, 6, 6, 6]), np.array([12.0] * 4))
SITES = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1.0]], dtype=torch.float64)
METADYNAMICS: dict[str, Any] = {
    "kT": KT,
    "sigma": [0.1, 0.3],
    "height": 0.01,
    "pace": 10,
    "biasfactor": 8.0,
    "grid": Grid([80, 40], [0.0, 0.0], [8.0, 0.0]),
}
METAD = """phi: TORSION ATOMS=5,7,9,15
m: METAD ARG=phi SIGMA=0.35 HEIGHT=1.2 PACE=5 {} GRID_MIN=-pi GRID_MAX=pi FILE=HILLS
PRINT ARG=phi,m.bias FILE=COLVAR STRIDE=10
"""


@dataclass(frozen=True)
class Kind:
    """One kind of run.

    Attributes
    ----------
    go : does it, or goes on with it, in the working directory; gives an exit code
    files : that it leaves beside PREFIX.h5
    checkpoint : without this file it must begin anew
    rtol : to which numbers in ``files`` agree; 0: every byte is the same
    """

    go: Callable[[bool], int | None]
    files: tuple[str, ...] = ()
    checkpoint: str = "md.restart"
    rtol: float = 0.0


def command(*words: str) -> Callable[[bool], int]:
    """``diffmd run`` of the shipped molecule."""

    def go(restart: bool) -> int:
        fixed = ["--start", "alanine-dipeptide", "--seed", "5", "--no-progress"]
        more = ["--restart"] if restart else []
        return execute(app, ["run", "alanine-dipeptide", *fixed, *words, *more])

    return go


def biased(bias: str, *words: str) -> Callable[[bool], int]:
    """The same with an input of PLUMED."""

    def go(restart: bool) -> int:
        Path("plumed.dat").write_text(METAD.format(bias))
        return command("--plumed", "plumed.dat", *words)(restart)

    return go


def well() -> Potential:
    """Four atoms on springs."""
    return Harmonic(0.5, centre=SITES, system=SYSTEM)


def variables():
    return join([Distance(SYSTEM, (0, 3), name="d"), Torsion(SYSTEM, (0, 1, 2, 3), name="t")])


def euler(potential: Potential, kT=KT, h=5e-3) -> EulerMaruyama:
    return EulerMaruyama(potential, kT=kT, h=h)


def metadynamics(restart: bool, **more) -> Kernel:
    settings = METADYNAMICS | {"restart": restart} | more
    return euler(well() + Metadynamics(variables(), **settings))


def opes(restart: bool) -> Kernel:
    settings = {"kT": KT, "sigma": [0.1, 0.3], "barrier": 0.3, "pace": 10}
    return euler(well() + OPES(variables(), file="KERNELS", restart=restart, **settings))


def exchange(restart: bool) -> Kernel:
    kT = KT * torch.tensor([1.0, 1.3, 1.7, 2.2], dtype=torch.float64)
    return ReplicaExchange(Metropolis(euler(well(), kT)), n_states=4, every=5)


def hmc(restart: bool) -> Kernel:
    return HamiltonianMonteCarlo(well(), kT=KT, timestep=2.0, n_leapfrog=4)


def ghmc(restart: bool) -> Kernel:
    return GeneralizedHMC(well(), kT=KT, timestep=2.0, friction=0.1)


def script(make: Callable[[bool], Kernel], steps: int) -> Callable[[bool], None]:
    """A run of four walkers by `simulate`."""

    def go(restart: bool) -> None:
        kernel = make(restart)
        info = RunInfo(seed=5, kT=KT, h=5e-3, kinetics_valid=False)
        x = None if restart else SITES.expand(4, 4, 3).clone()
        simulate(kernel, SYSTEM, x, steps, files=Files("md"), info=info, every=20, restart=restart)

    return go


def training(steps: int) -> Callable[[bool], int]:
    """``diffmd train`` of one expert, which goes on by itself from its folder."""

    def go(restart: bool) -> int:
        if not Path("data.npz").exists():
            rng = np.random.default_rng(1)
            positions = SITES.numpy() + 0.1 * rng.normal(size=(400, 4, 3))
            part = {"positions": positions, "numbers": [6, 6, 6, 6], "temperature_K": 300.0}
            np.savez("data.part.npz", **part)
            Path("data.part.npz").rename("data.npz")
        Path("m.safetensors").unlink(missing_ok=True)
        words = ["--steps", str(steps), "--batch-size", "32", "--width", "16", "--patience", "99"]
        words += ["--processes", "1", "--max-minutes", "600", "--directory", "training"]
        return execute(app, ["train", "data.npz", "-o", "m.safetensors", *words, "--no-progress"])

    return go


def kinds(scale: float = 0.5) -> dict[str, Kind]:
    """All of them by name; ``scale`` makes them longer."""

    def steps(count: int) -> str:
        return str(int(scale * count))

    plain = ("--walkers", "4", "--every", "20")
    shared = ("--walkers", "2", "--every", "20")
    return {
        "plain": Kind(command(*plain, "--steps", steps(800))),
        "Metropolis": Kind(command(*plain, "--target", "model", "--steps", steps(300))),
        "HMC": Kind(script(hmc, int(steps(1000)))),
        "GHMC": Kind(script(ghmc, int(steps(1500)))),
        "replica exchange": Kind(script(exchange, int(steps(1200)))),
        "metadynamics, shared": Kind(
            script(partial(metadynamics, file="HILLS"), int(steps(1000))), ("HILLS",)
        ),
        "metadynamics, independent": Kind(
            script(partial(metadynamics, file="HILLS", walkers="independent"), int(steps(800))),
            tuple(f"HILLS.{walker}" for walker in range(4)),
        ),
        "OPES": Kind(script(opes, int(steps(1000))), ("KERNELS",)),
        "PLUMED METAD": Kind(biased("", *shared, "--steps", steps(500)), ("HILLS", "COLVAR")),
        "PLUMED METAD, well-tempered": Kind(
            biased("BIASFACTOR=8", *shared, "--steps", steps(500)), ("HILLS", "COLVAR"), rtol=1e-10
        ),
        "train": Kind(training(int(steps(100))), ("m.safetensors",), "training/job.json"),
    }


def content(kind: Kind, folder: Path) -> dict[str, object]:
    """What the files of a finished run hold, by their names: bytes, or tables of numbers."""
    found: dict[str, object] = {}
    if kind.checkpoint == "md.restart":
        t = Trajectory(folder / "md.h5")
        parts = [np.asarray(t.positions), t.energies, t.steps, t.walkers]
        columns = [t.columns[name] for name in sorted(t.columns)]
        found["trajectory"] = b"".join(np.asarray(part).tobytes() for part in parts)
        found["bias columns"] = b"".join(column.tobytes() for column in columns)
        if kind.rtol:
            found["trajectory"], found["bias columns"] = parts[0], np.array(columns)
        frames = ase.io.read(folder / "md.extxyz", ":")
        found["last frames"] = np.array([frame.positions for frame in frames])
        facts = json.loads((folder / "md.json").read_text())
        found["counts"] = [facts["steps"], facts["lost"], facts.get("acceptance")]
    for name in kind.files:
        path = folder / name
        if path.suffix == ".safetensors":
            tensors, _ = load_tensors(path, "diffmd_ase")
            found[name] = b"".join(tensors[n].numpy().tobytes() for n in sorted(tensors))
        else:
            found[name] = np.loadtxt(path, ndmin=2) if kind.rtol else path.read_bytes()
            if kind.rtol:  # headers are the same in any case
                lines = path.read_bytes().splitlines()
                found[f"header of {name}"] = [line for line in lines if line[:1] == b"#"]
    return found


def differences(kind: Kind, found: dict, expected: dict) -> list[str]:
    """Names of what differs."""
    names = set(found) ^ set(expected)
    for name in set(found) & set(expected):
        a, b = found[name], expected[name]
        if isinstance(a, np.ndarray):
            same = a.shape == b.shape and np.allclose(
                a, b, rtol=kind.rtol, atol=kind.rtol, equal_nan=True
            )
        else:
            same = a == b
        names |= set() if same else {name}
    return sorted(names)
