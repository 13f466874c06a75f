"""``python -m diffmd_ase``, the same as ``diffmd``."""

from .cli import main

main()
