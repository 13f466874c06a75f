"""PLUMED biases for `diffmd_ase`: driven without its traps, on batches, with restart.

Public names are imported on first use, so that the child process that checks an input
(`check_input`) starts quickly.
"""

from importlib import import_module

_PUBLIC = {
    "ASE_UNITS": "units",
    "Driver": "driver",
    "PLUMED_UNITS": "units",
    "PlumedCVPotential": "torch_cvs",
    "PlumedInputError": "check",
    "PlumedPotential": "potential",
    "Result": "driver",
    "Units": "units",
    "check_input": "check",
    "reevaluate": "on_frames",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__():
    return __all__
