"""Free energies from hills, kernels, COLVAR files and trajectories, with error bars."""

from ..._moved import forward

__getattr__ = forward(__name__, "analysis.free_energy.surface")
