"""Biased runs of four atoms, cut and continued: what two test modules do with two potentials."""

import json
from pathlib import Path

import numpy as np
import torch
from diffmd_plumed import PlumedPotential

from diffmd_ase.noise import Noise
from diffmd_ase.potentials.analytic import Harmonic
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.sampling.run import run
from diffmd_ase.system import System

KT = 0.0258
SYSTEM = System([6] * 4, [12.0] * 4)
X = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1.0]], dtype=torch.float64)
CV = ["d: DISTANCE ATOMS=1,4", "ec: ECV_LINEAR ARG=d LAMBDA_MAX=100"]
PRINT = "PRINT ARG=d,b.bias FILE=COLVAR STRIDE=2"
EXACT = {
    "METAD": "b: METAD ARG=d SIGMA=0.02 HEIGHT=1 PACE=5 BIASFACTOR=10",
    "METAD, grid": "b: METAD ARG=d SIGMA=0.02 HEIGHT=1 PACE=5 BIASFACTOR=10 GRID_MIN=0 GRID_MAX=2",
    "PBMETAD": "b: PBMETAD ARG=d SIGMA=0.02 HEIGHT=1 PACE=5 BIASFACTOR=10",
    "OPES_METAD": "b: OPES_METAD ARG=d PACE=5 SIGMA=0.02 BARRIER=20",
    "OPES_METAD_EXPLORE": "b: OPES_METAD_EXPLORE ARG=d PACE=5 SIGMA=0.02 BARRIER=20",
    "OPES_EXPANDED": "b: OPES_EXPANDED ARG=ec.* PACE=5 OBSERVATION_STEPS=1 PRINT_STRIDE=1",
    "METAD of ENERGY": "e: ENERGY\nb: METAD ARG=e SIGMA=1 HEIGHT=1 PACE=5",
    "MOVINGRESTRAINT": "b: MOVINGRESTRAINT ARG=d AT0=0.1 AT1=0.2 KAPPA0=100 STEP0=0 STEP1=50",
}


# PLUMED multiplies heights by γ/(γ - 1) to write them, and back: another number, now and then
ROUNDED = {name: 1e-11 for name in ("METAD", "METAD, grid", "PBMETAD")}


def bias(lines, folder, **options):
    return PlumedPotential(SYSTEM, lines, kT=KT, timestep=1.0, directory=folder, **options)


def kernel_of(bias):
    return EulerMaruyama(Harmonic(1.0, centre=X, system=SYSTEM) + bias, kT=KT, h=1e-3)


def check_continued(make, folder, *, steps, cut, rtol=0.0):
    """Three walkers; the second half from a checkpoint is that of an uninterrupted run.

    ``make(folder, **options)`` gives the bias; ``rtol`` as of `check_same_files`.
    """
    start = X.expand(3, 4, 3).clone()
    one = make(folder / "one")
    energies = [s.energy for s, _ in run(kernel_of(one), start, steps, noise=Noise(3))]
    one.finalize()

    first = make(folder / "two")
    kernel = kernel_of(first)
    state = kernel.init(start)
    if cut:
        [(state, _)] = list(run(kernel, start, cut, noise=Noise(3), every=cut))
    saved = json.loads(json.dumps(first.checkpoint()))
    # it goes on for a while, and what it writes then must be forgotten
    list(run(kernel, state, 17, noise=Noise(4)))
    first.flush()
    first.finalize()

    second = make(folder / "two", restart=True)
    second.restore(saved, state.x, state.step)
    rest = [s.energy for s, _ in run(kernel_of(second), state, steps - cut, noise=Noise(3))]
    second.finalize()
    torch.testing.assert_close(torch.stack(rest), torch.stack(energies[cut:]), rtol=0, atol=rtol)
    assert float((torch.stack(energies) - energies[0]).abs().max()) > 1e-3
    check_same_files(folder / "two", folder / "one", rtol=rtol)


def check_same_files(folder, reference, *, rtol=0.0):
    """Byte for byte; or with ``rtol`` the same headers, and numbers to this tolerance."""
    found, expected = _texts(folder), _texts(reference)
    assert found.keys() == expected.keys() and expected
    for name, text in expected.items():
        if not rtol:
            assert found[name] == text, name
            continue
        headers = [[line for line in t.splitlines() if line[0] == "#"] for t in (found[name], text)]
        assert headers[0] == headers[1], name
        rows = (np.loadtxt(t.splitlines(), ndmin=2) for t in (found[name], text))
        np.testing.assert_allclose(*rows, rtol=rtol, atol=rtol, err_msg=str(name))


def _texts(folder):
    return {
        path.relative_to(folder): path.read_text()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and path.name != "plumed.log" and path.name[:4] != "bck."
    }
