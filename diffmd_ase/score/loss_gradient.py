"""The loss of a batch and its gradient by the weights of a network, as written or compiled.

    terms = L(θ; drawn),    ∂ terms["loss"] / ∂θ

The loss holds scores, which are derivatives of the network themselves. The compiled function is
traced through both derivatives, once for a size of batches; what is random is drawn before.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .networks.gradients import CannotCompile, compiling
from .networks.molecule import MechanicsNetwork, PairNetwork
from .objective import Drawn, Objective

__all__ = ["LossGradient", "can_be_compiled"]

log = logging.getLogger(__name__)

_COMPILER = 45.0  # s that compiling takes, at most
_SAVED = 0.4  # of a step, at least
_BEGUN, _TIMED = 5, 25  # steps before the clock is looked at, and then

Network = Callable[..., Tensor]
Made = tuple[dict[str, Tensor], list[Tensor | None]]


class LossGradient:
    """Losses of batches by name, and the gradient of their sum in ``grad`` of the weights.

    Parameters
    ----------
    network, objective : what learns, and from what
    compiled : the function of a step is compiled; None: not decided, see `pays`

    Attributes
    ----------
    parameters : the weights
    """

    def __init__(self, network: nn.Module, objective: Objective, compiled: bool | None = False):
        self.network, self.objective = network, objective
        self.parameters = list(network.parameters())
        self.compiled = compiled if can_be_compiled(network) else False
        self._made: Callable[..., Made] | None = None
        self._names = [name for name, _ in network.named_parameters()]
        self._calls, self._began = 0, 0.0

    def __call__(self, batches: list[Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Of one batch of each set, see `Objective`; batches of other sizes are compiled anew."""
        drawn = self.objective.draw(batches, generator)
        self._calls += 1
        if self._calls == _BEGUN:
            self._began = time.perf_counter()
        terms, gradient = self._compiled(drawn) if self.compiled else self._written(drawn)
        for weight, slope in zip(self.parameters, gradient, strict=True):
            weight.grad = slope
        return terms

    @property
    def undecided(self) -> bool:
        """It is not said whether to compile, and enough steps were timed to tell."""
        return self.compiled is None and self._calls >= _TIMED

    def pays(self, steps: int, seconds: float) -> bool:
        """Whether so many more ``steps``, in ``seconds`` at most, save what compiling costs."""
        each = (time.perf_counter() - self._began) / (self._calls - _BEGUN + 1)
        saved = _SAVED * min(each * steps, seconds)
        log.info(
            "%s: %d steps of %.2g ms save %.0f s, compiling costs up to %.0f s",
            "compiled" if saved > _COMPILER else "not compiled",
            steps,
            1e3 * each,
            saved,
            _COMPILER,
        )
        return saved > _COMPILER

    def _written(self, drawn: list[Drawn]) -> Made:
        return self._of(self.network, drawn, self.parameters)

    def _of(self, network: Network, drawn: list[Drawn], weights: Sequence[Tensor]) -> Made:
        terms = self.objective.terms(network, drawn)
        # a constant of the energy has no gradient
        gradient = torch.autograd.grad(terms["loss"], weights, allow_unused=True)
        return {name: value.detach() for name, value in terms.items()}, list(gradient)

    def _traced(self, drawn: list[Drawn], weights: Sequence[Tensor]) -> Callable[..., Made]:
        """All operations of a step, in which the weights are an argument."""
        from torch.fx.experimental.proxy_tensor import make_fx  # takes half a second

        def step(drawn: list[Drawn], weights: Sequence[Tensor]) -> Made:
            named = dict(zip(self._names, weights, strict=True))
            return self._of(
                lambda *given, **told: functional_call(self.network, named, given, told),
                drawn,
                weights,
            )

        with torch.enable_grad():
            return make_fx(step)(drawn, [weight.clone().requires_grad_() for weight in weights])

    def _compiled(self, drawn: list[Drawn]) -> Made:
        weights = [weight.detach() for weight in self.parameters]
        try:
            with torch.no_grad():
                if self._made is None:
                    with compiling():
                        made = torch.compile(self._traced(drawn, weights))
                        made(drawn, weights)
                    self._made = made
                return self._made(drawn, weights)
        except CannotCompile as error:
            warnings.warn(str(error), stacklevel=3)
            self.compiled = False
            return self._written(drawn)


def can_be_compiled(network: nn.Module) -> bool:
    """Whether all shapes of its training are fixed: it has weights, and no list of neighbours."""
    known = isinstance(network, MechanicsNetwork | PairNetwork)
    return known and any(True for _ in network.parameters())
