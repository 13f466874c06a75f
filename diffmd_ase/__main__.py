"""``python -m diffmd_ase``, the same as ``diffmd``."""

from .cli.main import main

main()
