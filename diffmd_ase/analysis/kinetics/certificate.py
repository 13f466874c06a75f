"""How far trajectories of a model can be from those of a reference, in parts.

`equilibrium`: averages, from energies. `path_error`: what a step adds, of the score and of the
step itself. From both follow the lag up to which time correlations are certified,

    KL(x(0), x(t)) ≤ KL_eq + r t        r = ¼ E|ŝ - s|² per unit of D·t

with observables of [0, 1] within sqrt(KL/2) of the reference's chain at the same step (Pinsker),
and a bound on long averages that does not grow with the run (`Certificate.long_average`). A
bound over a whole run certifies nothing, since it grows with the run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...noise import Noise
from ...potentials.base import Potential, evaluate
from ...potentials.named import Source, find_potential
from ...sampling.euler import EulerMaruyama
from ...sampling.kernels import Kernel
from ...sampling.metropolis import Metropolis
from ...sampling.run import advance
from ...state import State
from ..statistics import Estimate, mean_estimate
from .equilibrium import Equilibrium, Shift, compare_energies
from .path_error import PathErrors, StepErrors, lipschitz, path_errors, step_errors

__all__ = ["Certificate", "certify", "certify_frames"]

_SETTLING = 5  # 1/5 of an accepted chain is left out at first
_STRUCTURES = 64  # that a Lipschitz constant is measured on, at most


@dataclass(frozen=True, eq=False)
class Certificate:
    """What is known of the error of a model's trajectories; nats are those of ``n_steps`` steps.

    Made by `certify` and `certify_frames`. Path parts are None of kernels other than plain steps,
    the equilibrium part where drift or reference has no energy.
    """

    n_steps: int  # that nats are of
    path: PathErrors | None  # averages of one step
    equilibrium: Equilibrium | None  # against the reference's, from energies
    log_alpha: Estimate | None  # -⟨log α⟩ of all proposals: KL of a step from its reverse, nats
    samples: np.ndarray | None = None  # (T, W, N, 3) Å, those of the equilibrium part

    @property
    def score_kl(self) -> Estimate | None:
        """KL of the chain from the reference's chain at the same step and start: exact, averaged.

        ``Σ_n ¼ E (ŝ - s)ᵀ M (ŝ - s)``, at the positions of the model's chain.
        """
        return None if self.path is None else _times(self.path.score, self.n_steps)

    @property
    def discretisation_kl(self) -> Estimate | None:
        """The step's own part along the chain: exact, averaged; see `path_error`."""
        return None if self.path is None else _times(self.path.discretisation, self.n_steps)

    @property
    def discretisation_bound(self) -> Estimate | None:
        """A bound on it by the Lipschitz constant on the visited support."""
        return None if self.path is None else _times(self.path.bound, self.n_steps)

    @property
    def path_kl(self) -> Estimate | None:
        """KL of the chain from the reference's diffusion: exact (Girsanov), averaged."""
        return None if self.path is None else _times(self.path.together, self.n_steps)

    @property
    def total(self) -> Estimate | None:
        """``(sqrt(score) + sqrt(discretisation))²`` ≥ `path_kl`, `split_bound` at its best ε."""
        if self.score_kl is None or self.discretisation_kl is None:
            return None
        a, b = self.score_kl, self.discretisation_kl
        return _of_roots(a, b)

    def split_bound(self, epsilon: float) -> float:
        """``(1 + ε) score + (1 + 1/ε) discretisation`` in nats, for ``epsilon`` > 0.

        Raises ``ValueError`` for another one, and without path parts.
        """
        if not epsilon > 0:
            raise ValueError(f"{epsilon=} must be positive")
        score, discretisation = self._path.score, self._path.discretisation
        once = (1 + epsilon) * score.value + (1 + 1 / epsilon) * discretisation.value
        return self.n_steps * once

    def certified_lag(self, tolerance: float, *, sigmas: float = 0.0) -> float:
        """Lag in Å² of D·t with ``KL_eq + r t = 2 tolerance²``; 0 where nothing is certified.

        Up to there the average of any f(x(0), x(t)) in [0, 1] of the chain that starts in the
        model's equilibrium is within ``tolerance`` of that of the reference's chain at the same
        step, from its own equilibrium.

        Parameters
        ----------
        tolerance : in (0, 1)
        sigmas : standard errors added to KL_eq and r first

        Raises
        ------
        ValueError : another tolerance; no path or no equilibrium part
        """
        if not 0 < tolerance < 1:
            raise ValueError(f"{tolerance=} must lie in (0, 1): it is a difference of averages")
        if self.equilibrium is None:
            raise ValueError("no equilibrium part: KL_eq is not known, and no lag is certified")
        kl, rate = (e.value + sigmas * e.error for e in (self.equilibrium.kl, self._path.rate))
        left = 2 * tolerance**2 - kl
        if not left > 0:
            return 0.0
        return left / rate if rate > 0 else math.inf

    def long_average(self, gap: float, *, sup: float = math.inf) -> float:
        """A bound on the error of long time averages, in units of σ_f under the reference.

            2 sqrt(η/γ) + m η/γ        η = total/(n_steps h), m = sup|f - ⟨f⟩|/σ_f

        It does not grow with the run (from Birrell & Rey-Bellet, arXiv 1812.05174, with
        the principal eigenvalue bounded by the Poincaré inequality, Lezaud, 2001). Conditional on
        the spectral gap of the reference's diffusion, which no trajectory proves.

        Parameters
        ----------
        gap : γ in 1/Å², the inverse of the slowest time of the reference in D·t
        sup : m; infinite only for the averages of Gaussian laws, where m does not enter

        Raises
        ------
        ValueError : a gap that is not positive, no path parts
        """
        if not gap > 0:
            raise ValueError(f"{gap=} must be positive (1/Å²): the inverse of the slowest time")
        eta = _of_roots(self._path.score, self._path.discretisation).value / self._path.h
        return 2 * math.sqrt(eta / gap) + (sup * eta / gap if math.isfinite(sup) else 0.0)

    def average(self, values: Callable[[np.ndarray], np.ndarray]) -> Shift:
        """What the model's error does to the average of an observable: `Equilibrium.shift`.

        ``values`` of positions (T, W, N, 3) in Å gives (T, W). Raises ``ValueError`` without an
        equilibrium part.
        """
        if self.equilibrium is None or self.samples is None:
            raise ValueError("no equilibrium part: the model or the reference has no energy")
        return self.equilibrium.shift(values(self.samples))

    @property
    def _path(self) -> PathErrors:
        if self.path is None:
            raise ValueError(
                "no path part: it is defined for plain Euler–Maruyama steps, whose path densities "
                "are known; certify that kernel"
            )
        return self.path

    def statement(self, tolerance: float = 0.1) -> str:
        """The certificate in words; ``tolerance`` is that of the lag."""
        from .statement import statement

        return statement(self, tolerance)

    def to_dict(self, tolerance: float = 0.1) -> dict:
        """Numbers by name, as JSON holds them; ``tolerance`` is that of the lag."""
        from .statement import facts

        return facts(self, tolerance)


