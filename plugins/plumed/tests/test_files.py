"""Files that an input names: at hand wherever PLUMED runs, and written nowhere else."""

import json
import os

import numpy as np
import pytest
import torch
from ase import units
from diffmd_plumed import PlumedInputError, PlumedPotential
from four_atoms import KT, SYSTEM, X

from diffmd_ase.noise import Noise
from diffmd_ase.potentials.analytic import Harmonic
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.sampling.run import run

CV = "phi: TORSION ATOMS=1,2,3,4\n"
WALL = "RESTRAINT ARG=c AT=0 KAPPA=10\n"
PDB = "".join(
    f"ATOM  {n:5d}  C   ALA     1    {n:8.3f}   0.000   {n % 2:5.3f}  1.00  1.00\n"
    for n in range(1, 5)
)
ANGLES = -np.pi + 0.5 * np.pi * np.arange(4)
GRID = "#! SET min_phi -pi\n#! SET max_phi pi\n#! SET nbins_phi 4\n#! SET periodic_phi true\n"
GRID += "".join(f"{a:.9f} {n} 0.5\n" for n, a in enumerate(ANGLES))
FILES = {
    "included": f"{CV}INCLUDE FILE=more\n",
    "more": "c: CUSTOM ARG=phi FUNC=x PERIODIC=NO\n",
    "mol.pdb": PDB + "END\n",
    "group.ndx": "[ first ]\n1 2 3\n\n[ last ]\n3 4\n",
    "grid": f"#! FIELDS phi e.bias der_phi\n{GRID}",
    "first": f"#! FIELDS phi p.bias der_phi\n{GRID}",
    "target": f"#! FIELDS phi m.target der_phi\n{GRID}",
    "c": "no file that is meant",  # a label may be the name of a file
}
INPUTS = {
    "INCLUDE": f"INCLUDE FILE=included\n{WALL}",
    "REFERENCE": f"c: RMSD REFERENCE=mol.pdb TYPE=OPTIMAL\n{WALL}",
    "folder": f"c: RMSD REFERENCE=sub/mol.pdb TYPE=OPTIMAL\n{WALL}",
    "nested": "a: RMSD REFERENCE=sub/deep/mol.pdb TYPE=OPTIMAL\n"
    f"c: RMSD REFERENCE=sub/mol.pdb TYPE=OPTIMAL\n{WALL}",
    "above": f"c: RMSD REFERENCE=../above.pdb TYPE=OPTIMAL\n{WALL}",
    "@ndx:": f"c: GYRATION ATOMS={{@ndx:{{group.ndx first}}}}\n{WALL}",
    "NDX_FILE": f"g: GROUP NDX_FILE=group.ndx NDX_GROUP=last\nc: GYRATION ATOMS=g,1\n{WALL}",
    "EXTERNAL": f"{CV}e: EXTERNAL ARG=phi FILE=grid\n",
    "braces": f"{CV}e: EXTERNAL ARG=phi FILE={{my grid}}\n",
    "GRID_RFILES": f"{CV}p: PBMETAD ARG=phi SIGMA=0.3 HEIGHT=1 PACE=5 GRID_MIN=-pi GRID_MAX=pi "
    "GRID_BIN=4 GRID_RFILES=first FILE=H\n",
    "TARGET": f"{CV}m: METAD ARG=phi SIGMA=0.3 HEIGHT=1 PACE=1 GRID_MIN=-pi GRID_MAX=pi "
    f"TARGET=target\nc: CUSTOM ARG=phi FUNC=x PERIODIC=NO\n{WALL}",
}


@pytest.fixture
def folder(tmp_path):
    """The files, in a folder whose path has a blank."""
    path = tmp_path / "my folder" / "run"
    (path / "sub" / "deep").mkdir(parents=True)
    for name, text in FILES.items():
        (path / name).write_text(text)
    for name in ("sub/mol.pdb", "sub/deep/mol.pdb"):
        (path / name).write_text(FILES["mol.pdb"])
    (path.parent / "above.pdb").write_text(FILES["mol.pdb"])
    (path / "my grid").write_text(FILES["grid"])
    return path


def potential(text, folder, **options):
    (folder / "plumed.dat").write_text(text)
    options = {"kT": KT, "timestep": units.fs, "directory": folder, **options}
    return PlumedPotential(SYSTEM, folder / "plumed.dat", **options)


@pytest.mark.parametrize("name", INPUTS)
def test_read_from_the_folder_of_the_run(name, folder, tmp_path, monkeypatch):
    """Here, from elsewhere, and by each of several walkers; what is read is not changed."""
    energies = []
    for place, walkers in ((folder, "shared"), (tmp_path, "shared"), (tmp_path, "independent")):
        monkeypatch.chdir(place)
        with potential(INPUTS[name], folder, walkers=walkers) as bias:
            energies.append(float(bias(X).energy))
            bias.update(X, 1)
        (folder / "HILLS").unlink(missing_ok=True)
        (folder / "H").unlink(missing_ok=True)
    assert len(set(energies)) == 1 and abs(energies[0]) > 1e-4
    assert {n: (folder / n).read_text() for n in FILES} == FILES
    assert all((folder / n / "mol.pdb").is_file() for n in ("sub", "sub/deep"))
    assert {path.name for path in folder.rglob("bck*")} <= {"bck.0.plumed.log"}


