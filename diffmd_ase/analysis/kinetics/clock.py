"""Which trajectories have a clock: time correlations of others mean nothing, and are refused."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from ...io.trajectory import Trajectory

__all__ = ["Clock", "clock_of"]

_WARN, _REFUSE = 0.99, 0.95  # accepted fractions


@dataclass(frozen=True)
class Clock:
    """The time axis of a trajectory's frames."""

    spacing: float  # between two frames, in ``unit``
    unit: str  # "fs" where a friction set the clock, else "Å²" of D·t


def clock_of(trajectory: Trajectory, *, force: bool = False) -> Clock:
    """The clock of the frames of a ``trajectory``, if time correlations may be computed.

    Plain steps have one. Steps accepted one by one have it approximately, since a rejection waits:
    below 99 % acceptance that is a warning, below 95 % an error. Biased, exchanged, delayed or
    Hamiltonian moves have none.

    Parameters
    ----------
    force : take accepted steps below 95 % with a warning

    Raises
    ------
    ValueError : no clock, fewer than two frames, frames that are not evenly spaced
    """
    info, extra = trajectory.info, trajectory.info.extra
    if not info.kinetics_valid:
        if extra.get("target") is None or extra.get("plumed") is not None:
            raise ValueError(
                f"{trajectory.path}: a run that is biased, exchanged or made of other moves than "
                "plain steps has no clock; time correlations need one without them"
            )
        _check_accepted(trajectory, int(extra.get("proposal-steps", 1)), force)
    gaps = np.unique(np.diff(trajectory.steps))
    if len(gaps) != 1:
        raise ValueError(
            f"{trajectory.path}: frames {gaps.tolist()} steps apart; expected two or more frames, "
            "evenly spaced"
        )
    gap = float(gaps[0])
    if info.timestep_fs is not None:
        return Clock(gap * info.timestep_fs, "fs")
    return Clock(gap * info.h, "Å²")


def _check_accepted(trajectory: Trajectory, proposal_steps: int, force: bool) -> None:
    series = trajectory.columns.get("acceptance")
    accepted = float(np.nanmean(series)) if series is not None and len(series) else float("nan")
    path = trajectory.path
    if proposal_steps != 1:
        raise ValueError(f"{path}: proposals of {proposal_steps} steps have no clock")
    if not accepted >= _WARN:
        words = (
            f"{path}: {accepted:.1%} of the steps were accepted, and a rejection stops the clock"
        )
        if not accepted >= _REFUSE and not force:
            raise ValueError(f"{words}: below {_REFUSE:.0%} use a smaller step, or force=True")
        warnings.warn(f"{words}: times are too long by about that", stacklevel=3)
