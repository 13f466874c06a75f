"""``diffmd run --compile``: on, off, or where it pays; a restart goes on as it began."""

import json

import numpy as np
import pytest

from diffmd_ase.io.trajectory import Trajectory


def summary(diffmd, *words):
    code, out, err = diffmd(*words, "--json")
    assert code == 0, err
    return json.loads(out)


def test_a_short_run_is_not_compiled(diffmd, start):
    assert summary(diffmd, *start, "--steps", 20)["compiled"] is False


@pytest.mark.slow
def test_compiled_and_restarted(diffmd, start):
    on = [*start, "--compile", "on"]
    assert summary(diffmd, *on, "--steps", 40, "--prefix", "whole")["compiled"] is True
    assert summary(diffmd, *on, "--steps", 20, "--prefix", "parts")["compiled"] is True
    # what was chosen stays, whatever is asked for now
    again = summary(diffmd, *start, "--steps", 40, "--prefix", "parts", "--restart")
    assert again["compiled"] is True
    whole, parts = Trajectory("whole.h5"), Trajectory("parts.h5")
    assert np.array_equal(whole.positions[:], parts.positions[:])
    assert whole.info.extra["compiled"] is True
    assert summary(diffmd, *start, "--steps", 40, "--prefix", "off")["compiled"] is False
    assert np.allclose(whole.positions[:], Trajectory("off.h5").positions[:], atol=1e-3)
