"""Noise → samples without a chain: reverse diffusion, weighted paths, annealing."""