@pytest.mark.parametrize("where", ["here", "elsewhere", "above", "sub"])
def test_written_where_it_says(where, folder, tmp_path):
    """An absolute name, too, which the check of the input does not write."""
    names = {
        "here": f"{folder}/COLVAR",
        "elsewhere": f"{tmp_path}/COLVAR",
        "above": "../COLVAR",
        "sub": "sub/COLVAR",
    }
    place = os.path.normpath(folder / names[where])
    if " " in names[where]:
        names[where] = f"{{{names[where]}}}"
    text = f"{CV}PRINT ARG=phi FILE={names[where]}\n"
    with potential(text, folder) as bias:
        bias.update(X, 1)
    assert len(np.loadtxt(place, ndmin=2)) == 1
    before = os.listdir(os.path.dirname(place))
    with pytest.raises(FileExistsError, match="COLVAR"):
        potential(text, folder)
    assert os.listdir(os.path.dirname(place)) == before
    if where != "sub":
        os.unlink(place)
        bias = potential(text, folder, walkers="independent")
        with pytest.raises(ValueError, match="2 independent walkers would write .*COLVAR"):
            bias(X.expand(2, 4, 3))
        assert not os.path.exists(place)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8", "utf-8-sig", "utf-16"])
def test_encodings(encoding, folder):
    text = f"# 5 Å, déjà vu \x85 more\n{CV}RESTRAINT ARG=phi AT=0 KAPPA=10 # é\n"
    plain = potential(CV + "RESTRAINT ARG=phi AT=0 KAPPA=10\n", folder)(X).energy
    (folder / "coded.dat").write_bytes(text.encode(encoding))
    options = {"kT": KT, "timestep": units.fs, "directory": folder / "out"}
    with PlumedPotential(SYSTEM, folder / "coded.dat", **options) as bias:
        assert torch.equal(bias(X).energy, plain)
        bias.update(X, 1)
        saved = json.loads(json.dumps(bias.checkpoint()))
    with PlumedPotential(SYSTEM, folder / "coded.dat", restart=True, **options) as bias:
        bias.restore(saved, X, 1)
        assert torch.equal(bias(X).energy, plain)
    (folder / "coded.dat").write_bytes(f"{text}WRONG Å\n".encode(encoding))
    with pytest.raises(PlumedInputError, match="line 4.*WRONG") as caught:
        PlumedPotential(SYSTEM, folder / "coded.dat", **options)
    str(caught.value).encode()  # can be printed


def test_an_error_in_an_included_file(folder):
    (folder / "more").write_text("c: CUSTOM ARG=nobody FUNC=x PERIODIC=NO\n")
    with pytest.raises(PlumedInputError, match=r"line 2 .*INCLUDE FILE=included.*nobody"):
        potential(f"\nINCLUDE FILE=included\n{WALL}", folder)


# ------------------------------------------------------------- a value for each walker

EACH = {
    "one": "RESTRAINT ARG=d,t AT=@replicas:{{0.1,0} {0.2,1}} KAPPA=100,10\n",
    "element": "RESTRAINT ARG=d,t AT={0.1,@replicas:{0 1}} KAPPA=@replicas:{{100,10} {50,20}}\n",
    "lines": "RESTRAINT ...\n ARG=d,t\n AT=@replicas:{\n  {0.1,0}\n  {0.2,1}\n }\n"
    " KAPPA=100,10\n...\n",
}
ALONE = {
    "one": [("0.1,0", "100,10"), ("0.2,1", "100,10")],
    "element": [("0.1,0", "100,10"), ("0.1,1", "50,20")],
}
TWO = "d: DISTANCE ATOMS=1,2\nt: TORSION ATOMS=1,2,3,4\n"


@pytest.mark.parametrize("form", ["one", "element", "lines", "included"])
def test_replicas(form, folder):
    """That of each walker, in all of PLUMED's ways to write it, also for those that are left."""
    text = EACH.get(form, "")
    if form == "included":
        (folder / "each").write_text(EACH["one"])
        text = "INCLUDE FILE=each\n"
    x = X.expand(2, 4, 3)
    bias = potential(TWO + text, folder, walkers="independent")
    plain = [
        potential(f"{TWO}RESTRAINT ARG=d,t AT={at} KAPPA={kappa}\n", folder)
        for at, kappa in ALONE.get(form, ALONE["one"])
    ]
    expected = torch.stack([one(X).energy for one in plain])
    assert torch.equal(bias(x).energy, expected) and expected[0] != expected[1]
    bias.select(torch.tensor([False, True]))
    assert torch.equal(bias(x[1:]).energy, expected[1:])


def test_replicas_that_do_not_fit(folder):
    two = f"{TWO}RESTRAINT ARG=d AT=@replicas:0.1,0.2 KAPPA=9\n"
    with pytest.raises(ValueError, match="@replicas:.* 2 walkers.*walkers='independent'"):
        potential(two, folder)
    bias = potential(two, folder, walkers="independent")
    with pytest.raises(ValueError, match="@replicas: .* 2 values for 3 walkers"):
        bias(X.expand(3, 4, 3))
    three = two.replace("KAPPA=9", "KAPPA=@replicas:1,2,3")
    with pytest.raises(PlumedInputError, match="2 and 3 values"):
        potential(three, folder, walkers="independent")


def test_replicas_of_files_and_paces(folder):
    text = f"{TWO}METAD ARG=d SIGMA=0.1 HEIGHT=1 PACE=@replicas:2,3 FILE=@replicas:two,three\n"
    bias = potential(text, folder, walkers="independent")
    kernel = EulerMaruyama(Harmonic(0.5, centre=X, system=SYSTEM) + bias, kT=KT, h=1e-3)
    list(run(kernel, X.expand(2, 4, 3), 6, noise=Noise(1)))
    bias.finalize()
    assert len(np.loadtxt(folder / "walker-0" / "two")) == 3
    assert len(np.loadtxt(folder / "walker-1" / "three")) == 2
