"""The log of overdamped dynamics, and the temperature that it can honestly show.

There are no velocities, so ASE's ``MDLogger`` (attach it if wanted) prints T = 0. The
configurational temperature ``kT = <F·F>/<-∇·F>`` needs a divergence. Stein's lemma gives
it without any evaluation beyond those of the chain: for ``x' = m(x) + sqrt(2h) ξ``

    E[ ξ·F(x') ] = sqrt(2h) E[ ∇·F(x') ]          exactly, at any h.
"""

from __future__ import annotations

import sys
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import torch
from ase import units as ase_units

from .noise import Noise
from .sampling.kernels import EulerMaruyama
from .system import State
from .units import kB

if TYPE_CHECKING:
    from .dynamics import BatchReverseDiffusion, ReverseDiffusion

__all__ = ["ConfigurationalTemperature", "StepLog"]


class ConfigurationalTemperature:
    """Running ``T = Σ F'·P F' / (-kB Σ ξ·(F' - F)/sqrt(2h))`` over the steps it is given.

    F, F' are the forces before and after a step and ξ its noise (looked up, not stored);
    F is a control variate of zero mean; fixed atoms are left out. At stationarity T is the
    temperature of the chain as it is: in a harmonic well ``T/(1 - hλ/2)``. One step of n
    stiff degrees of freedom has a relative error of about ``sqrt(2/n)``; ratios of sums
    fall with the square root of the number of steps. (Rugh, PRL 78, 772, 1997, for the
    configurational temperature.)
    """

    def __init__(self):
        self._squares, self._slopes = 0.0, 0.0

    def add(self, kernel: EulerMaruyama, before: State, after: State, noise: Noise) -> None:
        """One step of ``kernel``, from ``before`` to ``after``."""
        xi = noise.normal(before.step, before.x, walkers=before.walkers)
        h = torch.as_tensor(kernel.h, dtype=torch.float64, device=after.x.device)
        h = h[..., None] if h.ndim else h
        moving = h > 0
        forces = after.forces
        if kernel.mean_free:
            forces = forces - forces.mean(-2, keepdim=True)
        weight = torch.where(moving, 1.0 / torch.sqrt(2.0 * torch.where(moving, h, 1.0)), 0.0)
        self._squares += float((forces.square() * moving).sum())
        self._slopes -= float((weight * xi * (after.forces - before.forces)).sum())

    @property
    def kelvin(self) -> float:
        """The estimate so far; NaN before the first step and where the slope is not positive."""
        return self._squares / (kB * self._slopes) if self._slopes > 0 else float("nan")


class StepLog:
    """One line: step, time or D·t, energies, configurational temperature, evaluations/s.

    ``Time[ps]`` where friction or mobility was given, else ``D*t[A^2]``. ``Epot`` is the
    energy of the atoms' calculator and ``Bias`` that of the bias of the dynamics, means
    over the walkers. ``Tconf`` runs over the logged steps. ``Evals/s`` counts structures
    since the last line; every step evaluates each walker once, and the log none.

    Parameters
    ----------
    dyn : the dynamics
    logfile : name (appended to), open file, or "-" for standard output
    """

    def __init__(self, dyn: ReverseDiffusion | BatchReverseDiffusion, logfile):
        appends = logfile != "-" and isinstance(logfile, str | Path) and Path(logfile).exists()
        self._dyn = dyn
        self._file = sys.stdout if logfile == "-" else logfile
        self._temperature = ConfigurationalTemperature()
        self._last = perf_counter(), dyn.nsteps
        self._clock = ("Time[ps]", "%14.6f") if dyn.step_size.physical else ("D*t[A^2]", "%14.6e")
        if not (appends and Path(logfile).stat().st_size):
            names = ["Walkers", "Epot[eV]", "Bias[eV]", "Tconf[K]", "Evals/s"]
            line = f"{'Step':>10s} {self._clock[0]:>14s} " + " ".join(f"{n:>12s}" for n in names)
            self._write(line)

    def __call__(self) -> None:
        dyn, chain = self._dyn, self._dyn.chain
        if chain.before is not None:
            self._temperature.add(chain.kernel, chain.before, chain.state, chain.noise)
        base, bias = chain.energies()
        now, (then, first) = perf_counter(), self._last
        self._last = now, dyn.nsteps
        rate = (dyn.nsteps - first) * len(chain.live) / max(now - then, 1e-9)
        time = dyn.get_time() / (1000 * ase_units.fs)
        if not dyn.step_size.physical:
            # with unit mobility the clock is D·t = kT·t
            time = dyn.get_time() * chain.kT
        self._write(
            f"{dyn.nsteps:10d} {self._clock[1] % time} {len(chain.live):12d} {base:12.4f} "
            f"{bias:12.4f} {self._temperature.kelvin:12.1f} {rate:12.1f}"
        )

    def _write(self, line: str) -> None:
        if self._dyn.comm.rank:
            return
        if isinstance(self._file, str | Path):
            # opened for each line: complete after a crash, and nothing to close
            with open(self._file, "a", encoding="utf-8") as file:
                file.write(line + "\n")
        else:
            self._file.write(line + "\n")
            self._file.flush()
