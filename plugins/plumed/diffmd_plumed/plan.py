"""Which steps a bias learns or prints at, and what its actions can not do.

Read from PLUMED's own log, where shortcuts are expanded and numbers evaluated: one block
for each action. What is not known here is called at every step and trusted with nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from .script import InputLine

__all__ = ["PACED", "Action", "Plan", "actions_of", "merged", "plan"]

# the bias depends on positions alone
_STATIC = {"RESTRAINT", "UPPER_WALLS", "LOWER_WALLS", "BIASVALUE", "EXTERNAL", "FUNNEL"}
_STATIC |= {f"{name}_SCALAR" for name in _STATIC}
# it depends on the step besides
_TIMED = {"MOVINGRESTRAINT", "TIME"}
PACED = {"METAD", "PBMETAD", "OPES_METAD", "OPES_METAD_EXPLORE", "OPES_EXPANDED"}
# of the biases with a state of their own, those that change it at updates alone
_PURE = {"EDS", "MAXENT", "EXTENDED_LAGRANGIAN", "VES_LINEAR_EXPANSION"}
_SCALARS_ONLY = PACED | {"BIASVALUE"}
# no bias, but something of their own at each update
_EVERY_STEP = {"UPDATE_IF", "EFFECTIVE_ENERGY_DRIFT", "COMMITTOR"}
_PER_WALKER = {
    "UPDATE_IF": "a condition of one trajectory",
    "EFFECTIVE_ENERGY_DRIFT": "the energy of one trajectory",
    "COMMITTOR": "the fate of one trajectory",
}
_NO_RESTART = {"ACCUMULATE": "its averages", "COLLECT": "what it has collected"}
_NO_RESTART |= {"EFFECTIVE_ENERGY_DRIFT": "its sums"}
_BLOCK = re.compile(r"^PLUMED: Action (\S+)\n", re.M)


@dataclass(frozen=True)
class Action:
    """An action as PLUMED has understood it: its ``name``, ``label``, and ``text`` in the log."""

    name: str
    label: str
    text: str

    @property
    def is_bias(self) -> bool:
        return f"component to this action: {self.label}.bias" in self.text

    @property
    def arguments(self) -> list[str]:
        """Labels of its scalar arguments."""
        return re.findall(r"scalar with label (\S+)", self.text)

    def number(self, pattern: str) -> int | None:
        """The number after ``pattern``."""
        match = re.search(pattern + r" (\d+)", self.text)
        return None if match is None else int(match.group(1))

    def __str__(self) -> str:
        return f"{self.name} (label {self.label})"


@dataclass(frozen=True)
class Plan:
    """Periods in steps, and remarks by action.

    Attributes
    ----------
    learn : the bias may have changed after a step that is a multiple of one of these
    output : something is printed or accumulated
    paced : of hills, whose action swallows the first one after its start
    per_walker : why an action cannot serve several walkers
    inexact : what a restart cannot bring back
    impure : actions that learn when they are only evaluated
    once : they do, or write then: one evaluation for each step, as an MD engine makes, is best
    timed : the work of a schedule is counted from one calculation to the next
    values : labels of the biases, their arguments and what is printed
    """

    learn: frozenset[int]
    output: frozenset[int]
    paced: frozenset[int]
    per_walker: dict[str, str]
    inexact: dict[str, str]
    impure: tuple[str, ...]
    once: bool
    timed: bool
    values: tuple[str, ...]

    def due(self, step: int) -> bool:
        """Whether anything happens at this step."""
        return any(step % period == 0 for period in self.learn | self.output)

    def changes(self, step: int) -> bool:
        return any(step % period == 0 for period in self.learn)

    def quiet_before(self, step: int) -> int | None:
        """The last step before ``step`` at which nothing is printed; None if there is none."""
        reach = range(step - 1, step - 1 - math.lcm(*self.output), -1)
        return next((s for s in reach if all(s % period for period in self.output)), None)


def actions_of(log: str) -> list[Action]:
    """The actions of a log, in order."""
    parts = _BLOCK.split(log)[1:]
    actions = []
    for name, text in zip(parts[::2], parts[1::2], strict=True):
        label = re.search(r"with label (\S+)", text)
        actions.append(Action(name, label.group(1) if label else "", text))
    return actions


def plan(actions: Sequence[Action], script: Sequence[InputLine]) -> Plan:
    """The plan of ``actions``, with what only the input itself says, its ``script``.

    Raises
    ------
    ValueError : vectors for an action that uses only their first element (METAD, OPES,
        BIASVALUE), a bias that acts only every few steps
    """
    learn, output, paced, impure, once = set(), set(), set(), [], False
    per_walker: dict[str, str] = {}
    inexact: dict[str, str] = {}
    for action in actions:
        _check(action)
        name, text = str(action), action.text
        stride = action.number("with stride")
        pace = action.number("(?:deposition pace|with PACE =)")
        if action.name in _PER_WALKER:
            per_walker[name] = _PER_WALKER[action.name]
        if action.name in _NO_RESTART:
            inexact[name] = _NO_RESTART[action.name]
        if action.name in _TIMED:
            learn.add(1)
        elif action.name in PACED:
            reason = _own_state(text)
            every_step = reason is not None or pace is None or "walkers active" in text
            learn.add(1 if every_step else pace)
            paced.add(pace or 1)
            if reason is not None:
                per_walker[name] = inexact[name] = reason
            if "acceleration factor" in text:
                impure.append(name)
        elif action.is_bias and action.name not in _STATIC:
            learn.add(1)
            per_walker[name] = inexact[name] = "a state of its own"
            if action.name not in _PURE:
                impure.append(name)
        elif action.name in _EVERY_STEP:
            output.add(stride or 1)
            once = once or action.name == "COMMITTOR"
        elif stride:  # none, or 0: at the end
            output.add(stride)
    biases = {action.name.removesuffix("_SCALAR") for action in actions if action.is_bias}
    for line in script:
        stride_of_bias = line.keywords.get("STRIDE", "1")
        if line.name in biases and stride_of_bias != "1":
            raise ValueError(
                f"line {line.number} of the input, {line.text!r}: with STRIDE={stride_of_bias} it "
                "would act at some steps only, and stronger, and energies and forces would not "
                "fit each other; remove STRIDE"
            )
        name = f"{line.name} (line {line.number})"
        if "NLIST" in line.keywords:
            per_walker[name] = "a neighbour list that is kept between steps"
        if "FMT" in line.keywords and line.name in PACED:
            inexact[name] = f"digits of its hills, FMT={line.keywords['FMT']}"
        if line.name == "OPES_EXPANDED" and line.keywords.get("PRINT_STRIDE") != "1":
            inexact[name] = "what it learned since its last print; set PRINT_STRIDE=1"
    wanted: dict[str, None] = {}
    for action in actions:
        if action.is_bias:
            wanted.update(dict.fromkeys([f"{action.label}.bias", *action.arguments]))
        elif action.name == "PRINT":
            wanted.update(dict.fromkeys(action.arguments))
    return Plan(
        frozenset(learn),
        frozenset(output),
        frozenset(paced),
        per_walker,
        inexact,
        tuple(impure),
        once or bool(impure),
        any(action.name == "MOVINGRESTRAINT" for action in actions),
        tuple(wanted),
    )


def merged(plans: Sequence[Plan]) -> Plan:
    """One plan for walkers whose inputs differ in values."""
    first = plans[0]
    return Plan(
        *(frozenset().union(*(getattr(p, n) for p in plans)) for n in ("learn", "output", "paced")),
        {name: reason for p in plans for name, reason in p.per_walker.items()},
        {name: reason for p in plans for name, reason in p.inexact.items()},
        tuple(dict.fromkeys(name for p in plans for name in p.impure)),
        any(p.once for p in plans),
        any(p.timed for p in plans),
        tuple(name for name in first.values if all(name in p.values for p in plans)),
    )


def _own_state(text: str) -> str | None:
    for words, reason in (
        ("Diffusion-based", "running averages of its adaptive widths"),
        ("adaptive SIGMA", "running averages of its adaptive SIGMA"),
        ("Frequency adaptive", "the acceleration factor that sets its pace"),
        ("acceleration factor", "its acceleration factor"),
    ):
        if words in text:
            return reason
    return None


def _check(action: Action) -> None:
    vector = re.search(r"(?:vector|matrix) with label (\S+)", action.text)
    if vector and action.name in _SCALARS_ONLY:
        raise ValueError(
            f"{action} is given the vector {vector.group(1)!r} and would use its first element "
            "only, silently: give scalars (SUM, or one action for each element)"
        )
