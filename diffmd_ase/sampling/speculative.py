"""Speculative steps: drafted by what is cheap, verified in one batch, exact in law.

The draft proposes ``ỹ = m̃ + σξ`` for many steps in a row; the target evaluates them all at once and
finds its own means m. In units of the noise ``δ = (m̃ - m)/σ``, and each step is coupled by
reflection: with ξ the noise of the draft, and e = δ/|δ|,

    ζ = ξ + δ           with probability min{1, exp(½|ξ|² - ½|ξ + δ|²)}
    ζ = ξ - 2⟨e,ξ⟩e     otherwise                                        y = m + σζ

ζ is N(0, 1) whatever δ is, so that the chain has the law of the kernel to the last digit: there is
no tolerance. In the first case y = ỹ and later drafts stay; in the second they are lost. Its
probability, erf(|δ|/√8), is the least that any coupling has (De Bortoli et al., arXiv 2501.05370,
of diffusion models; Bou-Rabee, Eberle & Zimmer, Ann. Appl. Probab. 30, 1209 (2020), of the
coupling). A step of Metropolis is drafted with its choice, and ends the window where the choice is
another.

Why a draft may know evaluations of steps up to its own, and no later ones: ζ is normal only if ξ is
independent of δ. The state that step n starts from is made of ξ_0 … ξ_{n-1}, evaluations at earlier
rounds' drafts of that state too; evaluations at drafts of later states were made with ξ_n, and a δ
that knows them knows the noise it is compared with. A chain with such a draft is not the kernel's:
of a standard normal law it makes one of variance .85. `linear.Linear` keeps to it: the model of
proposal n - 1, which drafts step n, has its own evaluations and Jacobians of no later step. Nor may
it depend on ξ_n what is verified: a window ends where a drift is absurd, without looking at kicks.

The chain is a function of seed, window and draft. A run that goes on from a state begins with an
empty window, as one does that was told to `Ahead.cool` there. Which step that is may depend on
anything (a clock, a count of steps) but on what was found of the steps after it, whose noise is
looked at again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..noise import Noise
from ..potentials.base import Potential
from ..state import State
from .drafts import Draft, Surrogate
from .kernels import Info
from .linear import Linear
from .parallel import ParallelReport, check_parallel, collected, followed
from .rounds import Count, Rounds
from .window import Drawn, OneProposal, Window

__all__ = ["Speculative", "couple"]


def couple(xi: Tensor, delta: Tensor, log_u: Tensor) -> tuple[Tensor, Tensor]:
    """ζ (*batch, N, 3) of the reflection coupling, and whether it is ξ + δ, (*batch).

    Parameters
    ----------
    xi : (*batch, N, 3), the noise of the draft
    delta : likewise, mean of the draft less that of the target, in units of the noise
    log_u : (*batch), logarithms of uniform numbers independent of both
    """
    ahead = xi + delta
    stays = log_u <= 0.5 * (_square(xi) - _square(ahead))
    along = (delta * xi).sum((-2, -1)) / _square(delta).clamp(min=torch.finfo(xi.dtype).tiny)
    reflected = xi - 2.0 * along[..., None, None] * delta
    return torch.where(stays[..., None, None], ahead, reflected), stays


def _square(v: Tensor) -> Tensor:
    return v.square().sum((-2, -1))


@dataclass(frozen=True)
class Speculative:
    """A kernel's chain in law, many steps for each batch of evaluations.

    Parameters
    ----------
    kernel : `EulerMaruyama`, or `Metropolis` with one step for a proposal
    draft : a cheap `Potential`, such as the learned model of an expensive target or the calculator
        of ASE in an `AsePotential`, corrected by its last known error; None: the target itself,
        linear about its last evaluations

    Raises
    ------
    TypeError : a kernel whose step is not one proposal
    ValueError : a draft of another system, with memory, or without the energy that decides
    """

    kernel: OneProposal
    draft: Potential | None = None

    def __post_init__(self):
        check_parallel(self.kernel)
        if self.draft is not None:
            Surrogate(self.kernel, self.draft)

    def run(
        self, x: Tensor | State, n_steps: int, *, noise: Noise, window: int = 64
    ) -> tuple[Tensor, ParallelReport]:
        """All positions (n_steps, *batch, N, 3) of `iterate` from ``x``, and what they took.

        ``n_steps``, ``noise`` and ``window`` are those of `iterate`.
        """
        count = Count()
        steps = self.iterate(x, n_steps, noise=noise, window=window, count=count)
        return collected(self.kernel, x, steps, count)

    def iterate(
        self,
        x: Tensor | State,
        n_steps: int,
        *,
        noise: Noise,
        window: int = 64,
        count: Count | None = None,
    ) -> Iterator[tuple[State, Info]]:
        """Yield ``(State, Info)`` after every step, as `sampling.run.run` does.

        Parameters
        ----------
        x : positions (*batch, N, 3) in Å, or a `State`
        noise : of drafts and couplings
        window : steps evaluated together
        count : counts what is done

        Raises
        ------
        ValueError : ``n_steps`` negative, ``window`` below 1
        DivergedError : as `run`
        """
        if n_steps < 0 or window < 1:
            raise ValueError(f"{n_steps=} must be >= 0 and {window=} >= 1")
        count = Count() if count is None else count
        state = x if isinstance(x, State) else self.kernel.init(x)

        def rounds(at: State) -> Rounds:
            return Coupled(Window(self.kernel, at, noise), self._drafts(at), window, count)

        return followed(self.kernel, state, n_steps, noise, rounds, count)

    def _drafts(self, state: State) -> Draft:
        if self.draft is None:
            return Linear(self.kernel, state, causal=True)
        return Surrogate(self.kernel, self.draft)


class Coupled(Rounds):
    """Final is what couples, up to the first step that does not, whose noise is then reflected.

    ``window``, ``draft``, ``width`` and ``count`` are those of `Rounds`.
    """

    def __init__(self, window: Window, draft: Draft, width: int, count: Count):
        super().__init__(window, draft, width, count)
        self._log_u = Drawn(self._uniform, window.state.x.numel())

    def _final(self, drafted, points, extra):
        window, kernel = self.window, self.window.kernel
        sources, _ = window.sources()
        delta = kernel.noise_of(
            window.at(drafted, sources).forces - window.at(points, sources).forces
        )
        zeta, stays = couple(window.xi, delta, self._log_u.rows(window.state.step, len(window)))
        info = window.decide(points)
        right = torch.ones(len(window), dtype=torch.bool, device=delta.device)
        if window.taken is not None:
            right = (info.accepted == window.taken).reshape(len(window), -1).all(1)
        # the first step is not drafted; a wrong choice ends the window after its step
        good = stays.reshape(len(window), -1).all(1)
        good[0] = True
        good[1:] &= right[:-1]
        count = int(good.long().cumprod(0).sum())
        if window.taken is not None:
            window.taken[count - 1] = info.accepted[count - 1]
        coupled = bool(right[count - 1]) and count < len(window)
        self.draft.learn(window, points, extra)
        steps = self._keep(points, info, count)
        if coupled:  # looked at: its noise is that of the coupling, for all walkers
            window.xi[0] = zeta[count]
            window.kicks[0] = kernel.kick_of(zeta[count])
        return steps

    def _uniform(self, steps: Tensor) -> Tensor:
        state = self.window.state
        like = state.x[..., 0, 0].double().expand(len(steps), *state.x.shape[:-2])
        noise = self.window.noise
        return noise.uniform(steps, like, walkers=state.walkers, stream="couple").log()
