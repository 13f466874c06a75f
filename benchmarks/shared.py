"""What several benchmarks do: read options, time in turn, follow a chain, write snapshots."""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import ase
import numpy as np
import torch
from ase import Atoms, units
from ase.md.langevin import Langevin
from torch import Tensor

from diffmd_ase.io.atomic import replacing
from diffmd_ase.noise import Noise
from diffmd_ase.potentials.base import Potential
from diffmd_ase.sampling.kernels import Kernel
from diffmd_ase.sampling.run import run
from diffmd_ase.state import State

COLUMNS = ("positions", "energies", "forces")  # of the file of a walker
HELD_OUT = 0.2  # of the walkers

# ------------------------------------------------------------------------- options


def command_line(doc: str) -> argparse.ArgumentParser:
    """Options of a script that measures: its purpose, the first line of ``doc``, and ``--json``."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    return parser


def timing_options(doc: str, *, steps: int, pairs: int) -> argparse.ArgumentParser:
    """`command_line` of what is timed in turn, with these defaults."""
    parser = command_line(doc)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--pairs", type=int, default=pairs)
    return parser


def sampling_options(doc: str, *, model: str) -> argparse.ArgumentParser:
    """`command_line` of what samples a model, the shipped ``model`` if none is named."""
    parser = command_line(doc)
    parser.add_argument("model", nargs="?", default=model, help="name or file")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def snapshot_options(doc: str, *, output: str, frames: int) -> argparse.ArgumentParser:
    """Options of a script that makes snapshots, with these defaults."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("-o", "--output", default=output)
    parser.add_argument("--frames", type=int, default=frames)
    parser.add_argument("--seed", type=int, default=1)
    return parser


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options as given; torch gets as many threads as ``--threads``, one without it."""
    options = parser.parse_args()
    torch.set_num_threads(vars(options).get("threads", 1))
    return options


# -------------------------------------------------------------------------- timing


def alternating(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    clock: Callable[[], float] = time.thread_time,
) -> dict[str, np.ndarray]:
    """Seconds (rounds,) of each call: in turn, A B A B …; a first round warms up, uncounted."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            begun = clock()
            call()
            times[name].append(clock() - begun)
    return {name: np.array(seconds[1:]) for name, seconds in times.items()}


def ratios(slow: np.ndarray, fast: np.ndarray) -> tuple[float, tuple[float, float]]:
    """Median and range of ``slow / fast``, times of the same rounds."""
    each = slow / fast
    return float(np.median(each)), (float(each.min()), float(each.max()))


def versions() -> dict[str, str]:
    """Of what times depend on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ase": ase.__version__,
    }


def ase_langevin(atoms: Atoms, temperature_K: float, *, timestep: float, seed: int) -> Langevin:
    """The peer in ASE, without trajectory or log."""
    return Langevin(
        atoms,
        timestep,
        temperature_K=temperature_K,
        friction=0.01 / units.fs,
        fixcm=False,  # as its own warning asks; also the faster of the two
        rng=np.random.default_rng(seed),
    )


# ------------------------------------------------------------------------ sampling


def chain(
    kernel: Kernel, x: Tensor | State, steps: int, *, noise: Noise, every: int
) -> tuple[list[State], Tensor]:
    """Every ``every``-th state, and the fraction of walkers that accepted there (M,)."""
    states, accepted = [], []
    for state, info in run(kernel, x, steps, noise=noise, every=every):
        states.append(state)
        accepted.append(info.accepted.double().mean())
    return states, torch.stack(accepted)


def energies(potential: Potential, x: Tensor) -> Tensor:
    """(M,) eV, float64, of frames (M, N, 3), a part at a time."""
    return torch.cat([potential(part).energy.double() for part in x.split(500)])


def ratio(part: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """``Σ part / Σ total`` over n independent groups, and its standard error: (…, n) to (…).

    Linearised, ``sqrt(n/(n-1) Σ (part - ratio·total)²) / Σ total``.
    """
    n, whole = total.shape[-1], total.sum(-1)
    mean = part.sum(-1) / whole
    residual = part - mean[..., None] * total
    return mean, residual.square().sum(-1).sqrt() * (n / (n - 1)) ** 0.5 / whole


# ----------------------------------------------------------------------- snapshots


def save_snapshots(
    path: str | Path, atoms: Atoms, positions, energies, forces, *, temperature_K: float
) -> None:
    """A file for `Snapshots.read`: positions (M, N, 3) in Å, energies (M,) in eV, forces eV/Å."""
    np.savez_compressed(
        path,
        positions=positions,
        energies=energies,
        forces=forces,
        numbers=atoms.numbers,
        cell=np.array(atoms.cell),
        pbc=atoms.pbc,
        temperature_K=temperature_K,
    )


def part(output: str, number: int) -> Path:
    """The file of one walker of the snapshots ``output``."""
    return Path(f"{output}.parts") / f"{number}.npz"


def frames_of(path: Path) -> list[list]:
    """Positions, energies and forces that a walker has saved, none at its start."""
    if not path.exists():
        return [[], [], []]
    with np.load(path) as saved:
        return [list(saved[key]) for key in COLUMNS]


def save_frames(path: Path, frames: list[list]) -> None:
    """Columns as of `frames_of`."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **dict(zip(COLUMNS, map(np.array, frames), strict=True)))


def merged(output: str, walkers: Iterable[int]) -> list[np.ndarray]:
    """Positions, energies and forces of some walkers, one after the other."""
    parts = [np.load(part(output, number)) for number in walkers]
    return [np.concatenate([one[key] for one in parts]) for key in COLUMNS]


def counts_of(options: argparse.Namespace) -> tuple[int, int, int]:
    """Walkers that are learned from, all walkers, and frames of each, from `snapshot_options`."""
    learned = options.walkers - max(1, round(HELD_OUT * options.walkers))
    return learned, options.walkers, -(-options.frames // learned)


def walk_all(walk: Callable, options: argparse.Namespace) -> dict[str, range]:
    """Run ``walk(number, options, count)`` for all walkers; which belong to each of the two files.

    A fifth of ``options.walkers`` is held out; ``count`` frames of each of the others make
    ``options.frames``.
    """
    *_, count = counts_of(options)
    part(options.output, 0).parent.mkdir(exist_ok=True)
    with ProcessPoolExecutor(options.processes) as pool:
        jobs = [pool.submit(walk, n, options, count) for n in range(options.walkers)]
        for done, job in enumerate(as_completed(jobs), 1):
            name = f"walker {job.result()} ends with {count} frames"
            print(f"{name} ({done} of {len(jobs)})", flush=True)
    return files_of(options)


def files_of(options: argparse.Namespace) -> dict[str, range]:
    """The two files, and which walkers belong to each."""
    learned, *_ = counts_of(options)
    others = options.output.replace(".npz", "-held-out.npz")
    return {options.output: range(learned), others: range(learned, options.walkers)}
