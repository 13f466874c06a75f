"""Time correlations of alanine dipeptide: the learned model against Brownian dynamics of amber14.

    python benchmarks/alanine_brownian.py run --folder brownian --span 8
    python benchmarks/alanine_brownian.py compare --folder brownian --plot brownian.png
    python benchmarks/alanine_brownian.py weigh --folder brownian --walkers 1024

Both sides have one D for all atoms and the same step h: OpenMM's BrownianIntegrator with equal
masses makes the steps ``x + h F/kT + sqrt(2h) ξ`` of amber14, the package those of the shipped
model, which saw only snapshots. The walkers begin in snapshots with φ < 0 and stay there (crossings
to φ > 0 are counted). Torsions, radius of gyration (equal masses) and distance of the outer carbons
are kept. `run` makes pieces of both sides in turn, of about a minute, and goes on where it stopped.
`weigh` runs chains of the model from snapshots, weighs their paths towards amber14, and prints the
integrals of the correlations up to where the weights hold, of the model, weighed, and of amber14.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import openmm
import torch
from ase import units
from diffmd_openmm import PHI, PSI, OpenMMPotential, alanine_dipeptide
from matplotlib.figure import Figure

from diffmd_ase import ScoreModel, Snapshots, System
from diffmd_ase.analysis.kinetics.markov import markov_model
from diffmd_ase.analysis.kinetics.path_reweighting import weigh_paths
from diffmd_ase.analysis.kinetics.states import clusters
from diffmd_ase.analysis.kinetics.variables import Variables
from diffmd_ase.analysis.observables import angular_vectors
from diffmd_ase.analysis.statistics import Estimate, correlation, jackknife_error
from diffmd_ase.geometry import dihedrals, distances
from diffmd_ase.io.atomic import replacing
from diffmd_ase.io.json_text import plain, to_json
from diffmd_ase.noise import Noise
from diffmd_ase.potentials.base import Potential
from diffmd_ase.sampling.run import run
from diffmd_ase.simulation.prepare import StepRequest, prepare

TEMPERATURE, H = 300.0, 3.6e-5  # K, Å²
ENDS = (0, 18)  # the carbons of the methyl groups
EVERY = 50  # steps between frames
FRAMES = 139  # of a piece: 0.25 Å²
BEFORE = 1400  # steps before the first frame: 0.05 Å²
FRICTION = 1000.0  # 1/ps, which with masses of 1 u says what h is in time, and nothing else
NAMES = ("phi", "psi", "Rg", "end-to-end")
SIDES = ("amber14", "model")
GROUPS = 16  # of walkers, for the errors


def observed(x: np.ndarray) -> np.ndarray:
    """φ, ψ (rad), radius of gyration and distance of the ends (Å) of positions (*batch, N, 3)."""
    centred = x - x.mean(-2, keepdims=True)
    gyration = np.sqrt((centred**2).sum(-1).mean(-1))
    torsions, ends = dihedrals(x, [PHI, PSI]), distances(x, [ENDS])
    return np.concatenate((torsions, gyration[..., None], ends), axis=-1)


class Brownian:
    """A piece of all walkers by OpenMM, one after the other."""

    def __init__(self):
        _, self.system = alanine_dipeptide()
        for particle in range(self.system.getNumParticles()):
            self.system.setParticleMass(particle, 1.0)
        kT = TEMPERATURE * units.kB / (units.kJ / units.mol)  # u nm²/ps²
        self.timestep = H * 1e-2 * FRICTION / kT  # D Δt = h, D = kT/(mγ)

    def piece(self, x: np.ndarray, number: int, before: int) -> tuple[np.ndarray, np.ndarray]:
        """Observed (FRAMES, W, 4), and where the walkers are then."""
        integrator = openmm.BrownianIntegrator(TEMPERATURE, FRICTION, self.timestep)
        integrator.setRandomNumberSeed(1 + number)
        platform = openmm.Platform.getPlatformByName("Reference")
        context = openmm.Context(self.system, integrator, platform)
        frames = np.empty((FRAMES, *x.shape))
        for walker, start in enumerate(x):
            context.setPositions(start / units.nm)
            integrator.step(before)
            for frame in range(FRAMES):
                integrator.step(EVERY)
                state = context.getState(getPositions=True)
                frames[frame, walker] = state.getPositions(asNumpy=True)._value * units.nm
        return observed(frames), frames[-1]


class Learned:
    """The same by the package, all walkers at once."""

    def __init__(self, potential: Potential):
        self.potential = potential

    def kernel(self, x: torch.Tensor):
        step = StepRequest(spring=1 / (2 * H))
        made = prepare(self.potential, temperature_K=TEMPERATURE, step=step, mean_free=True, x=x)
        return made.kernel

    def piece(self, x: np.ndarray, number: int, before: int) -> tuple[np.ndarray, np.ndarray]:
        at = torch.from_numpy(x)
        kernel = self.kernel(at)
        state, noise, seen = kernel.init(at), Noise(1000 + number), []
        if before:
            *_, (state, _) = run(kernel, state, before, noise=noise)
        for moved, _ in run(kernel, state, FRAMES * EVERY, noise=noise, every=EVERY):
            seen.append(observed(moved.x.numpy()))
            state = moved
        return np.array(seen), state.x.numpy()


def simulate(options: argparse.Namespace) -> None:
    """Pieces of both sides in turn, each side a file that grows."""
    torch.set_num_threads(1)
    snapshots, model = Snapshots.read("alanine-dipeptide"), ScoreModel.load("alanine-dipeptide")
    positions = np.asarray(snapshots.positions, float)
    left = np.flatnonzero(dihedrals(positions, [PHI])[:, 0] < 0)
    makers = {
        "amber14": Brownian(),
        "model": Learned(model.potential(snapshots.system, compile=True)),
    }
    options.folder.mkdir(exist_ok=True)
    for number in range(round(options.span / (FRAMES * EVERY * H))):
        for side, maker in makers.items():
            path = options.folder / f"{side}-{number:03d}.npz"
            if path.exists():
                continue
            if number:
                with np.load(options.folder / f"{side}-{number - 1:03d}.npz") as last:
                    x = last["x"]
            else:
                rng = np.random.default_rng(SIDES.index(side))
                x = positions[rng.choice(left, options.walkers, replace=False)]
            values, x = maker.piece(x, number, 0 if number else BEFORE)
            with replacing(path) as temporary, temporary.open("wb") as file:
                np.savez(file, values=values.astype(np.float32), x=x)
            print(path.name, f"D·t = {(number + 1) * FRAMES * EVERY * H:.2f} Å²", flush=True)


def loaded(folder: Path, side: str, pieces: int) -> np.ndarray:
    """(T, W, 4) of the first ``pieces`` of a side."""
    paths = [folder / f"{side}-{number:03d}.npz" for number in range(pieces)]
    return np.concatenate([np.load(path)["values"] for path in paths]).astype(float)


def integrated(
    values: np.ndarray, frames: int, spacing: float
) -> tuple[np.ndarray, np.ndarray, Estimate]:
    """C(t) up to that many frames, its error, and its integral with the error of a jackknife.

    Up to a lag that both sides have in common, since up to the first zero takes walkers of many
    integrated times.
    """
    groups = np.array_split(np.arange(values.shape[1]), GROUPS)
    whole = correlation(values)[:frames]
    left = np.array([correlation(np.delete(values, g, axis=1))[:frames] for g in groups])

    def area(c: np.ndarray) -> np.ndarray:
        return spacing * (c.sum(-1) - 0.5 * (c[..., 0] + c[..., -1]))

    time = Estimate(float(area(whole)), float(jackknife_error(area(left))), float("nan"))
    return whole, jackknife_error(left), time


def ratio(one: Estimate, other: Estimate) -> Estimate:
    """one/other, errors independent."""
    value = one.value / other.value
    error = value * np.hypot(one.error / one.value, other.error / other.value)
    return Estimate(float(value), float(error), float("nan"))


def compare(options: argparse.Namespace) -> None:
    """Integrated times and implied timescales of both sides, and their ratios."""
    pieces = min(len(list(options.folder.glob(f"{side}-*.npz"))) for side in SIDES)
    values = {side: loaded(options.folder, side, pieces)[:: options.thin] for side in SIDES}
    frames, walkers, _ = values["model"].shape
    spacing = EVERY * H * options.thin
    last = round(options.up_to / spacing)
    result: dict = {"Dt_each": frames * spacing, "walkers": walkers, "up_to": options.up_to,
                    "crossings": {}, "times": {}, "timescales": []}  # fmt: skip
    for side, v in values.items():
        above = (v[..., 0] > 0) & (v[..., 0] < 2.0)
        result["crossings"][side] = int(np.abs(np.diff(above.astype(int), axis=0)).sum())
    curves: dict = {}
    for n, name in enumerate(NAMES):
        for side, v in values.items():
            series = angular_vectors(v[..., n]) if n < 2 else v[..., n]
            curves[name, side] = integrated(series, last, spacing)
        one, other = curves[name, "model"][2], curves[name, "amber14"][2]
        result["times"][name] = {"model": one, "amber14": other, "ratio": ratio(one, other)}
    # the same states for both: clusters of all frames of φ and ψ
    both = np.concatenate([values[side][..., :2] for side in SIDES], axis=1)
    pooled = Variables(("phi", "psi"), both, (True, True), spacing, "Å²")
    states = clusters(pooled, options.clusters).numbers
    of = {side: states[:, k * walkers : (k + 1) * walkers] for k, side in enumerate(SIDES)}
    for lag in options.lags:
        models = {s: markov_model(v, round(lag / spacing), spacing) for s, v in of.items()}
        for n in range(2):
            one, other = (models[side].timescales[n] for side in ("model", "amber14"))
            result["timescales"].append(
                {"lag": lag, "number": n + 1, "model": one, "amber14": other,
                 "ratio": ratio(one, other)}
            )  # fmt: skip
    if options.json:
        print(to_json(plain(result)))
    else:
        _say(result)
    if options.plot:
        _figure(curves, result, spacing).savefig(options.plot, dpi=150)


def weigh(options: argparse.Namespace) -> None:
    """Correlations at short lags, of the model, weighed towards amber14, and of amber14."""
    torch.set_num_threads(1)
    snapshots, model = Snapshots.read("alanine-dipeptide"), ScoreModel.load("alanine-dipeptide")
    positions = np.asarray(snapshots.positions, float)
    left = np.flatnonzero(dihedrals(positions, [PHI])[:, 0] < 0)
    chosen = np.random.default_rng(7).choice(left, options.walkers, replace=False)
    atoms, system = alanine_dipeptide()
    lags = round(options.short / (EVERY * H))
    x = torch.from_numpy(positions[chosen])
    paths = weigh_paths(
        Learned(model.potential(snapshots.system, compile=True)).kernel(x),
        x,
        OpenMMPotential(System.from_atoms(atoms), system),
        lags * EVERY,
        noise=Noise(11),
        observe=lambda x: torch.from_numpy(observed(x.numpy())),
        every=EVERY,
        stride=5,
    )
    logs = np.concatenate((np.zeros_like(paths.increments[:1]), paths.increments)).cumsum(0)
    weights = np.exp(logs - logs.max(1, keepdims=True))
    kl, pieces = paths.kl(lags), len(list(options.folder.glob("amber14-*.npz")))
    print(
        f"{options.walkers} chains of {options.short:g} Å²: KL of the paths {kl} nats, "
        f"{1 / np.sum((weights[-1] / weights[-1].sum()) ** 2):.0f} effective ones at the end"
    )
    true = loaded(options.folder, "amber14", pieces)
    print(f"∫ C dt up to {options.short:g} Å², in Å²:")
    for n, name in enumerate(NAMES):
        f = angular_vectors(paths.values[..., n]) if n < 2 else paths.values[..., n][..., None]
        plain = short_time(f, np.ones_like(weights))
        weighed = short_time(f, weights)
        series = angular_vectors(true[..., n]) if n < 2 else true[..., n]
        reference = integrated(series, lags + 1, EVERY * H)[2]
        print(f"  {name}: model {plain}, weighed {weighed}, amber14 {reference}")


def short_time(f: np.ndarray, weights: np.ndarray) -> Estimate:
    """∫ C dt of f (T, W, k) from the beginning on, with weights (T, W); jackknife error."""

    def area(keep: np.ndarray) -> float:
        own, w = f[:, keep], weights[:, keep]
        centred = own - own[0].mean(0)
        c = (w * (centred[0] * centred).sum(-1)).sum(1) / w.sum(1)
        return float(np.trapezoid(c / c[0], dx=EVERY * H))

    every = np.arange(f.shape[1])
    parts = [area(np.delete(every, g)) for g in np.array_split(every, GROUPS)]
    return Estimate(area(every), float(jackknife_error(np.array(parts))), float("nan"))


def _say(result: dict) -> None:
    total = result["Dt_each"] * result["walkers"]
    print(
        f"{result['walkers']} walkers of D·t = {result['Dt_each']:.2f} Å², {total:.0f} Å² a side;"
    )
    print(f"crossings of φ = 0: {result['crossings']}")
    print(f"∫ C dt up to {result['up_to']:g} Å², in Å²:")
    for name, row in result["times"].items():
        print(f"  {name}: " + ", ".join(f"{k} {v}" for k, v in row.items()))
    print("implied timescales, Å²:")
    for row in result["timescales"]:
        words = ", ".join(f"{k} {row[k]}" for k in ("model", "amber14", "ratio"))
        print(f"  lag {row['lag']:g}, number {row['number']}: {words}")


def _figure(curves: dict, result: dict, spacing: float) -> Figure:
    figure = Figure(figsize=(11, 6.4), layout="constrained")
    axes = figure.subplots(2, 3)
    colours = {"amber14": "#222222", "model": "#d55e00"}
    for axis, name in zip(axes.flat, NAMES, strict=False):
        for side in SIDES:
            c, error, _ = curves[name, side]
            t = spacing * np.arange(len(c))
            axis.plot(t, c, color=colours[side], label=side)
            axis.fill_between(t, c - error, c + error, color=colours[side], alpha=0.2)
        axis.set(title=name, xlabel="D·t (Å²)", ylabel="autocorrelation")
    for number, axis in zip((1, 2), axes.flat[4:], strict=True):
        rows = [row for row in result["timescales"] if row["number"] == number]
        for side in SIDES:
            t, error = np.array([row[side][:2] for row in rows]).T
            axis.errorbar([row["lag"] for row in rows], t, error, color=colours[side], marker="o",
                          capsize=2, label=side)  # fmt: skip
        axis.set(title=f"implied timescale {number}", xlabel="lag (Å²)", ylabel="Å²")
    axes.flat[0].legend(frameon=False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["run", "compare", "weigh"])
    parser.add_argument("--folder", type=Path, default=Path("brownian"))
    parser.add_argument("--walkers", type=int, default=128)
    parser.add_argument("--span", type=float, default=8.0, help="D·t of each walker, Å²")
    parser.add_argument("--up-to", type=float, default=2.0, help="Å², of integrated times")
    parser.add_argument("--short", type=float, default=0.3, help="Å², of paths that are weighed")
    parser.add_argument("--clusters", type=int, default=8, help="of φ and ψ")
    parser.add_argument("--lags", type=float, nargs="+", default=[0.1, 0.2, 0.4, 0.8])
    parser.add_argument("--thin", type=int, default=1, help="of the frames every so many")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    {"run": simulate, "compare": compare, "weigh": weigh}[options.what](options)


if __name__ == "__main__":
    main()
