"""The protocols: what is simulated, between the plan and the estimate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats

from ...analysis.alchemy.samples import CoupledSamples
from ...analysis.statistics import Estimate
from ...independent.from_noise import Annealed, anneal_from_noise, noise_levels
from ...independent.smc import smc
from ...independent.switching import switch
from ...independent.weights import Weighted
from ...io.atomic import replacing
from ...io.run_info import RunInfo
from ...io.trajectory import Trajectory
from ...noise import Noise
from ...potentials.base import unwrapped
from ...potentials.learned import ScorePotential
from ...sampling.exchange import ReplicaExchange
from ...sampling.kernels import Kernel
from ..simulate import simulate
from .end_states import CoupledKernels
from .plan import Plan, expanded
from .settings import AlchemyFiles, AlchemySettings

__all__ = [
    "PARTICLES",
    "Switches",
    "annealed",
    "from_diffusion",
    "of_populations",
    "sampled",
    "switched",
]

_BLOCKS = 16  # sets of switches at most
PARTICLES = 64  # of one population at most

Report = Callable[[str, float], None]


@dataclass(frozen=True, eq=False)
class Switches:
    """Works (n,) in kT of both directions, ``forward`` and ``backward``."""

    forward: np.ndarray
    backward: np.ndarray


def sampled(
    settings: AlchemySettings,
    kernels: CoupledKernels,
    plan: Plan,
    files: AlchemyFiles,
    report: Report,
    *,
    ends: bool = False,
) -> tuple[CoupledSamples, Trajectory]:
    """The run at fixed, exchanged or drawn λ (``ends``: at 0 and 1 only), gone on with if begun.

    Returns its samples of the whole run, and the trajectory.
    """
    lambdas = np.array([0.0, 1.0]) if ends else plan.lambdas
    K = len(lambdas)
    rows = torch.as_tensor(lambdas).repeat(settings.walkers)
    x = torch.as_tensor(plan.x[[0, -1]] if ends else plan.x).repeat(settings.walkers, 1, 1)
    kernel: Kernel = kernels.kernel(rows, factor=plan.factor)
    if settings.protocol == "exchange" and not ends:
        kernel = ReplicaExchange(kernel, K, every=settings.every)
    if settings.protocol == "expanded" and not ends:
        kernel = expanded(kernels, plan, settings.every)
    info = RunInfo(
        seed=settings.seed,
        kT=kernels.kT,
        h=float(plan.factor * kernels.steps(torch.as_tensor(lambdas)).max()),
        kinetics_valid=False,
        extra={"lambdas": lambdas.tolist(), "soft_core": settings.soft_core}
        | {"start": settings.start, "end": settings.end, "protocol": settings.protocol},
    )
    begun = files.run.restart.exists()
    simulate(
        kernel,
        kernels.system,
        None if begun else x,
        settings.steps,
        files=files.run,
        info=info,
        every=settings.every,
        restart=begun,
        progress=lambda step, alive: report("sampling", step / settings.steps),
    )
    trajectory = Trajectory(files.run.trajectory)
    columns = {name: np.asarray(trajectory.columns[name]) for name in _COLUMNS}
    lam = columns["lambda"]
    kept = np.isfinite(lam).all(0)  # walkers that were lost are in no estimate
    samples = CoupledSamples(
        columns["energy_start"][:, kept],
        columns["energy_end"][:, kept],
        lam[:, kept],
        kernels.kT,
        kernels.coupling.soft,
        lambdas,
    )
    return samples, trajectory


_COLUMNS = "lambda", "energy_start", "energy_end"


def switched(
    settings: AlchemySettings,
    kernels: CoupledKernels,
    plan: Plan,
    files: AlchemyFiles,
    report: Report,
) -> Switches:
    """Switches from frames at both ends, set after set; those on disk are not made again."""
    starts, M = _independent(settings, kernels, plan, files, report), settings.walkers
    path = [
        kernels.kernel(lam, factor=plan.factor) for lam in plan.schedule(settings.switch_steps + 1)
    ]
    works = np.empty((0, 2, M))
    if files.works.exists():
        with np.load(files.works, allow_pickle=False) as file:
            works = file["works"]
    noise = Noise(settings.seed).child(1)
    count = min(_BLOCKS, starts.shape[1])
    chosen = np.linspace(0, starts.shape[1] - 1, count).round().astype(int)
    for block in range(len(works), count):
        report("switching", block / count)
        both = []
        for way in (0, 1):
            x = torch.as_tensor(starts[way, chosen[block]])
            ids = torch.arange(M) + (2 * block + way) * M
            kinds = path[:: -1 if way else 1]
            both.append(switch(kinds, x, noise=noise, walkers=ids)[0].cpu().numpy())
        works = np.concatenate((works, np.array(both)[None]))
        with replacing(files.works) as part, open(part, "wb") as file:
            np.savez(file, works=works)
    report("switching", 1.0)
    return Switches(works[:, 0].ravel(), works[:, 1].ravel())


def annealed(
    settings: AlchemySettings,
    kernels: CoupledKernels,
    plan: Plan,
    files: AlchemyFiles,
    report: Report,
) -> Estimate:
    """ΔF in kT by annealed SMC from frames at λ = 0; each walker is a population of its own."""
    starts = _independent(settings, kernels, plan, files, report)[0]
    count = min(PARTICLES, len(starts))
    chosen = np.linspace(0, len(starts) - 1, count).round().astype(int)
    x = torch.as_tensor(starts[chosen].swapaxes(0, 1).reshape(-1, *starts.shape[-2:]))
    path = [
        kernels.kernel(lam, factor=plan.factor) for lam in plan.schedule(settings.switch_steps + 1)
    ]
    report("annealing", 0.0)
    weighted = smc(path, x, noise=Noise(settings.seed).child(2), populations=settings.walkers)
    report("annealing", 1.0)
    return of_populations(weighted, settings.walkers)


def of_populations(weighted: Weighted, populations: int) -> Estimate:
    """ΔF in kT of ``weighted`` samples in independent ``populations``, their `groups`.

    Few of them know their own spread badly: the error is that of the mean times
    ``t_0.975(M-1)/1.96``, so that 1.96 errors are an interval of 95 %.
    """
    value, error = weighted.log_z
    return Estimate(-value, error * _few(populations), float(weighted.ess * len(weighted.x)))


def from_diffusion(
    settings: AlchemySettings, kernels: CoupledKernels, plan: Plan, report: Report
) -> tuple[Estimate, Annealed]:
    """ΔF in kT from independent draws of noise: down the levels of the model A, and on to B.

    Each of ``settings.walkers`` populations has 64 particles, ``settings.steps`` is the number of
    noise levels. Also what the annealing found.

    Raises ``ValueError`` where A is no model of an isolated molecule.
    """
    start = unwrapped(kernels.coupling.inner.potentials[0])
    if not isinstance(start, ScorePotential) or kernels.system.periodic:
        raise ValueError(
            "--protocol diffusion begins with noise and goes down the levels of a learned model: A "
            f"must be one, of an isolated molecule, not {type(start).__name__}; take smc"
        )
    levels = noise_levels(start.model, settings.steps, kT=kernels.kT, device=settings.device)
    path = plan.schedule(settings.switch_steps + 1)[1:]
    M, covariance = settings.walkers, np.diag(start.model.card.covariance)
    found = anneal_from_noise(
        levels,
        kernels.x.expand(M * PARTICLES, -1, -1),
        variance=float(covariance.mean()) + start.model.card.sigma_max**2,
        noise=Noise(settings.seed).child(2),
        beyond=[kernels.kernel(lam, factor=plan.factor) for lam in path],
        mean_free=True,
        populations=M,
        progress=lambda done: report("annealing", done),
    )
    value, error = found.difference
    count = float(found.samples.ess * M * PARTICLES)
    return Estimate(value, error * _few(found.populations), count), found


def _few(populations: float) -> float:
    return float(stats.t.ppf(0.975, max(populations - 1.0, 1.0)) / stats.norm.ppf(0.975))


def _independent(settings, kernels, plan, files, report) -> np.ndarray:
    """(2, n, M, N, 3) frames of both ends, uncorrelated in time."""
    samples, trajectory = sampled(settings, kernels, plan, files, report, ends=True)
    first = int(settings.skip * len(samples.lam))
    stride = int(np.ceil(samples.after(settings.skip).inefficiency.max()))
    positions: np.ndarray = np.asarray(trajectory.positions[:], dtype=float)[first::stride]
    if not np.isfinite(positions).all() or positions.shape[1] != 2 * settings.walkers:
        raise ValueError(
            "walkers were lost: switches start from all of them; take a smaller step, or leave "
            "--plain out"
        )
    return positions.reshape(len(positions), settings.walkers, 2, *positions.shape[2:]).transpose(
        2, 0, 1, 3, 4
    )
