"""A Markov chain of three states, 0 ↔ 1 ↔ 2."""

import numpy as np

P = np.array([[0.95, 0.05, 0.0], [0.10, 0.80, 0.10], [0.0, 0.02, 0.98]])


def chain(length: int, walkers: int, seed: int) -> np.ndarray:
    """States (length, walkers), each walker from state 0."""
    rng, states = np.random.default_rng(seed), [np.zeros(walkers, int)]
    cumulative = P.cumsum(1)
    for u in rng.random((length - 1, walkers)):
        states.append((u[:, None] > cumulative[states[-1]]).sum(1))
    return np.array(states)
