"""Inputs that are wrong, or crash PLUMED: an error that says so, before anything is written."""

import numpy as np
import pytest
import torch
from diffmd_plumed import (
    PlumedInputError,
    PlumedPotential,
    check_input,
)
from six_atoms import CVS, HILLS, KT, METAD, SYSTEM, hills

from diffmd_ase.system import System

PDB = "".join(
    f"ATOM  {n:5d}  C   ALA     1    {n:8.3f}   0.000   0.000  1.00  1.00\n" for n in range(1, 4)
)
FISST = "f: FISST MIN_FORCE=1 MAX_FORCE=2 PERIOD=9 NINTERPOLATE=31 ARG=d KBT=1 CENTER=1"


@pytest.mark.parametrize(
    "line",
    [
        FISST,
        "FUNNEL_PS LIGAND=1 REFERENCE=a.pdb POINTS=1,1,1,2,2,2",
        "p: ADAPTIVE_PATH TYPE=OPTIMAL FIXED=1,1 UPDATE=50 WFILE=o WSTRIDE=50 REFERENCE=a.pdb",
        "cv: PYCVINTERFACE ATOMS=1,2 IMPORT=nonexistent_module CALCULATE=f",
    ],
)
def test_inputs_that_crash_plumed(line, tmp_path):
    """An error with the number of the line, and this process lives on."""
    import plumed

    (tmp_path / "a.pdb").write_text(PDB + "END\n")
    lines = [CVS[0], line, "PRINT ARG=d"]
    if "PYCV" in line:
        lines[0] = f"LOAD FILE={plumed.get_pycv_path()}"
        lines.pop()
    with pytest.raises(PlumedInputError, match="line 2 of the input") as caught:
        check_input(lines, 6, kT=KT, directory=tmp_path)
    assert caught.value.line == 2
    assert [p.name for p in tmp_path.iterdir()] == ["a.pdb"]


class TestBadInput:
    @pytest.mark.parametrize(
        "lines, words",
        [
            (["d: DISTANCE ATOMS=1,99"], "line 1"),
            ([CVS[0], "", "m: METAD ...", "ARG=d HEIGHT=1", "FOO=3", "..."], "line 3.*METAD"),
            ([CVS[0], "RESTRAINT ARG=dd AT=1 KAPPA=1"], "line 2.*cannot find action named dd"),
            (["d: DISTANCE ATOMS1=1,2 ATOMS2=3,4", HILLS.replace("d,t", "d")], "line|vector"),
            ([CVS[0], "m: METAD ARG=d SIGMA=.1 HEIGHT=1 PACE=9 TEMP=310"], "TEMP=310.*299.4"),
            (["RESTART", CVS[0]], "restart=True"),
            (["x: PUT PERIODIC=NO UNIT=number"], "Driver.set_value"),
            (["p: DIPOLE GROUP=1,2"], "charges="),
            ([CVS[0], "RESTRAINT ARG=d AT=1 KAPPA=1 STRIDE=2"], "STRIDE=2"),
            ([CVS[0], "UNITS LENGTH=A"], "line 2.*setup action"),
        ],
    )
    def test_input(self, make, lines, words):
        with pytest.raises(ValueError, match=words):
            make(lines)

    def test_vectors(self, make):
        lines = ["d: DISTANCE ATOMS1=1,2 ATOMS2=3,4", "m: METAD ARG=d SIGMA=.1 HEIGHT=1 PACE=9"]
        with pytest.raises(ValueError, match="METAD.*vector 'd'.*first element only"):
            make(lines)

    def test_missing_kT(self):
        with pytest.raises(PlumedInputError, match="line 2.*give kT"):
            check_input([CVS[0], "m: METAD ARG=d SIGMA=.1 HEIGHT=1 PACE=9 BIASFACTOR=5"], 6)

    @pytest.mark.parametrize("units", ["TIME=0.098", "ENERGY=27.2", "LENGTH=10"])
    def test_units_that_look_wrong(self, make, units):
        with pytest.warns(UserWarning, match=f"{units}.*0.010180506"):
            make([f"UNITS {units}", *METAD])

    @pytest.mark.parametrize(
        "options, words",
        [
            ({"kT": 0.0}, "kT=0.0"),
            ({"timestep": -1.0}, "timestep=-1.0"),
            ({"walkers": "all"}, "walkers='all'"),
            ({"input": "no.dat"}, "no.dat"),
            ({"system": System([1], [1.0], np.eye(3), [1, 1, 0])}, r"pbc=\[True, True, False\]"),
        ],
    )
    def test_options(self, tmp_path, options, words):
        given = {"system": SYSTEM, "input": METAD, "kT": KT, "timestep": 1.0, **options}
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            PlumedPotential(directory=tmp_path, **given)

    def test_out_of_grid_and_nan_walkers(self, make, x):
        grid = "m: METAD ARG=d SIGMA=0.1 HEIGHT=1 PACE=4 GRID_MIN=0 GRID_MAX=1"
        potential = make([CVS[0], grid])
        for step in range(1, 5):
            potential.update(x, step)
        walkers = x.repeat(3, 1, 1)
        walkers[1, 0] += 100.0
        walkers[2, 0] = torch.nan
        with pytest.warns(UserWarning, match="walker 1 left the grid.*UPPER_WALLS"):
            value = potential(walkers)
        assert torch.isfinite(value.energy).tolist() == [True, False, False]
        with pytest.raises(ValueError, match=r"walkers \[2\] are not finite at step 8"):
            potential.update(walkers, 8)
        assert len(hills(potential)) == 1

    def test_files_to_read_mean_the_folder_of_the_run(self, tmp_path, x):
        (tmp_path / "a.pdb").write_text(PDB + "END\n")
        lines = ["r: RMSD REFERENCE=a.pdb TYPE=OPTIMAL", "RESTRAINT ARG=r AT=0 KAPPA=9"]
        options = {"kT": KT, "timestep": 1.0, "directory": tmp_path}
        energies = []
        for walkers in ("shared", "independent"):
            potential = PlumedPotential(SYSTEM, lines, walkers=walkers, **options)
            energies.append(float(potential(x).energy))
            potential.finalize()
        assert energies[0] == energies[1] > 0


@pytest.mark.parametrize(
    "action",
    [
        "LOAD FILE=evil.cpp",
        "a: PYFUNCTION ARG=d IMPORT=evil CALCULATE=run",
        "LOAD ...\nFILE=evil.so\n...",
    ],
)
def test_code_of_files_is_refused_where_it_is_not_allowed(tmp_path, monkeypatch, action):
    """Before PLUMED sees the input, also through INCLUDE; a comment is no action."""
    monkeypatch.chdir(tmp_path)
    lines = ["d: DISTANCE ATOMS=1,2", *action.splitlines(), "PRINT ARG=d FILE=COLVAR"]
    (tmp_path / "inner.dat").write_text("\n".join(lines) + "\n")
    for input in (lines, ["INCLUDE FILE=inner.dat"]):
        with pytest.raises(PlumedInputError, match="runs code of a file.*allow-load"):
            check_input(input, 2, allow_load=False)
    harmless = [lines[0], "# LOAD FILE=evil.cpp", lines[-1]]
    check_input(harmless, 2, allow_load=False)
    with pytest.raises(PlumedInputError) as refused:  # by PLUMED itself: there is no such file
        check_input(lines, 2, allow_load=True)
    assert "allow-load" not in str(refused.value)
