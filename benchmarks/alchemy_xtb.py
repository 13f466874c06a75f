"""Alanine dipeptide from amber14 to GFN2-xTB, in vacuum at 300 K: the quantum correction.

    pip install tblite
    python benchmarks/alchemy_xtb.py [--folder FOLDER] [--seed 0]

xTB is asked rarely, because a stepping stone is close to it: amber14 and a force field of the
package's own form, fitted in closed form to what xTB's energies and forces have beside amber14's
(`score.label_fit`) on snapshots of amber14, and on samples of two earlier stones, so that it stays
where molecules are. From amber14 to the stone windows exchange λ, without xTB; at λ = 0 they are
fed with snapshots. Samples of the stone are evaluated by xTB once. Samples of xTB are made by
delayed acceptance, `INNER` steps of the stone as one proposal for one call of xTB, from samples of
the stone drawn by their weights. Both make the last leg by BAR. Dynamics is mixed with rotations
about φ, ψ and the methyl groups.

Both amides stay trans, at both ends: 0.1 % of the snapshots have a cis one, which are left out, and
no rotation is about an amide bond. Samples that are cis are counted, and there must be none.

Printed are ΔF with its verdicts; the same by exponential averages upwards and downwards, which must
agree within 0.3 kT; and all calls of xTB, labels included, beside those that windows on xTB itself
take for the same error: they exchange λ as well, with one call for each step of each window, and
samples of amber14 for nothing. Their run is shorter than that, and is scaled: errors fall with the
root of the calls. Its error is the stated one, which is too small where torsions have not mixed, as
the values of its ladders show: the ratio is a lower bound. 5 × fewer is the goal. A second call
goes on from the files of FOLDER. Some four minutes of one core without the windows on xTB, and four
for these.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from ase.units import kB
from diffmd_openmm import OpenMMPotential, alanine_dipeptide

from diffmd_ase import Alchemical, EulerMaruyama, Metropolis, Noise, Snapshots, run
from diffmd_ase.analysis.alchemy.estimates import CoupledEstimate, estimate
from diffmd_ase.analysis.alchemy.samples import CoupledSamples
from diffmd_ase.geometry import dihedrals
from diffmd_ase.io.atomic import replacing
from diffmd_ase.potentials.ase_calculator import AsePotential
from diffmd_ase.potentials.base import Potential, Wrapped
from diffmd_ase.sampling.combine import Mixture
from diffmd_ase.sampling.delayed import DelayedAcceptance
from diffmd_ase.sampling.exchange import ReplicaExchange
from diffmd_ase.sampling.moves import TorsionRotation
from diffmd_ase.score.baseline import BaselineValues
from diffmd_ase.score.label_fit import fit_labels
from diffmd_ase.score.networks.molecule import MechanicsConfig, MechanicsNetwork
from diffmd_ase.state import Evaluation

KT, H, SKIP = 300.0 * kB, 1.5e-4, 0.2
LABELS, MORE = 250, 64  # snapshots; samples of each stone but the last
REPULSION = (1.0, 0.1, 0.01)  # ridge of each stone: the more is known, the freer its repulsion
LAMBDAS, WALKERS, BLOCK = np.linspace(0.0, 1.0, 7), 8, 500  # from amber14 to the stone
AT_STONE, ON_XTB, INNER = 160, 32, 150  # samples of the stone, walkers on xTB
WINDOWS, LADDERS = np.linspace(0.2, 1.0, 5), 2  # on xTB itself, to compare with
PHI, PSI, AMIDES = [4, 6, 8, 14], [6, 8, 14, 16], [[0, 4, 6, 8], [8, 14, 16, 18]]
LABELLED = ("e", "f", "e0", "f0")
Arrays = dict[str, np.ndarray]


class Stone(Potential):
    """amber14 and a fitted network, which is in kT."""

    def __init__(self, amber: Potential, network):
        self.amber, self.network, self.system = amber, network.double(), amber.system

    def __call__(self, x, *, stress: bool = False):
        batch, flat = x.shape[:-2], x.detach().double().reshape(-1, *x.shape[-2:])
        at = flat.clone().requires_grad_()
        with torch.enable_grad():
            energy = KT * self.network(at, at.new_zeros(len(at)))
            forces = -torch.autograd.grad(energy.sum(), at)[0]
        below = self.amber(flat)
        energy, forces = energy.detach() + below.energy, forces + below.forces
        return Evaluation(energy.reshape(batch), forces.reshape(x.shape))


class Counted(Wrapped):
    """A potential that counts the structures it was asked for."""

    calls = 0

    def __call__(self, x, **options):
        self.calls += x.shape[:-2].numel()
        return self.inner(x, **options)


@dataclass
class Case:
    """The molecule, both potentials, where files are, and the seed."""

    snapshots: Snapshots
    amber: Potential
    xtb: Counted
    folder: Path
    seed: int

    def kept(self, name: str, make) -> Arrays:
        """Arrays of a file, or what ``make`` gives, kept there with its ``calls`` of xTB."""
        path = self.folder / f"{name}-{self.seed}.npz"
        if not path.exists():
            begun, before = time.monotonic(), self.xtb.calls
            arrays = make()
            calls = self.xtb.calls - before
            with replacing(path) as part, part.open("wb") as file:
                np.savez(file, **arrays, calls=calls)
            print(f"{name}: {time.monotonic() - begun:.0f} s, {calls} calls of xTB", flush=True)
        with np.load(path) as file:
            return dict(file)

    def frames(self, count: int, seed: int) -> torch.Tensor:
        """``count`` snapshots of amber14 with trans amides."""
        x = self.snapshots.positions
        chosen = np.random.default_rng((self.seed, seed)).permutation(len(x))[: 2 * count]
        return torch.as_tensor(x[chosen[trans(x[chosen])][:count]]).double()

    def label(self, x: torch.Tensor) -> Arrays:
        """Energies and forces of both potentials."""
        high, low = self.xtb(x), self.amber(x)
        told = {"x": x, "e": high.energy, "f": high.forces, "e0": low.energy, "f0": low.forces}
        return {name: value.numpy() for name, value in told.items()}

    def moves(self, potential: Potential) -> Mixture:
        """Metropolis steps of dynamics, and rotations: small ones of all but the amides, large."""
        top = self.snapshots.topology
        amides = [{4, 6}, {14, 16}]
        free = [k for k, axis in enumerate(top.rotors) if set(axis.tolist()) not in amides]
        soft = [k for k in free if set(top.rotors[k].tolist()) in ({6, 8}, {8, 14})]
        langevin = Metropolis(EulerMaruyama(potential, kT=KT, h=H, mean_free=True))
        small, large = (
            TorsionRotation(
                potential,
                KT,
                rotors=torch.as_tensor(top.rotors[which]),
                moved=torch.as_tensor(top.moved[which]),
                size=size,
                mean_free=True,
            )
            for which, size in ((free, 0.4), (soft, np.pi))
        )
        return Mixture((langevin, small, large), (0.8, 0.1, 0.1))


def trans(x: np.ndarray) -> np.ndarray:
    """Which of x (…, N, 3) have both amides trans."""
    return (np.abs(dihedrals(np.asarray(x), np.array(AMIDES))) > np.pi / 2).all(-1)


def stone_of(case: Case, parts: list[Arrays]) -> Stone:
    """The stone fitted to labels, those of snapshots and of the stones before it."""
    told = {name: np.concatenate([part[name] for part in parts]) for name in ("x", *LABELLED)}
    none = np.zeros(0)
    base = BaselineValues(told["e0"], told["f0"], none, none, none, none.astype(int))
    labels = replace(
        case.snapshots,
        positions=told["x"],
        energies=told["e"],
        forces=told["f"],
        baseline=base,
        checked=True,
    ).with_structure(case.snapshots.topology, case.snapshots.moving)
    tables = fit_labels(labels, repulsion_ridge=REPULSION[len(parts) - 1])
    return Stone(case.amber, MechanicsNetwork(MechanicsConfig(depth=0), {}, tables))


def stepping_stone(case: Case) -> tuple[Stone, int]:
    """The last of the stones, and the calls of xTB behind it."""
    parts = [case.kept("labels-0", lambda: case.label(case.frames(LABELS, 0)))]
    for number in range(1, len(REPULSION)):
        stone = stone_of(case, parts)

        def further(stone=stone, number=number) -> Arrays:
            start = case.frames(MORE, number)
            noise = Noise(case.seed + number)
            *_, (state, _) = run(case.moves(stone), start, 2 * BLOCK, noise=noise)
            return case.label(state.x)

        parts.append(case.kept(f"labels-{number}", further))
        new = parts[-1]
        gap = new["e"] - stone(torch.as_tensor(new["x"])).energy.numpy()
        print(f"stone {number}: xTB - stone varies by {gap.std() / KT:.2f} kT on its samples")
    return stone_of(case, parts), sum(int(part["calls"]) for part in parts)


def windows(case: Case, name: str, end: Potential, lambdas, x, steps: int, every: int) -> Arrays:
    """Energies (T, B) of both ends along windows that exchange λ, and x (T, M, N, 3) at λ = 1."""
    coupling = Alchemical(case.amber, end, 0.0)
    K, told = len(lambdas), []
    lam = torch.as_tensor(lambdas).repeat(len(x) // K)
    kernel = ReplicaExchange(case.moves(coupling.at(lam)), K, every=10)

    def block(x, number: int) -> Arrays:
        rows: dict[str, list] = {"start": [], "end": [], "x": []}
        noise = Noise(1000 * case.seed + number)
        for state, _ in run(
            kernel, torch.as_tensor(x), min(BLOCK, steps), noise=noise, every=every
        ):
            low = case.amber(state.x).energy
            # xTB is not asked again for what it has said
            high = end(state.x).energy if end is not case.xtb else low + (state.energy - low) / lam
            rows["start"].append(low), rows["end"].append(high)
            rows["x"].append(state.x[K - 1 :: K])
        return {k: torch.stack(v).numpy() for k, v in rows.items()} | {"last": state.x.numpy()}

    for number in range(max(1, steps // BLOCK)):
        if not lambdas[0]:  # snapshots are samples of amber14, and carry its populations upwards
            x = torch.as_tensor(x).clone()
            x[::K] = case.frames(len(x) // K, 100 + number)
        told.append(case.kept(f"{name}-{number}", lambda x=x, number=number: block(x, number)))
        x = told[-1]["last"]
    whole = {k: np.concatenate([part[k] for part in told]) for k in ("start", "end", "x")}
    return whole | {"calls": np.array(sum(int(part["calls"]) for part in told))}


def on_xtb(case: Case, stone: Stone, x, steps: int) -> Arrays:
    """U_xtb - U_stone (T, B) along samples of xTB by delayed acceptance, and x."""
    kernel = DelayedAcceptance(case.moves(stone), case.xtb, INNER)
    rows: dict[str, list] = {"gaps": [], "accepted": [], "x": []}
    noise = Noise(1000 * case.seed + 500)
    for state, info in run(kernel, torch.as_tensor(x), steps, noise=noise):
        rows["gaps"].append(state.energy - stone(state.x).energy)
        rows["accepted"].append(info.accepted.double())
        rows["x"].append(state.x)
    return {name: torch.stack(values).numpy() for name, values in rows.items()}


def judged(name: str, start, end, lam, skip: float) -> CoupledEstimate:
    """ΔF of one leg, printed with its verdicts."""
    result = estimate(CoupledSamples(start, end, lam, KT), skip=skip)
    print(f"{name}: {result.best.value:.2f} ± {result.best.error:.2f} kT")
    for verdict in result.verdicts:
        print("  ", "✓" if verdict["good"] else "✗", verdict["text"])
    return result


def one_way(gaps: list[np.ndarray], lambdas) -> np.ndarray:
    """Sums of exponential averages between windows, upwards and downwards, in kT."""
    up = down = 0.0
    for k, width in enumerate(np.diff(lambdas)):
        low, high = gaps[k] / KT, gaps[k + 1] / KT
        up -= np.log(np.mean(np.exp(-width * (low - low.mean())))) - width * low.mean()
        down += np.log(np.mean(np.exp(width * (high - high.mean())))) + width * high.mean()
    return np.array([up, down])


def settled(rows: np.ndarray) -> np.ndarray:
    """What is left of rows (T, …) after the first `SKIP`."""
    return rows[int(SKIP * len(rows)) :]


def populations(name: str, x: np.ndarray, weights: np.ndarray | None = None) -> int:
    """Print where φ and ψ of x (…, N, 3) are, by their weights (…); how many are cis."""
    phi, psi = np.degrees(dihedrals(x.reshape(-1, *x.shape[-2:]), np.array([PHI, PSI]))).T
    w = np.full(len(phi), 1 / len(phi)) if weights is None else weights.ravel() / weights.sum()
    where = {
        "φ in (0°, 130°)": (phi > 0) & (phi < 130),
        "α": (phi < 0) & (np.abs(psi + 45) < 75),
        "C7": (phi < 0) & (phi > -120) & (np.abs(psi - 75) < 45),
        "C5": (phi < -120) | (phi > 130),
    }
    print(f"{name}:", ", ".join(f"{basin} {w[here].sum():.3f}" for basin, here in where.items()))
    return int((~trans(x)).sum())


def through_stone(case: Case, stone: Stone, labelled: int, options) -> tuple[np.ndarray, int, int]:
    """ΔF with its error, upwards and downwards; calls of xTB; samples with a cis amide."""
    start = case.frames(WALKERS * len(LAMBDAS), 10)
    first = windows(case, "stone", stone, LAMBDAS, start, options.stone_steps, 25)
    lam = np.tile(LAMBDAS, WALKERS)[None].repeat(len(first["start"]), 0)
    low = judged("amber14 → stone", first["start"], first["end"], lam, SKIP)
    between = settled(first["end"] - first["start"])
    parts = [between[:, k :: len(LAMBDAS)].ravel() for k in range(len(LAMBDAS))]

    known = settled(first["x"])
    rows = np.linspace(0, len(known) - 1, AT_STONE // WALKERS).astype(int)
    x = torch.as_tensor(known[rows])
    asked = case.kept("at-stone", lambda: {"e": case.xtb(x).energy, "e0": stone(x).energy})
    above = asked["e"] - asked["e0"]
    weights = np.exp(-(above - above.min()) / KT).ravel()
    drawn = np.random.default_rng(case.seed).choice(above.size, ON_XTB, p=weights / weights.sum())
    begin = x.flatten(0, 1)[drawn]
    last = case.kept("on-xtb", lambda: on_xtb(case, stone, begin, options.steps))
    below = settled(last["gaps"])
    print(
        f"xTB - stone varies by {above.std() / KT:.2f} kT on the stone, {below.std() / KT:.2f} on"
    )
    print(f"xTB, where delayed acceptance takes {last['accepted'].mean():.2f} of the proposals")
    length = min(len(above), len(below))
    rows = [np.linspace(0, len(v) - 1, length).astype(int) for v in (above, below)]
    gaps = np.concatenate([v[row] for v, row in zip((above, below), rows, strict=True)], 1)
    lam = np.repeat([0.0, 1.0], [above.shape[1], below.shape[1]])[None].repeat(length, 0)
    high = judged("stone → xTB", np.zeros_like(gaps), gaps, lam, 0.0)

    cis = populations("stone", known) + populations("xTB", settled(last["x"]))
    populations("xTB, by weights of the stone's samples", x.numpy(), weights)
    populations("amber14", case.snapshots.positions)
    value, error = low.best.value + high.best.value, np.hypot(low.best.error, high.best.error)
    ways = one_way(parts, LAMBDAS) + one_way([above.ravel(), below.ravel()], [0.0, 1.0])
    calls = labelled + int(asked["calls"]) + int(last["calls"])
    return np.array([value, error, *ways]), calls, cis


def on_xtb_itself(case: Case, options) -> tuple[CoupledEstimate, int]:
    """ΔF by windows that run on xTB, and the calls of it."""
    start = case.frames(LADDERS * len(WINDOWS), 20)
    told = windows(case, "plain", case.xtb, WINDOWS, start, options.plain_steps, 5)
    labels = case.kept("labels-0", dict)
    gaps = told["end"] - told["start"]
    free = np.resize(labels["e"] - labels["e0"], len(gaps))[:, None]
    gaps = np.concatenate([free, gaps], 1)
    lam = np.concatenate([[0.0], np.tile(WINDOWS, LADDERS)])[None].repeat(len(gaps), 0)
    result = judged("windows on xTB", np.zeros_like(gaps), gaps, lam, SKIP)
    K = len(WINDOWS)
    for m in range(LADDERS):  # of few basins visited: the stated error does not know of others
        own = [0, *range(1 + m * K, 1 + (m + 1) * K)]
        part = CoupledSamples(np.zeros_like(gaps[:, own]), gaps[:, own], lam[:, own], KT)
        print(f"   ladder {m} alone: {estimate(part, skip=SKIP).best.value:.2f} kT")
    return result, int(told["calls"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("alchemy_xtb"))
    parser.add_argument("--stone-steps", type=int, default=5000, help="amber14 → stone, no xTB")
    parser.add_argument("--steps", type=int, default=10, help="of each walker on xTB")
    parser.add_argument("--plain-steps", type=int, default=1000, help="of windows on xTB itself")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    from tblite.ase import TBLite

    torch.set_num_threads(1)
    options.folder.mkdir(exist_ok=True, parents=True)
    snapshots = Snapshots.read("alanine-dipeptide")
    amber = OpenMMPotential(snapshots.system, alanine_dipeptide()[1])
    xtb = AsePotential(TBLite(method="GFN2-xTB", verbosity=0), snapshots.system, failures="reject")
    case = Case(snapshots, amber, Counted(xtb), options.folder, options.seed)

    stone, labelled = stepping_stone(case)
    (value, error, up, down), calls, cis = through_stone(case, stone, labelled, options)
    direct, asked = on_xtb_itself(case, options)
    print(f"ΔF(amber14 → GFN2-xTB) = {value:.2f} ± {error:.2f} kT from {calls} calls of xTB,")
    print(f"of them {labelled} for the stone; {cis} samples with a cis amide")
    print(f"upwards {up:.2f}, downwards {down:.2f} kT: {abs(up - down):.2f} apart")
    same = asked * (direct.best.error / error) ** 2
    print(
        f"windows on xTB: {direct.best.value:.2f} ± {direct.best.error:.2f} kT from {asked} calls,"
    )
    print(f"{same:.0f} for an error of {error:.2f} kT: {same / calls:.1f} x as many (goal 5 x)")
    return 0 if abs(up - down) < 0.3 and same > 5 * calls and not cis else 1


if __name__ == "__main__":
    sys.exit(main())
