"""`diffmd run --plumed`: biased runs at the command line, and their restarts."""

import shlex

import numpy as np
import pytest

from diffmd_ase.cli.main import main
from diffmd_ase.io.trajectory import Trajectory

INPUT = """phi: TORSION ATOMS=5,7,9,15
m: METAD ARG=phi SIGMA=0.35 HEIGHT=1.2 PACE=5 BIASFACTOR=8 GRID_MIN=-pi GRID_MAX=pi FILE=HILLS
PRINT ARG=phi,m.bias FILE=COLVAR STRIDE=10
"""


@pytest.fixture
def diffmd(tmp_path, monkeypatch, capsys):
    def call(words, folder):
        (tmp_path / folder).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / folder)
        (tmp_path / folder / "plumed.dat").write_text(INPUT)
        with pytest.raises(SystemExit) as done:
            main(["run", "alanine-dipeptide", *shlex.split(words), "--no-progress"])
        return done.value.code or 0, capsys.readouterr().err

    return call


@pytest.mark.parametrize("target", ["", "--target model"])
def test_restart_is_the_uninterrupted_run(diffmd, tmp_path, target):
    words = f"--plumed plumed.dat --walkers 2 --every 10 {target}"
    code, err = diffmd(f"{words} --steps 40", "whole")
    assert code == 0, err
    assert diffmd(f"{words} --steps 20", "parts")[0] == 0
    assert diffmd(f"{words} --steps 40 --restart", "parts")[0] == 0
    whole, parts = (Trajectory(tmp_path / name / "md.h5") for name in ("whole", "parts"))
    assert np.array_equal(whole.positions[:], parts.positions[:])
    hills = [np.loadtxt(tmp_path / name / "HILLS") for name in ("whole", "parts")]
    assert hills[0].shape == (2 * 8, 5)
    np.testing.assert_allclose(hills[1], hills[0], rtol=1e-12)
    assert whole.columns["phi"].shape == (5, 2) and not whole.info.kinetics_valid


def test_mistakes(diffmd):
    code, err = diffmd("--plumed nowhere.dat --steps 10", "a")
    assert code == 1 and "nowhere.dat" in err and "Traceback" not in err
    code, err = diffmd("--plumed plumed.dat --target model --adapt 5 --steps 10", "a")
    assert code == 1 and "--step-size" in err
    assert diffmd("--plumed plumed.dat --walkers 2 --steps 10", "a")[0] == 0
    code, err = diffmd("--plumed plumed.dat --walkers 2 --steps 10 --prefix b", "a")
    assert code == 1 and "HILLS" in err and "Traceback" not in err


def test_inputs_that_run_code_are_refused(diffmd, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "stranger.dat").write_text("INCLUDE FILE=inner.dat\n")
    (tmp_path / "a" / "inner.dat").write_text("LOAD FILE=evil.cpp\n")
    code, err = diffmd("--plumed stranger.dat --steps 10", "a")
    assert code == 1 and all(word in err for word in ("LOAD", "evil.cpp", "--allow-load"))
    # allowed, it is PLUMED that does not find the library
    code, err = diffmd("--plumed stranger.dat --allow-load --steps 10", "a")
    assert code == 1 and "--allow-load" not in err and "Traceback" not in err
    assert not (tmp_path / "a" / "md.h5").exists()
