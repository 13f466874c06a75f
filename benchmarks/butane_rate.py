"""How often butane turns from trans to gauche: a model of snapshots against Brownian dynamics.

    python benchmarks/butane_rate.py --folder butane                  # united atoms, 300 K
    python benchmarks/butane_rate.py --folder all --atoms all         # 14 atoms, 600 K

The force fields are OPLS (Jorgensen et al., J. Am. Chem. Soc. 106, 6638 (1984); 118, 11225 (1996)),
made here, with bonds that stretch. The model is trained with default settings on snapshots alone:
of united atoms, whose coordinates are independent, exact draws; of all atoms the ends of Brownian
chains, whose error of the step Metropolis steps take away. Then both sides run from other such
snapshots with one step h and one D for all atoms: OpenMM's BrownianIntegrator with equal masses,
all copies in one System, and the package's plain steps, all walkers in a batch. Mean first passage
times are those between cores of 30° about trans and about both gauche, by the state visited last,
and by a Markov model. The folder keeps pieces, and goes on where it stopped. Exit 1 where a rate
is off by a fifth, or its ratio is not known to a tenth.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import openmm
import torch
from ase import Atoms, units
from diffmd_openmm import OpenMMPotential
from shared import command_line

from diffmd_ase import ScoreModel, Snapshots, System, train
from diffmd_ase.analysis.kinetics.markov import markov_model
from diffmd_ase.analysis.kinetics.passages import passages
from diffmd_ase.analysis.kinetics.states import last_visited
from diffmd_ase.analysis.statistics import Estimate, mean_estimate
from diffmd_ase.geometry import dihedrals
from diffmd_ase.io.atomic import replacing
from diffmd_ase.io.json_text import plain, to_json
from diffmd_ase.noise import Noise
from diffmd_ase.sampling.combine import Mixture
from diffmd_ase.sampling.moves import TorsionRotation
from diffmd_ase.sampling.run import run
from diffmd_ase.simulation.prepare import StepRequest, prepare
from diffmd_ase.units import kT_from_temperature

KCAL = 4.184  # kJ
FRICTION = 1000.0  # 1/ps, which with masses of 1 u says what h is in time, and nothing else
SIDES = ("reference", "model")
CORE = np.radians(15.0)
FRAMES = 200  # of a piece
WALKERS = 512


@dataclass(frozen=True)
class Molecule:
    """A molecule of OPLS; lengths in Å, energies in kcal/mol, ``k (r - r0)²``."""

    numbers: list[int]
    bonds: list[tuple[int, int]]
    temperature_K: float
    of_bond: dict[str, tuple[float, float]]  # by elements, r0 and k
    of_angle: dict[str, tuple[float, float]]  # degrees
    of_torsion: dict[str, tuple[float, ...]]  # V1, V2, V3: ½ Σ V_n (1 ± cos nφ), trans is 180°
    atoms: dict[int, tuple[float, float, float]]  # charge, σ, ε by number of bonds; none: united
    every: int  # steps between frames

    @property
    def elements(self) -> str:
        return "".join({6: "C", 1: "H"}[n] for n in self.numbers)

    def neighbours(self, i: int) -> list[int]:
        return [b if a == i else a for a, b in self.bonds if i in (a, b)]

    def angles(self) -> list[tuple[int, ...]]:
        return [
            (a, i, b)
            for i in range(len(self.numbers))
            for a, b in combinations(self.neighbours(i), 2)
        ]

    def torsions(self) -> list[tuple[int, ...]]:
        return [
            (a, i, j, b)
            for i, j in self.bonds
            for a in self.neighbours(i)
            for b in self.neighbours(j)
            if a != j and b != i
        ]

    def named(self, group: Sequence[int], table: dict) -> tuple[float, ...]:
        """Parameters of atoms, in either direction."""
        word = "".join(self.elements[i] for i in group)
        return table[word] if word in table else table[word[::-1]]

    def openmm_system(self, copies: int = 1) -> openmm.System:
        """Copies that do not see each other, with masses of 1 u."""
        system, size = openmm.System(), len(self.numbers)
        for _ in range(copies * size):
            system.addParticle(1.0)
        bond, angle = openmm.HarmonicBondForce(), openmm.HarmonicAngleForce()
        torsion = openmm.PeriodicTorsionForce()
        pairs = openmm.CustomBondForce("138.935456*q/r + 4*e*((s/r)^12 - (s/r)^6)")
        for name in ("q", "s", "e"):
            pairs.addPerBondParameter(name)
        for start in range(0, copies * size, size):
            for i, j in self.bonds:
                r, k = self.named((i, j), self.of_bond)
                bond.addBond(start + i, start + j, r / 10, 2 * k * KCAL * 100)
            for group in self.angles():
                value, k = self.named(group, self.of_angle)
                angle.addAngle(*(start + i for i in group), np.radians(value), 2 * k * KCAL)
            for group in self.torsions():
                for n, v in enumerate(self.named(group, self.of_torsion), 1):
                    if not v:
                        continue
                    phase = 0.0 if n % 2 else np.pi
                    torsion.addTorsion(*(start + i for i in group), n, phase, 0.5 * v * KCAL)
            for i, j, *values in self.pairs():
                pairs.addBond(start + i, start + j, values)
        for force in (bond, angle, torsion, pairs):
            system.addForce(force)
        return system

    def pairs(self) -> list[tuple]:
        """Atoms three or more bonds apart: their numbers, q_i q_j (half 1-4), σ (nm), ε."""
        if not self.atoms:
            return []
        near = {tuple(sorted(group[:: len(group) - 1])) for group in (*self.bonds, *self.angles())}
        ends = {tuple(sorted((g[0], g[3]))) for g in self.torsions()}
        rows = []
        for i, j in combinations(range(len(self.numbers)), 2):
            if (i, j) in near:
                continue
            (q, s, e), (r, t, f) = (self._of_atom(n) for n in (i, j))
            scale = 0.5 if (i, j) in ends else 1.0
            rows.append((i, j, scale * q * r, np.sqrt(s * t) / 10, scale * np.sqrt(e * f) * KCAL))
        return rows

    def _of_atom(self, i: int) -> tuple[float, float, float]:
        hydrogens = sum(self.numbers[j] == 1 for j in self.neighbours(i))
        return self.atoms[hydrogens if self.numbers[i] == 6 else 0]

    def start(self) -> np.ndarray:
        """(N, 3) Å, trans; angles are about right."""
        zigzag = np.array([[1.25 * n, 0.44 * (-1) ** n, 0.0] for n in range(4)])
        if len(self.numbers) == 4:
            return zigzag
        rows = list(zigzag)
        for i in range(4):
            up = np.array([0.0, 0.36 * (-1) ** i, 0.0])
            rows += [zigzag[i] + up * 1.8 + [0, 0, 0.88], zigzag[i] + up * 1.8 - [0, 0, 0.88]]
            if i in (0, 3):
                rows.append(zigzag[i] + [(-0.9 if i == 0 else 0.9), -0.62 * (-1) ** i, 0.0])
        return np.array(rows)


UNITED = Molecule(
    [6] * 4,
    [(0, 1), (1, 2), (2, 3)],
    300.0,
    {"CC": (1.53, 260.0)},
    {"CCC": (112.0, 63.0)},
    {"CCCC": (1.522, -0.315, 3.207)},
    {},
    every=100,
)
_HYDROGENS = [(0, 4), (0, 5), (0, 6), (1, 7), (1, 8), (2, 9), (2, 10), (3, 11), (3, 12), (3, 13)]
ALL = Molecule(
    [6] * 4 + [1] * 10,
    [*UNITED.bonds, *_HYDROGENS],
    600.0,
    {"CC": (1.529, 268.0), "CH": (1.09, 340.0)},
    {"CCC": (112.7, 58.35), "CCH": (110.7, 37.5), "HCH": (107.8, 33.0)},
    {"CCCC": (1.74, -0.157, 0.279), "CCCH": (0.0, 0.0, 0.366), "HCCH": (0.0, 0.0, 0.318)},
    {3: (-0.18, 3.5, 0.066), 2: (-0.12, 3.5, 0.066), 0: (0.06, 2.5, 0.03)},
    every=100,
)


class Brownian:
    """All walkers by OpenMM, as copies in one System."""

    def __init__(self, molecule: Molecule, h: float, walkers: int, seed: int):
        kT = molecule.temperature_K * units.kB / (units.kJ / units.mol)  # u nm²/ps²
        timestep = h * 1e-2 * FRICTION / kT  # D Δt = h, D = kT/(mγ)
        integrator = openmm.BrownianIntegrator(molecule.temperature_K, FRICTION, timestep)
        integrator.setRandomNumberSeed(seed)
        platform = openmm.Platform.getPlatformByName("Reference")
        self.context = openmm.Context(molecule.openmm_system(walkers), integrator, platform)
        self.integrator, self.shape = integrator, (walkers, len(molecule.numbers), 3)

    def frames(self, x: np.ndarray, count: int, every: int):
        """Positions (W, N, 3) in Å after every so many steps."""
        self.context.setPositions(x.reshape(-1, 3) / units.nm)
        for _ in range(count):
            self.integrator.step(every)
            state = self.context.getState(getPositions=True)
            yield state.getPositions(asNumpy=True)._value.reshape(self.shape) * units.nm


def drawn(molecule: Molecule, count: int, seed: int) -> np.ndarray:
    """(count, N, 3) snapshots in Å."""
    return _united(count, seed) if molecule is UNITED else _relaxed(molecule, count, seed)


def _united(count: int, seed: int) -> np.ndarray:
    """Exact draws: lengths ∝ r² e^{-U}, angles ∝ sin θ e^{-U}, the torsion ∝ e^{-U}."""
    rng, kT = (
        np.random.default_rng(seed),
        UNITED.temperature_K * units.kB / (units.kcal / units.mol),
    )

    def draw(log_density, low: float, high: float, shape) -> np.ndarray:
        grid = np.linspace(low, high, 20001)
        weight = np.exp(log_density(grid))
        table = np.concatenate(([0.0], np.cumsum(0.5 * (weight[1:] + weight[:-1]))))
        return np.interp(rng.uniform(size=shape), table / table[-1], grid)

    (r0, k), (angle, bend) = UNITED.of_bond["CC"], UNITED.of_angle["CCC"]
    at = np.radians(angle)
    r = draw(lambda r: 2 * np.log(r) - k / kT * (r - r0) ** 2, 1.2, 1.9, (3, count))
    theta = draw(lambda t: np.log(np.sin(t)) - bend / kT * (t - at) ** 2, 1.2, 2.7, (2, count))
    phi = draw(lambda p: -torsion_energy(p) / kT, -np.pi, np.pi, count)
    x = np.zeros((count, 4, 3))
    x[:, 0] = np.stack((r[0] * np.cos(theta[0]), r[0] * np.sin(theta[0]), 0 * phi), -1)
    x[:, 2, 0] = r[1]
    out = r[2] * np.sin(theta[1])
    x[:, 3] = np.stack((r[1] - r[2] * np.cos(theta[1]), out * np.cos(phi), out * np.sin(phi)), -1)
    return x


def torsion_energy(phi: np.ndarray) -> np.ndarray:
    """Of united atoms, kcal/mol."""
    v1, v2, v3 = UNITED.of_torsion["CCCC"]
    return 0.5 * (v1 * (1 + np.cos(phi)) + v2 * (1 - np.cos(2 * phi)) + v3 * (1 + np.cos(3 * phi)))


def _relaxed(molecule: Molecule, count: int, seed: int) -> np.ndarray:
    """Brownian chains of D·t = 0.4 Å², then a set every 400 Metropolis steps and rotations."""
    h, walkers = 4e-5, 500
    start = np.repeat(molecule.start()[None], walkers, 0)
    *_, x = Brownian(molecule, h, walkers, seed).frames(start, 1, 10_000)
    system = System.from_atoms(Atoms(molecule.numbers, molecule.start()))
    potential = OpenMMPotential(system, molecule.openmm_system())
    asked = prepare(
        potential,
        temperature_K=molecule.temperature_K,
        target="model",
        step=StepRequest(spring=1 / (2 * h)),
        mean_free=True,
        x=torch.from_numpy(x[:4]),
    )
    rotors = [(0, 1), (1, 2), (2, 3)]
    moved = torch.tensor(
        [[_beyond(molecule, *rotor, n) for n in range(len(system))] for rotor in rotors]
    )
    kT = kT_from_temperature(molecule.temperature_K)
    turn = TorsionRotation(potential, kT, torch.tensor(rotors), moved, size=np.pi, mean_free=True)
    kernel, noise = Mixture([asked.kernel, turn]), Noise(seed)
    steps = 400 * -(-count // walkers)
    sets = [s.x.numpy() for s, _ in run(kernel, torch.from_numpy(x), steps, noise=noise, every=400)]
    return np.concatenate(sets)[:count]


def _beyond(molecule: Molecule, a: int, b: int, n: int) -> bool:
    """Atom n is on the side of ``b`` of the bond a–b."""
    seen, to_do = {a, b}, [b]
    while to_do:
        new = set(molecule.neighbours(to_do.pop())) - seen
        seen |= new
        to_do += new
    return n in seen - {a, b}


def side_pieces(options: argparse.Namespace, molecule: Molecule) -> None:
    """Model, then pieces of both sides in turn: φ (FRAMES, W) and the last positions."""
    folder = options.folder
    folder.mkdir(exist_ok=True)
    path = folder / "model.safetensors"
    system = System.from_atoms(Atoms(molecule.numbers, molecule.start()))
    if not path.exists():
        count = options.snapshots
        x = kept(folder / "snapshots.npz", lambda: drawn(molecule, count, 1))
        print(f"{count} snapshots, gauche {gauche(x):.3f}", flush=True)
        train(Snapshots(system, x, molecule.temperature_K), seed=0).save(path)
    model = ScoreModel.load(path)
    potential = model.potential(system, compile=True)
    starts = kept(folder / "starts.npz", lambda: drawn(molecule, 2 * WALKERS, 2))
    asked = prepare(potential, temperature_K=molecule.temperature_K, mean_free=True,
                    x=torch.from_numpy(starts[:WALKERS]))  # fmt: skip
    h, kernel = float(asked.step.h), asked.kernel
    print(f"h = {h:.3g} Å², λ = {asked.stiffness[0]:.4g}/Å²", flush=True)
    for number in range(options.pieces):
        for side in SIDES:
            piece = folder / f"{side}-{number:03d}.npz"
            if piece.exists():
                continue
            if number:
                with np.load(folder / f"{side}-{number - 1:03d}.npz") as last:
                    x = last["x"]
            else:
                x = starts[:WALKERS] if side == "model" else starts[WALKERS:]
            if side == "model":
                made = (s.x.numpy() for s, _ in run(
                    kernel, torch.from_numpy(x), FRAMES * molecule.every,
                    noise=Noise(100 + number), every=molecule.every))  # fmt: skip
            else:
                chain = Brownian(molecule, h, WALKERS, 100 + number)
                made = chain.frames(x, FRAMES, molecule.every)
            phi = []
            for frame in made:
                phi.append(dihedrals(frame, [[0, 1, 2, 3]])[:, 0])
                x = frame
            with replacing(piece) as temporary, temporary.open("wb") as file:
                np.savez(file, phi=np.array(phi, np.float32), x=x, h=h)
            Dt = (number + 1) * FRAMES * molecule.every * h
            print(piece.name, f"D·t = {Dt:.2f} Å² a walker", flush=True)


def kept(path: Path, make) -> np.ndarray:
    """Positions of a file, made where there is none."""
    if not path.exists():
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, x=make())
    with np.load(path) as file:
        return file["x"]


def gauche(x: np.ndarray) -> float:
    """Fraction of positions with |φ| below 120°."""
    return float((np.abs(dihedrals(x, [[0, 1, 2, 3]])) < np.radians(120)).mean())


def cores(phi: np.ndarray) -> np.ndarray:
    """(T, W): 0 trans, 1 and 2 gauche, by the core of 30° that was visited last."""
    numbers = np.full(phi.shape, -1)
    for n, degrees in enumerate((180, 67, -67)):
        apart = np.abs(np.angle(np.exp(1j * (phi - np.radians(degrees)))))
        numbers[apart < CORE] = n
    return last_visited(numbers)


def compared(options: argparse.Namespace, molecule: Molecule) -> dict:
    """Times of both sides with errors, and their ratios."""
    found: dict = {}
    for side in SIDES:
        parts = [np.load(path) for path in sorted(options.folder.glob(f"{side}-*.npz"))]
        phi = np.concatenate([part["phi"] for part in parts]).astype(float)
        spacing = float(parts[0]["h"]) * molecule.every
        states = cores(phi)
        told = passages(states == 0, states > 0, spacing)
        lag = max(1, round(options.lag / spacing))
        markov = markov_model(states, lag, spacing)
        found[side] = {
            "Dt_each": len(phi) * spacing,
            "walkers": phi.shape[1],
            "passages": told.counts,
            "gauche": mean_estimate(np.abs(phi) < np.radians(120)),
            "trans to gauche": told.to_b,
            "gauche to trans": told.to_a,
            "trans to gauche, Markov": markov.mfpt([0], [1, 2]),
            "gauche to trans, Markov": markov.mfpt([1, 2], [0]),
            "slowest, Markov": markov.timescales[0],
        }
    one, other = found["model"], found["reference"]
    found["ratios"] = {
        name: ratio(one[name], other[name]) for name in one if isinstance(one[name], Estimate)
    }
    return found


def ratio(one: Estimate, other: Estimate) -> Estimate:
    """one/other, errors independent."""
    value = one.value / other.value
    error = value * np.hypot(one.error / one.value, other.error / other.value)
    return Estimate(float(value), float(error), float("nan"))


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--folder", type=Path, default=Path("butane"))
    parser.add_argument("--atoms", choices=["united", "all"], default="united")
    parser.add_argument("--snapshots", type=int, default=5000)
    parser.add_argument("--pieces", type=int, default=20, help="of 20 000 steps of each walker")
    parser.add_argument("--lag", type=float, default=2.0, help="Å², of the Markov model")
    options = parser.parse_args()
    torch.set_num_threads(1)
    molecule = UNITED if options.atoms == "united" else ALL
    side_pieces(options, molecule)
    found = compared(options, molecule)
    rates = [found["ratios"][f"{a} to {b}"] for a, b in (("trans", "gauche"), ("gauche", "trans"))]
    holds = all(abs(r.value - 1) < 0.2 and r.error < 0.1 for r in rates)
    if options.json:
        print(to_json(plain(found | {"holds": holds})))
    else:
        for name in found["ratios"]:
            words = ", ".join(f"{side} {found[side][name]}" for side in SIDES)
            print(f"{name}: {words}, ratio {found['ratios'][name]}")
        print({side: (found[side]["passages"], found[side]["Dt_each"]) for side in SIDES}, holds)
    sys.exit(not holds)


if __name__ == "__main__":
    main()
