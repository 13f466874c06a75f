"""A run that goes on is the uninterrupted one, also after a kill at any moment."""

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from four_atoms import (
    CV,
    EXACT,
    PRINT,
    ROUNDED,
    X,
    bias,
    check_continued,
    check_same_files,
    kernel_of,
)

from diffmd_ase.noise import Noise
from diffmd_ase.sampling.run import run

STEPS = 60


# on the pace, where the step that is repeated prints; off it, where the next update is a hill
@pytest.mark.parametrize("cut, stride", [(30, 2), (23, 25)])
@pytest.mark.parametrize("walkers", ["shared", "independent"])
@pytest.mark.parametrize("name", EXACT)
def test_continued_is_uninterrupted(name, walkers, cut, stride, tmp_path):
    lines = [*CV, EXACT[name], PRINT.replace("STRIDE=2", f"STRIDE={stride}")]
    make = partial(bias, lines, walkers=walkers)
    check_continued(make, tmp_path, steps=STEPS, cut=cut, rtol=ROUNDED.get(name, 0.0))


def test_cut_without_checkpoint_would_differ(tmp_path):
    """The negative control: without cutting the files back the forgotten hills are read."""
    lines = [*CV, EXACT["METAD"], PRINT]
    first = bias(lines, tmp_path)
    kernel = kernel_of(first)
    [(state, _)] = list(run(kernel, X, 23, noise=Noise(3), every=23))
    saved = first.checkpoint()
    expected = first(state.x).energy
    list(run(kernel, state, 17, noise=Noise(4)))
    first.finalize()
    saved["files"] = {}
    second = bias(lines, tmp_path, restart=True)
    second.restore(saved, state.x, state.step)
    assert abs(float(second(state.x).energy - expected)) > 1e-4


SCRIPT = textwrap.dedent(
    """
    import json, os, sys, torch
    from dataclasses import replace
    from pathlib import Path
    sys.path.insert(0, sys.argv[3])
    from diffmd_ase.noise import Noise
    from diffmd_ase.sampling.run import run
    from four_atoms import CV, EXACT, PRINT, X, bias, kernel_of
    folder, mode = Path(sys.argv[1]), sys.argv[2]
    potential = bias([*CV, EXACT[sys.argv[4]], PRINT], folder, restart=mode == "restart")
    kernel, mark = kernel_of(potential), folder.parent / "checkpoint.json"
    if mode == "restart":
        saved = json.loads(mark.read_text())
        x, step = torch.tensor(saved["x"], dtype=torch.float64), saved["step"]
        potential.restore(saved["plumed"], x, step)
        state = replace(kernel.init(x), step=step)
    else:
        state = kernel.init(X)
    while state.step < 2000:
        [(state, _)] = run(kernel, state, 20, noise=Noise(3), every=20)
        part = mark.with_suffix(".part")
        part.write_text(json.dumps(
            {"x": state.x.tolist(), "step": state.step, "plumed": potential.checkpoint()}))
        os.replace(part, mark)
    potential.finalize()
    print(float(state.energy), flush=True)
    """
)


@pytest.mark.parametrize(
    "name", ["METAD, grid", pytest.param("OPES_METAD", marks=pytest.mark.slow)]
)
def test_kill_9(name, tmp_path):
    def start(folder, mode):
        (tmp_path / folder).mkdir(exist_ok=True)
        where = str(tmp_path / folder / "plumed")
        os.makedirs(where, exist_ok=True)
        command = [sys.executable, "-c", SCRIPT, where, mode, str(Path(__file__).parent), name]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    whole = start("whole", "new")
    process = start("killed", "new")
    mark = tmp_path / "killed" / "checkpoint.json"
    while not mark.exists() and process.poll() is None:
        time.sleep(0.01)
    time.sleep(random.Random(1).uniform(0.02, 0.2))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert json.loads(mark.read_text())["step"] < 2000
    again = start("killed", "restart")
    ours, theirs = again.communicate()[0], whole.communicate()[0]
    assert again.returncode == whole.returncode == 0
    assert float(ours) == pytest.approx(float(theirs), abs=1e-12)
    ours, theirs = (tmp_path / folder / "plumed" for folder in ("killed", "whole"))
    check_same_files(ours, theirs, rtol=1e-11 if name in ROUNDED else 0.0)  # 400 hills: 6e-13


