"""Sound files of every kind, small, to be spoiled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.io import write

from .attempt import attempt

_TINY = "--steps 20 --batch-size 32 --width 8 --channels 2 --processes 1 --no-progress".split()


@dataclass(frozen=True)
class Materials:
    """Sound files in one folder."""

    folder: Path

    def __getitem__(self, name: str) -> Path:
        return self.folder / name


def make(folder: Path) -> Materials:
    """Snapshots, models, a run, a training and files of PLUMED, made by ``diffmd`` itself.

    Raises ``RuntimeError`` where a command fails.
    """
    rng = np.random.default_rng(1)
    x = peroxide(120, rng)
    np.savez(folder / "data.npz", positions=x, numbers=[1, 8, 8, 1], temperature_K=300.0)
    frames = [Atoms("HOOH", positions=one) for one in x]
    for name in ("data.extxyz", "data.xyz", "data.traj", "data.json", "data.db"):
        write(folder / name, frames[:20])
    for name in ("data.pdb", "data.gro", "data.cif", "data.cfg"):
        one = frames[0].copy()
        one.set_cell([10, 10, 10])
        write(folder / name, one)
    copper = bulk("Cu", cubic=True) * (2, 2, 2)
    del copper[0]
    copper.rattle(0.05, seed=1)
    write(folder / "copper.extxyz", copper)
    write(folder / "POSCAR", copper, format="vasp")
    train = ["train", "data.npz", "-o"]
    _call([*train, "m.safetensors", "--directory", "training", *_TINY], folder)
    _call([*train, "e.safetensors", "--network", "equivariant", *_TINY], folder)
    run = "run m.safetensors --start data.npz --steps 40 --every 2 --walkers 3 --no-progress"
    _call([*run.split(), "--prefix", "md"], folder)
    _call("sample m.safetensors -o samples.npz -n 20 --levels 5 --no-progress".split(), folder)
    tables(folder, rng)
    options = "steps: 40\nevery: 2\nwalkers: 3\nstart: data.npz\nprogress: false\n"
    (folder / "options.yml").write_text(options)
    return Materials(folder)


def peroxide(count: int, rng) -> np.ndarray:
    """(count, 4, 3) structures of H2O2 with stiff bonds and a free torsion."""
    a, b = (0.97 + 0.02 * rng.standard_normal((2, count)))[..., None]
    d, t = 1.46 + 0.02 * rng.standard_normal(count), rng.uniform(0, 2 * np.pi, count)
    alpha, beta = np.radians(100 + 3 * rng.standard_normal((2, count)))
    zero = np.zeros(count)
    second = np.stack([d, zero, zero], -1)
    h1 = a * np.stack([np.cos(alpha), np.sin(alpha), zero], -1)
    swing = [-np.cos(beta), np.sin(beta) * np.cos(t), np.sin(beta) * np.sin(t)]
    return np.stack([h1, 0 * second, second, second + b * np.stack(swing, -1)], 1)


def tables(folder: Path, rng) -> None:
    """COLVAR, HILLS and KERNELS as PLUMED writes them."""
    time = np.arange(300)
    phi = np.angle(np.exp(1j * np.cumsum(0.3 * rng.standard_normal(300))))
    colvar = ["#! FIELDS time phi metad.bias", "#! SET min_phi -pi", "#! SET max_phi pi"]
    colvar += [f" {t:f} {p:f} {b:f}" for t, p, b in zip(time, phi, rng.random(300), strict=True)]
    (folder / "COLVAR").write_text("\n".join(colvar) + "\n")
    hills = ["#! FIELDS time phi sigma_phi height biasf", "#! SET multivariate false"]
    hills += ["#! SET kerneltype gaussian", "#! SET min_phi -pi", "#! SET max_phi pi"]
    hills += [f" {t:d} {p:.9f} 0.35 1.2 10" for t, p in zip(time[::10], phi[::10], strict=True)]
    (folder / "HILLS").write_text("\n".join(hills) + "\n")
    kernels = ["#! FIELDS time phi sigma_phi height logweight", "#! SET biasfactor 10"]
    kernels += ["#! SET epsilon 1e-6", "#! SET kernel_cutoff 5.2", "#! SET min_phi -pi"]
    kernels += ["#! SET max_phi pi", "#! SET compression_threshold 1"]
    kernels += [f" {t:d} {p:.9f} 0.3 1.1 0.5" for t, p in zip(time[::10], phi[::10], strict=True)]
    (folder / "KERNELS").write_text("\n".join(kernels) + "\n")


def _call(words: list[str], folder: Path) -> None:
    done = attempt(words, folder, 300.0)
    if done.code:
        raise RuntimeError(f"diffmd {' '.join(words)}: {done.text}")
