"""A function compiled for any number of structures, called without a look at its arguments.

``torch.compile`` looks at arguments, modes and modules in each call, which takes as long as energy
and gradient of one molecule. Here a first call goes through it, and shows what inductor made and
what that is given; later ones go there at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["directly"]

Function = Callable[..., tuple[Tensor, ...]]


def directly(function: Function, given: Sequence[Tensor]) -> tuple[Function, tuple[Tensor, ...]]:
    """``function`` of tensors compiled, and its value for those that are ``given``.

    Those with three axes have structures along the first. Where there are two or more, later ones
    may have any other number of them. All else (precision, other sizes, order in memory, where they
    are) has to stay, and is not looked at. Raises what torch raises where it cannot compile.
    """
    own = [tensor.detach() for tensor in given]  # each an object of its own, to be found again
    for tensor in own:
        if tensor.ndim == 3 and len(tensor) > 1:
            torch._dynamo.mark_dynamic(tensor, 0)
    kept = _Kept(on_cpu=own[0].device.type == "cpu")
    # torch counts what it compiles by code, and gives up at eight: each has its own
    function.__code__ = function.__code__.replace()
    compiled = torch.compile(function, backend=kept)
    # what differed between two functions is no size that changes
    with torch._dynamo.config.patch(automatic_dynamic_shapes=False):
        result = compiled(*own)
    return kept.bare(own, result) or compiled, result


class _Kept:
    """Inductor as a backend of `torch.compile`; what it made, was called with and gave."""

    __name__ = "inductor"

    def __init__(self, *, on_cpu: bool):
        self._options = {"cpp_wrapper": True} if on_cpu else {}  # also what calls the kernels
        self._calls: list[tuple[Callable, tuple, tuple]] | None = []  # until they are looked at

    def __call__(self, graph: Any, examples: list[Any]) -> Function:
        from torch import _inductor  # takes a second

        made = _inductor.compile(graph, examples, options=self._options)

        def called(*given: Any) -> tuple[Tensor, ...]:
            result = made(*given)
            if self._calls is not None:
                self._calls.append((made, given, result))
            return result

        return called

    def bare(self, own: list[Tensor], result: tuple[Tensor, ...]) -> Function | None:
        """What was made, of as many tensors as ``own``; None where the ``result`` needs more."""
        calls, self._calls = self._calls, None
        if calls is None or len(calls) != 1 or [*map(id, result)] != [*map(id, calls[0][2])]:
            return None
        several = next(n for n, tensor in enumerate(own) if tensor.ndim == 3)
        known = {id(tensor): n for n, tensor in enumerate(own)}
        made, given, _ = calls[0]
        counts = [n for n, part in enumerate(given) if isinstance(part, int)]
        places = [(n, known[id(part)]) for n, part in enumerate(given) if id(part) in known]
        count = len(own[several])
        if bool(counts) != (count > 1) or any(given[n] != count for n in counts):
            return None
        template = [None if id(part) in known else part for part in given]

        def bare(*tensors: Tensor) -> tuple[Tensor, ...]:
            told = template.copy()
            for place, number in places:
                told[place] = tensors[number]
            for place in counts:
                told[place] = len(tensors[several])
            return made(*told)

        return bare
