"""A calculator whose energy depends on a charge, which keeps the `Atoms` it was asked for."""

import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.calculators.calculator import Calculator, all_changes


class Recorder(Calculator):
    """``½ (5 + 2 charge) Σ x²``, the charge from ``info``, where the cache of ASE does not look."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.seen: list[Atoms] = []

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.seen.append(self.atoms.copy())
        x, k = self.atoms.positions, stiffness(self.atoms)
        self.results = {"energy": float(0.5 * k * (x**2).sum()), "forces": -k * x}


class Strict(Recorder):
    """With a cache that looks at ``info``, as those of MACE and fairchem do."""

    def check_state(self, atoms, tol=1e-15):
        changes = super().check_state(atoms, tol)
        return changes or (["info"] if self.atoms.info != atoms.info else [])


def stiffness(atoms: Atoms) -> float:
    return 5.0 + 2.0 * atoms.info.get("charge", 0)


def water(charge: int = 1) -> Atoms:
    """Water that carries everything that `Atoms` can."""
    atoms = molecule("H2O")
    atoms.set_cell([9.0, 9.0, 0.0])
    atoms.set_celldisp([1.0, 2.0, 3.0])
    atoms.pbc = (True, True, False)
    atoms.set_masses([18.0, 2.0, 2.0])
    atoms.set_tags([1, 2, 3])
    atoms.set_initial_charges([0.1, 0.2, -0.3])
    atoms.set_initial_magnetic_moments([1.0, 0.0, 0.0])
    atoms.set_velocities(np.ones((3, 3)))
    atoms.set_array("residue", np.array(["A", "BC", "A"]))
    atoms.set_array("custom", np.arange(6.0).reshape(3, 2))
    atoms.info |= {"charge": charge, "spin": 2, "vector": np.arange(3), "nested": {"a": [1, 2]}}
    return atoms


def unlike(seen: Atoms, atoms: Atoms) -> list[str]:
    """Names of all but positions that ``seen`` has otherwise than ``atoms``, or lacks."""
    names = [
        name
        for name, values in atoms.arrays.items()
        if name != "positions"
        and not (name in seen.arrays and np.array_equal(seen.arrays[name], values))
    ]
    names += [n for n, v in atoms.info.items() if not np.array_equal(seen.info.get(n), v)]
    for name in ("cell", "pbc"):
        if not np.array_equal(getattr(seen, name), getattr(atoms, name)):
            names.append(name)
    if not np.array_equal(seen.get_celldisp(), atoms.get_celldisp()):
        names.append("celldisp")
    return names
