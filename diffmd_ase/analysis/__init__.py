"""Trajectory → knowledge: observables, statistics, convergence, free energies."""