def certify(
    kernel: Kernel,
    x: Tensor,
    reference: Source,
    *,
    n_steps: int,
    noise: Noise,
    every: int = 1,
) -> Certificate:
    """Run ``kernel`` and compare it with a reference on the way.

    Of a plain Euler–Maruyama kernel the path parts are of its own chain, the equilibrium part of
    a second one, of the same steps accepted to the model's energy (plain steps do not sample it).
    Of an exact kernel its own chain gives the equilibrium part, and there are no others.

    Parameters
    ----------
    kernel : with one kT, and of each atom at most one h
    x : start (N, 3) or (B, N, 3) in Å; averages are from there on
    reference : a `Potential`, or what `potentials.named.find_potential` knows
    n_steps : of the chain
    every : steps between evaluations of the reference

    Raises
    ------
    ValueError : a biased kernel, one that is neither plain nor exact, walkers with hyper-parameters
        of their own, ``n_steps`` or ``every`` below 1
    """
    if n_steps < 1 or every < 1:
        raise ValueError(f"{n_steps=} and {every=} must be at least 1")
    true = _checked(kernel, reference)
    x = x.double()
    path = None
    chain: Kernel = kernel
    if isinstance(kernel, EulerMaruyama):
        steps = list(_path_steps(kernel, x, true, n_steps, every, noise))
        path = _averaged(kernel, true, [e for e, _ in steps], [s for _, s in steps])
        if not (kernel.potential.conservative and true.conservative):
            return Certificate(n_steps, path, None, None)
        chain, noise = Metropolis(kernel), noise.child("corrected")
    if not true.conservative:
        raise ValueError("the reference has no energy, and of this kernel nothing else is compared")
    samples, log_ratios = _accepted(chain, x, n_steps, every, noise)
    return _certificate(n_steps, path, chain, true, samples, log_ratios)


