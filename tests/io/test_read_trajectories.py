"""Trajectories whose cell changes: every frame in its own, against ASE."""

import ase.io
import numpy as np
import pytest
from ase import Atoms
from messages import names

from diffmd_ase.analysis.observables import Coordinate
from diffmd_ase.io.read_trajectories import read_series

CELLS = {
    "cubic": np.eye(3) * 8.0,
    "skew": np.array([[8.0, 0, 0], [5.0, 7.0, 0], [-3.0, 4.0, 6.0]]),
}
MEASURES = {
    "d=distance:0,1": lambda a: a.get_distance(0, 1, mic=True),
    "a=angle:0,1,2": lambda a: np.radians(a.get_angle(0, 1, 2, mic=True)),
    "t=torsion:0,1,2,3": lambda a: (
        np.radians((a.get_dihedral(0, 1, 2, 3, mic=True) + 180) % 360) - np.pi
    ),
}


def breathing(cell, rng, *, frames=40, walkers=1, pbc=True):
    """Frames of a chain of four atoms, cut by the boundary of a cell that breathes and shears."""
    found = []
    for _ in range(frames):
        for walker in range(walkers):
            own = cell * rng.uniform(0.85, 1.2) @ (np.eye(3) + 0.05 * rng.normal(size=(3, 3)))
            steps = rng.normal(size=(4, 3))
            x = 1.5 * np.cumsum(steps / np.linalg.norm(steps, axis=1)[:, None], 0)
            atoms = Atoms("C4", positions=x + rng.uniform(-20, 20, 3), cell=own, pbc=pbc)
            atoms.wrap()
            atoms.info.update(walker=walker)
            found.append(atoms)
    return found


@pytest.mark.parametrize("name", ["npt.traj", "npt.extxyz"])
@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)
def test_each_frame_is_measured_in_its_cell(tmp_path, rng, cell, name):
    frames = breathing(cell, rng, walkers=3)
    ase.io.write(tmp_path / name, frames)
    series = read_series([tmp_path / name], skip=0.25)
    assert series.cells.shape == (30, 3, 3, 3)
    for text, measure in MEASURES.items():
        coordinate = Coordinate.parse(text, 4)
        values = coordinate(series.positions, series.system, cells=series.cells)
        true = np.array([measure(atoms) for atoms in frames]).reshape(40, 3)[10:]
        np.testing.assert_allclose(values, true, atol=1e-6)
        first = coordinate(series.positions, series.system)  # the control: one cell for all
        assert np.abs(first - true).max() > 0.1


def test_one_cell_for_all_is_one_system(tmp_path, rng):
    atoms = breathing(CELLS["skew"], rng, frames=1)[0]
    ase.io.write(tmp_path / "nvt.traj", [atoms] * 10)
    assert read_series([tmp_path / "nvt.traj"]).cells is None
    # without periodic directions a cell is no more than a frame around the picture
    ase.io.write(tmp_path / "box.traj", breathing(CELLS["skew"], rng, pbc=False))
    assert read_series([tmp_path / "box.traj"]).cells is None


def test_files_side_by_side(tmp_path, rng):
    for name in "ab":
        ase.io.write(tmp_path / f"{name}.traj", breathing(CELLS["cubic"], rng))
    series = read_series([tmp_path / "a.traj", tmp_path / "b.traj"])
    frames = ase.io.read(tmp_path / "b.traj", ":")
    np.testing.assert_allclose(series.cells[:, 1], [atoms.cell.array for atoms in frames])
    ase.io.write(tmp_path / "c.traj", breathing(CELLS["cubic"], rng, pbc=(1, 1, 0)))
    with pytest.raises(ValueError, match=names("c.traj", "pbc")):
        read_series([tmp_path / "a.traj", tmp_path / "c.traj"])
    frames[3].pbc = False
    ase.io.write(tmp_path / "d.traj", frames)
    with pytest.raises(ValueError, match=names("d.traj", "pbc")):
        read_series([tmp_path / "d.traj"])
