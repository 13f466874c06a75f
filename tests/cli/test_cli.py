"""The command line as a user meets it: files, options, mistakes."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
import yaml
from ase.build import bulk
from rich.console import Console

import diffmd_ase.cli.info
from diffmd_ase.cli import output as cli_output
from diffmd_ase.cli.main import app
from diffmd_ase.io.checkpoint import load_checkpoint
from diffmd_ase.io.trajectory import Trajectory
from diffmd_ase.score.model import ScoreModel

COMMANDS = [c.callback.__name__ for c in app.registered_commands]
TINY = ["--steps", "20", "--batch-size", "32", "--width", "8", "--processes", "1"]


def same(a, b):
    a, b = Trajectory(a), Trajectory(b)
    return (
        np.array_equal(a.steps, b.steps)
        and np.array_equal(a.positions[:], b.positions[:])
        and np.array_equal(a.energies, b.energies)
    )


# ------------------------------------------------------------------------- commands


@pytest.mark.parametrize("name", COMMANDS)
def test_help(diffmd, name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = diffmd(name, "--help")
    assert code == 0
    [command] = [c for c in app.registered_commands if c.callback.__name__ == name]
    assert command.callback.__doc__.splitlines()[0].rstrip(".") in out
    units = {
        "train": ["smallest noise, Å", "snapshots, K", "at most, min"],
        "run": ["step, fs", "1/fs", "1/Å²", "D·Δt, Å²", "of the run, K"],
        "demo": ["Å²", "min"],
    }
    for words in units.get(name, []):
        assert words in out


def test_every_option_has_a_help_text():
    from typer.main import get_command

    for name, command in get_command(app).commands.items():
        silent = [p.name for p in command.params if p.name != "help" and not p.help]
        assert not silent, f"{name}: {silent}"


@pytest.mark.parametrize("terminal", [False, True])
def test_no_number_of_a_table_is_cut(monkeypatch, terminal):
    words = io.StringIO()
    console = Console(file=words, width=60, force_terminal=terminal, color_system=None)
    monkeypatch.setattr(cli_output, "_results", console)
    row = ["divergence of torsions by reweighting", "0.0110", "+0.0009±0.0002", "cannot be told"]
    cli_output.show_table("title", ["", "value", "off by", "verdict"], [row])
    text = words.getvalue()
    assert all(cell in text for cell in row[1:]) and "…" not in text
    assert (row[0] in text) is not terminal  # a terminal has an end, a file has none


def test_no_arguments_is_help(diffmd):
    code, out, _ = diffmd()
    assert code == 0 and all(name in out for name in COMMANDS)


def test_train_can_be_repeated_from_its_options(diffmd, folder, model):
    saved = folder / "m.safetensors.yml"
    options = yaml.safe_load(saved.read_text())
    assert options["steps"] == 20 and options["batch-size"] == 32 and "config" not in options
    code, out, _ = diffmd("train", "--config", saved, "-o", "again.safetensors", "--json")
    assert code == 0
    assert json.loads(out)["formula"] == "H2O2"
    first, again = ScoreModel.load(model), ScoreModel.load("again.safetensors")
    for a, b in zip(first.networks, again.networks, strict=True):
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            # not bit by bit: sums of the linear algebra depend on where memory lies
            torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4)


def test_info(diffmd, model):
    code, out, _ = diffmd("info", model)
    assert code == 0 and "H2O2" in out and "300" in out
    card = json.loads(diffmd("info", model, "--json")[1])
    assert card["formula"] == "H2O2" and card["temperature_K"] == 300


def test_doctor(diffmd):
    code, out, _ = diffmd("doctor", "--json")
    found = json.loads(out)
    assert code == 0 and found["python"] and torch.__version__.startswith(found["torch"])
    assert diffmd("doctor")[0] == 0


def test_sample(diffmd, model, tmp_path):
    few = ["--levels", 6, "--relax-steps", 2, "--no-progress", "--seed", 5]
    assert diffmd("sample", model, "-o", "a.npz", "-n", 7, *few)[0] == 0
    assert diffmd("sample", model, "-o", "a.extxyz", "-n", 3, *few)[0] == 0
    with np.load("a.npz") as archive:
        drawn = archive["positions"]
        assert drawn.shape == (7, 4, 3) and float(archive["temperature_K"]) == 300
    # draw number i is the same in any batch, but for round-off
    some = [a.positions for a in ase.io.read("a.extxyz", index=":")]
    assert np.allclose(some, drawn[:3], atol=1e-4)
    assert diffmd("sample", model, "-o", "b.extxyz", "-n", 3, "--parallel", *few)[0] == 0
    some = [a.positions for a in ase.io.read("b.extxyz", index=":")]
    assert np.allclose(some, drawn[:3], atol=1e-4)
    assert {p.name for p in tmp_path.iterdir()} == {
        "a.npz",
        "a.npz.yml",
        "a.extxyz",
        "a.extxyz.yml",
        "b.extxyz",
        "b.extxyz.yml",
    }


def test_run_restart_and_extension(diffmd, start, model):
    assert diffmd(*start, "--steps", 40, "--prefix", "whole")[0] == 0
    assert diffmd(*start, "--steps", 15, "--prefix", "parts")[0] == 0
    before = Path("parts.yml").read_text()
    code, _, err = diffmd(*start, "--steps", 40, "--prefix", "parts")
    assert code == 1 and "parts.h5 exists" in err
    assert Path("parts.yml").read_text() == before
    code, out, _ = diffmd(
        "run", "--config", "parts.yml", "--steps", 40, "--restart", "--json", "--no-progress"
    )
    assert code == 0 and json.loads(out)["steps"] == 40
    assert same("whole.h5", "parts.h5")
    assert Path("whole.extxyz").read_text() == Path("parts.extxyz").read_text()
    before = Path("parts.yml").read_text()
    assert yaml.safe_load(before)["steps"] == 40
    code, _, err = diffmd("run", "--config", "parts.yml", "--seed", 1, "--restart")
    assert code == 1 and "seed 1 now, but the run has 0" in err
    assert Path("parts.yml").read_text() == before
    # the check can fail
    assert diffmd(*start, "--steps", 40, "--prefix", "other", "--seed", 1)[0] == 0
    assert not same("whole.h5", "other.h5")


def test_shares_of_a_batch(diffmd, start):
    assert diffmd(*start, "--steps", 30, "--prefix", "all")[0] == 0
    for first, count in ((0, 2), (2, 1)):
        share = ["--first-walker", first, "--walkers", count, "--prefix", f"s{first}"]
        assert diffmd(*start, "--steps", 30, *share)[0] == 0
    whole = Trajectory("all.h5").positions[:]
    shares = [Trajectory(f"s{n}.h5").positions[:] for n in (0, 2)]
    # the same noise; products of matrices of another size round otherwise
    assert np.allclose(whole, np.concatenate(shares, axis=1), atol=1e-4)
    assert not np.allclose(shares[0][:, 0], shares[1][:, 0], atol=1e-2)


def test_run_starts_from_its_own_samples(diffmd, model):
    assert diffmd("run", model, "--steps", 2, "--walkers", 2, "--no-progress")[0] == 0
    assert Trajectory("md.h5").positions.shape == (1, 2, 4, 3)


def test_dry_run_writes_nothing(diffmd, start, tmp_path):
    code, out, _ = diffmd(*start, "--temperature", 600, "--dry-run", "--json")
    settings = json.loads(out)
    assert code == 0 and settings["temperature_K"] == 600 and settings["h_A2"] > 0
    assert not list(tmp_path.iterdir())


def test_step_in_every_words(diffmd, start):
    def settings(*words):
        return json.loads(diffmd(*start, *words, "--dry-run", "--json")[1])

    assert settings("--step-size", 1e-5)["h_A2"] == pytest.approx(1e-5)
    assert settings("--spring", 5e4)["h_A2"] == pytest.approx(1e-5)
    clock = settings("--timestep", 0.01, "--friction", 0.5)
    assert clock["timestep_fs"] == pytest.approx(0.01)
    # h = kT Δt/(m γ) of hydrogen, in u Å²/fs²
    kT = 300 * 8.617333e-5 * 9.64853e-3
    assert clock["h_A2"] == pytest.approx(kT * 0.01 / (1.008 * 0.5), rel=1e-4)


def test_report(diffmd, folder, model, start):
    assert diffmd(*start, "--steps", 60, "--prefix", "md")[0] == 0
    code, _, err = diffmd("report", model, "--trajectory", "md.h5")
    assert code == 1 and "--snapshots" in err
    words = ["report", model, "--snapshots", folder / "data.npz", "--trajectory", "md.h5"]
    code, out, err = diffmd(*words)
    assert code == 0 and "walkers were lost" in out and "wrote report.html" in err
    assert "<html" in Path("report.html").read_text()
    numbers = json.loads(diffmd(*words, "--json")[1])
    assert numbers["verdicts"] and 0 <= numbers["outside"]["MD"][0] <= 1
    saved = yaml.safe_load(Path("report.html.yml").read_text())
    assert saved["trajectory"] == ["md.h5"]
    assert diffmd("report", "--config", "report.html.yml", "-o", "again.html")[0] == 0


def test_periodic_system(diffmd, rng):
    cell = bulk("Cu", cubic=True)
    frames = []
    for _ in range(40):
        atoms = cell.copy()
        atoms.positions += 0.08 * rng.standard_normal((4, 3))
        frames.append(atoms)
    ase.io.write("cu.extxyz", frames)
    code, _, err = diffmd("train", "cu.extxyz")
    assert code == 1 and "--temperature" in err and err.count("\n") == 1
    words = ["train", "cu.extxyz", "--temperature", 300, "-o", "cu.safetensors", "--steps", 1]
    small = [
        "--network",
        "equivariant",
        "--channels",
        2,
        "--batch-size",
        4,
        "--cutoff",
        3,
        "--no-progress",
    ]
    assert diffmd(*words, *small)[0] == 0
    code, _, err = diffmd("run", "cu.safetensors", "--no-progress")
    assert code == 1 and "--start" in err
    code, _, err = diffmd("sample", "cu.safetensors", "-o", "x.npz", "--no-progress")
    assert code == 1 and "periodic" in err
    moves = ["run", "cu.safetensors", "--start", "cu.extxyz", "--walkers", 2, "--steps", 30]
    assert diffmd(*moves, "--every", 10, "--step-size", 1e-4, "--no-progress")[0] == 0
    trajectory = Trajectory("md.h5")
    assert trajectory.system.periodic and np.allclose(trajectory.system.cell, cell.cell)
    means = trajectory.positions[:].mean(axis=2)
    assert np.abs(means - means[0]).max() > 1e-4  # crystals may drift: nothing is projected


# -------------------------------------------------------------------- configuration


def test_flags_win_over_the_file(diffmd, folder, model):
    options = {"model": str(model), "start": str(folder / "data.npz"), "steps": 12, "walkers": 2}
    Path("c.yml").write_text(yaml.safe_dump(options))
    words = ["run", "--config", "c.yml", "--dry-run", "--json"]
    assert json.loads(diffmd(*words)[1])["steps"] == 12
    assert json.loads(diffmd(*words, "--steps", 7)[1])["steps"] == 7
    assert json.loads(diffmd(*words, "--steps", 7)[1])["walkers"] == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stepz: 3", "unknown key 'stepz'; did you mean 'steps'?"),
        ("first_walkers: 3", "did you mean 'first-walker'?"),
        ("qqqq: 3", "`run` knows model"),
        ("- 3", "must hold a mapping"),
        ("a: [", "cannot read"),
        ("steps: many", "--steps"),
        ("steps: -4", "--steps"),
    ],
)
def test_wrong_files(diffmd, text, words, model):
    Path("c.yml").write_text(text)
    code, _, err = diffmd("run", model, "--config", "c.yml", "--dry-run")
    assert code == 2 and words in err and err.count("\n") == 1


def test_empty_and_missing_files(diffmd, model):
    Path("empty.yml").touch()
    assert diffmd("run", model, "--config", "empty.yml", "--dry-run")[0] == 0
    code, _, err = diffmd("run", model, "--config", "nothing.yml")
    assert code == 2 and "cannot read nothing.yml" in err


# ------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("train nothing.xyz", 1, "no file 'nothing.xyz'"),
        ("train SILENT", 1, "give --temperature"),
        ("train DATA --temperature 310", 1, "states 300 K"),
        ("train DATA --temperature -3", 1, "-3"),
        ("train DATA --network pear", 2, "'pear' is not one of 'auto', 'pair'"),
        ("train DATA --steps 0", 2, "--steps: Input should be greater than or equal to 1, got 0"),
        ("train DATA --batch-size -1", 2, "--batch-size"),
        ("train DATA --learning-rate 0", 2, "--learning-rate"),
        ("train DATA -o no/m.safetensors", 1, "does not exist"),
        ("train DATA -o .", 1, "is a folder"),
        ("train DATA --device cuda:77", 1, "cuda:77"),
        ("train MODEL --temperature 300", 1, "cannot read"),
        ("info DATA", 1, "not readable"),
        ("info nothing", 1, "no model file 'nothing'"),
        ("info", 2, "Missing argument"),
        ("sample MODEL", 2, "--output"),
        ("sample MODEL -o x.npz -n 0", 2, "--number"),
        ("sample MODEL -o x.nonsense", 1, "use .extxyz"),
        ("sample MODEL -o no/x.npz", 1, "does not exist"),
        ("sample MODEL -o x.npz --device tpu", 1, "tpu"),
        ("run MODEL --walkers 0", 2, "--walkers"),
        ("run MODEL --steps -1", 2, "--steps: Input should be greater than or equal to 0, got -1"),
        ("run MODEL --every 0", 2, "--every"),
        ("run MODEL --seed -1", 2, "--seed"),
        ("run MODEL --step 3 --nonsense", 2, "No such option"),
        ("run MODEL --prefix no/md", 1, "does not exist"),
        ("run MODEL --device cuda:77", 1, "cuda:77"),
        ("run MODEL --temperature 0", 1, "must be positive"),
        ("run MODEL --step-size 0.01", 1, "unstable: h*lambda ="),
        ("run MODEL --timestep 1 --friction 0.01", 1, "unstable: h*lambda ="),
        ("run MODEL --timestep 1", 1, "needs a friction"),
        ("run MODEL --step-size 1e-5 --spring 10", 1, "give one"),
        ("run MODEL --start nothing.xyz", 1, "no file"),
        ("run MODEL --start alanine-dipeptide", 1, "this model knows H2O2"),
        ("run MODEL --restart", 1, "no such trajectory"),
        ("report MODEL --trajectory no.h5 --snapshots DATA", 1, "no such trajectory"),
        ("report MODEL --samples no.npz --snapshots DATA", 1, "no file"),
        ("report MODEL --snapshots DATA --skip 1", 2, "--skip"),
        ("nonsense", 2, "No such command"),
    ],
)
def test_mistakes_are_one_line(diffmd, folder, model, tmp_path, words, code, message):
    known = {"MODEL": model, "DATA": folder / "data.npz", "SILENT": folder / "silent.npz"}
    got, out, err = diffmd(*(known.get(word, word) for word in words.split()))
    assert got == code, err
    [line] = [x for x in err.splitlines() if "snapshots of" not in x]
    assert line.startswith("error: ") and message in line
    assert "Traceback" not in err and not out
    assert not list(tmp_path.iterdir())  # nothing half-written


def test_large_step_warns_in_one_line(diffmd, start, model):
    h = 1.5 / ScoreModel.load(model).card.lambda_max
    code, _, err = diffmd(*start, "--steps", 0, "--step-size", h)
    assert code == 0
    assert re.fullmatch(r"warning: the step h = .* is large: h\*lambda = 1\.5 .*\n", err)
    assert ".py" not in err


@pytest.mark.parametrize(
    "error", [KeyError("x"), TypeError("of\nx"), AttributeError("x"), OSError()]
)
@pytest.mark.parametrize("debug", [False, True])
def test_what_nobody_expected_is_one_line_too(monkeypatch, diffmd, error, debug):
    def broken(*_, **__):
        raise error

    monkeypatch.setattr(diffmd_ase.cli.info, "show", broken)
    if debug:
        monkeypatch.setenv("DIFFMD_DEBUG", "1")
    code, _, err = diffmd("doctor")
    assert code == 1 and ("Traceback" in err) is debug
    last = err.splitlines()[-1]
    assert last.startswith(f"error: {type(error).__name__} in info.py")
    assert debug or err.count("\n") == 1
    assert "DIFFMD_DEBUG=1" in last


def test_brackets_in_messages_are_no_markup(diffmd):
    code, _, err = diffmd("info", "[/bold][red]x")
    assert code == 1 and "[/bold][red]x" in err


# -------------------------------------------------------------------------- processes


def test_terminated_run_goes_on(diffmd, start):
    command = [sys.executable, "-m", "diffmd_ase", *map(str, start)]
    process = subprocess.Popen(
        [*command, "--steps", str(10**8), "--prefix", "cut", "--compile", "off"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not os.path.exists("cut.restart") and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    process.terminate()  # SIGTERM; SIGKILL is in test_simulation
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143 and "Traceback" not in err
    step = load_checkpoint("cut.restart").state.step
    assert step > 0
    assert diffmd(*start, "--steps", step + 25, "--prefix", "cut", "--restart")[0] == 0
    assert diffmd(*start, "--steps", step + 25, "--prefix", "whole")[0] == 0
    assert same("whole.h5", "cut.h5")


class Dying:
    """Python drops what its destructor raises."""

    def __del__(self):
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_that_python_drops_at_the_start_ends_the_run(diffmd, start, monkeypatch):
    load = ScoreModel.load

    def interrupted(*arguments):
        Dying()
        return load(*arguments)

    monkeypatch.setattr(ScoreModel, "load", interrupted)
    code, _, _ = diffmd(*start, "--steps", 2000, "--prefix", "cut")
    assert code == 143
    assert load_checkpoint("cut.restart").state.step == 1
