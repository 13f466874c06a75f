"""Which PLUMED this is, for `diffmd doctor`."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from .driver import Driver

__all__ = ["describe"]


def describe() -> str:
    """Version, library and optional modules of the PLUMED that would be used, in words."""
    try:
        with (
            tempfile.TemporaryDirectory(prefix="diffmd-plumed-") as folder,
            Driver(0, [], timestep=1.0, directory=folder) as driver,
        ):
            log = driver.log()
    except ImportError as error:
        return f"MISSING: {error}"
    version, root, path = (
        found.group(1) if (found := re.search(pattern, log)) else "unknown"
        for pattern in (r"Version: (\S+)", r"Root: (\S+)", r"LibraryPath: (\S+)")
    )
    return f"{version}, {path}; {_modules(Path(root), Path(path).parent / 'plumed')}"


def _modules(*roots: Path) -> str:
    """Of the first root with a list: the one compiled in, or where a wheel has put it."""
    for root in roots:
        listed = root / "src" / "config" / "config.txt"
        if listed.is_file():
            on = re.findall(r"^module (\S+) on \(default-off\)", listed.read_text(), re.M)
            return f"optional modules: {', '.join(on) or 'none'}"
    return "modules unknown"
