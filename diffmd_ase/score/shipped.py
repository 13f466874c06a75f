"""Files that come with the package, asked for by name."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

__all__ = ["file_or_shipped"]


def file_or_shipped(
    path: str | Path, *, folder: str, suffix: str, what: str = "file", remedy: str = ""
) -> Path:
    """``path`` where there is such a file, else the shipped one of that name.

    Parameters
    ----------
    folder : of the package, "data" or "models"
    suffix : of the names of its files
    what, remedy : for the message: what is looked for, and what else to do

    Raises
    ------
    FileNotFoundError : neither; with the names of those that are shipped
    """
    if Path(path).exists():
        return Path(path)
    home = Path(str(resources.files("diffmd_ase") / folder))
    shipped = home / f"{path}{suffix}"
    if shipped.exists():
        return shipped
    names = ", ".join(sorted(p.stem for p in home.glob(f"*{suffix}"))) or "none"
    raise FileNotFoundError(
        f"no {what} {str(path)!r}, and no shipped one of that name ({names}){remedy}"
    )
