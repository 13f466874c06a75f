"""The HTML of a report: one page without external resources, readable on a phone."""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .._moved import forward
from ..analysis.statistics import Estimate
from ..io.json_text import to_json
from ..system import System
from . import plots
from .interactive import chart, script

__all__ = ["Page", "flat", "image", "pair", "render", "table"]


@dataclass
class Page:
    """What the sections add to."""

    numbers: dict[str, Any] = field(default_factory=dict)  # for JSON
    verdicts: list[tuple[bool | None, str]] = field(default_factory=list)  # None: neither
    body: list[str] = field(default_factory=list)  # HTML of the sections

    def judge(self, good: bool | None, text: str) -> None:
        self.verdicts.append((good, text))

    def section(self, title: str, *parts: str) -> None:
        self.body.append(f"<h2>{html.escape(title)}</h2>" + "".join(parts))


def pair(e: Estimate) -> list[float | None]:
    """An estimate and its error for JSON; None where not finite."""
    return [float(v) if np.isfinite(v) else None for v in (e.value, e.error)]


def flat(value) -> str:
    """A ``value`` as one line of text for a cell of a table."""
    return value if isinstance(value, str) else to_json(value, indent=None)


def image(figure) -> str:
    """A figure inside the page: its picture and, where it has lines, its numbers for the script."""
    numbers, picture = chart(figure), f'<img alt="" src="{plots.embed(figure)}">'
    return picture if numbers is None else f'<div class="chart">{picture}{numbers}</div>'


def table(head, rows) -> str:
    """A table with the titles ``head`` over its ``rows``, as HTML; cells are escaped."""
    cells = "".join(f"<th>{html.escape(str(h))}</th>" for h in head)
    lines = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(c))}</td>" for c in row) + "</tr>" for row in rows
    )
    return f'<div class="wide"><table><tr>{cells}</tr>{lines}</table></div>'


_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;color:#1a1a1a;background:#fff;max-width:62rem;
margin:0 auto;padding:1rem}h1{font-size:1.5rem}h2{font-size:1.2rem;margin-top:2.2rem;
border-bottom:1px solid #ddd}h3{font-size:1rem}img{max-width:100%;height:auto;display:block}
table{border-collapse:collapse;font-size:.9rem}td,th{text-align:left;padding:.2rem .7rem
.2rem 0;border-bottom:1px solid #eee;vertical-align:top}td{overflow-wrap:anywhere}
.wide{overflow-x:auto;max-height:24rem;overflow-y:auto}
ul.verdict{list-style:none;padding:0}ul.verdict li{padding:.35rem .6rem;margin:.3rem 0;
border-left:.35rem solid #888;background:#f6f6f6}canvas{touch-action:none;display:block}
.charts{display:flex;flex-wrap:wrap;gap:1rem}.panel{flex:1 1 19rem;min-width:0}.panel .name{
font-size:.85rem;font-weight:600}.told{font-size:.75rem;color:#555;min-height:1.2em}
img[hidden]{display:none}
.legend button{font:inherit;font-size:.75rem;border:1px solid;border-left-width:.8rem;
background:#fff;margin:.1rem .3rem .1rem 0}.legend .off{opacity:.35}
.bar{display:flex;gap:.6rem;align-items:center}.bar input{flex:1}
ul.verdict li.good{border-color:#1b7f3b}
ul.verdict li.bad{border-color:#c0392b}
"""


def render(page: Page, title: str, system: System, temperature_K: float) -> str:
    """The whole page as HTML: verdicts first, then the sections.

    Parameters
    ----------
    page : with all its sections
    title : text of the heading
    system, temperature_K : named below it
    """
    shown = {True: ("good", "agrees"), False: ("bad", "look here"), None: ("", "note")}
    lines = "".join(
        f'<li class="{shown[good][0]}"><b>{shown[good][1]}</b> · {html.escape(text)}</li>'
        for good, text in page.verdicts
    )
    name = html.escape(title)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name}</title><style>{_STYLE}</style></head><body><h1>{name}</h1>"
        f"<p>{html.escape(system.formula)}, {len(system)} atoms, {temperature_K:g} K. Errors are "
        "one standard error and account for correlation in time.</p>"
        f'<h2>Summary</h2><ul class="verdict">{lines}</ul>{"".join(page.body)}'
        f"<script>{script()}</script></body></html>\n"
    )


__getattr__ = forward(__name__, "io.json_text")
