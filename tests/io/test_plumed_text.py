"""Files as PLUMED leaves them: compressed, cut off by a kill, continued, with remarks."""

import gzip
import math
import re

import numpy as np
import pytest
from messages import names

from diffmd_ase.io.plumed_tables import read_plumed, read_rows, read_state
from diffmd_ase.io.plumed_text import kind, number, parse

HEAD = "#! FIELDS time d m.bias\n#! SET min_d -pi\n#! SET max_d pi\n"
ROWS = "".join(f"{n} 0.{n} 1\n" for n in range(1, 6))
HILLS = "#! FIELDS time d sigma_d height biasf\n#! SET kerneltype stretched-gaussian\n1 0 1 2 5\n"
KERNELS = "#! FIELDS time d sigma_d height logweight\n#! SET kernel_cutoff 4\n1 0 1 2 0\n"
STATE = "#! FIELDS time d sigma_d height\n#! SET action OPES_METAD_state\n#! SET zed 0.5\n1 0 1 2\n"
GRID = "#! FIELDS d file.free der_d\n#! SET nbins_d 2\n0 1 0\n1 2 0\n"


@pytest.fixture
def write(tmp_path):
    def put(text, name="COLVAR", *, cut=None):
        path = tmp_path / name
        content = text.encode()
        path.write_bytes((gzip.compress(content) if name.endswith(".gz") else content)[:cut])
        return path

    return put


@pytest.mark.parametrize("name", ["X", "X.gz", "compressed.gz"])
@pytest.mark.parametrize(
    "text, what",
    [
        (HEAD + ROWS, "colvar"),
        (HILLS, "hills"),
        (KERNELS, "kernels"),
        (STATE, "state"),
        (GRID, "grid"),
        ("# a remark\n" + HILLS, "hills"),
    ],
)
def test_kinds(write, name, text, what):
    assert kind(write(text, name)) == what


@pytest.mark.parametrize("name", ["COLVAR", "COLVAR.gz"])
@pytest.mark.parametrize("half", ["6 0.6", "6 0.6 1", "6 0.6 1.2e", "#! FIE", "#! FIELDS time d"])
def test_half_a_last_line_is_named_and_left_out(write, name, half):
    path = write(HEAD + ROWS + half, name)
    table = read_plumed(path)
    assert len(table) == len(read_rows(path)) == 5
    assert re.search(names(path, "1 incomplete"), " ".join(table.notes))


@pytest.mark.parametrize("half", ["6 0.6", "#! FIELDS time d", "#! SET min_d -p"])
def test_half_a_line_before_the_header_of_a_restart(write, half):
    table = read_plumed(write(HEAD + ROWS + half + HEAD + "5 0.9 1\n6 0.9 1\n"))
    np.testing.assert_array_equal(table.column("time"), [1, 2, 3, 4, 5, 6])
    assert table.column("d")[4] == 0.9 and table.domains["d"] == (-math.pi, math.pi)
    assert "1 incomplete" in table.notes[0]


def test_a_compressed_file_that_is_cut_off(write, rng):
    rows = "".join(f"{n} {v:.12f} 1\n" for n, v in enumerate(0.5 * rng.normal(size=20_000)))
    whole = read_plumed(write(HEAD + rows, "COLVAR.gz"))
    table = read_plumed(write(HEAD + rows, "COLVAR.gz", cut=120_000))
    assert 5_000 < len(table) < len(whole) == 20_000
    np.testing.assert_array_equal(table.values, whole.values[: len(table)])
    assert "1 incomplete" in table.notes[0]


def test_a_compressed_file_in_several_parts(tmp_path):
    """`gzip -c >> COLVAR.gz` of a run and of its restart."""
    path = tmp_path / "COLVAR.gz"
    path.write_bytes(gzip.compress((HEAD + ROWS).encode()) + gzip.compress(b"6 0.6 1\n"))
    assert len(read_plumed(path)) == 6


def test_remarks_and_empty_lines_are_no_rows(write):
    table = read_plumed(write(HEAD + "# one\n\n1 0.1 1  # two\n   # three\n2 0.2 1\n"))
    assert table.column("time").tolist() == [1, 2] and not table.notes


def test_what_cannot_be_taken_together(write):
    other = HILLS.replace("stretched-gaussian", "gaussian").replace("1 0 1", "2 0 1")
    with pytest.raises(ValueError, match=names("kerneltype", "stretched-gaussian", "gaussian")):
        read_plumed(write(HILLS + other))
    with pytest.raises(ValueError, match=names("H1", "H2", "kerneltype")):
        read_plumed([write(HILLS, "H1"), write(other, "H2")])
    with pytest.raises(ValueError, match=names("A", "B", "domains")):
        read_plumed([write(HEAD + ROWS, "A"), write(HEAD.replace("-pi", "0") + ROWS, "B")])


@pytest.mark.parametrize(
    "text, value",
    [
        ("-pi", -math.pi),
        ("+pi", math.pi),
        ("2pi", 2 * math.pi),
        ("-0.5*pi", -0.5 * math.pi),
        ("pi/2", math.pi / 2),
        ("-2*pi/3", -2 * math.pi / 3),
        ("180", 180.0),
        ("-1.8E+2", -180.0),
        (".5", 0.5),
    ],
)
def test_numbers_may_hold_pi(text, value):
    assert number(text) == pytest.approx(value, rel=1e-15)


@pytest.mark.parametrize("text", ["-", "p", "pie", "", "*pi*"])
def test_what_is_no_number(text, write):
    with pytest.raises(ValueError):
        number(text)
    with pytest.raises(ValueError, match=names("COLVAR", "domain of d")):
        read_plumed(write(HEAD.replace("-pi", text or "?") + ROWS))


def test_the_last_whole_state_counts(write):
    second = STATE.replace("zed 0.5", "zed 0.7") + "1 0.5 1 3\n"
    table = read_state(write(STATE + second, "STATE"))
    assert len(table) == 2 and table.constants["zed"] == "0.7" and not table.notes
    path = write(STATE + second + STATE + "9 0.3", "STATE.gz")
    cut = read_state(path)
    assert cut.constants["zed"] == "0.7" and len(cut) == 2
    assert re.search(names(path, "incomplete", "the one before"), cut.notes[0])
    only = read_state(write(STATE + "9 0.3", "STATE"))
    assert len(only) == 1 and "incomplete" in only.notes[0]
    with pytest.raises(ValueError, match=names("STATE", "no kernels")):
        read_state(write(STATE[: STATE.rindex("1 0 1")], "STATE"))


def test_segments(write):
    [first, second] = parse(write(HEAD + ROWS + "7 1" + HEAD + "8 1 1\n"))
    assert first.fields == second.fields == ("time", "d", "m.bias")
    assert (len(first.rows), first.broken, len(second.rows), second.broken) == (5, 1, 1, 0)
    with pytest.raises(ValueError, match="no line '#! FIELDS"):
        parse(write("1 2 3\n"))
