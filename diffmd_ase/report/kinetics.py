"""The kinetics of a report: how fast the torsions of dynamics change, in one picture and tables."""

from __future__ import annotations

import html

import numpy as np

from ..analysis.kinetics.plots import kinetics_figure
from ..analysis.kinetics.states import torsion_states
from ..analysis.kinetics.summary import Kinetics, kinetics
from ..analysis.kinetics.variables import Variables
from .html import Page, image, table

__all__ = ["kinetics_section"]

_MOST = 6  # torsions
_MISSED = 4.0  # standard errors, of the Chapman–Kolmogorov test


def kinetics_section(page: Page, series: dict[str, np.ndarray], Dt: np.ndarray) -> None:
    """Correlation times, states, passages and implied timescales, with errors.

    Parameters
    ----------
    series : name → (T, W) angles in rad
    Dt : (T,) clock of the frames in Å²
    """
    gaps = np.diff(Dt)
    if not len(gaps) or not np.allclose(gaps, gaps[0], rtol=1e-6):
        page.judge(None, "MD: frames are not evenly spaced: no kinetics.")
        return
    names = tuple(series)[:_MOST]
    values = np.stack([series[name] for name in names], axis=-1)
    angular = (True,) * len(names)
    try:
        variables = Variables(names, values, angular, float(gaps[0]), "Å²").in_parts()
        found = _found(variables)
    except (ImportError, ValueError) as error:  # no deeptime, a run that is too short
        page.judge(None, f"MD: no kinetics: {error}.")
        return
    page.numbers["kinetics"] = found.to_dict()
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in found.notes)
    parts = [image(kinetics_figure(found)), *_tables(found)]
    if notes:
        parts.append(f"<h3>What these runs cannot say</h3><ul>{notes}</ul>")
    page.section("Kinetics", *parts)
    if found.model is not None and found.consistency:
        worst = max(row.z for row in found.consistency)
        fine = bool(worst < _MISSED)
        page.judge(
            fine or None,
            f"MD: slowest implied timescale {found.model.timescales[0]} Å² of D·t at a lag of "
            f"{found.model.lag:.3g} Å²; its Markov model {'passes' if fine else 'fails'} the "
            f"Chapman–Kolmogorov test (largest deviation {worst:.1f} standard errors).",
        )


def _found(variables: Variables) -> Kinetics:
    try:
        states = torsion_states(variables)
    except ValueError as error:  # one state: correlations are left
        return kinetics(variables, None, notes=[f"no states: {error}"])
    return kinetics(variables, states)


def _tables(found: Kinetics) -> list[str]:
    unit = f"{found.unit} of D·t"
    rows = [(n, str(c.time), f"{c.time.n_effective:,.0f}") for n, c in found.correlations.items()]
    tables = [table(("", f"integrated time ({unit})", "independent values"), rows)] if rows else []
    if not found.states:
        return tables
    told = [None] * len(found.states) if found.model is None else found.model.populations
    pairs = zip(found.states, found.populations, told, strict=True)
    states = [(name, str(p), _words(m)) for name, p, m in pairs]
    tables.append(table(("state", "population", "of the Markov model"), states))
    if found.passages:
        head = ("from", "to", f"first passage ({unit}), counted", "Markov model")
        passes = [(p.start, p.end, _words(p.counted), _words(p.markov)) for p in found.passages]
        tables.append(table(head, passes))
    if found.models:
        count = min(3, len(found.models[0].timescales))
        lags = (f"lag ({unit})", *(f"timescale {n + 1}" for n in range(count)))
        tables.append(
            table(
                lags,
                [
                    (f"{m.lag:.3g}", *(str(m.timescales[n]) for n in range(count)))
                    for m in found.models
                ],
            )
        )
    return tables


def _words(estimate) -> str:
    return "too rare" if estimate is None else str(estimate)
