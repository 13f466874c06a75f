"""Conformance and exactness of kernels, for those of the package and for your own.

In order of power for the time they take: antisymmetry of the acceptance ratio, enumeration
of discrete moves, and invariance of a known law from an exact start.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import fields
from itertools import pairwise, product
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from ..noise import Noise, Stream
from ..sampling.kernels import Info, Kernel
from ..sampling.metropolis import Metropolis
from ..sampling.run import advance
from ..state import Evaluation, Record, State
from .case import Case
from .noise import Prescribed, Recorded, check_addresses
from .potentials import assert_zscore

__all__ = [
    "check_antisymmetric",
    "check_detailed_balance",
    "check_kernel",
    "check_kernel_exact",
    "enumerate_moves",
    "log_ratio",
    "zscores",
]


def zscores(
    kernel: Kernel,
    case: Case | Sequence[Case],
    *,
    n: int = 100_000,
    steps: int = 4,
    seed: int = 0,
) -> np.ndarray:
    """z of the mean of every observable after ``steps`` from ``n`` independent exact draws.

    With f₀ at the start and f after the steps, the mean of ``f - c (f₀ - E f)`` against E f,
    where c, from a regression of f on f₀, takes out what the start already had. One number
    for each of ``n`` chains: no autocorrelation enters.

    Parameters
    ----------
    case : or K cases, for a kernel that has the law of case ``b mod K`` in row b

    Returns
    -------
    (20,) or (K, 20), standard normal if the kernel leaves the law of the case invariant

    Raises
    ------
    AssertionError : an address of the noise was drawn twice (`check_addresses`)
    """
    ends = _ends(kernel, case, n, steps, seed)
    z = np.stack([_scores(*end) for end in ends])
    return z[0] if isinstance(case, Case) else z


def _scores(case: Case, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    exact = case.exact.numpy()
    # a wrong kernel may leave for infinity; its z is then not a number, and fails as well
    with np.errstate(all="ignore"):
        slope = ((before - before.mean(0)) * after).mean(0) / before.var(0)
        values = after - slope * (before - exact)
        # an observable that is conserved has no spread but that of round-off
        error = values.std(0, ddof=1) / np.sqrt(len(values)) + 1e-9 * after.std(0)
        return (values.mean(0) - exact) / error


def check_kernel_exact(
    kernel: Kernel,
    case: Case | Sequence[Case],
    *,
    n: int = 100_000,
    steps: int = 4,
    seed: int = 0,
    limit: float = 5.0,
) -> np.ndarray:
    """The kernel leaves the Boltzmann law of the case invariant: every ``|z| < limit``.

    Also, by a two-sample Kolmogorov–Smirnov test against independent exact draws, the
    distributions of the first three observables, at the same probability of a false alarm.
    A step that does nothing leaves every law invariant, so that positions must have changed;
    and no address of the noise may have been drawn twice (`check_addresses`).

    Returns the z-scores of `zscores`, whose ``case``, ``n`` and ``steps`` these are; raises
    ``AssertionError``.
    """
    rows = []
    for number, (one, before, after) in enumerate(_ends(kernel, case, n, steps, seed)):
        moved = float((before != after).any(1).mean())
        if not moved > 0.05:
            raise AssertionError(
                f"{one.name}: only {moved:.1%} of the walkers moved in {steps} steps"
            )
        rows.append(_scores(one, before, after))
        try:
            assert_zscore(rows[-1], 0.0, 1.0, limit=limit)
        except AssertionError as error:
            raise AssertionError(f"{one.name}, observable and z: {error}") from None
        fresh = one.observables(one.sample(len(after), seed + number + 1_000_003)).numpy()
        for column in range(3):
            p = stats.ks_2samp(after[:, column], fresh[:, column], method="asymp").pvalue
            if not p > 2.0 * stats.norm.sf(limit):
                raise AssertionError(
                    f"{one.name}: the distribution of observable {column} is not the exact one, "
                    f"{p = :.2g} of a Kolmogorov–Smirnov test"
                )
    return rows[0] if isinstance(case, Case) else np.stack(rows)


def check_antisymmetric(
    log_ratio: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, *, tol: float = 1e-12
) -> None:
    """``log r(x → y) = -log r(y → x)``, to ``tol`` relative to 1 and the largest ratio.

    Parameters
    ----------
    log_ratio : (*batch) for positions x and y; for a `Metropolis` kernel ``lambda x, y:
        log_ratio(kernel, [x, y])``
    x, y : (*batch, N, 3) in Å

    Raises
    ------
    AssertionError : it is not
    """
    forward, back = log_ratio(x, y).double(), log_ratio(y, x).double()
    error = float((forward + back).abs().max())
    allowed = tol * (1.0 + float(forward.abs().max()))
    if not error <= allowed:
        raise AssertionError(
            f"log r(x → y) + log r(y → x) is up to {error:.3g}, expected 0 (allowed {allowed:.1g})"
        )


def log_ratio(kernel: Metropolis, path: Sequence[Tensor]) -> Tensor:
    """The log ratio (*batch) that the kernel's own step gives to a path of positions.

    The noise that leads from each point to the next is solved for and given to ``step``.
    ``path`` has ``n_steps + 1`` points (*batch, N, 3), else ``ValueError`` is raised; free atoms
    only (h > 0), no fixed mean.
    """
    if len(path) != kernel.n_steps + 1:
        raise ValueError(f"{len(path)} points for {kernel.n_steps} steps: expected one more")
    proposal = kernel.proposal
    kicks: dict[Stream, Tensor] = {}
    h = torch.as_tensor(proposal.h, dtype=torch.float64)
    sigma = (2.0 * (h[..., None] if h.ndim else h)).sqrt()
    for i, (a, b) in enumerate(pairwise(path)):
        mean = proposal.mean(a, proposal.potential(a).forces)
        kicks[("within", i) if i else "kernel"] = (b - mean) / sigma
    noise = Prescribed(Noise(0), normal=kicks)
    _, info = kernel.step(kernel.init(path[0]), noise)
    return info.log_ratio


def enumerate_moves(
    kernel: Kernel, states: Tensor, choices: Mapping[Any, int], *, tol: float = 1e-9
) -> Tensor:
    """The transition matrix P (S, S) of discrete moves, from the kernel's own step.

    Every combination of equally likely choices is made once, with the proposal accepted by
    force, and its probability is ``min(1, exp(log_ratio))``; that the kernel accepts just
    below that number and not just above it is checked.

    Parameters
    ----------
    states : (S, N, 3), all states that can be reached from each other
    choices : by stream of uniform numbers, the count of equally likely values
    tol : in Å, within which positions are those of a state

    Raises
    ------
    AssertionError : a move out of ``states``, or an acceptance that is not the ratio's
    """
    count, total = len(states), int(np.prod(list(choices.values())))
    P = torch.zeros(count, count, dtype=torch.float64)
    state = kernel.init(states)
    rows = torch.arange(count)
    for values in product(*(range(n) for n in choices.values())):
        fixed = {
            stream: (value + 0.5) / n
            for value, (stream, n) in zip(values, choices.items(), strict=True)
        }

        def step(u, fixed=fixed):
            return kernel.step(state, Prescribed(Noise(0), uniform={**fixed, "accept": u}))

        new, info = step(0.0)
        alpha = info.log_ratio.clamp(max=0.0).exp().nan_to_num(nan=0.0)
        apart = (new.x[:, None] - states).abs().flatten(2).amax(-1)
        distance, where = apart.min(1)
        if float(distance.max()) > tol:
            raise AssertionError(f"a move leads out of the states, by {float(distance.max()):.3g}")
        above = (alpha * (1 + 1e-9)).clamp(max=1.0)  # numbers are drawn from (0, 1]
        for u, expected in ((alpha * (1 - 1e-9), alpha > 0), (above, info.log_ratio >= 0)):
            accepted = step(u)[1].accepted
            if not torch.equal(accepted, expected):
                raise AssertionError(f"accepted {accepted.tolist()} at u = {u.tolist()}")
        P.index_put_((rows, where), alpha / total, accumulate=True)
        P.diagonal().add_((1.0 - alpha) / total)
    return P


def check_detailed_balance(P: Tensor, log_weights: Tensor, *, tol: float = 1e-12) -> None:
    """``π_i P_ij = π_j P_ji``, π ∝ exp of ``log_weights`` (S,), and rows of P (S, S) that sum to 1.

    Raises ``AssertionError`` where either is off by more than ``tol``.
    """
    flow = torch.softmax(log_weights.double(), 0)[:, None] * P
    error = float((flow - flow.T).abs().max())
    if not error <= tol:
        raise AssertionError(f"π_i P_ij and π_j P_ji differ by {error:.3g} (allowed {tol:g})")
    error = float((P.sum(1) - 1.0).abs().max())
    if not error <= tol:
        raise AssertionError(f"rows of P sum to 1 but for {error:.3g} (allowed {tol:g})")


def check_kernel(
    kernel: Kernel, x: Tensor, *, seed: int = 0, steps: int = 5, independent: bool = True
) -> None:
    """The contract of `Kernel`, for positions x (B, N, 3).

    A step is pure and its noise a function of the address; it counts; a restart is the
    uninterrupted chain; a walker does not depend on its batch; ``refresh`` evaluates what is
    there; `Info` has one number for each walker; ``scaled`` gives a kernel or a TypeError.

    Parameters
    ----------
    steps : of the chain that is looked at
    independent : walkers do not see each other (not so for replica exchange)

    Raises
    ------
    AssertionError : the kernel does not keep the contract
    ValueError : x is not (B, N, 3) with B > 1
    """
    if x.ndim != 3 or len(x) < 2:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected (B, N, 3) with B > 1")
    start = kernel.init(x)
    _require(start.step == 0, f"init gives step {start.step}, expected 0")
    _require(torch.equal(start.x, x.to(start.x)), "init moved the positions")
    kept = deepcopy(start)
    chain = [start]
    for _ in range(steps):
        state, info = kernel.step(chain[-1], Noise(seed))
        _check_step(state, info, chain[-1], independent)
        chain.append(state)
    _require(_same(start, kept), "a step wrote into the state that it was given")
    _require(not torch.equal(chain[-1].x, x.to(chain[-1].x)), "nothing moved")

    noise = Noise(seed)  # that has seen all steps, in another order
    for number in reversed(range(steps)):
        again, _ = kernel.step(chain[number], noise)
        _require(
            _same(again, chain[number + 1]),
            f"step {number} again, or after a restart there, gives another state: its noise must "
            "be a function of (seed, walker, step, stream) alone",
        )
    other = _moved(kernel, start, Noise(seed + 1), steps)
    _require(not torch.equal(other, chain[-1].x), "another seed makes the same steps")

    renewed = kernel.refresh(chain[-1])
    close = _close(renewed.forces, chain[-1].forces)
    if renewed.energy is not None:
        close = close and _close(renewed.energy, chain[-1].energy)
    _require(close, "energy or forces of the state are not those at its positions")
    _require(torch.equal(renewed.x, chain[-1].x), "refresh moved the positions")
    if independent:
        _check_walkers(kernel, x, chain, seed)
    try:
        scaled = kernel.scaled(0.5)
    except TypeError:
        return
    moved = _moved(scaled, scaled.init(x), Noise(seed), steps)
    _require(not torch.equal(moved, chain[-1].x), "scaled(0.5) makes the same steps")


def _moved(kernel: Kernel, state: State, noise: Noise, steps: int) -> Tensor:
    for _ in range(steps):
        state, _ = kernel.step(state, noise)
    return state.x


def _check_walkers(kernel: Kernel, x: Tensor, chain: list[State], seed: int) -> None:
    """One walker alone, and the batch without one, go the way of the whole batch."""
    which = len(x) - 1
    alone = kernel.init(x[which:], walkers=torch.tensor([which]))
    keep = torch.arange(len(x)) != 0
    fewer, left = chain[1].take(keep), kernel.take(keep)
    for number in range(1, len(chain)):
        alone, _ = kernel.step(alone, Noise(seed))
        _require(
            _close(alone.x[0], chain[number].x[which]), "a walker depends on the batch it is in"
        )
        if number > 1:
            fewer, _ = left.step(fewer, Noise(seed))
            _require(
                _close(fewer.x, chain[number].x[keep]), "walkers change when another one is lost"
            )


def _check_step(new: State, info: Info, old: State, independent: bool) -> None:
    _require(new.step == old.step + 1, f"step {old.step} made step {new.step}, expected one more")
    _require(new.x.shape == old.x.shape, f"positions became {tuple(new.x.shape)}")
    _require(new.x.dtype == old.x.dtype, f"positions became {new.x.dtype}")
    if info.accepted is None:
        return
    for name, value in info._asdict().items():
        if isinstance(value, Tensor):
            _require(
                value.shape == new.x.shape[:-2],
                f"info.{name} has shape {tuple(value.shape)}, expected one value for each walker",
            )
    _require(info.accepted.dtype == torch.bool, f"info.accepted is {info.accepted.dtype}")
    if info.log_ratio is not None:
        _require(info.log_ratio.dtype == torch.float64, "info.log_ratio is not float64")
    if info.delta_u is not None and info.log_q is not None and info.log_ratio is not None:
        _require(
            _close(info.log_ratio, info.log_q - info.delta_u), "log_ratio is not log_q - delta_u"
        )
    if not independent:  # an exchange moves what its own step did not
        return
    stayed = (new.x == old.x).flatten(-2).all(-1)
    _require(bool((stayed | info.accepted).all()), "a rejected walker moved")


def _ends(kernel, case, n, steps, seed) -> list[tuple[Case, np.ndarray, np.ndarray]]:
    """Each case with its observables (n, 20) before and after the steps."""
    cases = [case] if isinstance(case, Case) else list(case)
    starts = [one.sample(n, seed + number) for number, one in enumerate(cases)]
    state, noise = kernel.init(torch.stack(starts, 1).flatten(0, 1)), Recorded(seed)
    for _ in range(steps):
        state, _ = advance(kernel, state, noise)
    check_addresses(noise)
    ends = zip(cases, starts, state.x.unflatten(0, (n, -1)).unbind(1), strict=True)
    return [(c, c.observables(a).numpy(), c.observables(b).numpy()) for c, a, b in ends]


def _same(a, b) -> bool:
    """Two states, or what they hold, are equal to the bit."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a, b)
    if isinstance(a, State | Record):
        return all(_same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    if isinstance(a, Evaluation):
        return all(map(_same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    return (a is None and b is None) or a == b


def _close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-9, atol=1e-9, equal_nan=True)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)
