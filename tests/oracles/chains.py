"""A chain of four beads whose energy is known, and exact draws of it."""

import numpy as np
import torch

# in kT: stretching, bending, turning and the ends repel
BOND, STIFF = 1.53, 400.0  # Å, kT/Å²
ANGLE, BEND = 1.95, 30.0  # rad, kT/rad²
TURN = (0.7, 0.4, 1.2)  # kT: Σ V_n cos nφ
REPEL = 2.6  # Å: (REPEL/r)¹²


def chain_energy(x, *, stiff=STIFF, turn=TURN):
    """Exact energy (B,) in kT of chains (B, 4, 3)."""
    b = x[:, 1:] - x[:, :-1]
    r = b.norm(dim=-1)
    cosine = -(b[:, 1:] * b[:, :-1]).sum(-1) / (r[:, 1:] * r[:, :-1])
    n1, n2 = (torch.linalg.cross(b[:, k], b[:, k + 1]) for k in (0, 1))
    phi = torch.atan2((b[:, 0] * n2).sum(-1) * r[:, 1], (n1 * n2).sum(-1))
    energy = 0.5 * stiff * (r - BOND).square().sum(-1)
    energy = energy + 0.5 * BEND * (cosine.arccos() - ANGLE).square().sum(-1)
    energy = energy + sum(v * torch.cos((n + 1) * phi) for n, v in enumerate(turn))
    return energy + (REPEL / (x[:, 3] - x[:, 0]).norm(dim=-1)) ** 12


def chains(rng, count):
    """Independent exact draws (count, 4, 3): internal coordinates by rejection, with the
    volume element Π r² Π sin θ, in random orientation."""
    found = []
    while sum(map(len, found)) < count:
        n = 4 * count
        r = BOND + rng.normal(size=(n, 3)) / np.sqrt(STIFF)
        t = ANGLE + rng.normal(size=(n, 2)) / np.sqrt(BEND)
        phi = rng.uniform(-np.pi, np.pi, n)
        weight = np.prod((r / (BOND + 0.4)) ** 2, 1) * np.prod(np.clip(np.sin(t), 0, 1), 1)
        weight *= np.exp(-sum(v * np.cos((k + 1) * phi) + v for k, v in enumerate(TURN)))
        x = np.zeros((n, 4, 3))
        x[:, 1, 0] = r[:, 0]
        x[:, 2] = x[:, 1] + r[:, 1, None] * np.stack(
            [-np.cos(t[:, 0]), np.sin(t[:, 0]), 0 * phi], 1
        )
        e1 = (x[:, 2] - x[:, 1]) / r[:, 1, None]
        e3 = np.array([0.0, 0, 1])
        e2 = np.cross(e3, e1)
        # cis (φ = 0) is on the side of the first atom
        out = np.cos(phi)[:, None] * e2 + np.sin(phi)[:, None] * e3
        bend = t[:, 1, None]
        x[:, 3] = x[:, 2] + r[:, 2, None] * (-np.cos(bend) * e1 + np.sin(bend) * out)
        weight *= np.exp(-((REPEL / np.linalg.norm(x[:, 3] - x[:, 0], axis=1)) ** 12))
        found.append(x[rng.uniform(size=n) < weight])
    x = np.concatenate(found)[:count]
    rotation = np.linalg.qr(rng.normal(size=(count, 3, 3)))[0]
    return np.einsum("mij,mnj->mni", rotation, x)


def minus_gradient(energy, x):
    """-∂E/∂x (B, N, 3) of energies (B,) of x."""
    x = x.detach().requires_grad_()
    return -torch.autograd.grad(energy(x).sum(), x)[0]
