"""Diffusion scores as molecular dynamics, in ASE.

Public names are imported on first use, so that ``import diffmd_ase`` is quick.
"""

from importlib import import_module

from . import _moved

_PUBLIC = {
    "Alchemical": "potentials.alchemical",
    "AlchemicalCalculator": "adapters.alchemical",
    "BatchReverseDiffusion": "adapters.batch",
    "DivergedError": "sampling.kernels",
    "EulerMaruyama": "sampling.euler",
    "Evaluation": "state",
    "Metropolis": "sampling.metropolis",
    "MonteCarlo": "adapters.batch",
    "Noise": "noise",
    "Potential": "potentials.base",
    "ReverseDiffusion": "adapters.dynamics",
    "ScoreCalculator": "adapters.calculator",
    "ScoreModel": "score.model",
    "ScorePotential": "potentials.learned",
    "Snapshots": "score.snapshots",
    "State": "state",
    "System": "system",
    "TrainConfig": "score.settings",
    "load_potential": "plugins",
    "register": "adapters.calculator",
    "run": "sampling.run",
    "train": "score.training",
}
__version__ = "0.1.0"
__all__ = sorted(_PUBLIC)

_moved.install()


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__():
    return __all__
