"""Does the score of snapshots of a liquid give that liquid? The model against what made them.

Walkers move by Hamiltonian Monte Carlo on the learned energy, so that no error of the step enters,
and begin at snapshots, of which they keep the last part. Distances between molecules are counted by
elements, those of a solute by themselves.

    python benchmarks/make_water.py -o water.npz
    python benchmarks/liquid_fidelity.py water.npz         # ten minutes of one core; trains
"""

import resource
from itertools import combinations_with_replacement

import numpy as np
import torch
from ase import units
from ase.data import chemical_symbols
from shared import chain, command_line, parsed

from diffmd_ase import Noise, ScoreModel, Snapshots, System
from diffmd_ase.geometry import distances
from diffmd_ase.io.json_text import to_json
from diffmd_ase.sampling.hamiltonian import HamiltonianMonteCarlo
from diffmd_ase.score.molecules import whole
from diffmd_ase.score.neighbours import edges
from diffmd_ase.score.training import train

LEAPFROG, TIMESTEP = 25, 0.5 * units.fs
BINS, GROUPS = 60, 8


def names_of(snapshots: Snapshots) -> np.ndarray:
    """(N,) the element of each atom, with a star in all but the commonest molecules."""
    common = max(snapshots.molecules, key=lambda kind: len(kind.atoms))
    names = np.array([chemical_symbols[z] + "*" for z in snapshots.system.numbers])
    names[common.atoms.ravel()] = np.char.rstrip(names[common.atoms.ravel()], "*")
    return names


