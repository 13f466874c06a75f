"""Tables of PLUMED: whole, cut, continued, of several walkers; and what is wrong with others."""

import math

import numpy as np
import pytest
from ase import units
from messages import names

from diffmd_ase.io.plumed_tables import read_plumed, thermal_energy
from diffmd_ase.io.plumed_text import kind

HEAD = "#! FIELDS time phi m.bias\n#! SET min_phi -pi\n#! SET max_phi pi\n"


def rows(times, phi=0.1):
    return "".join(f" {t:.3f} {phi} {10 * t:.3f}\n" for t in times)


@pytest.fixture
def write(tmp_path):
    def put(text, name="COLVAR"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return put


def test_columns_domains_and_constants(write):
    table = read_plumed(write(HEAD + "#! SET biasfactor 8\n" + rows([0, 1, 2])))
    assert table.fields == ("time", "phi", "m.bias") and len(table) == 3
    np.testing.assert_array_equal(table.column("m.bias"), [0, 10, 20])
    np.testing.assert_array_equal(table.columns(["m.bias", "time"])[1], [10, 1])
    assert table.domains == {"phi": (-math.pi, math.pi)} and table.constants == {"biasfactor": "8"}
    assert table.period("phi") == 2 * math.pi and table.period("m.bias") is None
    assert "phi" in table and table.notes == () and not table.walker.any()
    assert len(table.take(table.column("time") > 0)) == 2
    with pytest.raises(ValueError, match=r"no column 'psi', only time, phi, m.bias"):
        table.column("psi")


@pytest.mark.parametrize(
    "text, value",
    [("pi", 1), ("-pi", -1), ("2pi", 2), ("0.5*pi", 0.5), ("-2*pi", -2), ("3.5", 3.5 / math.pi)],
)
def test_limits_may_hold_pi(write, text, value):
    head = f"#! FIELDS time a\n#! SET min_a -10\n#! SET max_a {text}\n"
    table = read_plumed(write(head + " 0 -9\n"))
    assert table.domains["a"][1] == pytest.approx(value * math.pi, abs=1e-12)


def test_half_lines_are_left_out(write):
    whole = HEAD + rows([0, 1, 2])
    for cut in (" 3.0", " 3.000 0.1 3", " 3.000 0.1 30.0"):  # the last number may be cut as well
        table = read_plumed(write(whole + cut))
        assert table.column("time").tolist() == [0, 1, 2]
        assert "1 incomplete lines" in table.notes[0]


def test_a_restart_after_a_kill(write):
    # half a line, the header again, and rows that had been written before
    text = HEAD + rows([0, 1, 2, 3, 4], phi=1.0) + " 5.0 0" + HEAD + rows([3, 4, 5, 6], phi=2.0)
    table = read_plumed(write(text))
    assert table.column("time").tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert table.column("phi").tolist() == [1, 1, 1, 2, 2, 2, 2]
    assert not table.walker.any()
    assert any("1 restarts, 2 rows superseded" in note for note in table.notes)


def test_files_put_together_are_walkers(write):
    table = read_plumed(write((HEAD + rows([0, 1, 2])) * 3))
    assert table.walker.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert "3 walkers one after the other" in table.notes[0]


def test_a_file_of_each_walker(write):
    paths = [write(HEAD + rows([0, 1], phi=n), f"COLVAR.{n}") for n in range(3)]
    table = read_plumed(paths)
    assert table.walker.tolist() == [0, 0, 1, 1, 2, 2]
    assert table.column("phi").tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("named", [True, False])
def test_walkers_in_turn(write, named):
    order = [0, 1, 2] * 4 if not named else [2, 0, 1] * 4
    lines = [f"{n // 3} {w} {w}" if named else f"{n // 3} {w}" for n, w in enumerate(order)]
    head = "#! FIELDS time walker s\n" if named else "#! FIELDS time s\n"
    table = read_plumed(write(head + "\n".join(lines) + "\n"))
    np.testing.assert_array_equal(table.walker, table.column("s"))
    assert "3 walkers in turn" in table.notes[0]
    # one walker that writes once a time is one walker
    assert not read_plumed(write("#! FIELDS time s\n0 1\n1 1\n2 1\n")).walker.any()


def test_rows_that_are_not_finite(write):
    text = HEAD + rows([0, 1]) + " 2.0 nan 1.0\n" + rows([3])
    table = read_plumed(write(text))
    assert len(table) == 3 and "1 rows with NaN" in table.notes[0]
    with pytest.raises(ValueError, match=names("COLVAR", "finite")):
        read_plumed(write(HEAD + " 0 nan 1\n"))


@pytest.mark.parametrize(
    "text, words",
    [
        ("0 1 2\n", "no line '#! FIELDS"),
        (HEAD, "0 rows of 3 columns"),
        (HEAD + "0 1\n1 2\n", "2 that do not fit"),
        (HEAD + "a b c\n", "1 that do not fit"),
        (HEAD + rows([0]) + "#! FIELDS time psi\n1 2\n", "name different columns"),
    ],
)
def test_what_is_not_a_table(write, text, words):
    with pytest.raises(ValueError, match=words):
        read_plumed(write(text))


def test_files_that_do_not_belong_together(write):
    one, other = write(HEAD + rows([0])), write("#! FIELDS time s\n0 1\n", "B")
    with pytest.raises(ValueError, match="different inputs"):
        read_plumed([one, other])
    with pytest.raises(ValueError, match="no file"):
        read_plumed([])


def test_kinds(write):
    assert kind(write(HEAD)) == "colvar"
    assert kind(write("#! FIELDS time s sigma_s height biasf\n")) == "hills"
    assert kind(write("#! FIELDS time s sigma_s height logweight\n")) == "kernels"
    assert kind(write("#! FIELDS time height sigma\n")) == "colvar"
    path = write("")
    path.write_bytes(b"\x89HDF\r\n\x1a\n")
    assert kind(path) == "trajectory"


def test_thermal_energy():
    assert thermal_energy(300.0, "kJ/mol") == pytest.approx(2.494339, rel=1e-6)
    assert thermal_energy(300.0, "kcal/mol") == pytest.approx(0.596161, rel=1e-6)
    assert thermal_energy(300.0, "eV") == pytest.approx(300 * units.kB)
    assert thermal_energy(None, "kT") == 1.0
    with pytest.raises(ValueError, match=names("'kj'", "kJ/mol", "kcal/mol", "eV", "kT")):
        thermal_energy(300.0, "kj")
    with pytest.raises(ValueError, match="--temperature"):
        thermal_energy(None, "kJ/mol")
