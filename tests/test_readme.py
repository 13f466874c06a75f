"""The README is true: its example runs, its commands and links exist, its numbers have a source."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "benchmarks/README.md",
    "plugins/README.md",
]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


# The example as printed trains for minutes on 50 000 snapshots and runs 10 000 steps. The test
# runs the same lines with these budgets in place of those; each must occur exactly once.
SMALL = {
    "train(snapshots, ": "train(snapshots.take(slice(0, 1000)), ",
    "max_minutes=5": "max_minutes=5, steps=20, evaluations=2",
    "dyn.run(10_000)": "dyn.run(200)",
}


def test_example(tmp_path):
    code, biased = blocks("python")  # the second goes on from the first
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    code += biased
    for printed, small in SMALL.items():
        assert code.count(printed) == 1, f"{printed} is not in the example of the README"
        code = code.replace(printed, small)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^\d+\.\d+ fs in steps of [\d.e-]+ fs$", done.stdout, re.MULTILINE)
    from ase.io import read

    hills = (tmp_path / "HILLS").read_text().splitlines()
    assert len([line for line in hills if not line.startswith("#!")]) == 4

    frames = read(tmp_path / "md.traj", ":")
    assert len(frames) == 3
    assert frames[-1].get_chemical_formula() == "C6H12N2O2"
    from diffmd_ase import ScoreModel

    assert ScoreModel.load(tmp_path / "model.safetensors").card.formula == "C6H12N2O2"


COMMANDS = [
    line.split("#")[0].strip()
    for block in blocks("bash")
    for line in block.splitlines()
    if line.startswith("diffmd ")
]


def test_every_command_is_shown():
    from typer.main import get_command

    from diffmd_ase.cli.main import app

    assert {shlex.split(c)[1] for c in COMMANDS} == set(get_command(app).commands)


@pytest.mark.parametrize("line", COMMANDS)
def test_command_parses(line):
    """Name, arguments and options of every ``diffmd …`` in the README; nothing is run."""
    from typer.main import get_command

    from diffmd_ase.cli.main import app

    _, name, *arguments = shlex.split(line)
    command = get_command(app).commands[name]
    context = command.make_context(name, list(arguments))
    assert context.args == []


def test_a_wrong_option_is_seen():
    from typer.main import get_command

    from diffmd_ase.cli.main import app

    with pytest.raises(Exception, match="(?i)no such option"):
        get_command(app).commands["train"].make_context("train", ["x.xyz", "--temprature", "300"])


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    mentioned = {
        target for page in PAGES for target in re.findall(r"make ([a-z]+)\b", _code_of(page))
    }
    assert {"demo", "test", "check"} <= mentioned
    for target in mentioned:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"make {target}"


def _code_of(page: str) -> str:
    """What a page sets as code: spans and blocks."""
    return "\n".join(re.findall(r"```.*?```|`[^`]+`", (ROOT / page).read_text(), re.DOTALL))


@pytest.mark.parametrize("page", PAGES)
def test_links(page):
    """Files that are linked to exist; anchors are headings of the page."""
    text = (ROOT / page).read_text()
    headings = {
        re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")
        for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    }
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in headings, f"{page}: no heading for {target}"
        elif not target.startswith("http"):
            assert ((ROOT / page).parent / target).exists(), f"{page}: {target} is not there"


def test_table_of_contents_is_complete():
    titles = re.findall(r"^## (.+)$", README, re.MULTILINE)
    contents = README.partition("## Start")[0]
    assert [t for t in titles if f"[{t}](" not in contents] == []
