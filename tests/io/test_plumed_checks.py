"""Rows of PLUMED's files that cannot be right are refused, with their line."""

import numpy as np
import pytest
from messages import names

from diffmd_ase.io.plumed_tables import read_plumed, read_rows

HEAD = "#! FIELDS time phi sigma_phi height biasf\n#! SET min_phi -pi\n#! SET max_phi pi\n"
GOOD = [[0.5 * n, np.cos(n), 0.35, 1.0 / (n + 1), 8.0] for n in range(40)]


def table(tmp_path, row=None, column=0, value=0.0, rows=GOOD, head=HEAD):
    rows = [list(r) for r in rows]
    if row is not None:
        rows[row][column] = value
    path = tmp_path / "HILLS"
    path.write_text(head + "".join(" ".join(f"{v:.9f}" for v in r) + "\n" for r in rows))
    return path


@pytest.mark.parametrize(
    "row, column, value, words",
    [
        (7, 0, 1.5, "time 1.5, after 3"),
        (7, 1, -3.2, "phi -3.2, not in"),
        (7, 2, 0.37, "sigma_phi 0.37, 0.35 in the other rows"),
        (7, 4, 9.0, "biasf 9, 8 in the other rows"),
    ],
)
def test_what_cannot_be_right(tmp_path, row, column, value, words):
    path = table(tmp_path, row, column, value)
    for read in (read_plumed, read_rows):
        with pytest.raises(ValueError, match=names("HILLS", f"line {row + 4}", words)):
            read(path)


def test_what_may_be(tmp_path):
    assert not read_plumed(table(tmp_path)).notes
    adaptive = [[*r[:2], 0.3 + 0.001 * n, *r[3:]] for n, r in enumerate(GOOD)]
    assert len(read_plumed(table(tmp_path, rows=adaptive))) == 40
    on_the_edge = table(tmp_path, 3, 1, 3.1415930)  # six decimals of pi
    assert len(read_plumed(on_the_edge)) == 40
    several = [row for row in GOOD for _ in range(3)]  # walkers of one instance
    assert read_plumed(table(tmp_path, rows=several)).walker.max() == 2


def test_a_time_between_the_others_is_told(tmp_path):
    [note] = read_plumed(table(tmp_path, 7, 0, 3.6)).notes
    assert "line 11" in note and "every 0.5" in note
    assert not read_plumed(table(tmp_path, 39, 0, 25.0)).notes  # rows may be missing


def test_a_line_in_the_middle_that_is_none(tmp_path):
    path = table(tmp_path)
    lines = path.read_text().splitlines(keepends=True)
    lines[9] = lines[9].replace(".", "n", 1)
    path.write_text("".join(lines))
    assert "line 10" in read_plumed(path).notes[0]
    with pytest.raises(ValueError, match=names("HILLS", "line 10", "take a copy")):
        read_rows(path)