def certify_frames(
    kernel: EulerMaruyama,
    x: Tensor,
    reference: Source,
    *,
    n_steps: int,
    noise: Noise,
    accepted: bool = False,
    settle: int = 100,
) -> Certificate:
    """`certify` on frames that are there, those of a run of ``kernel``.

    Parameters
    ----------
    x : (T, W, N, 3) in Å, time first
    reference : a `Potential`, or what `potentials.named.find_potential` knows
    n_steps : of the run that is certified, whose steps have the averages of the frames
    accepted : the frames are of steps accepted to the model's energy: the equilibrium part is of
        them; else each is followed by ``settle`` accepted steps, which remove the error of plain
        ones from all that relaxes in that time

    Raises ``ValueError`` as `certify`, and for frames of another shape.
    """
    true = _checked(kernel, reference)
    if x.ndim != 4 or not x.shape[0] * x.shape[1]:
        raise ValueError(f"frames {tuple(x.shape)}: expected (T, W, N, 3), time first")
    x = x.double()
    errors, states = [], []
    for number, frame in enumerate(x):
        state = State(frame, None, evaluate(kernel.potential.terms, frame).forces, number)
        errors.append(_errors_at(kernel, state, true, noise))
        states.append(state)
    path = _averaged(kernel, true, errors, states)
    if not (kernel.potential.conservative and true.conservative):
        return Certificate(n_steps, path, None, None)
    chain, noise = Metropolis(kernel), noise.child("corrected")
    samples, log_ratios = [], []
    for frame in x:
        state = chain.init(frame)
        for _ in range(1 if accepted else settle):
            new, info = advance(chain, state, noise)
            log_ratios.append(info.log_ratio)
            state = state if accepted else new
        samples.append(state)
    return _certificate(n_steps, path, chain, true, samples, log_ratios)


def _checked(kernel: Kernel, reference: Source) -> Potential:
    """The reference's potential, if this kernel can be compared with one."""
    if kernel.potential.has_memory:
        raise ValueError("a biased kernel has another law than its model: certify the plain one")
    if not (isinstance(kernel, EulerMaruyama) or kernel.exact):
        raise ValueError(
            f"{type(kernel).__name__} is neither a plain Euler–Maruyama kernel, whose paths have a "
            "density, nor exact, so that its samples have one: certify one of these"
        )
    if torch.as_tensor(kernel.kT).ndim or kernel.potential.per_walker:
        raise ValueError("walkers with temperatures of their own: certify one temperature at once")
    if isinstance(kernel, EulerMaruyama) and torch.as_tensor(kernel.h).ndim > 1:
        raise ValueError("walkers with steps of their own: certify one step at once")
    if isinstance(reference, Potential):
        return reference
    system = kernel.potential.system
    if system is None:
        raise ValueError(
            f"reference {reference!r} for a potential without a system: give a Potential"
        )
    return find_potential(reference, system, role="reference", needs_energy=False)


