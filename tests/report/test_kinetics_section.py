"""The kinetics of a report, from angles to tables and a verdict."""

import numpy as np
import pytest

from diffmd_ase.report.html import Page
from diffmd_ase.report.kinetics import kinetics_section


def test_two_basins(rng):
    """Walkers that change sides in a tenth of the frames: one timescale, tables, a picture."""
    pytest.importorskip("deeptime", reason="Markov models need deeptime")
    flips = np.cumsum(rng.random((600, 6)) < 0.1, axis=0) % 2
    angles = np.where(flips == 1, 1.5, -1.5) + 0.1 * rng.standard_normal(flips.shape)
    page = Page()
    kinetics_section(page, {"phi": angles}, 0.1 * np.arange(600))
    told = page.numbers["kinetics"]["timescales"][0]
    exact = -0.1 / np.log(1 - 2 * 0.1)
    assert abs(told["value"] - exact) < 4 * told["error"] < exact
    (section,) = page.body
    for words in ("<h2>Kinetics</h2>", "data:image/png", "integrated time", "first passage", "lag"):
        assert words in section
    assert any("Chapman" in text for _, text in page.verdicts)


def test_what_there_is_not(rng):
    page = Page()
    kinetics_section(page, {"phi": rng.normal(size=(50, 3))}, np.arange(50.0) ** 1.5)
    kinetics_section(page, {"phi": rng.normal(size=(50, 1))}, np.arange(50.0))
    assert not page.body and not page.numbers
    assert [good for good, _ in page.verdicts] == [None, None]
    assert "not evenly spaced" in page.verdicts[0][1] and "80" in page.verdicts[1][1]
