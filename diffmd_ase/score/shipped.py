"""Files that come with the package, asked for by name."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from ..io.limits import check_plain_file

__all__ = ["file_or_shipped"]


def file_or_shipped(
    path: str | Path, *, folder: str, suffix: str, what: str = "file", remedy: str = ""
) -> Path:
    """``path`` where there is such a file, else the shipped one of that name.

    A folder of that name hides no shipped file; other folders are given back, for formats that
    are folders.

    Parameters
    ----------
    folder : of the package, "data" or "models"
    suffix : of the names of its files
    what, remedy : for the message: what is looked for, and what else to do

    Raises
    ------
    ValueError : a pipe, or a device
    FileNotFoundError : neither; with the names of those that are shipped
    """
    given = Path(path)
    check_plain_file(given)
    if given.is_file():
        return given
    home = Path(str(resources.files("diffmd_ase") / folder))
    shipped = home / f"{given.name}{suffix}"
    if str(path) == given.name and shipped.exists():
        return shipped
    if given.exists():
        return given
    names = ", ".join(sorted(p.stem for p in home.glob(f"*{suffix}"))) or "none"
    raise FileNotFoundError(
        f"no {what} {str(path)!r}, and no shipped one of that name ({names}){remedy}"
    )