@pytest.mark.parametrize(
    "line",
    [
        "b: ABMD ARG=d TO=0.3 KAPPA=100",
        "b: METAD ARG=d ADAPTIVE=DIFF SIGMA=20 HEIGHT=1 PACE=5",
        "b: OPES_METAD ARG=d PACE=5 BARRIER=20",
        "b: EDS ARG=d CENTER=0.2 PERIOD=4 OUT_RESTART=eds",
        "b: METAD ARG=d SIGMA=0.02 HEIGHT=1 PACE=5 FMT=%8.4f",
        "b: OPES_EXPANDED ARG=ec.* PACE=5",
    ],
)
def test_actions_that_do_not_restart_exactly_say_so(line, tmp_path, recwarn):
    potential = bias([*CV, line, PRINT], tmp_path)
    assert line.split()[1] in " ".join(potential.checkpoint()["inexact"])
    potential.update(X, 1)
    potential.finalize()
    recwarn.clear()
    with pytest.warns(UserWarning, match=f"{line.split()[1]}.*does not restart exactly"):
        bias([*CV, line, PRINT], tmp_path, restart=True)


def test_refusals(tmp_path):
    lines = [*CV, EXACT["METAD"], PRINT]
    potential = bias(lines, tmp_path)
    for step in range(1, 21):
        potential.update(X, step)
    saved = potential.checkpoint()
    with pytest.raises(ValueError, match="restart=True"):
        potential.restore(saved, X, 20)
    potential.finalize()
    before = (tmp_path / "HILLS").read_text()
    with pytest.raises(FileExistsError, match="COLVAR, HILLS.*restart=True"):
        bias(lines, tmp_path)
    assert (tmp_path / "HILLS").read_text() == before and not list(tmp_path.glob("bck*"))
    with pytest.raises(ValueError, match="not that of the checkpoint"):
        bias([*CV, EXACT["PBMETAD"]], tmp_path, restart=True).restore(saved, X, 20)
    (tmp_path / "HILLS").write_text(before[:-40])
    with pytest.raises(ValueError, match="HILLS has .* bytes"):
        bias(lines, tmp_path, restart=True).restore(saved, X, 20)
    (tmp_path / "HILLS").unlink()
    with pytest.raises(FileNotFoundError, match="HILLS"):
        bias(lines, tmp_path, restart=True).restore(saved, X, 20)


@pytest.mark.parametrize("cut", [0, 3])
@pytest.mark.parametrize("name", ["METAD", "OPES_METAD", "OPES_EXPANDED"])
def test_cut_before_anything_was_learned(name, cut, tmp_path):
    """PLUMED would crash on an empty file of OPES."""
    make = partial(bias, [*CV, EXACT[name], PRINT])
    check_continued(make, tmp_path, steps=STEPS, cut=cut, rtol=ROUNDED.get(name, 0.0))


@pytest.mark.parametrize("name", ["OPES_METAD", "OPES_EXPANDED"])
def test_restart_from_nothing_is_refused(name, tmp_path):
    """Without a checkpoint, which would say that there was nothing."""
    lines = [*CV, EXACT[name], PRINT]
    bias(lines, tmp_path)(X)
    with pytest.raises(ValueError, match=f"nothing for {name}.*start a new run"):
        bias(lines, tmp_path, restart=True)(X)


def test_continue_on_hills_without_checkpoint(tmp_path):
    """restart=True alone: the hills there are act at once."""
    lines = [*CV, EXACT["METAD"], PRINT]
    potential = bias(lines, tmp_path)
    for step in range(1, 21):
        potential.update(X, step)
    expected = float(potential(X).energy)
    potential.finalize()
    assert float(bias(lines, tmp_path, restart=True)(X).energy) == pytest.approx(expected, 1e-12)
    assert expected > 0.01
    assert np.isfinite(expected)
