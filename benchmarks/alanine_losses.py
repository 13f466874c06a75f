"""Energies of alanine dipeptide by several losses, against those of the force field itself.

    python benchmarks/alanine_losses.py [--minutes 4] [--seeds 2] [--only WORDS] [--json]

Score matching makes forces right; are the energies, and the weights of the basins of φ? Every
contender learns from 95 % of the shipped snapshots (300 K, amber14, vacuum) at one small noise:

* a network of pair distances, ``--minutes`` of one core: antithetic denoising in Å alone; with
  the same along rotations about bonds; with contrastive torsion moves as well;
* a force field in closed form: score matching alone; with moves between modes;
* that, corrected by a perceptron on internal coordinates with all losses, as `train` does.

Printed are, for held-out snapshots, the correlation of forces and their relative error (with
OpenMM: ``plugins/openmm``), the correlation of energies, the standard deviation of U - E within
φ < 0, and the offset: mean U - E over φ > 0 minus that over φ < 0. Then the population of φ > 0 in
the model by reweighting all snapshots, where the effective sample allows it; that of the
reference is 3.2 ± 0.2 %. Errors of the offset are about 0.05 kT for the finite number of frames.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from alanine_exchange import amber14, positive, reweighted
from shared import command_line, energies, parsed

from diffmd_ase.io.json_text import to_json
from diffmd_ase.score.card import Card, ExpertCard
from diffmd_ase.score.force_field_fit import fit_prior
from diffmd_ase.score.model import ScoreModel
from diffmd_ase.score.networks.molecule import MechanicsConfig, MechanicsNetwork, PairConfig
from diffmd_ase.score.plan import Expert, TrainConfig, plan
from diffmd_ase.score.snapshots import Snapshots
from diffmd_ase.score.training import fit
from diffmd_ase.score.training_state import load_best

FRAMES = 400  # for forces


def contenders(frames: Snapshots, config: TrainConfig) -> dict[str, Expert | int]:
    """Experts to train, or the number of moves of a closed form."""
    full = plan(frames, config)[0]
    pair = full.model_copy(update={"network": PairConfig(), "torsional": 0.0, "contrastive": 0.0})
    turned = pair.model_copy(update={"torsional": full.torsional})
    return {
        "pairs: denoising": pair,
        "pairs: + rotations": turned,
        "pairs: + contrastive moves": turned.model_copy(update={"contrastive": full.contrastive}),
        "force field: denoising": 0,
        "force field: + moves": 4,
        "force field + perceptron": full,
    }


def learn(choice: Expert | int, frames: Snapshots, config: TrainConfig, seed: int) -> ScoreModel:
    """A model of the one energy that a contender learns."""
    fine = plan(frames, config)[0]
    if isinstance(choice, Expert):
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            fit(
                choice,
                frames,
                config,
                seed=seed,
                device="cpu",
                folder=folder,
                report=lambda *told: None,
            )
            network, card = load_best(folder, choice)
    else:
        shape = MechanicsConfig(depth=0)
        training, _ = frames.split(config.validation_fraction, seed=seed)
        tables = fit_prior(training, sigma=fine.sigma[0], moves=choice, seed=seed)
        network = MechanicsNetwork(shape, None, tables).float().eval()
        card = ExpertCard(name="fine", sigma=fine.sigma, network=shape, best_step=0, history=[])
    described = Card.describe((frames,), [card], seed=seed, config={})
    return ScoreModel(described, [network])


def measure(model: ScoreModel, frames: Snapshots, held_out: Snapshots, truth) -> dict:
    """Errors of energies and forces on held-out snapshots, kT, and the population of φ > 0."""
    potential, kT = model.potential(device="cpu"), model.card.kT
    x = torch.as_tensor(held_out.positions)
    learned = energies(potential, x).numpy()
    gap = (held_out.energies - learned) / kT
    inside = positive(x).numpy()
    forces, exact = (p(x[:FRAMES]).forces.double().flatten() for p in (potential, truth))
    population, error, ess = reweighted(potential, frames, kT)
    return {
        "force_correlation": float(torch.corrcoef(torch.stack([forces, exact]))[0, 1]),
        "force_error": float((forces - exact).norm() / exact.norm()),
        "energy_correlation": float(np.corrcoef(held_out.energies, learned)[0, 1]),
        "within": float(gap[~inside].std()),
        "offset": float(gap[inside].mean() - gap[~inside].mean()),
        "population": population,
        "population_error": error,
        "ess": ess / 100,
    }


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--minutes", type=float, default=4.0, help="of each network")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", default="", help="contenders whose name holds these words")
    options = parsed(parser)
    frames, truth = Snapshots.read("alanine-dipeptide"), amber14()
    config = TrainConfig(max_minutes=options.minutes, steps=100_000, patience=20)
    rows: dict[str, list[dict]] = {}
    if not options.json:
        print(f"{'':28}{'r(F)':>8}{'err(F)':>8}{'r(E)':>8}{'within':>8}{'offset':>8}", end="")
        print(f"{'φ > 0':>12}{'ESS':>7}{'CPU s':>7}")
    for name, choice in contenders(frames, config).items():
        if options.only not in name:
            continue
        for seed in range(options.seeds):
            begun = time.process_time()
            model = learn(choice, frames, config, seed)
            seconds = time.process_time() - begun
            _, held_out = frames.split(config.validation_fraction, seed=seed)
            r = measure(model, frames, held_out, truth) | {"seconds": seconds}
            rows.setdefault(name, []).append(r)
            if options.json:
                continue
            known = f"{100 * r['population']:.2f} %" if r["ess"] > 0.05 else "—"
            print(
                f"{name:28}{r['force_correlation']:8.4f}{r['force_error']:8.3f}"
                f"{r['energy_correlation']:8.4f}{r['within']:8.2f}{r['offset']:8.2f}"
                f"{known:>12}{100 * r['ess']:6.1f} {r['seconds']:7.0f}",
                flush=True,
            )
    if options.json:
        print(to_json(rows))


if __name__ == "__main__":
    main()
