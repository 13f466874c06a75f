"""Actions of PLUMED: the files of `PlumedPotential` beside those of ``plumed driver``.

Both get the same frames. A `Replay` kernel hands them to the loop that all runs go through, so
that rows, hills and final jobs come when they come in a run.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from ase import units
from ase.build import bulk

from diffmd_ase import Noise, Snapshots, System, run
from diffmd_ase.potentials.analytic import Harmonic
from diffmd_ase.potentials.base import Potential
from diffmd_ase.sampling.kernels import Info, Kernel
from diffmd_ase.state import State
from tried.outcome import ABSENT, DIFFERS, HOLDS, REFUSED, Outcome, Trial, said

__all__ = ["trials", "version"]

INPUTS = Path(__file__).with_name("plumed_inputs.txt")
FRAMES, KT = 13, 2.494339  # kJ/mol
KJ = units.kJ / units.mol
PULLED = "\nb_pull: RESTRAINT ARG=c AT=0 KAPPA=0 SLOPE=3\nPRINT ARG=c FILE=COLVAR FMT=%.6f\n"
NAMES = """HH31 CH3 HH32 HH33 C O N H CA HA CB HB1 HB2 HB3 C O N H CH3 HH31 HH32 HH33""".split()
RESIDUES = ["ACE"] * 6 + ["ALA"] * 10 + ["NME"] * 6
FILES = {  # what inputs read
    "included.dat": "d: DISTANCE ATOMS=5,15\n",
    "table.dat": "#! FIELDS time x\n" + "".join(f"{t} {0.1 * t:.2f}\n" for t in range(FRAMES)),
    "hills.dat": "#! FIELDS time d sigma_d height biasf\n#! SET multivariate false\n"
    "#! SET kerneltype gaussian\n1 0.3 0.05 1.0 -1\n2 0.4 0.05 1.0 -1\n",
    "external.dat": "#! FIELDS d b.bias der_d\n#! SET min_d 0\n#! SET max_d 1\n#! SET nbins_d 50\n"
    "#! SET periodic_d false\n"
    + "".join(f"{k / 50:.2f} {10 * (k / 50) ** 2:.4f} {20 * k / 50:.4f}\n" for k in range(51)),
    "fes.dat": "#! FIELDS d fes der_d\n#! SET min_d 0\n#! SET max_d 1\n#! SET nbins_d 50\n"
    "#! SET periodic_d false\n"
    + "".join(f"{k / 50:.2f} {10 * (k / 50) ** 2:.4f} {20 * k / 50:.4f}\n" for k in range(51)),
}


def trials() -> list[Trial]:
    """One for each input of the file beside this module."""
    return [
        Trial(kind, name, partial(_try, where, lines)) for kind, name, where, lines in _inputs()
    ]


def version() -> str:
    """Of the library that is driven."""
    told = subprocess.run(
        [_command(), "info", "--long-version"], capture_output=True, text=True, check=False
    )
    return told.stdout.split("\n")[0].strip()


def _inputs():
    kind, tail = "", ""
    for block in re.split(r"\n(?=== |-- )", INPUTS.read_text()):
        head, _, body = block.partition("\n")
        if head.startswith("== "):
            kind = head[3:]
            tail = PULLED if kind in ("variables", "functions") else ""
        elif head.startswith("-- "):
            name, _, where = head[3:].partition(" @")
            shown = f"{name} (periodic)" if where else name
            yield kind, shown, where or "molecule", body.strip() + "\n" + tail


def _command() -> str:
    beside = shutil.which("plumed", path=str(Path(sys.executable).parent))
    found = beside or shutil.which("plumed")
    if found is None:
        raise SystemExit("no command plumed: pip install --no-deps hillclimber")
    return found


# ------------------------------------------------------------------ what is simulated


@dataclass
class Case:
    """A system with charges, and frames (FRAMES, N, 3) in Å, as they are in a file."""

    system: System
    frames: np.ndarray
    charges: np.ndarray

    def write(self, folder: Path) -> None:
        """Frames, masses and what inputs read."""
        cell = self.system.cell if self.system.periodic else np.zeros((3, 3))
        head = f"{len(self.system)}\n{' '.join(f'{v:.8f}' for v in cell.ravel())}\n"
        rows = ("".join("X {:.5f} {:.5f} {:.5f}\n".format(*r) for r in f) for f in self.frames)
        (folder / "frames.xyz").write_text("".join(head + body for body in rows))
        both = zip(self.system.masses, self.charges, strict=True)
        masses = "".join(f"{n} {m!r} {q!r}\n" for n, (m, q) in enumerate(_floats(both)))
        (folder / "mc.dat").write_text("#! FIELDS index mass charge\n" + masses)
        for name, text in FILES.items():
            (folder / name).write_text(text)
        if not self.system.periodic:
            self._write_structures(folder)

    def _write_structures(self, folder: Path) -> None:
        one, two, three = (self.frames[k] for k in (0, 4, 8))
        path, end = [_pdb(f) for f in (one, two, three)], "END\n"
        (folder / "molecule.pdb").write_text(path[0] + end)
        (folder / "path.pdb").write_text("".join(frame + end for frame in path))
        remarks = (f"REMARK X={k}\n" + frame + end for k, frame in enumerate(path, 1))
        (folder / "properties.pdb").write_text("".join(remarks))
        halves = path[0].splitlines(keepends=True)
        parts = [*halves[:11], "TER\n", *halves[11:]]
        (folder / "domains.pdb").write_text("".join(parts) + end)
        mode = _pdb(two - one)
        (folder / "modes.pdb").write_text(mode + end)
        (folder / "pca.pdb").write_text(path[0] + end + "REMARK TYPE=DIRECTION\n" + mode + end)


def _floats(pairs):
    return ((float(a), float(b)) for a, b in pairs)


def _pdb(positions: np.ndarray) -> str:
    atoms = zip(NAMES, RESIDUES, positions, strict=True)
    number = {"ACE": 1, "ALA": 2, "NME": 3}
    return "".join(
        f"ATOM  {n:5d} {name:<4s} {residue} A{number[residue]:4d}    "
        f"{r[0]:8.3f}{r[1]:8.3f}{r[2]:8.3f}{1:6.2f}{1:6.2f}\n"
        for n, (name, residue, r) in enumerate(atoms, 1)
    )


def _molecule() -> Case:
    snapshots = Snapshots.read("alanine-dipeptide")
    charges = np.round(np.resize([0.25, -0.5, 0.25], len(snapshots.system)), 2)
    return Case(snapshots.system, snapshots.positions[:FRAMES].astype(float).round(5), charges)


def _crystal() -> Case:
    atoms = bulk("Cu", cubic=True).repeat(2)
    rng = np.random.default_rng(1)
    moved = atoms.positions + rng.normal(0, 0.1, (FRAMES, len(atoms), 3)) + 0.5
    return Case(System.from_atoms(atoms), moved.round(5), np.zeros(len(atoms)))


CASES = {"molecule": _molecule, "crystal": _crystal}


@dataclass(frozen=True, eq=False)
class Replay(Kernel):
    """Given frames as a chain: step n makes frame n + 1.

    Forces at each frame are kept, before and after the potential has learned from it.
    """

    potential: Potential
    frames: torch.Tensor
    kT: float = KT * KJ
    before: list = field(default_factory=list)
    after: list = field(default_factory=list)

    def init(self, x, *, walkers=None):
        return self._at(0)

    def step(self, state, noise):
        return self._at(state.step + 1), Info()

    def refresh(self, state):
        _, forces, _ = self.potential(state.x)
        self.after[state.step] = forces.numpy()
        return state

    def _at(self, step: int) -> State:
        energy, forces, _ = self.potential(self.frames[step])
        self.before.append(forces.numpy())
        self.after.append(forces.numpy())
        return State(self.frames[step], energy, forces, step)


# ------------------------------------------------------------------ both ways


def _try(where: str, lines: str) -> Outcome:
    case = CASES[where]()
    with tempfile.TemporaryDirectory() as folder:
        theirs, ours = (Path(folder, name) for name in ("theirs", "ours"))
        for place in (theirs, ours):
            place.mkdir()
            case.write(place)
        given = {path.name for path in theirs.iterdir()} | {"plumed.dat"}
        failure = _driver(theirs, lines)
        try:
            forces = _potential(ours, case, lines)
        except (ValueError, RuntimeError, TypeError) as error:
            if failure is not None:
                return Outcome(ABSENT, f"PLUMED's driver: {failure}")
            return Outcome(REFUSED, said(error))
        if failure is not None:
            return Outcome(DIFFERS, f"runs here, and not in PLUMED's driver: {failure}")
        return _compare(theirs, ours, forces, given)


def _driver(folder: Path, lines: str) -> str | None:
    """Run ``plumed driver``; what it said if it failed."""
    (folder / "plumed.dat").write_text(lines)
    words = ["driver", "--plumed", "plumed.dat", "--ixyz", "frames.xyz", "--mc", "mc.dat"]
    words += ["--length-units", "A", "--timestep", "1", "--kt", str(KT)]
    words += ["--dump-forces", "forces.dump", "--dump-forces-fmt", "%25.16e"]
    done = subprocess.run(
        [_command(), *words], cwd=folder, capture_output=True, text=True, check=False, timeout=60
    )
    if done.returncode == 0:
        return None
    talk = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    marks = [n for n, line in enumerate(talk) if "ERROR" in line or "what()" in line]
    return said(" ".join(talk[marks[0] :][:4]) if marks else f"status {done.returncode}")


def _potential(folder: Path, case: Case, lines: str) -> np.ndarray:
    from diffmd_plumed import PlumedPotential

    bias = PlumedPotential(
        case.system,
        lines.splitlines(),
        kT=KT * KJ,
        timestep=1000 * units.fs,
        directory=folder,
        charges=case.charges,
    )
    potential: Potential = bias
    if bias.needs_base:  # a bias on ENERGY: the driver has none, which is one of zero
        potential = Harmonic(0.0, centre=case.frames[0], system=case.system) + bias
    kernel = Replay(potential, torch.from_numpy(case.frames))
    for _ in run(kernel, kernel.frames[0], FRAMES - 1, noise=Noise(0)):
        if bias.stopped:
            break
    bias.finalize()
    return np.array((kernel.before, kernel.after))


def _compare(theirs: Path, ours: Path, forces: np.ndarray, given: set[str]) -> Outcome:
    """File by file, as text; where that differs, number by number."""
    names = {p.name for p in theirs.iterdir()} - given - {"forces.dump"}
    names = {name for name in names if not name.startswith("bck.")}
    words = []
    for name in sorted(names):
        if not (ours / name).exists():
            return Outcome(DIFFERS, f"{name} is not written")
        texts = [(place / name).read_text() for place in (theirs, ours)]
        if texts[0] != texts[1]:
            difference = _difference(*texts)
            if difference.startswith("!"):
                return Outcome(DIFFERS, f"{name}: {difference[1:]}")
            words += [f"{name}: {difference}"] * bool(difference)
    expected = _forces(theirs / "forces.dump")
    n = min(len(expected), forces.shape[1])
    # PLUMED's driver tells them before a hill is added, and after a restraint has moved
    wrong = np.abs(forces[:, :n] / KJ - expected[:n]).max((2, 3)).min(0).max()
    wrong /= max(np.abs(expected).max(), 1.0)
    if not wrong < 1e-6:
        return Outcome(DIFFERS, f"forces, by {wrong:.0e} of the largest")
    if not names and not expected.any():
        return Outcome(DIFFERS, "nothing is written and nothing is felt")
    return Outcome(HOLDS, "; ".join(words))


def _difference(theirs: str, ours: str) -> str:
    """Words for two texts that differ; with an exclamation mark if numbers do."""
    a, b = (text.splitlines() for text in (theirs, ours))
    rows = [[line for line in text if not line.startswith("#")] for text in (a, b)]
    if rows[0] == rows[1]:
        return "another header"
    if rows[0][1:] == rows[1]:
        return "!without the row of the start"
    if len(rows[0]) != len(rows[1]):
        return f"!{len(rows[1])} rows for {len(rows[0])}"
    largest = 0.0
    for line, other in zip(*rows, strict=True):
        words, others = line.split(), other.split()
        if len(words) != len(others):
            return "!other columns"
        for word, instead in zip(words, others, strict=True):
            if word != instead:
                try:
                    u, v = float(word), float(instead)
                except ValueError:
                    return f"!{instead} for {word}"
                largest = max(largest, abs(u - v) / max(1.0, abs(u)))
    if not largest:  # -0.0 for 0.0
        return ""
    mark = "" if largest < 2e-6 else "!"
    return f"{mark}numbers to {largest:.0e}"


def _forces(path: Path) -> np.ndarray:
    """(frames, N, 3) in kJ/mol/Å."""
    lines = path.read_text().splitlines()
    count = int(lines[0]) + 2
    frames = (lines[n + 2 : n + count] for n in range(0, len(lines), count))
    return np.array([[row.split()[1:4] for row in frame] for frame in frames], float)
