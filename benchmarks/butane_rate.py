"""How often butane turns from trans to gauche: a model of snapshots against Brownian dynamics.

    python benchmarks/butane_rate.py --folder butane

United atoms at 300 K, OPLS (Jorgensen, Madura & Swenson, J. Am. Chem. Soc. 106, 6638 (1984)), with
bonds that stretch. Their lengths, angles and torsion are independent, so that snapshots are exact
draws; the model is trained on them alone, with default settings. Then both sides run from other
draws with one step h and one D for all atoms: OpenMM's BrownianIntegrator with equal masses, all
copies in one System, and the package's plain steps, all walkers in a batch. Mean first passage
times are those between cores of 30° about trans and about both gauche, by the state visited last,
and by a Markov model. The folder keeps pieces, and goes on where it stopped. Exit 1 where a rate
is off by a fifth, or its ratio is not known to a tenth.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import openmm
import torch
from ase import Atoms, units
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
from diffmd_ase.sampling.run import run
from diffmd_ase.simulation.prepare import prepare

TEMPERATURE = 300.0
BOND, ANGLE = (1.53, 260.0), (np.radians(112.0), 63.0)  # Å, rad; kcal/mol: k (r - r0)²
TORSION = (1.522, -0.315, 3.207)  # kcal/mol, trans is 180°
KCAL = 4.184  # kJ
FRICTION = 1000.0  # 1/ps, which with masses of 1 u says what h is in time, and nothing else
SIDES = ("reference", "model")
CORE = np.radians(15.0)
WALKERS, FRAMES, EVERY = 512, 200, 100  # of a piece, and steps between frames


def torsion_energy(phi: np.ndarray) -> np.ndarray:
    """``½ V1 (1 + cos φ) + ½ V2 (1 - cos 2φ) + ½ V3 (1 + cos 3φ)`` in kcal/mol."""
    v1, v2, v3 = TORSION
    return 0.5 * (v1 * (1 + np.cos(phi)) + v2 * (1 - np.cos(2 * phi)) + v3 * (1 + np.cos(3 * phi)))


def openmm_system(copies: int) -> openmm.System:
    """Copies that do not see each other, with masses of 1 u."""
    system, torsion = openmm.System(), openmm.PeriodicTorsionForce()
    bond, angle = openmm.HarmonicBondForce(), openmm.HarmonicAngleForce()
    (r, stretch), (theta, bend) = BOND, ANGLE
    for _ in range(4 * copies):
        system.addParticle(1.0)
    for a in range(0, 4 * copies, 4):
        for i in range(a, a + 3):
            bond.addBond(i, i + 1, r / 10, 2 * stretch * KCAL * 100)
        for i in range(a, a + 2):
            angle.addAngle(i, i + 1, i + 2, theta, 2 * bend * KCAL)
        for n, v in enumerate(TORSION, 1):
            torsion.addTorsion(a, a + 1, a + 2, a + 3, n, 0.0 if n % 2 else np.pi, v * KCAL / 2)
    for force in (bond, angle, torsion):
        system.addForce(force)
    return system


class Brownian:
    """All walkers by OpenMM, as copies in one System."""

    def __init__(self, h: float, seed: int):
        kT = TEMPERATURE * units.kB / (units.kJ / units.mol)  # u nm²/ps²
        timestep = h * 1e-2 * FRICTION / kT  # D Δt = h, D = kT/(mγ)
        self.integrator = openmm.BrownianIntegrator(TEMPERATURE, FRICTION, timestep)
        self.integrator.setRandomNumberSeed(seed)
        platform = openmm.Platform.getPlatformByName("Reference")
        self.context = openmm.Context(openmm_system(WALKERS), self.integrator, platform)

    def frames(self, x: np.ndarray) -> Iterator[np.ndarray]:
        """Positions (WALKERS, 4, 3) in Å of a piece."""
        self.context.setPositions(x.reshape(-1, 3) / units.nm)
        for _ in range(FRAMES):
            self.integrator.step(EVERY)
            state = self.context.getState(getPositions=True)
            yield state.getPositions(asNumpy=True)._value.reshape(x.shape) * units.nm


def drawn(count: int, seed: int) -> np.ndarray:
    """Exact snapshots (count, 4, 3) in Å: lengths ∝ r² e^{-U}, angles ∝ sin θ e^{-U}."""
    rng, kT = np.random.default_rng(seed), TEMPERATURE * units.kB / (units.kcal / units.mol)

    def draw(log_density, low: float, high: float, shape) -> np.ndarray:
        grid = np.linspace(low, high, 20001)
        weight = np.exp(log_density(grid))
        table = np.concatenate(([0.0], np.cumsum(0.5 * (weight[1:] + weight[:-1]))))
        return np.interp(rng.uniform(size=shape), table / table[-1], grid)

    (r0, stretch), (at, bend) = BOND, ANGLE
    r = draw(lambda r: 2 * np.log(r) - stretch / kT * (r - r0) ** 2, 1.2, 1.9, (3, count))
    theta = draw(lambda t: np.log(np.sin(t)) - bend / kT * (t - at) ** 2, 1.2, 2.7, (2, count))
    phi = draw(lambda p: -torsion_energy(p) / kT, -np.pi, np.pi, count)
    x = np.zeros((count, 4, 3))
    x[:, 0] = np.stack((r[0] * np.cos(theta[0]), r[0] * np.sin(theta[0]), 0 * phi), -1)
    x[:, 2, 0] = r[1]
    out = r[2] * np.sin(theta[1])
    x[:, 3] = np.stack((r[1] - r[2] * np.cos(theta[1]), out * np.cos(phi), out * np.sin(phi)), -1)
    return x


def torsions(x: np.ndarray) -> np.ndarray:
    return dihedrals(x, [[0, 1, 2, 3]])[..., 0]


def kept(path: Path, make: Callable[[], np.ndarray]) -> np.ndarray:
    """Positions of a file, made where there is none."""
    if not path.exists():
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, x=make())
    with np.load(path) as file:
        return file["x"]


def simulate(options: argparse.Namespace) -> None:
    """The model, then pieces of both sides in turn: φ (FRAMES, WALKERS), and where they are."""
    folder, path = options.folder, options.folder / "model.safetensors"
    folder.mkdir(exist_ok=True)
    x = kept(folder / "snapshots.npz", lambda: drawn(options.snapshots, 1))
    system = System.from_atoms(Atoms("C4", x[0]))
    if not path.exists():
        train(Snapshots(system, x, TEMPERATURE), seed=0).save(path)
    potential = ScoreModel.load(path).potential(system, compile=True)
    starts = kept(folder / "starts.npz", lambda: drawn(2 * WALKERS, 2))
    first = torch.from_numpy(starts[:WALKERS])
    asked = prepare(potential, temperature_K=TEMPERATURE, mean_free=True, x=first)
    h = float(asked.step.h)
    print(f"h = {h:.3g} Å²", flush=True)
    for number in range(options.pieces):
        for side, x in zip(SIDES, (starts[WALKERS:], starts[:WALKERS]), strict=True):
            piece = folder / f"{side}-{number:03d}.npz"
            if piece.exists():
                continue
            if number:
                x = kept(folder / f"{side}-{number - 1:03d}.npz", lambda: starts)
            if side == "model":
                steps, noise = FRAMES * EVERY, Noise(100 + number)
                chain = run(asked.kernel, torch.from_numpy(x), steps, noise=noise, every=EVERY)
                frames = (state.x.numpy() for state, _ in chain)
            else:
                frames = Brownian(h, 100 + number).frames(x)
            phi = []
            for x in frames:
                phi.append(torsions(x))
            with replacing(piece) as temporary, temporary.open("wb") as file:
                np.savez(file, phi=np.array(phi, np.float32), x=x, h=h)
            print(piece.name, f"D·t = {(number + 1) * FRAMES * EVERY * h:.2f} Å²", flush=True)


def cores(phi: np.ndarray) -> np.ndarray:
    """(T, W): 0 trans, 1 and 2 gauche, by the core of 30° that was visited last."""
    numbers = np.full(phi.shape, -1)
    for n, degrees in enumerate((180, 67, -67)):
        apart = np.abs(np.angle(np.exp(1j * (phi - np.radians(degrees)))))
        numbers[apart < CORE] = n
    return last_visited(numbers)


def measured(options: argparse.Namespace, side: str) -> dict[str, Estimate]:
    """Population and times of one side, in Å² of D·t."""
    parts = [np.load(path) for path in sorted(options.folder.glob(f"{side}-*.npz"))]
    phi = np.concatenate([part["phi"] for part in parts]).astype(float)
    spacing = float(parts[0]["h"]) * EVERY
    states = cores(phi)
    counted = passages(states == 0, states > 0, spacing)
    markov = markov_model(states, max(1, round(options.lag / spacing)), spacing)
    words = f"{side}: {phi.shape[1]} walkers of {len(phi) * spacing:.1f} Å², {counted.counts}"
    print(words, file=sys.stderr)
    return {
        "gauche": mean_estimate(np.abs(phi) < np.radians(120)),
        "trans to gauche": counted.to_b,
        "gauche to trans": counted.to_a,
        "trans to gauche, Markov": markov.mfpt([0], [1, 2]),
        "gauche to trans, Markov": markov.mfpt([1, 2], [0]),
        "slowest, Markov": markov.timescales[0],
    }


def ratio(one: Estimate, other: Estimate) -> Estimate:
    """one/other, errors independent."""
    value = one.value / other.value
    error = value * np.hypot(one.error / one.value, other.error / other.value)
    return Estimate(float(value), float(error), float("nan"))


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--folder", type=Path, default=Path("butane"))
    parser.add_argument("--snapshots", type=int, default=5000)
    parser.add_argument("--pieces", type=int, default=16, help="of 20 000 steps of each walker")
    parser.add_argument("--lag", type=float, default=2.0, help="Å², of the Markov model")
    options = parser.parse_args()
    torch.set_num_threads(1)
    simulate(options)
    found = {side: measured(options, side) for side in SIDES}
    ratios = {n: ratio(e, found["reference"][n]) for n, e in found["model"].items()}
    rates = [ratios[name] for name in ("trans to gauche", "gauche to trans")]
    holds = all(abs(r.value - 1) < 0.2 and r.error < 0.1 for r in rates)
    if options.json:
        print(to_json(plain(found | {"ratios": ratios, "holds": holds})))
    else:
        for name, value in ratios.items():
            words = ", ".join(f"{side} {found[side][name]}" for side in SIDES)
            print(f"{name}: {words}, ratio {value}")
        print("holds" if holds else "does not hold")
    sys.exit(not holds)


if __name__ == "__main__":
    main()
