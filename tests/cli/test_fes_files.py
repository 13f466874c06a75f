"""Files of ``diffmd fes``: what it takes, what it calls its own, and what it says of names."""

import gzip
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from diffmd_ase.analysis.free_energy.result import named

HILLS = (
    "#! FIELDS time d sigma_d height biasf\n#! SET kerneltype stretched-gaussian\n"
    "1 0.0 0.2 1.0 5\n2 0.4 0.2 0.9 5\n"
)


@pytest.fixture
def fes(diffmd):
    def call(*words):
        return diffmd("fes", *words, "--energy-unit", "kT", "--no-progress")

    return call


def colvar(path, values, *, tail=""):
    rows = "".join(f"{n} {v:.8f}\n" for n, v in enumerate(values))
    content = f"#! FIELDS time d\n{rows}{tail}".encode()
    Path(path).write_bytes(gzip.compress(content) if path.endswith(".gz") else content)


def mean(path):
    """Of the variable under exp(-F)."""
    with np.load(path) as saved:
        p = np.exp(-saved["free_energy"])
        return (p * saved["centres_0"]).sum() / p.sum()


def test_names_with_dots_are_names(fes, rng):
    for centre, name in ((0.0, "fes_0.1"), (5.0, "fes_0.2")):
        colvar("COLVAR", centre + rng.normal(size=1000))
        code, _, err = fes("COLVAR", "--cv", "d", "--reweight", "none", "-o", name)
        assert code == 0 and f"{name}.npz" in err
    assert abs(mean("fes_0.1.npz")) < 0.2 and abs(mean("fes_0.2.npz") - 5) < 0.2
    wanted = {f"fes_0.{n}{end}" for n in "12" for end in ("", ".npz", ".csv", ".yml")}
    assert wanted == {path.name for path in Path(".").iterdir()} - {"COLVAR"}


@pytest.mark.parametrize(
    "output, files",
    [
        ("a.png", "a.png a.npz a.csv"),
        ("a.PNG", "a.PNG a.npz a.csv"),
        ("a.v2.svg", "a.v2.svg a.v2.npz a.v2.csv"),
        ("a", "a a.npz a.csv"),
        ("300.5", "300.5 300.5.npz 300.5.csv"),
        ("a.npz", "a.png a.npz a.csv"),
        ("a.csv", "a.png a.npz a.csv"),
    ],
)
def test_names_of_results(output, files):
    assert [path.name for path in named(Path(output))] == files.split()


def test_the_picture_is_what_its_name_says(fes, rng):
    colvar("COLVAR", rng.normal(size=500))
    for name, start in (("a.png", b"\x89PNG"), ("a.pdf", b"%PDF"), ("a.svg", b"<?xml")):
        assert fes("COLVAR", "--cv", "d", "--reweight", "none", "-o", name)[0] == 0
        assert Path(name).read_bytes().startswith(start)
    assert matplotlib.image.imread("a.png").ndim == 3


def test_compressed_and_cut_off(fes, rng):
    values = rng.normal(size=1000)
    colvar("COLVAR.gz", values, tail="1000 0.")
    code, _, err = fes("COLVAR.gz", "--cv", "d", "--reweight", "none", "-o", "a.png")
    assert code == 0 and "COLVAR.gz: 1 incomplete" in err
    colvar("COLVAR", values)  # and in a folder that holds both, one counts
    code, out, _ = fes(".", "--cv", "d", "--reweight", "none", "--json", "-o", "b.png")
    assert code == 0 and '"rows": 1000' in out
    np.testing.assert_array_equal(np.load("a.npz")["free_energy"], np.load("b.npz")["free_energy"])
    Path("HILLS.gz").write_bytes(gzip.compress((HILLS + "3 0.1").encode()))
    code, out, err = fes("HILLS.gz", "-o", "h.png")
    assert code == 0 and "HILLS.gz: 1 incomplete" in err


def test_a_basin_goes_by_its_variable(fes, rng):
    colvar("COLVAR", rng.normal(size=500))
    Path("HILLS").write_text(HILLS)
    for words in (["COLVAR", "--reweight", "none"], ["HILLS"]):
        code, out, err = fes(*words, "--basin", "A:-2:0", "--basin", "B:0:2")
        assert code == 1 and not out
        for fact in ("A:-2:0", "variable", "only d", "d:-2:0"):
            assert fact in err
        code, _, err = fes(*words, "--range", "x:-2:2")
        assert code == 1 and "x:-2:2" in err and "only d" in err
    code, _, err = fes("HILLS", "--basin", "left", "--basin", "d:0:2")
    assert code == 1 and "'left'" in err and "variable" in err


def test_a_grid_is_no_colvar(fes):
    Path("fes.dat").write_text("#! FIELDS d file.free der_d\n#! SET nbins_d 2\n0 1 0\n1 2 0\n")
    code, _, err = fes("fes.dat", "--cv", "d", "--reweight", "none")
    assert code == 1 and all(word in err for word in ("fes.dat", "grid", "HILLS"))


def test_a_folder_does_not_hide_a_run(fes):
    Path("md").mkdir()
    Path("md.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    code, _, err = fes("md", "--cv", "d=distance:0,1")
    assert code == 1 and "md.h5" in err  # asked for, and no trajectory
    code, _, err = fes(".", "--cv", "d")
    assert code == 1 and "COLVAR" in err


def test_a_picture_of_a_validation_is_named_before_the_work(diffmd):
    code, _, err = diffmd("validate", "alanine-dipeptide", "x.npz", "--plot", "card_0.1")
    assert code == 1 and all(word in err for word in ("card_0.1", ".png", ".svg"))
