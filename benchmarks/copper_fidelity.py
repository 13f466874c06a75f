"""Does the score of copper snapshots give copper? The model against EMT, which made them.

Walkers of the model are corrected to its own energy by Metropolis steps, so that no error of
the step size enters; those of 499 atoms run as plain reverse diffusion.

    python benchmarks/make_copper.py -o copper.npz
    python benchmarks/copper_fidelity.py copper.npz                 # two minutes on one core
    python benchmarks/copper_fidelity.py copper.npz --train         # trains first
"""

import argparse
import json
import resource

import numpy as np
import torch
from ase.calculators.emt import EMT
from ase.mep import NEB
from ase.optimize import FIRE
from make_copper import LATTICE, crystal

from diffmd_ase import EulerMaruyama, Noise, ScoreCalculator, ScoreModel, Snapshots, System, run
from diffmd_ase.sampling.metropolis import Metropolis
from diffmd_ase.score.neighbours import edges
from diffmd_ase.score.training import train
from diffmd_ase.simulation.prepare import prepare

SHELLS = np.sqrt([0.5, 1.0, 1.5])  # in lattice constants, the first three of fcc


def peaks(positions, cell, lattice=LATTICE):
    """Places (Å) and heights of the first three peaks of g(r), of parabolas through their tops."""
    x, cell = torch.as_tensor(positions), torch.as_tensor(cell)
    bins = np.linspace(1.5, 5.2, 149)
    counts = np.zeros(len(bins) - 1)
    for part in x.split(256):
        r = edges(part, 5.2, cell, (True,) * 3)[2].norm(dim=-1).numpy()
        counts += np.histogram(r, bins)[0]
    middle = 0.5 * (bins[1:] + bins[:-1])
    density = x.shape[1] / abs(np.linalg.det(cell))
    shell = 4 / 3 * np.pi * np.diff(bins**3)
    g = counts / (x.shape[0] * x.shape[1] * density * shell)
    found = []
    for place in SHELLS * lattice:
        near = np.abs(middle - place) < 0.3
        top = middle[near][g[near].argmax()]
        near = np.abs(middle - top) < 0.16
        a, b, c = np.polyfit(middle[near] - top, g[near], 2)
        found.append((top - b / (2 * a), c - b**2 / (4 * a)))
    return np.array(found)


def amplitude(positions, lattice=LATTICE):
    """Root mean square displacement (Å, three components) from the nearest lattice site."""
    basis = lattice * np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])

    def away(x):
        d = x[..., None, :] - basis
        d -= lattice * np.round(d / lattice)
        nearest = (d**2).sum(-1).argmin(-1)
        return np.take_along_axis(d, nearest[..., None, None], -2)[..., 0, :]

    x = np.array(positions)
    # the crystal as a whole is free: first by phases of its density waves, then exactly
    wave = np.exp(2j * np.pi * 2 * x / lattice).mean(-2)
    x -= (np.angle(wave) * lattice / (4 * np.pi))[:, None]
    best = None
    for half in np.ndindex(2, 2, 2):  # the waves are blind to half a lattice constant
        u = away(x + 0.5 * lattice * np.array(half))
        u -= u.mean(-2, keepdims=True)
        size = (u**2).sum(-1).mean(-1)
        best = size if best is None else np.minimum(best, size)
    return float(np.sqrt(best.mean()))


def sample(potential, x, kT, h, steps, every, seed=3):
    """Frames (M, N, 3), energies (M,) and acceptance of Metropolis-corrected walkers."""
    kernel = Metropolis(EulerMaruyama(potential, kT=kT, h=h))
    frames, energies, accepted = [], [], []
    for n, (state, info) in enumerate(run(kernel, x, steps, noise=Noise(seed), every=every)):
        accepted.append(info.accepted.double().mean().item())
        if n * every >= steps // 5:
            frames.append(state.x.numpy())
            energies.append(state.energy.numpy())
    return np.concatenate(frames), np.concatenate(energies), np.mean(accepted)


