"""Whether the dynamics of one `Atoms` makes its steps together."""

from __future__ import annotations

import logging
from typing import Literal

from ..sampling.ahead import Ahead, worth_it
from .chain import Chain

__all__ = ["Parallel", "choose_ahead"]

log = logging.getLogger(__name__)

Parallel = bool | Literal["auto"]


def choose_ahead(chain: Chain, parallel: Parallel) -> tuple[Ahead | None, str]:
    """What makes the steps of ``chain`` together, or None, and why, in words.

    ``parallel`` is True, False, or "auto": where it can be, and a measured batch says that it pays.
    Raises ``ValueError`` for True where it cannot be, ``TypeError`` for a kernel that cannot.
    """
    if parallel not in (True, False, "auto"):
        raise ValueError(f"{parallel=}: expected True, False or 'auto'")
    if parallel is False:
        return None, "not asked for"
    physics, reason = chain.physics, None
    if physics.com:
        reason = "FixCom shifts the atoms after each step: drop it, or use sampling.parallel"
    elif physics.adopt is None:
        reason = (
            "energies of the atoms' own calculator are shown at each step and would be evaluated "
            "one by one: it needs a ScoreCalculator, without bias and without another target; "
            "others run parallel with diffmd run --parallel, or sampling.parallel"
        )
    if reason is not None:
        if parallel is True:
            raise ValueError(f"steps cannot be made together: {reason}")
        log.info("parallel='auto': steps are made one by one, since %s", reason)
        return None, reason
    ahead = Ahead()
    ahead.check(chain.kernel)
    if parallel is True:
        return ahead, "asked for"
    chain.sync(0)
    chosen, words = worth_it(chain.kernel, chain.state)
    log.info("parallel='auto': %s", words)
    return (ahead if chosen else None), words
