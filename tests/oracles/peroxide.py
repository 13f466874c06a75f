"""Hydrogen peroxide: structures without memory, with one free torsion."""

import numpy as np


def peroxide(count, rng):
    """H2O2 with stiff bonds and a free torsion."""
    a, b = (0.97 + 0.02 * rng.standard_normal((2, count)))[..., None]
    d = 1.46 + 0.02 * rng.standard_normal(count)
    alpha, beta = np.radians(100 + 3 * rng.standard_normal((2, count)))
    t = rng.uniform(0, 2 * np.pi, count)
    zero = np.zeros(count)
    first = np.stack([zero, zero, zero], -1)
    second = np.stack([d, zero, zero], -1)
    h1 = a * np.stack([np.cos(alpha), np.sin(alpha), zero], -1)
    swing = [-np.cos(beta), np.sin(beta) * np.cos(t), np.sin(beta) * np.sin(t)]
    return np.stack([h1, first, second, second + b * np.stack(swing, -1)], 1)