def _errors_at(kernel: EulerMaruyama, state: State, true: Potential, noise: Noise) -> StepErrors:
    return step_errors(
        kernel, state.x, state.forces, true, step=state.step, walkers=state.walkers, noise=noise
    )


def _path_steps(
    kernel: EulerMaruyama, x: Tensor, true: Potential, n_steps: int, every: int, noise: Noise
) -> Iterator[tuple[StepErrors, State]]:
    """The errors of every ``every``-th step of the chain from x, and where it stood."""
    state = kernel.init(x)
    for n in range(n_steps):
        if n % every == 0:
            yield _errors_at(kernel, state, true, noise), state
        if n + every - n % every < n_steps:  # none looks at what comes after the last one
            state, _ = advance(kernel, state, noise)


def _averaged(
    kernel: EulerMaruyama, true: Potential, errors: list[StepErrors], states: list[State]
) -> PathErrors:
    n_atoms = states[0].x.shape[-2]
    seen = torch.cat([s.x.reshape(-1, n_atoms, 3) for s in states])
    few = seen[torch.linspace(0, len(seen) - 1, min(len(seen), _STRUCTURES)).round().long()]
    parts = zip(*(vars(e).values() for e in errors), strict=True)
    series = StepErrors(*(torch.stack(part).reshape(len(errors), -1) for part in parts))
    stiffness = lipschitz(kernel, true, few)
    return path_errors(kernel, series, n_atoms=n_atoms, stiffness=stiffness)


def _accepted(
    chain: Kernel, x: Tensor, n_steps: int, every: int, noise: Noise
) -> tuple[list[State], list[Tensor | None]]:
    """Every ``every``-th state of an exact ``chain`` from x, once settled, and log α on the way."""
    state, samples, log_ratios = chain.init(x), [], []
    for n in range(n_steps):
        state, info = advance(chain, state, noise)
        if n < n_steps // _SETTLING:
            continue
        log_ratios.append(info.log_ratio)
        if (n + 1) % every == 0 or n + 1 == n_steps:
            samples.append(state)
    return samples, log_ratios


def _certificate(
    n_steps: int,
    path: PathErrors | None,
    chain: Kernel,
    true: Potential,
    samples: list[State],
    log_ratios: list[Tensor | None],
) -> Certificate:
    """With the equilibrium part of ``samples`` of an exact ``chain``."""
    model = _series([state.energy for state in samples])
    reference = _series([evaluate(true.terms, state.x).energy for state in samples])
    kT = float(chain.kT)
    x = np.array([state.x.cpu().numpy() for state in samples])
    return Certificate(
        n_steps,
        path,
        compare_energies(model / kT, reference / kT),
        _irreversibility([ratio for ratio in log_ratios if ratio is not None]),
        x.reshape(*model.shape, *x.shape[-2:]),
    )


def _series(values: list[Tensor | None]) -> np.ndarray:
    """(T, W) of numbers of each state, one or (W,)."""
    return np.array(
        [v.detach().cpu().double().reshape(-1).numpy() for v in values if v is not None]
    )


def _irreversibility(log_ratios: list[Tensor]) -> Estimate | None:
    if not log_ratios:
        return None
    series = -torch.stack(log_ratios).reshape(len(log_ratios), -1).cpu().numpy()
    fine = np.isfinite(series).all(0)
    return mean_estimate(series[:, fine]) if fine.any() else Estimate(math.inf, math.nan, 0.0)


def _times(one: Estimate, n_steps: int) -> Estimate:
    return Estimate(one.value * n_steps, one.error * n_steps, one.n_effective)


def _of_roots(a: Estimate, b: Estimate) -> Estimate:
    """``(sqrt(a) + sqrt(b))²``, with the errors of independent parts."""
    roots = [math.sqrt(max(e.value, 0.0)) for e in (a, b)]
    total = sum(roots)
    slopes = [total / r if r > 0 else 0.0 for r in roots]
    error = math.hypot(slopes[0] * a.error, slopes[1] * b.error)
    return Estimate(total**2, error, min(a.n_effective, b.n_effective))
