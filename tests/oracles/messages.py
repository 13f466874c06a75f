"""Errors are asserted by what they name, so that they may be worded better at any time."""

import re

__all__ = ["names"]


def names(*facts: object) -> str:
    """A pattern for ``match=``: the message names every one of ``facts``, in any order.

    A fact is text, not a pattern, and a whole one: ``names(4)`` is not in "step 42".
    """
    if not facts:
        raise ValueError("no facts: every message would do")
    return "(?s)" + "".join(f"(?=.*{_whole(str(fact))})" for fact in facts)


def _whole(fact: str) -> str:
    before = r"(?<!\w)(?<!\d\.)" if re.match(r"\w", fact) else ""
    after = r"(?!\w)(?!\.\d)" if re.search(r"\w$", fact) else ""
    return before + re.escape(fact) + after