def distribution(snapshots: Snapshots, x: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Middles of bins up to half of the cell, and g (GROUPS, bins) of each pair of names."""
    cell = torch.as_tensor(snapshots.system.cell)
    far = 0.5 * float(np.diag(snapshots.system.cell).min())
    bins, names = np.linspace(0.8, far, BINS + 1), names_of(snapshots)
    kinds, of_atom = np.unique(names, return_inverse=True)
    molecule, first = np.zeros(len(names), int), 0
    for kind in snapshots.molecules:
        molecule[kind.atoms] = first + np.arange(len(kind.atoms))[:, None]
        first += len(kind.atoms)
    counts = np.zeros((GROUPS, len(kinds), len(kinds), BINS))
    for n, part in enumerate(np.array_split(x, GROUPS)):
        for some in torch.as_tensor(part).split(32):
            source, target, vectors = edges(some, far, cell, (True,) * 3)
            i, j = (t.numpy() % len(names) for t in (source, target))
            r, other = vectors.norm(dim=-1).numpy(), molecule[i] != molecule[j]
            place = np.digitize(r, bins) - 1
            keep = other & (place >= 0) & (place < BINS)
            np.add.at(counts[n], (of_atom[i[keep]], of_atom[j[keep]], place[keep]), 1 / len(part))
    volume = abs(np.linalg.det(snapshots.system.cell))
    shell, many = 4 / 3 * np.pi * np.diff(bins**3), np.bincount(of_atom)
    found = {}
    for a, b in combinations_with_replacement(range(len(kinds)), 2):
        pairs = many[a] * (many[b] - (a == b))
        if counts[:, a, b].any():
            found[f"{kinds[a]}-{kinds[b]}"] = counts[:, a, b] * volume / (pairs * shell)
    return 0.5 * (bins[1:] + bins[:-1]), found


def peak(r: np.ndarray, g: np.ndarray) -> tuple[float, float]:
    """Place and height of the first peak: of a parabola through the top of the first hill."""
    high = g > 0.6 * g.max()
    begin = int(high.argmax())
    end = begin + int(np.argmin(np.append(high[begin:], False)))
    top = begin + int(g[begin:end].argmax())
    near = slice(max(0, top - 2), top + 3)
    a, b, c = np.polyfit(r[near] - r[top], g[near], 2)
    return float(r[top] - b / (2 * a)), float(c - b**2 / (4 * a))


def widths(snapshots: Snapshots, x: np.ndarray) -> dict[str, float]:
    """Standard deviations of bonds (Å) and of distances across angles, by elements."""
    found: dict[str, list[float]] = {}
    for kind in snapshots.molecules:
        made = whole(snapshots.system, x, kind)
        near = {n: [] for n in range(len(kind.numbers))}
        for i, j in kind.bonds.tolist():
            near[i].append(j)
            near[j].append(i)
        across = [(a, b) for n in near for k, a in enumerate(near[n]) for b in near[n][:k]]
        mark = "" if len(kind.atoms) > 1 else "*"
        for label, pairs in (("", kind.bonds), ("..", np.array(across, int).reshape(-1, 2))):
            std = distances(made, pairs).std(0)
            for (i, j), value in zip(pairs.tolist(), std, strict=True):
                ends = sorted(chemical_symbols[kind.numbers[n]] for n in (i, j))
                found.setdefault((label or "-").join(ends) + mark, []).append(float(value))
    return {name: float(np.mean(values)) for name, values in found.items()}


def rows(snapshots: Snapshots, own: tuple, data: Snapshots) -> list[tuple]:
    """(name, data, model, error of the difference or None, goal) of structure and energy."""
    x, energies = own
    found = [
        (f"width {name}, Å", a, b, None, "3 %")
        for (name, a), b in zip(
            widths(snapshots, data.positions).items(), widths(snapshots, x).values(), strict=True
        )
    ]
    r, reference = distribution(snapshots, data.positions)
    _, learned = distribution(snapshots, x)
    for name, g in reference.items():
        a, b = g.mean(0), learned[name].mean(0)
        spread = [np.std([peak(r, one) for one in kind], axis=0) for kind in (g, learned[name])]
        error = np.hypot(*spread) / GROUPS**0.5
        for n, what in enumerate(("place, Å", "height")):
            goal = "5 %" if "*" in name else "3 %"
            found.append((f"g({name}) {what}", peak(r, a)[n], peak(r, b)[n], error[n], goal))
        rms = float(np.sqrt(np.mean((a - b) ** 2)))
        noise = np.sqrt(np.mean((g.var(0) + learned[name].var(0)) / GROUPS))
        found.append((f"g({name}) RMS of the difference", 0.0, rms, noise, "0.05"))
    scale = (0.5 / len(energies) + 0.5 / len(data)) ** 0.5 * energies.std()
    found.append(("energy, std, eV", data.energies.std(), energies.std(), scale, "10 %"))
    return found


def main():
    parser = command_line(__doc__)
    parser.add_argument("snapshots", help="of make_water.py; its held-out ones beside it")
    parser.add_argument("--model", help="file; without it one is trained, with default settings")
    parser.add_argument("--walkers", type=int, default=16)
    parser.add_argument("--moves", type=int, default=400, help=f"of {LEAPFROG} steps each")
    parser.add_argument("--seed", type=int, default=0)
    options = parsed(parser)
    snapshots = Snapshots.read(options.snapshots)
    held_out = Snapshots.read(options.snapshots.replace(".npz", "-held-out.npz"))
    if options.model:
        model = ScoreModel.load(options.model)
    else:
        model = train(snapshots, device="cpu", seed=options.seed)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    potential = model.potential(device="cpu", compile=True)
    told = potential(torch.as_tensor(held_out.positions))
    wrong = told.forces.numpy() - held_out.forces
    result = {
        "force_error": float(np.linalg.norm(wrong) / np.linalg.norm(held_out.forces)),
        "std_U_minus_E_kT": float((told.energy.numpy() - held_out.energies).std() / model.card.kT),
        "std_E_kT": float(held_out.energies.std() / model.card.kT),
        "training_s": model.card.training["seconds"],
        "peak_memory_MB": None if options.model else memory,
    }
    kernel = HamiltonianMonteCarlo(
        potential, kT=model.card.kT, timestep=TIMESTEP, n_leapfrog=LEAPFROG
    )
    every = len(snapshots) // options.walkers
    start = torch.as_tensor(snapshots.positions[::every][: options.walkers])
    states, accepted = chain(kernel, start, options.moves, noise=Noise(options.seed), every=4)
    kept = states[len(states) // 3 :]
    own = tuple(torch.cat([getattr(s, name) for s in kept]).numpy() for name in ("x", "energy"))
    both = Snapshots(
        snapshots.system,
        np.concatenate([snapshots.positions, held_out.positions]),
        temperature_K=snapshots.temperature_K,
        energies=np.concatenate([snapshots.energies, held_out.energies]),
        checked=True,
    )
    result["acceptance"] = float(accepted.mean())
    result["rows"] = rows(snapshots, own, both)
    result["larger"] = {}
    for times in ((2, 1, 1), (2, 2, 2)):
        atoms = snapshots.system.to_atoms(snapshots.positions[0]).repeat(times)
        larger = model.potential(System.from_atoms(atoms), device="cpu")
        energy = float(larger(torch.as_tensor(atoms.positions)).energy)
        one = float(potential(torch.as_tensor(snapshots.positions[:1])).energy)
        result["larger"][len(atoms)] = energy / (one * int(np.prod(times)))
    if options.json:
        print(to_json(result))
        return
    print(
        f"force error {result['force_error']:.3f}, std(U - E) {result['std_U_minus_E_kT']:.2f} kT "
        f"of {result['std_E_kT']:.1f} kT; training {result['training_s']:.0f} s"
        + (f", {memory:.0f} MB" if not options.model else "")
        + f"; acceptance {result['acceptance']:.2f}"
    )
    print(f"{'':34}{'data':>9}{'model':>9}{'off by':>9}{'±':>8}  goal")
    for name, a, b, error, goal in result["rows"]:
        off = f"{100 * (b / a - 1):+8.1f}%" if a else f"{b - a:+9.3f}"
        known = "" if error is None else f"{100 * error / a:7.1f}%" if a else f"{error:8.3f}"
        print(f"{name:34}{a:9.4f}{b:9.4f}{off}{known:>8}  {goal}")
    for count, share in result["larger"].items():
        print(f"{count} atoms: energy of the repeated cell over that of its copies {share:.6f}")


if __name__ == "__main__":
    main()
