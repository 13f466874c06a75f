"""`diffmd plumed`: what `plumed driver` gives, on trajectories with our walkers."""

import json
import shlex
import sys

import ase.io
import numpy as np
import pytest
from ase import Atoms, units
from ase.calculators.emt import EMT
from ase.io.trajectory import Trajectory as AseTrajectory
from ase.md.verlet import VelocityVerlet
from diffmd_plumed import reevaluate
from tool import check_same_text, drive

from diffmd_ase.cli.main import main
from diffmd_ase.io.trajectory import Trajectory

INPUT = [
    "phi: TORSION ATOMS=5,7,9,15",
    "m: METAD ARG=phi SIGMA=0.35 HEIGHT=1.2 PACE=5 BIASFACTOR=8 GRID_MIN=-pi GRID_MAX=pi",
    "h: HISTOGRAM ARG=phi GRID_MIN=-pi GRID_MAX=pi GRID_BIN=20 BANDWIDTH=0.2",
    "DUMPGRID ARG=h FILE=histo",
    "EFFECTIVE_ENERGY_DRIFT PRINT_STRIDE=1 FILE=drift",
    "PRINT ARG=phi,m.bias FILE=COLVAR",
]
SHARED = [*INPUT[:4], "w: EXTRACV NAME=walker", "PRINT ARG=w,phi,m.bias FILE=COLVAR"]


