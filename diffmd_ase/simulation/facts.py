"""What ranks have counted, each for its walkers, as what one run has counted, and back."""

from __future__ import annotations

from typing import Any

__all__ = ["merged", "part_of"]


def merged(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """What all ranks have counted, from the facts of each (`course.Course.facts`)."""
    facts = dict(parts[0])
    facts["lost"] = {w: step for part in parts for w, step in part["lost"].items()}
    facts["evaluations"] = sum(part["evaluations"] for part in parts)
    beyond = [part["outside"] for part in parts]
    facts["outside"] = {name: sum(one[name] for one in beyond) for name in ("frames", "counted")}
    facts["outside"]["ended"] = {w: step for one in beyond for w, step in one["ended"].items()}
    for name in ("tally", "tally_of_frame"):
        facts[name] = {
            key: sum((part[name][key] for part in parts), [] if isinstance(value, list) else 0)
            for key, value in parts[0][name].items()
        }
    return facts


def part_of(facts: dict[str, Any], own: slice, leads: bool) -> dict[str, Any]:
    """What one rank goes on counting from, such that `merged` of all are the ``facts``.

    ``own`` are its walkers among all; what no walker counts is that of the rank that ``leads``.
    """
    part = dict(facts)
    for name in ("tally", "tally_of_frame"):
        if name in facts:
            part[name] = {
                key: value[own] if isinstance(value, list) else value * leads
                for key, value in facts[name].items()
            }
    part["evaluations"] = facts["evaluations"] * leads
    if facts.get("outside"):
        counts = {name: facts["outside"][name] * leads for name in ("frames", "counted")}
        part["outside"] = counts | {"ended": facts["outside"]["ended"]}
    return part
