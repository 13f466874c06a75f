"""Does the score of copper snapshots give copper? The model against EMT, which made them.

Walkers of the model are corrected to its own energy by Metropolis steps, so that no error of
the step size enters; those of 499 atoms run as plain reverse diffusion.

    python benchmarks/make_copper.py -o copper.npz
    python benchmarks/copper_fidelity.py copper.npz                 # two minutes on one core
    python benchmarks/copper_fidelity.py copper.npz --train         # trains first
"""

import resource

import numpy as np
import torch
from ase.calculators.emt import EMT
from ase.mep import NEB
from ase.optimize import FIRE
from make_copper import LATTICE, crystal, hopper
from shared import chain, command_line, parsed

from diffmd_ase import EulerMaruyama, Noise, ScoreCalculator, ScoreModel, Snapshots, System, run
from diffmd_ase.geometry import shortest
from diffmd_ase.io.json_text import to_json
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
        d = shortest(x[..., None, :] - basis, np.full(3, lattice))
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
    states, accepted = chain(kernel, x, steps, noise=Noise(seed), every=every)
    kept = states[steps // 5 // every :]
    frames, own = (torch.cat([getattr(s, name) for s in kept]).numpy() for name in ("x", "energy"))
    return frames, own, float(accepted.mean())


def compared(potential, walkers, snapshots, rest, lattice=LATTICE):
    """Rows (name, EMT, model, goal in %) of structure and energies.

    ``walkers`` of the model and ``snapshots`` of EMT are frames (M, N, 3) and energies (M,);
    ``rest`` is the crystal that energies are above.
    """
    (frames, own), (x, energies), cell = walkers, snapshots, np.array(rest.cell)
    rest.calc = EMT()
    energies = energies - rest.get_potential_energy()
    own = own - float(potential(torch.as_tensor(rest.positions)).energy)
    rows, pairs = [], zip(peaks(x, cell, lattice), peaks(frames, cell, lattice), strict=True)
    for n, (emt, ours) in enumerate(pairs, 1):
        rows.append((f"g(r) peak {n}, place, Å", emt[0], ours[0], 1.0))
        rows.append((f"g(r) peak {n}, height", emt[1], ours[1], 1.0))
    rows.append(
        ("amplitude about sites, Å", amplitude(x, lattice), amplitude(frames, lattice), 3.0)
    )
    rows.append(("energy above the lattice, mean, eV", energies.mean(), own.mean(), 5.0))
    rows.append(("energy, std, eV", energies.std(), own.std(), 5.0))
    return rows


def with_errors(rows):
    """Rows (name, EMT, model, error in %, goal in %)."""
    return [(name, float(a), float(b), 100 * float(b / a - 1), goal) for name, a, b, goal in rows]


def plain_walkers(model, temperature_K, lattice=LATTICE):
    """499 atoms, plain reverse diffusion: walkers kept of 4, spread of U - EMT in meV per atom."""
    atoms = crystal(5, lattice=lattice)
    potential = model.potential(System.from_atoms(atoms), device="cpu")
    kernel = prepare(potential, temperature_K=temperature_K).kernel
    x = torch.as_tensor(atoms.positions).float().expand(4, -1, -1)
    atoms.calc, offset = EMT(), []
    for state, _ in run(kernel, x, 1000, noise=Noise(4), every=100):
        if state.step > 400:
            atoms.positions = state.x[0].numpy()
            offset.append(float(state.energy[0]) - atoms.get_potential_energy())
    kept = int(torch.isfinite(state.x).flatten(1).all(1).sum())
    return kept, 1000 * float(np.std(offset)) / len(atoms)


def barrier(calculator, repeat=3, images=5):
    """Energy (eV) of the saddle of a vacancy hop above its ends, nudged elastic band."""
    first = crystal(repeat)
    last = first.copy()
    last.positions[hopper(first)] = 0.0
    path = [first.copy() for _ in range(images + 1)] + [last]
    for atoms in path:
        atoms.calc = calculator()
    for end in (path[0], path[-1]):
        FIRE(end, logfile=None).run(fmax=0.01, steps=300)
    band = NEB(path, climb=True, method="improvedtangent")
    band.interpolate(mic=True)
    FIRE(band, logfile=None).run(fmax=0.03, steps=300)
    return max(a.get_potential_energy() for a in path) - path[0].get_potential_energy()


def main():
    parser = command_line(__doc__)
    parser.add_argument("snapshots", help="of make_copper.py")
    parser.add_argument("--model", default="copper-vacancy", help="file, or name of a shipped one")
    parser.add_argument("--train", action="store_true", help="a new model, from the snapshots")
    options = parsed(parser)
    with np.load(options.snapshots) as archive:
        x, energies = archive["positions"], archive["energies"]
    if options.train:
        model = train(Snapshots.read(options.snapshots), device="cpu")
    else:
        model = ScoreModel.load(options.model)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    potential = model.potential(device="cpu", dtype=torch.float64)
    starts = torch.as_tensor(x[:: len(x) // 64][:64])
    h = 0.4 / model.card.lambda_max
    *walkers, acceptance = sample(potential, starts, model.card.kT, h, 1500, 10)
    rows = compared(potential, walkers, (x, energies), crystal())
    ours = barrier(lambda: ScoreCalculator(model, device="cpu", dtype="float64"))
    rows.append(("barrier of the vacancy, eV", barrier(EMT), ours, None))
    kept, spread = plain_walkers(model, model.card.temperature_K)
    result = {
        "rows": with_errors(rows),
        "acceptance": acceptance,
        "walkers_499": {
            "started": 4,
            "kept": kept,
            "steps": 1000,
            "std_of_U_minus_EMT_per_atom_meV": spread,
        },
        "training_s": model.card.training["seconds"],
        "peak_memory_MB": memory if options.train else None,
    }
    if options.json:
        print(to_json(result))
        return
    print(f"{'':36}{'EMT':>9}{'model':>9}{'error':>9}   goal")
    for name, a, b, error, goal in result["rows"]:
        asked = "" if goal is None else f"{goal:g} %"
        print(f"{name:36}{a:9.4f}{b:9.4f}{error:+8.2f} %   {asked}")
    print(
        f"acceptance {acceptance:.2f}; 499 atoms: {kept} of 4 walkers after 1000 steps, "
        f"U - EMT varies by {spread:.2f} meV/atom"
    )
    print(
        f"training {result['training_s']:.0f} s on one thread"
        + (f", at most {memory:.0f} MB" if options.train else "")
    )


if __name__ == "__main__":
    main()
