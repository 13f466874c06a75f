"""Potentials from other distributions, found through entry points when asked for.

A plugin is an installed distribution with a line in its metadata,

    [project.entry-points."diffmd_ase.potentials"]
    name = "module:factory"

where ``factory(system, **options)`` gives a `Potential`. Looking for plugins imports none
of them; only the one that is loaded is imported.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from .potentials.base import Potential
from .system import System

__all__ = ["GROUP", "installed_potentials", "load_potential"]

GROUP = "diffmd_ase.potentials"


def installed_potentials() -> dict[str, str]:
    """Name of each installed potential, and the distribution it comes from."""
    found: dict[str, list[str]] = {}
    for entry in _entries():
        found.setdefault(entry.name, []).append(_origin(entry))
    return {name: ", ".join(sorted(origins)) for name, origins in sorted(found.items())}


def load_potential(name: str, system: System, **options) -> Potential:
    """The potential of an installed plugin, ``factory(system, **options)``.

    Parameters
    ----------
    name : one of `installed_potentials`
    system : atoms, cell and pbc the potential is bound to
    options : what the factory takes; see the plugin

    Raises
    ------
    LookupError : no plugin of that name, or several
    ImportError : the plugin is installed but cannot be imported
    TypeError : the factory gave something that is not a `Potential`
    """
    entries = [entry for entry in _entries() if entry.name == name]
    if not entries:
        known = [f"{known} ({origin})" for known, origin in installed_potentials().items()]
        raise LookupError(
            f"no potential {name!r} is installed, there is {', '.join(known) or 'none'}; install "
            f"the distribution that provides it in the entry-point group {GROUP!r}"
        )
    if len(entries) > 1:
        raise LookupError(
            f"{len(entries)} distributions provide a potential {name!r}: "
            f"{', '.join(sorted(map(_origin, entries)))}; uninstall all but one"
        )
    (entry,) = entries
    try:
        factory = entry.load()
    except Exception as error:  # a module may raise anything when imported
        raise ImportError(
            f"potential {name!r} ({entry.value}) of {_origin(entry)} cannot be imported: "
            f"{type(error).__name__}: {error}; repair or reinstall that distribution"
        ) from error
    potential = factory(system, **options)
    if not isinstance(potential, Potential):
        raise TypeError(
            f"{entry.value} of {_origin(entry)} gave {type(potential).__name__}, expected a "
            "diffmd_ase.Potential"
        )
    return potential


def _entries() -> list[EntryPoint]:
    # a distribution that lies twice on the path counts once
    unique = {(e.name, e.value, _origin(e)): e for e in entry_points(group=GROUP)}
    return list(unique.values())


def _origin(entry: EntryPoint) -> str:
    return "unknown" if entry.dist is None else f"{entry.dist.name} {entry.dist.version}"
