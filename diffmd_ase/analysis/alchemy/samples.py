"""Samples of a coupling at several λ, and the frames that alchemlyb makes estimates of.

A coupling depends on positions through U_A and U_B alone, so that these two numbers of every sample
give its reduced energy ``u_k = U_λk/kT`` in every state, and ``(∂U/∂λ)/kT`` in its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from ase.units import kB

from ...io.atomic import replacing
from ...libraries import quiet_alchemlyb
from ...potentials.alchemical import check_lambda, coupled_energy, coupled_slope
from ..statistics import statistical_inefficiency

__all__ = ["CoupledSamples", "gathered"]

_NONE = "no samples at λ = {:g}: run longer, or leave that state out"
_LARGEST = 1e6  # kT: what is further up has no weight in any state


@dataclass(frozen=True, eq=False)
class CoupledSamples:
    """Energies of the end states along chains at several λ.

    Parameters
    ----------
    start, end : (T, B) U_A and U_B in eV of B chains; NaN where a calculator failed
    lam : (T, B), where each was sampled; a chain may stay at one λ or visit several
    kT : thermal energy in eV, of all of them
    soft : E of the soft core in eV; None: linear
    states : (K,) increasing λ to estimate for; default those that were sampled

    Raises
    ------
    ValueError : shapes that differ, λ outside [0, 1], temperatures that differ, one state only, a
        λ that is none of the states
    """

    start: np.ndarray
    end: np.ndarray
    lam: np.ndarray
    kT: float
    soft: float | None = None
    states: np.ndarray | None = None

    def __post_init__(self):
        arrays = [np.asarray(v, dtype=float) for v in (self.start, self.end, self.lam)]
        if arrays[0].ndim != 2 or len({a.shape for a in arrays}) > 1:
            raise ValueError(
                f"energies {arrays[0].shape} and {arrays[1].shape} and λ {arrays[2].shape}: "
                "expected (T, B) of each, time first and chains second"
            )
        if np.ndim(self.kT) or not self.kT > 0:
            raise ValueError(
                f"kT={self.kT}: expected one thermal energy in eV; free energies at temperatures "
                "that differ are not compared here"
            )
        states = np.unique(arrays[2]) if self.states is None else np.asarray(self.states, float)
        check_lambda(states)
        if len(states) < 2 or not (np.diff(states) > 0).all():
            raise ValueError(f"states {states}: expected at least two λ, increasing")
        near = states[np.abs(arrays[2][..., None] - states).argmin(-1)]
        if not np.allclose(near, arrays[2], atol=1e-9, rtol=0):
            wrong = float(arrays[2].flat[np.abs(near - arrays[2]).argmax()])
            raise ValueError(f"a sample at λ = {wrong} is at none of the states {states}")
        for name, value in zip(("start", "end", "lam"), (arrays[0], arrays[1], near), strict=True):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "states", states)

    @property
    def slopes(self) -> np.ndarray:
        """(T, B) ``(∂U/∂λ)/kT`` at the λ of each sample."""
        a, b, lam = (torch.from_numpy(v) for v in (self.start, self.end, self.lam))
        return coupled_slope(a, b, lam, self.soft).numpy() / self.kT

    @property
    def inefficiency(self) -> np.ndarray:
        """(K,) statistical inefficiency of ∂U/∂λ in each state, in frames.

        Where chains change their state it is one for all, that of ∂U/∂λ less its mean in the state
        of each sample: how often states are visited is no error of ΔF.
        """
        slopes, whole = self.slopes, self._of_state
        if whole is None:
            for state in self.states:
                here = (self.lam == state) & np.isfinite(slopes)
                slopes[here] -= slopes[here].mean() if here.any() else 0.0
            slopes = np.nan_to_num(slopes, nan=0.0)
            return np.full(len(self.states), statistical_inefficiency(slopes))
        slopes = np.nan_to_num(slopes, nan=0.0)
        return np.array([statistical_inefficiency(slopes[:, rows]) for rows in whole])

    @property
    def offset(self) -> float:
        """The median of U_B - U_A in eV where the coupling is linear, else 0.

        Energies of two programs differ by a constant c of any size; a linear F(λ) has λc from it.
        """
        if self.soft is not None:
            return 0.0
        return float(np.nanmedian(self.end - self.start))

    def centred(self) -> CoupledSamples:
        """The same without the `offset` of B."""
        end = self.end - self.offset
        return CoupledSamples(self.start, end, self.lam, self.kT, self.soft, self.states)

    def after(self, fraction: float) -> CoupledSamples:
        """Those after the first ``fraction`` of the frames."""
        first = int(fraction * len(self.lam))
        start, end, lam = (v[first:] for v in (self.start, self.end, self.lam))
        return CoupledSamples(start, end, lam, self.kT, self.soft, self.states)

    def u_nk(self, *, decorrelated: bool = True) -> list:
        """alchemlyb's ``u_nk``, one frame for each state: (N_k, K) reduced energies.

        Counted from that of the state a sample is of. The index is ``time`` (frames) and
        ``fep-lambda``.
        """
        return [self._frame(k, keep, all_states=True) for k, keep in self._kept(decorrelated)]

    def dhdl(self, *, decorrelated: bool = True) -> list:
        """alchemlyb's ``dHdl``, one frame for each state: (N_k, 1) ``(∂U/∂λ)/kT``."""
        return [self._frame(k, keep, all_states=False) for k, keep in self._kept(decorrelated)]

    def write(self, prefix: str | Path) -> list[Path]:
        """The decorrelated frames as ``PREFIX.u_nk.parquet`` and ``PREFIX.dHdl.parquet``.

        ``alchemlyb.parsing.parquet`` reads them.
        """
        alchemlyb, files = quiet_alchemlyb(), []
        for name, frames in (("u_nk", self.u_nk()), ("dHdl", self.dhdl())):
            path = Path(f"{prefix}.{name}.parquet")
            with replacing(path) as part:
                alchemlyb.concat(frames).to_parquet(part)
            files.append(path)
        return files

    @property
    def _of_state(self) -> list[np.ndarray] | None:
        """The chains (rows) of each state, if each stays in one; else None."""
        if (self.lam != self.lam[:1]).any():
            return None
        rows = [np.flatnonzero(self.lam[0] == state) for state in self.states]
        for state, own in zip(self.states, rows, strict=True):
            if not len(own):
                raise ValueError(_NONE.format(state))
        return rows

    def _kept(self, decorrelated: bool):
        """(k, mask (T, B)) of each state: its samples, every g-th frame of a chain."""
        fine = np.isfinite(self.start) & np.isfinite(self.end)
        strides = self.inefficiency if decorrelated else np.ones(len(self.states))
        for k, (state, g) in enumerate(zip(self.states, strides, strict=True)):
            frames = np.unique(np.arange(0, len(self.lam), g).round().astype(int))
            every = np.zeros(len(self.lam), bool)
            every[frames[frames < len(self.lam)]] = True
            keep = fine & every[:, None] & (self.lam == state)
            if not keep.any():
                raise ValueError(_NONE.format(state))
            yield k, keep

    def _frame(self, k: int, keep: np.ndarray, *, all_states: bool):
        quiet_alchemlyb()
        import pandas

        time, chain = np.nonzero(keep)
        # unique, and in the order in which they were sampled
        index = pandas.MultiIndex.from_arrays(
            [time + chain / keep.shape[1], np.full(len(time), self.states[k])],
            names=["time", "fep-lambda"],
        )
        if all_states:
            a, b = (torch.from_numpy(v[keep])[:, None] for v in (self.start, self.end))
            energies = coupled_energy(a, b, torch.from_numpy(self.states), self.soft).numpy()
            reduced = (energies - energies[:, k : k + 1]) / self.kT
            values = np.clip(reduced, -_LARGEST, _LARGEST)
            frame = pandas.DataFrame(values, index=index, columns=self.states.tolist())
        else:
            frame = pandas.DataFrame({"fep": self.slopes[keep]}, index=index)
        frame.attrs = {"temperature": self.kT / kB, "energy_unit": "kT"}
        return frame


def gathered(parts: list[CoupledSamples]) -> CoupledSamples:
    """Samples of several runs of one coupling, as further chains.

    Raises ``ValueError`` for temperatures, soft cores or lengths that differ.
    """
    first = parts[0]
    for part in parts[1:]:
        if not np.isclose(part.kT, first.kT) or part.soft != first.soft:
            raise ValueError(
                f"kT={part.kT} eV, soft={part.soft} after kT={first.kT} eV, soft={first.soft}: "
                "samples at temperatures, or of couplings, that differ cannot be put together"
            )
    start, end, lam = (
        np.concatenate([getattr(p, n) for p in parts], 1) for n in ("start", "end", "lam")
    )
    return CoupledSamples(start, end, lam, first.kT, first.soft)
