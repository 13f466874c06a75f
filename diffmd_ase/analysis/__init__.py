"""Trajectory → knowledge: statistics, observables, divergences, free energies."""
