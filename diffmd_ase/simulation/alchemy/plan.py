"""The first pass: where windows go, what the step is, and where walkers start."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ...io.atomic import replacing
from ...noise import Noise
from ...sampling.adaptation import adapt
from ...sampling.expanded import ExpandedEnsemble, sams
from ...sampling.kernels import Kernel
from ...sampling.lambda_ladder import equalised_lambda, path_length
from ...sampling.metropolis import Metropolis
from ...sampling.run import run
from ...sampling.step_size import DEFAULT_H_LAMBDA
from ...state import State
from .end_states import CoupledKernels

__all__ = ["Plan", "expanded", "first_pass", "with_weights"]

_WINDOWS = 8  # of the first pass
_EVERY = 5


@dataclass(frozen=True, eq=False)
class Plan:
    """What a first pass found. Nothing of it is in any estimate."""

    lambdas: np.ndarray  # (K,) of the windows
    x: np.ndarray  # (K, N, 3) where their walkers start, Å
    factor: float  # of the step h
    grid: np.ndarray  # (G,) λ of the first pass
    deviation: np.ndarray  # (G,) of (∂U/∂λ)/kT there
    slope: np.ndarray  # (G,) its mean
    evaluations: int  # of each end state
    weights: np.ndarray  # (K,) g of an expanded ensemble, in kT
    asked: str = "{}"  # the settings that it was made for, as JSON

    @property
    def length(self) -> float:
        """Of the path, in kT."""
        return float(path_length(self.grid, self.deviation)[-1])

    def schedule(self, n: int) -> torch.Tensor:
        """(n,) λ at equal parts of the path."""
        return torch.as_tensor(equalised_lambda(self.grid, self.deviation, n))

    def save(self, path: Path) -> None:
        """To ``path``, whole or not at all."""
        with replacing(path) as part, open(part, "wb") as file:
            np.savez(file, **vars(self))

    @classmethod
    def load(cls, path: Path) -> Plan:
        """From ``path``."""
        with np.load(path, allow_pickle=False) as file:
            values = {name: file[name] for name in cls.__dataclass_fields__}
        values |= {"factor": float(values["factor"]), "evaluations": int(values["evaluations"])}
        values["asked"] = str(values["asked"])
        return cls(**values)


def first_pass(kernels: CoupledKernels, n_windows: int, n_steps: int, *, noise: Noise) -> Plan:
    """``n_steps`` steps at equal λ: half find the step, half measure ∂U/∂λ.

    Parameters
    ----------
    n_windows : K of the plan, 0: one for each kT of the path
    """
    grid = torch.linspace(0.0, 1.0, max(_WINDOWS, n_windows), dtype=torch.float64)
    kernel: Kernel = kernels.kernel(grid)
    state = kernel.init(_warm(kernels, grid, noise))
    half, factor = n_steps // 2, 1.0
    if isinstance(kernel, Metropolis):
        kernel, state, found = adapt(kernel, state, half, noise=noise)
        factor = found.factor
    else:
        state = _after(kernel, state, half, noise)
    coupling = kernels.coupling.at(grid)
    slopes = []
    x = state.x
    for later, _ in run(kernel, state, max(half, 2 * _EVERY), noise=noise, every=_EVERY):
        x = later.x
        slopes.append(coupling.dudl(x).cpu().numpy() / kernels.kT)
    deviation = np.nanstd(slopes, axis=0)
    if not deviation.max() > 0:
        raise ValueError(
            "∂U/∂λ is the same everywhere: the end states differ by a constant, or are one"
        )
    lambdas = equalised_lambda(grid, deviation, n_windows or None)
    near = np.abs(grid.numpy()[None] - lambdas[:, None]).argmin(-1)
    slope = np.nanmean(slopes, axis=0)
    steps = np.diff(grid.numpy()) * 0.5 * (slope[1:] + slope[:-1])
    profile = np.concatenate(([0.0], np.cumsum(steps)))
    return Plan(
        lambdas=lambdas,
        x=x.cpu().numpy()[near],
        factor=factor,
        grid=grid.numpy(),
        deviation=deviation,
        slope=slope,
        evaluations=len(grid) * (n_steps + len(slopes)),
        weights=np.interp(lambdas, grid.numpy(), profile),
    )


def with_weights(
    kernels: CoupledKernels, plan: Plan, walkers: int, n_steps: int, every: int, *, noise: Noise
) -> Plan:
    """``plan`` with the weights that ``n_steps`` steps of SAMS find, with a draw ``every`` so many.

    There are ``walkers`` for each window.
    """
    ensemble = expanded(kernels, plan, every)
    K = len(plan.lambdas)
    state = ensemble.init(torch.as_tensor(plan.x).repeat(walkers, 1, 1))
    found, state = sams(ensemble, state, n_steps, noise=noise)
    values = vars(plan) | {"weights": found.weights.cpu().numpy(), "x": state.x[:K].cpu().numpy()}
    values["evaluations"] += walkers * K * (n_steps + n_steps // every)
    return Plan(**values)


def expanded(kernels: CoupledKernels, plan: Plan, every: int) -> ExpandedEnsemble:
    """The expanded ensemble of ``plan``, weights frozen, with a draw ``every`` so many steps."""
    lambdas = torch.as_tensor(plan.lambdas)
    return ExpandedEnsemble(
        kernels.kernel(torch.tensor(0.0)),
        lambdas,
        torch.as_tensor(plan.weights),
        h=plan.factor * kernels.steps(lambdas),
        every=every,
    )


def _warm(kernels: CoupledKernels, grid: torch.Tensor, noise: Noise) -> torch.Tensor:
    """(G, N, 3): the structure, moved as far as the stiffest mode moves at the temperature.

    ``x + sqrt(kT/λ) ξ = x + sqrt(h/0.2) ξ``. At a minimum every Metropolis step of a size that
    suits the law goes up by ½ (hλ)² for each mode, so that a crystal would stay there for ever.
    """
    x = kernels.x.expand(len(grid), -1, -1).clone()
    proposal = kernels.kernel(grid)
    proposal = proposal.proposal if isinstance(proposal, Metropolis) else proposal
    kick = proposal.kick_of(noise.normal(0, x, stream="probe"))
    return x + kick / (2.0 * DEFAULT_H_LAMBDA) ** 0.5


def _after(kernel: Kernel, state: State, n_steps: int, noise: Noise) -> State:
    [(last, _)] = run(kernel, state, n_steps, noise=noise, every=n_steps)
    return last
