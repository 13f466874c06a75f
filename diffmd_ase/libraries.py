"""Libraries that print, or change another one, when they are imported: imported without that."""

from __future__ import annotations

import importlib
import logging
import sys
import warnings
from types import ModuleType

__all__ = ["quiet_alchemlyb", "quiet_deeptime", "quiet_pymbar"]


def quiet_pymbar() -> ModuleType:
    """``pymbar``, without its words and, if this is its first import, without JAX.

    Where JAX is installed pymbar changes its precision for everybody, and compiles every size of
    a problem anew, for seconds; with NumPy the same takes milliseconds.
    """
    logging.getLogger("pymbar").setLevel(logging.ERROR)
    if "pymbar" not in sys.modules:
        known = sys.modules.get("jax")
        sys.modules["jax"] = None  # type: ignore[assignment]  # an import of it now fails
        try:
            import pymbar
        finally:
            if known is None:
                del sys.modules["jax"]
            else:
                sys.modules["jax"] = known
    import pymbar
    import pymbar.timeseries

    return pymbar


def quiet_alchemlyb() -> ModuleType:
    """``alchemlyb``, without its words. Raises ``ImportError`` with what to install."""
    quiet_pymbar()
    try:
        from loguru import logger

        logger.disable("alchemlyb")
        import alchemlyb
        import alchemlyb.convergence
        import alchemlyb.estimators
    except ImportError as error:
        raise ImportError(
            "alchemical estimates need alchemlyb: pip install 'diffmd-ase[alchemy]', or "
            "pip install 'alchemlyb>=2.5'"
        ) from error
    return alchemlyb


def quiet_deeptime(module: str, what: str) -> ModuleType:
    """The ``module`` of deeptime, without its warnings.

    Raises ``ImportError``, which says that ``what`` needs it and how it is installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return importlib.import_module(f"deeptime.{module}")
    except ImportError as error:
        raise ImportError(
            f"{what} need deeptime: pip install 'diffmd-ase[kinetics]', or pip install deeptime"
        ) from error
