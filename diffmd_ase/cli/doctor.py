"""What this machine offers: for bug reports, and before a long run."""

from __future__ import annotations

import os
import platform
from importlib import metadata

__all__ = ["GROUP", "examine"]

#: entry points of plugins: a name, and a function without arguments that gives one line
GROUP = "diffmd_ase.doctor"

_PACKAGES = ("torch", "ase", "e3nn", "numpy", "scipy", "openmm", "pymbar", "h5py")


def examine() -> dict[str, str]:
    """Versions, devices, plugins and what they say of themselves, in words."""
    import torch

    from ..plugins import installed_potentials

    facts = {"diffmd-ase": metadata.version("diffmd-ase"), "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            facts[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            facts[name] = "not installed"
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = ", ".join(torch.cuda.get_device_name(n) for n in range(count))
    facts["cpu"] = f"{os.cpu_count()} cores, {torch.get_num_threads()} torch threads"
    facts["gpu"] = names or "none; everything runs on the CPU"
    plugins = installed_potentials()
    facts["plugins"] = ", ".join(sorted(plugins)) or "none"
    for entry in metadata.entry_points(group=GROUP):
        try:
            facts[entry.name] = entry.load()()
        except Exception as error:  # whatever it is, the other lines are wanted
            facts[entry.name] = f"failed: {type(error).__name__}: {error}"
    return facts
