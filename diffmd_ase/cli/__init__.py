"""``diffmd``, the command line: options and printing."""

from .._moved import forward

__getattr__ = forward(__name__, "cli.main")