def barrier(calculator, repeat=3, images=5):
    """Energy (eV) of the saddle of a vacancy hop above its ends, nudged elastic band."""
    first = crystal(repeat)
    # the vacancy is at the origin; the atom at (0, a/2, a/2) hops into it
    mover = int(np.linalg.norm(first.positions - [0, LATTICE / 2, LATTICE / 2], axis=1).argmin())
    last = first.copy()
    last.positions[mover] = 0.0
    chain = [first.copy() for _ in range(images + 1)] + [last]
    for atoms in chain:
        atoms.calc = calculator()
    for end in (chain[0], chain[-1]):
        FIRE(end, logfile=None).run(fmax=0.01, steps=300)
    band = NEB(chain, climb=True, method="improvedtangent")
    band.interpolate(mic=True)
    FIRE(band, logfile=None).run(fmax=0.03, steps=300)
    return max(a.get_potential_energy() for a in chain) - chain[0].get_potential_energy()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("snapshots", help="of make_copper.py")
    parser.add_argument("--model", default="copper-vacancy", help="file, or name of a shipped one")
    parser.add_argument("--train", action="store_true", help="a new model, from the snapshots")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with np.load(options.snapshots) as archive:
        x, energies, cell = archive["positions"], archive["energies"], archive["cell"]
    if options.train:
        model = train(Snapshots.read(options.snapshots), device="cpu")
    else:
        model = ScoreModel.load(options.model)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    kT, small = model.card.kT, crystal()
    potential = model.potential(device="cpu", dtype=torch.float64)
    starts = torch.as_tensor(x[:: len(x) // 64][:64])
    frames, own, acceptance = sample(potential, starts, kT, 0.4 / model.card.lambda_max, 1500, 10)
    rows = []
    for n, (ours, emt) in enumerate(zip(peaks(frames, cell), peaks(x, cell), strict=True), 1):
        rows += [(f"g(r) peak {n}, place, Å", emt[0], ours[0], 1.0)]
        rows += [(f"g(r) peak {n}, height", emt[1], ours[1], 1.0)]
    rows.append(("amplitude about sites, Å", amplitude(x), amplitude(frames), 3.0))
    small.calc = EMT()
    base = small.get_potential_energy(), float(potential(torch.as_tensor(small.positions)).energy)
    rows.append(
        (
            "energy above the lattice, mean, eV",
            np.mean(energies - base[0]),
            np.mean(own - base[1]),
            5.0,
        )
    )
    rows.append(("energy, std, eV", np.std(energies), np.std(own), 5.0))
    rows.append(
        (
            "barrier of the vacancy, eV",
            barrier(EMT),
            barrier(lambda: ScoreCalculator(model, device="cpu", dtype="float64")),
            None,
        )
    )
    # 499 atoms: plain reverse diffusion from the lattice
    large = crystal(5)
    big = model.potential(System.from_atoms(large), device="cpu")
    kernel = prepare(big, temperature_K=model.card.temperature_K).kernel
    start = torch.as_tensor(large.positions).float().expand(4, -1, -1)
    kept, learned, reference = 0, [], []
    large.calc = EMT()
    for state, _ in run(kernel, start, 1000, noise=Noise(4), every=100):
        kept = int(torch.isfinite(state.x).flatten(1).all(1).sum())
        if state.step > 400:
            learned.append(float(state.energy[0]))
            large.positions = state.x[0].numpy()
            reference.append(large.get_potential_energy())
    offset = np.subtract(learned, reference)
    result = {
        "rows": [
            (name, float(a), float(b), 100 * float(b / a - 1), goal) for name, a, b, goal in rows
        ],
        "acceptance": acceptance,
        "walkers_499": {
            "started": 4,
            "kept": kept,
            "steps": 1000,
            "std_of_U_minus_EMT_per_atom_meV": 1000 * float(offset.std()) / len(large),
        },
        "training_s": model.card.training["seconds"],
        "peak_memory_MB": memory if options.train else None,
    }
    if options.json:
        print(json.dumps(result, indent=1))
        return
    print(f"{'':36}{'EMT':>9}{'model':>9}{'error':>9}   goal")
    for name, a, b, error, goal in result["rows"]:
        asked = "" if goal is None else f"{goal:g} %"
        print(f"{name:36}{a:9.4f}{b:9.4f}{error:+8.2f} %   {asked}")
    print(
        f"acceptance {acceptance:.2f}; 499 atoms: {kept} of 4 walkers after 1000 steps, "
        f"U - EMT varies by {result['walkers_499']['std_of_U_minus_EMT_per_atom_meV']:.2f} meV/atom"
    )
    print(
        f"training {result['training_s']:.0f} s on one thread"
        + (f", at most {memory:.0f} MB" if options.train else "")
    )


if __name__ == "__main__":
    main()
