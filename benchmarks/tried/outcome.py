"""One use of another program that is tried, and how it went."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

VERDICTS = HOLDS, DIFFERS, REFUSED, ABSENT = "holds", "differs", "refused", "not here"


@dataclass(frozen=True)
class Outcome:
    """A ``verdict`` (holds, differs, refused, or what it needs is not here) and ``words``."""

    verdict: str
    words: str = ""

    @property
    def row(self) -> tuple[str, str]:
        return self.verdict, self.words


@dataclass(frozen=True)
class Trial:
    """``run`` says how a use, called ``name``, went; what it raises counts as a refusal.

    ``kind`` groups rows in the page.
    """

    kind: str
    name: str
    run: Callable[[], Outcome]

    def outcome(self) -> Outcome:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                found = self.run()
            except (ValueError, TypeError, NotImplementedError) as error:
                return Outcome(REFUSED, said(error))
            except ImportError as error:
                return Outcome(ABSENT, said(error))
            except Exception as error:  # not in words: a fault
                return Outcome(DIFFERS, f"{type(error).__name__}: {said(error)}")
        ours = [w for w in caught if issubclass(w.category, UserWarning) and "diffmd" in w.filename]
        if found.verdict == HOLDS and not found.words and ours:
            return Outcome(HOLDS, "warns: " + said(ours[0].message))
        return found


@dataclass(frozen=True)
class Section:
    """Trials of one program, with the words above their tables."""

    title: str
    words: str
    trials: Sequence[Trial]


def said(error) -> str:
    """The words of an error or a warning, in one line without what depends on the machine."""
    text = " ".join(str(error).split())
    text = re.sub(r"(/[\w.@+-]+)+/", "", text)  # folders
    text = re.sub(r"0x[0-9a-f]+", "", text).replace("|", "/").replace("`", "'")
    return text if len(text) <= 160 else text[:157].rsplit(" ", 1)[0] + " …"
