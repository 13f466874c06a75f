"""A run that leaves files: settings, the loop, restarts."""

from .._moved import forward

__getattr__ = forward(__name__, "simulation.simulate simulation.settings simulation.frames")
