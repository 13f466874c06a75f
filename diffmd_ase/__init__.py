"""Diffusion scores as molecular dynamics, in ASE.

Public names are imported on first use, so that ``import diffmd_ase`` is quick.
"""

from importlib import import_module

_PUBLIC = {
    "BatchReverseDiffusion": "dynamics",
    "DivergedError": "sampling.kernels",
    "EulerMaruyama": "sampling.kernels",
    "Evaluation": "potentials.base",
    "Metropolis": "sampling.metropolis",
    "MonteCarlo": "dynamics",
    "Noise": "noise",
    "Potential": "potentials.base",
    "ReverseDiffusion": "dynamics",
    "ScoreCalculator": "calculator",
    "ScoreModel": "score.model",
    "ScorePotential": "potentials.learned",
    "Snapshots": "score.snapshots",
    "State": "system",
    "System": "system",
    "TrainConfig": "score.training",
    "load_potential": "plugins",
    "register": "calculator",
    "run": "sampling.run",
    "train": "score.training",
}
__version__ = "0.1.0"
__all__ = sorted(_PUBLIC)


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__():
    return __all__
