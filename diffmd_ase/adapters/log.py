"""The log of overdamped dynamics, and the temperature that it can honestly show.

There are no velocities, so ASE's ``MDLogger`` (attach it if wanted) prints T = 0. The
configurational temperature ``kT = <F·F>/<-∇·F>`` needs a divergence. Stein's lemma gives
it without any evaluation beyond those of the chain: for ``x' = m(x) + sqrt(2h) ξ``

    E[ ξ·F(x') ] = sqrt(2h) E[ ∇·F(x') ]          exactly, at any h.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..noise import Noise
from ..sampling.directions import along
from ..sampling.euler import EulerMaruyama
from ..state import State
from ..units import kB

if TYPE_CHECKING:
    from .batch import Batch
    from .dynamics import ReverseDiffusion

__all__ = ["ConfigurationalTemperature", "StepLog", "absolute"]


def absolute(file):
    """``file``, a name as that of a place that stays when the working directory changes.

    What is no name, and "-", is given back as it is.
    """
    named = isinstance(file, str | Path) and file != "-"
    return os.path.abspath(file) if named else file


class ConfigurationalTemperature:
    """Running ``T = Σ F'·P F' / (-kB Σ ξ·(F' - F)/sqrt(2h))`` over the steps it is given.

    F, F' are the forces before and after a step and ξ its noise (looked up, not stored);
    F is a control variate of zero mean; what is held is left out. Of the steps at one temperature:
    another one begins anew. At stationarity T is the
    temperature of the chain as it is: in a harmonic well ``T/(1 - hλ/2)``. One step of n
    stiff degrees of freedom has a relative error of about ``sqrt(2/n)``; ratios of sums
    fall with the square root of the number of steps. (Rugh, PRL 78, 772, 1997, for the
    configurational temperature.)
    """

    def __init__(self):
        self._squares, self._slopes = 0.0, 0.0
        self._kT: Tensor | None = None

    def add(self, kernel: EulerMaruyama, before: State, after: State, noise: Noise) -> None:
        """One step of ``kernel``, from ``before`` to ``after``."""
        kT = torch.as_tensor(kernel.kT, dtype=torch.float64)
        if self._kT is None or not torch.equal(kT, self._kT):
            self._squares, self._slopes, self._kT = 0.0, 0.0, kT
        xi = noise.normal(before.step, before.x, walkers=before.walkers)
        h = torch.as_tensor(kernel.h, dtype=torch.float64, device=after.x.device)
        h = h[..., None] if h.ndim else h
        moving = h > 0
        forces = after.forces
        if kernel.directions is not None:
            forces, xi = along(kernel.directions, forces), along(kernel.directions, xi)
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
    """One line: step, time or D·t, energies, what tells of the chain, evaluations/s.

    ``Time[ps]`` where friction or mobility was given, else ``D*t[A^2]``; of accepted steps
    the nominal one, which rejections stretch. ``Epot`` is the energy of the atoms' calculator,
    ``Bias`` that of the bias, ``Etarget`` that of the target without the bias; then what the bias
    says of itself (`Potential.describe`: its variables, in its units). Means over the walkers.
    Plain dynamics has ``Tconf``, over the logged steps. Metropolised steps have ``Accept``, the
    fraction accepted so far (steps of an adaptation left out), and no ``Tconf``: the identity
    behind it holds for steps, not for those that were accepted. ``Failed`` counts structures for
    which a calculator failed. ``Evals/s`` are evaluations of the drift since the last line;
    every step evaluates each walker once, and the log none.

    Parameters
    ----------
    dyn : the dynamics
    logfile : name (appended to), open file, or "-" for standard output
    """

    def __init__(self, dyn: ReverseDiffusion | Batch, logfile):
        logfile = absolute(logfile)
        appends = logfile != "-" and isinstance(logfile, str | Path) and Path(logfile).exists()
        self._dyn = dyn
        self._file = sys.stdout if logfile == "-" else logfile
        self._adjusted = not isinstance(dyn.kernel, EulerMaruyama)
        self._temperature = ConfigurationalTemperature()
        self._last = perf_counter(), dyn.chain.evaluations
        self._headed = appends and bool(Path(logfile).stat().st_size)

    def __call__(self) -> None:
        dyn, chain = self._dyn, self._dyn.chain
        now, (then, before) = perf_counter(), self._last
        self._last = now, chain.evaluations
        # name, value, format
        row: list[tuple[str, float, str]] = [("Step", dyn.nsteps, "10d")]
        row += dyn.clock()
        row.append(("Walkers", len(chain.live), "12d"))
        row += [
            (name, value, "12.4f") for name, value in chain.physics.energies(chain.state).items()
        ]
        row += [
            (name, float(value.mean()), f"{max(12, len(name))}.5f")
            for name, value in chain.physics.described(chain.state).items()
        ]
        if self._adjusted:
            row.append(("Accept", chain.tally.acceptance, "12.4f"))
            row.append(("Failed", chain.physics.failed[0], "12d"))
        else:
            if chain.before is not None and isinstance(chain.kernel, EulerMaruyama):
                self._temperature.add(chain.kernel, chain.before, chain.state, chain.noise)
            row.append(("Tconf[K]", self._temperature.kelvin, "12.1f"))
        rate = float(chain.evaluations - before) / max(now - then, 1e-9)
        row.append(("Evals/s", rate, "12.1f"))
        if not self._headed:
            self._headed = True
            # as wide as the columns
            names = [f"{name:>{len(f'{0:{form}}')}s}" for name, _, form in row]
            self._write(" ".join(names))
        self._write(" ".join(f"{value:{form}}" for _, value, form in row))

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