@pytest.fixture
def diffmd(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def call(words, lines=None):
        if lines is not None:
            (tmp_path / "plumed.dat").write_text("\n".join(lines) + "\n")
        with pytest.raises(SystemExit) as done:
            main([*shlex.split(words), "--no-progress"])
        out, err = capsys.readouterr()
        return done.value.code or 0, out, err

    return call


def ran(diffmd, words, lines):
    code, _, err = diffmd(f"run alanine-dipeptide --plumed plumed.dat {words}", lines)
    assert code == 0, err
    trajectory = Trajectory("md.h5")
    return trajectory, trajectory.info.kT * units.mol / units.kJ


def test_a_run_and_its_trajectory(diffmd, tmp_path):
    """The files of the run, of `diffmd plumed` and of `plumed driver` are the same, to the end."""
    trajectory, kt = ran(diffmd, "--steps 30 --every 1", INPUT)
    reference = drive(tmp_path / "driver", INPUT, trajectory.positions[:, 0], kt=kt)
    check_same_text(tmp_path, reference)
    code, out, err = diffmd("plumed plumed.dat md.h5 -o again --json")
    assert code == 0, err
    said = json.loads(out)
    assert said["frames"] == 31 and said["times_ps"] == [0.0, 0.03] and said["walkers"] == [0]
    assert sorted(said["files"]) == [f"again/{n}" for n in ("COLVAR", "HILLS", "drift", "histo")]
    check_same_text(tmp_path / "again", reference)
    code, _, err = diffmd("plumed plumed.dat md.h5 -o again")
    assert code == 1 and "COLVAR" in err and "Traceback" not in err
    check_same_text(tmp_path / "again", reference)


def test_walkers(diffmd, tmp_path):
    trajectory, kt = ran(diffmd, "--steps 20 --every 2 --walkers 3", SHARED)
    code, _, err = diffmd("plumed shared.dat md.h5 --shared -o shared")
    assert code == 1 and "shared.dat" in err
    assert diffmd("plumed plumed.dat md.h5 --shared -o shared")[0] == 0
    rows = np.loadtxt("COLVAR")  # the run has printed more often
    rows = rows[np.isin((1000 * rows[:, 0]).round(), trajectory.steps)]
    assert np.loadtxt("shared/COLVAR")[:, :3].tolist() == rows[:, :3].tolist()
    assert diffmd("plumed plumed.dat md.h5 -o each", INPUT)[0] == 0
    assert diffmd("plumed plumed.dat md.h5 -o one --walker 2")[0] == 0
    for walker in range(3):
        frames = trajectory.positions[:, walker]
        reference = drive(tmp_path / f"{walker}", INPUT, frames, kt=kt, stride=2)
        check_same_text(f"each/walker-{walker}", reference)
    check_same_text("one", reference)
    code, _, err = diffmd("plumed plumed.dat md.h5 -o none --walker 5")
    assert code == 1 and "[5]" in err and "[0, 1, 2]" in err


def test_values_for_each_walker(diffmd):
    ran(diffmd, "--steps 4 --every 1 --walkers 2", SHARED)
    lines = [INPUT[0], "r: RESTRAINT ARG=phi AT=@replicas:-2,1 KAPPA=2", "PRINT ARG=* FILE=COLVAR"]
    assert diffmd("plumed plumed.dat md.h5 -o each", lines)[0] == 0
    for walker, at in ((0, -2.0), (1, 1.0)):
        _, phi, bias, *_ = np.loadtxt(f"each/walker-{walker}/COLVAR", unpack=True)
        away = (phi - at + np.pi) % (2 * np.pi) - np.pi
        np.testing.assert_allclose(bias, away**2, atol=1e-5)


def molecules(count=8, cell=None):
    rng = np.random.default_rng(1)
    x = 0.4 * rng.normal(size=(4, 3)) + 2.0
    box = {} if cell is None else {"cell": cell, "pbc": True}
    return [Atoms("CHNO", x + 0.1 * rng.normal(size=(4, 3)), **box) for _ in range(count)]


LINES = ["d: DISTANCE ATOMS=1,4", "c: COM ATOMS=1-4", "p: POSITION ATOM=c NOPBC", "v: VOLUME"]
LINES += ["m: METAD ARG=d SIGMA=0.05 HEIGHT=1 PACE=2", "PRINT ARG=d,p.x,v,m.bias FILE=COLVAR"]


@pytest.mark.parametrize("name", ["a.traj", "a.extxyz"])
def test_anything_that_ase_reads(name, diffmd, tmp_path):
    """The cell is that of each frame, the masses those of the atoms."""
    frames = molecules(cell=[3.0, 4.0, 5.0])
    for number, frame in enumerate(frames):
        frame.set_cell(frame.cell * (1 + 0.05 * number))
    ase.io.write(name, frames)
    code, _, err = diffmd(f"plumed plumed.dat {name} -o out --timestep 0.002 --stride 3", LINES)
    assert code == 0, err
    time, d, centre, volume, _ = np.loadtxt("out/COLVAR", unpack=True)
    np.testing.assert_allclose(time, 0.006 * np.arange(8), atol=1e-9)
    np.testing.assert_allclose(d, [0.1 * f.get_distance(0, 3, mic=True) for f in frames], atol=1e-6)
    np.testing.assert_allclose(centre, [0.1 * f.get_center_of_mass()[0] for f in frames], atol=1e-6)
    np.testing.assert_allclose(volume, [1e-3 * f.get_volume() for f in frames], atol=1e-6)
    np.testing.assert_allclose(np.loadtxt("out/HILLS")[:, 0], [0.012, 0.024, 0.036])


def test_options_of_plumed_driver(diffmd, tmp_path):
    lines = [LINES[0], "p: DIPOLE GROUP=1-4", "MOLINFO STRUCTURE=mol.pdb", "v: VOLUME"]
    lines += ["METAD ARG=d SIGMA=0.05 HEIGHT=1 PACE=2 BIASFACTOR=5 FILE=HILLS"]
    lines += ["PRINT ARG=d,p,v FILE=COLVAR"]
    frames = molecules()
    ase.io.write("mol.pdb", frames[0])
    ase.io.write("a.traj", frames)
    charges = np.array([0.5, -0.25, 0.5, -0.75])
    np.savetxt("mc", np.column_stack((np.arange(4), frames[0].get_masses(), charges)))
    words = "--timestep 0.004 --initial-step 10 --temperature 300 --box 20,30,40 --mc mc"
    code, _, err = diffmd(f"plumed plumed.dat a.traj -o out {words}", lines)
    assert code == 0, err
    time, _, dipole, volume = np.loadtxt("out/COLVAR", unpack=True)
    np.testing.assert_allclose(time, 0.004 * np.arange(10, 18))
    exact = [0.1 * np.linalg.norm(charges @ f.positions) for f in frames]
    np.testing.assert_allclose(dipole, exact, atol=1e-6)
    np.testing.assert_allclose(volume, 24.0)
    code, _, err = diffmd("plumed plumed.dat a.traj -o more --mc mc")
    assert code == 1 and "temperature" in err and "line 5" in err
    for words, said in (
        ("--kt 2.5 --temperature 300", "give one of them"),
        ("--kt 2.5 --box 1,2", "3 or 9 numbers"),
        ("--kt 2.5 --mc mol.pdb", "mol.pdb"),
    ):
        code, _, err = diffmd(f"plumed plumed.dat a.traj -o more {words}")
        assert code == 1 and said in err and "Traceback" not in err


def test_clock_of_an_ase_trajectory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    atoms = Atoms("Cu2", [[0, 0, 0], [2.4, 0, 0]], calculator=EMT())
    with AseTrajectory("md.traj", "w", atoms) as file:
        dyn = VelocityVerlet(atoms, 2 * units.fs)
        dyn.attach(file.write, interval=5)
        file.set_description(dyn.todict() | {"interval": 5})
        dyn.run(20)
    (tmp_path / "in").write_text("d: DISTANCE ATOMS=1,2\nPRINT ARG=d FILE=COLVAR\n")
    told = reevaluate("in", "md.traj", directory="out")
    assert told["times_ps"] == pytest.approx([0.0, 0.04])


def test_committor_ends_it(diffmd, tmp_path):
    frames = molecules()
    for number, frame in enumerate(frames):
        frame.set_distance(0, 3, 1.0 + number, fix=0)
    ase.io.write("a.extxyz", frames)
    lines = [LINES[0], "COMMITTOR ARG=d BASIN_LL1=0.35 BASIN_UL1=0.55 FILE=end"]
    lines += ["PRINT ARG=d FILE=COLVAR"]
    code, out, _ = diffmd("plumed plumed.dat a.extxyz -o out --json", lines)
    assert code == 0 and json.loads(out)["frames"] == 4
    positions = [f.positions for f in ase.io.read("a.extxyz", ":")]
    check_same_text("out", drive(tmp_path / "driver", lines, positions, timestep=1.0))


def test_files_to_read_are_those_here(diffmd, tmp_path, monkeypatch):
    frames = molecules()
    (tmp_path / "here" / "sub").mkdir(parents=True)
    for number, name in enumerate(("above.pdb", "here/sub/a.pdb")):
        ase.io.write(tmp_path / name, frames[number])
    monkeypatch.chdir(tmp_path / "here")
    for number, frame in enumerate(frames):
        frame.info["walker"] = number % 2
    ase.io.write("a.extxyz", frames)
    lines = [
        "a: RMSD REFERENCE=../above.pdb TYPE=SIMPLE",
        "b: RMSD REFERENCE=sub/a.pdb TYPE=SIMPLE",
    ]
    (tmp_path / "here" / "p").write_text("\n".join([*lines, "PRINT ARG=a,b FILE=COLVAR"]) + "\n")
    code, _, err = diffmd("plumed p a.extxyz -o out")
    assert code == 0, err
    first, second = (np.loadtxt(f"out/walker-{w}/COLVAR") for w in (0, 1))
    assert first[0, 1] < 1e-4 < first[:, 2].min() and second[0, 2] < 1e-4 < second[:, 1].min()


def test_mistakes(diffmd, monkeypatch):
    frames = molecules()
    ase.io.write("a.traj", frames)
    for words, lines, said in (
        ("nowhere.traj", LINES, "nowhere.traj"),
        ("a.traj", ["d: DISTANCE ATOMS=1,9"], "line 1"),
        ("a.traj", ["e: ENERGY", "PRINT ARG=e FILE=COLVAR"], "ENERGY"),
    ):
        code, _, err = diffmd(f"plumed plumed.dat {words} -o out", lines)
        assert code == 1 and said in err and "Traceback" not in err
    frames[0].set_pbc([True, False, False])
    ase.io.write("b.traj", frames)
    code, _, err = diffmd("plumed plumed.dat b.traj -o out", LINES)
    assert code == 1 and "[True, False, False]" in err
    monkeypatch.setitem(sys.modules, "diffmd_plumed.on_frames", None)
    code, _, err = diffmd("plumed plumed.dat a.traj -o out")
    assert code == 1 and "pip install -e plugins/plumed" in err
