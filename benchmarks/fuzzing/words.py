"""Malformed options: in files of YAML, and at the command line."""

from __future__ import annotations

import os
from pathlib import Path

import typer
import yaml

from diffmd_ase.cli.main import app

from .materials import Materials
from .spoil import spoiled, spoiled_text

_COMMANDS = ("train", "sample", "run", "report", "fes", "analyze", "validate")
_ODD = ["-1", "0", "1e9", "1000000000", "1000000000000", "99999999999999999999999", "nan", "inf"]
_ODD += ["-inf", "", "1e-300", "1e300", "text", "1e6", "1000000", "\x1b[2J", "../../x", "/dev/zero"]
_ODD += ["[1,2]", "{}", "None", "0x10", "٣", "1_000", "1,5", " 1 ", "/", ".", "phi:1:0", "a" * 5000]
_YAML = [
    "a: !!python/object/apply:os.system ['touch executed']",
    "steps: !!python/name:os.system",
    "!!python/object/new:os.system ['touch executed']",
    "steps: 1\nsteps: 2",
    "start: data.npz\n'start': other.npz",
    "steps: !!binary aGVsbG8=",
    "steps: 2020-01-01",
    "steps: !!float .nan",
    "steps: !!set {a, b}",
    "? [1, 2]\n: 3",
    "steps: [1, 2, 3]",
    "steps: {a: 1}",
    "steps: null",
    "steps: ''",
    "steps: 1e400",
    "steps: true",
    "- a\n- b",
    "{" * 5000,
    "[" * 5000,
    "a: &a [x]\nsteps: *b",
    "&a steps: *a",
    "steps: &a [*a]",
    "\x00",
    "\ufffe",
    "steps: 1\n---\nsteps: 2",
    "<<: {steps: 3}",
    "prefix: ../../../../tmp/x/y/z",
    "prefix: ''",
    "config: options.yml",
    "json: maybe",
    "walkers: 0x7fffffffffffffff",
    "device: [cpu]",
    "model: 5",
    "model: null",
]


def _bomb(levels: int) -> str:
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join([*rows, f"start: *a{levels - 1}"])


def options_file(rng, place: Path, base: Materials) -> tuple[str, str]:
    """Files of options."""
    how = rng.integers(4)
    if how == 0:
        values, told = spoiled(yaml.safe_load(base["options.yml"].read_text()), rng)
        text = yaml.safe_dump(values)
    elif how == 1:
        text, told = spoiled_text(base["options.yml"].read_text(), rng)
    elif rng.integers(12) == 0:
        text, told = _bomb(9), "a bomb of anchors"
        if rng.integers(2):
            text = text.replace("start", "torsion").replace("a0: &a0", "observe: &a0")
    else:
        text = _YAML[rng.integers(len(_YAML))]
        told = text[:40]
    (place / "bad.yml").write_bytes(text.encode("utf-8", "surrogatepass"))
    command = ["run", "run", "train", "fes", "analyze"][rng.integers(5)]
    file = {"run": "m.safetensors", "train": "data.npz", "fes": "COLVAR", "analyze": "md.h5"}
    rest = " --steps 3" if command == "run" and rng.integers(3) == 0 else ""
    rest += " --temperature 300" if command == "fes" else ""
    rest += " --start " + str(base["data.npz"]) if command == "run" else ""
    return f"{command} {base[file[command]]} --config bad.yml{rest}", f"{command}: {told}"


def option(rng, place: Path, base: Materials) -> tuple[list[str], str]:
    """A value of an option that is none."""
    command = _COMMANDS[rng.integers(len(_COMMANDS))]
    root = typer.main.get_command(app)
    known = root.commands[command].params
    some = [p for p in known if p.param_type_name == "option" and not p.is_flag]
    parameter = some[rng.integers(len(some))]
    flag = max(parameter.opts, key=len)
    value = _ODD[rng.integers(len(_ODD))]
    words = _call(command, base)
    if flag in words:
        del words[words.index(flag) : words.index(flag) + 2]
    return [*words, f"{flag}={value}"], f"{command} {flag}={value[:30]}"


def _call(command: str, base: Materials) -> list[str]:
    model, data = str(base["m.safetensors"]), str(base["data.npz"])
    quick = "--steps 2 --width 4 --batch-size 16 --processes 1"
    calls = {
        "train": f"train {data} -o o.safetensors {quick}",
        "sample": f"sample {model} -o o.npz -n 2 --levels 3 --relax-steps 1",
        "run": f"run {model} --start {data} --steps 4 --every 2 --walkers 2",
        "report": f"report {model} --snapshots {data} --trajectory {base['md.h5']}",
        "fes": f"fes {base['COLVAR']} {base['HILLS']} --temperature 300",
        "analyze": f"analyze {base['md.h5']}",
        "validate": f"validate {model} {data} -o o.json --effort 0.001",
    }
    return calls[command].split()


def argument(rng, place: Path, base: Materials) -> tuple[list[str], str]:
    """What is no file at all where a file belongs, and words that are too many or too few."""
    odd = ["", "/dev/zero", "/dev/null", "pipe", ".", "/", "nope", "loop", "x" * 5000, "a\x1b[2Jb"]
    odd += ["/dev/random", "-", "--", "pipe.npz", "pipe.h5", "pipe.extxyz", "zero.npz", "zero.h5"]
    odd += ["zero.safetensors", "zero.extxyz", "pipe.safetensors"]
    os.mkfifo(place / "pipe")
    for end in ("npz", "h5", "extxyz", "safetensors"):
        os.mkfifo(place / f"pipe.{end}")
        (place / f"zero.{end}").symlink_to("/dev/zero")
    (place / "loop").symlink_to("loop")
    (place / "model.npz").symlink_to(base["data.npz"])
    command = _COMMANDS[rng.integers(len(_COMMANDS))]
    words = _call(command, base)
    places = [n for n, word in enumerate(words) if "/" in word]
    n = places[rng.integers(len(places))]
    words[n] = odd[rng.integers(len(odd))]
    return words, f"{command}: {words[n - 1]} {words[n][:30]!r}"
