"""JSON that readers of every language take."""

import json
from pathlib import Path

import numpy as np
import pytest

from diffmd_ase.io.json_text import plain, to_json
from diffmd_ase.io.run_info import RunInfo


def strict(text):
    """Parsed as jq, JavaScript and Go do: no Infinity, no NaN."""

    def refuse(word):
        raise ValueError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_missing_numbers_are_null():
    value = {
        "inf": float("inf"),
        "pair": (1.5, float("nan")),
        "array": np.array([[1.0, np.nan], [-np.inf, 2.0]]),
        "scalars": [np.float32(0.5), np.int64(3), np.bool_(True), True, None],
        7: Path("a") / "b",
        "deep": [{"x": [np.float64(np.inf)]}],
        "word": "Å",
    }
    expected = {
        "inf": None,
        "pair": [1.5, None],
        "array": [[1.0, None], [None, 2.0]],
        "scalars": [0.5, 3, True, True, None],
        "7": str(Path("a/b")),
        "deep": [{"x": [None]}],
        "word": "Å",
    }
    assert plain(value) == expected and type(plain(value)["scalars"][2]) is bool
    assert strict(to_json(value)) == expected
    assert "\n" not in to_json(value, indent=None) and "Å" in to_json(value)
    with pytest.raises(ValueError, match="Infinity"):  # what the control does
        strict(json.dumps(float("inf")))


def test_what_frames_mean_is_json():
    info = RunInfo(seed=1, kT=0.025, h=1e-3, kinetics_valid=True, extra={"most": float("inf")})
    text = info.to_json()
    assert strict(text)["extra"] == {"most": None}
    assert RunInfo.from_json(text, "here").h == 1e-3
