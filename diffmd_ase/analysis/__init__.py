"""Trajectory → knowledge: statistics, observables, the report."""
