"""Neighbours: cell lists against ASE, lists that are kept, and their limits."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.neighborlist import neighbor_list
from messages import names

from diffmd_ase.score import neighbours
from diffmd_ase.score.neighbours import VerletList, edges, find_pairs


def rows(i, j, d):
    table = np.concatenate([np.stack([i, j], 1), np.round(d, 6) + 0.0], axis=1)
    return table[np.lexsort(table.T[::-1])]


@pytest.mark.parametrize("seed", range(8))
def test_cell_lists_agree_with_ase(seed):
    """70 atoms, beyond the dense search: triclinic, partial pbc, outside the cell, a batch."""
    rng = np.random.default_rng(seed)
    cell = (6.0, 11.0)[seed % 2] * (np.eye(3) + 0.4 * rng.uniform(-1, 1, size=(3, 3)))
    if seed % 3 == 0:
        cell[0] *= -1
    pbc = rng.uniform(size=3) < 0.7
    frames = [
        Atoms("H70", positions=rng.uniform(-2, 2, size=(70, 3)) @ cell, cell=cell, pbc=pbc)
        for _ in range(2)
    ]
    x = torch.as_tensor(np.array([a.positions for a in frames]))
    source, target, vectors = edges(x, 3.5, torch.as_tensor(cell), tuple(pbc.tolist()))
    for n, atoms in enumerate(frames):
        mine = (target // 70 == n).numpy()
        found = rows(target[mine] - 70 * n, source[mine] - 70 * n, vectors[mine].numpy())
        exact = rows(*neighbor_list("ijD", atoms, 3.5))
        assert found.shape == exact.shape and np.allclose(found, exact, atol=1e-5)


def test_both_searches_give_the_same_pairs_in_the_same_order(monkeypatch):
    atoms = bulk("Cu", cubic=True).repeat(2)
    atoms.rattle(0.3, seed=1)
    x, cell = torch.as_tensor(atoms.positions)[None], torch.as_tensor(np.array(atoms.cell))
    dense = find_pairs(x, 5.5, cell, (True,) * 3)
    monkeypatch.setattr(neighbours, "_DENSE", 0)
    listed = find_pairs(x, 5.5, cell, (True,) * 3)
    for a, b in zip(
        (dense.source, dense.target, dense.shift),
        (listed.source, listed.target, listed.shift),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_kept_lists_are_those_of_a_new_search():
    """A walk with jumps over whole cells; lists are kept most of the time, never too long."""
    atoms = bulk("Cu", cubic=True).repeat(2)
    x, cell = torch.as_tensor(atoms.positions)[None], torch.as_tensor(np.array(atoms.cell))
    generator, kept, pbc = torch.Generator().manual_seed(1), VerletList(4.0, skin=0.8), (True,) * 3
    for n in range(60):
        x = x + 0.03 * torch.randn(x.shape, generator=generator)
        if n == 30:
            x[0, 3] += 2 * cell[0]
        mine = edges(x, 4.0, cell, pbc, kept(x, cell, pbc))
        fresh = edges(x, 4.0, cell, pbc)
        for a, b in zip(mine, fresh, strict=True):
            assert torch.equal(a, b)
    assert 2 < kept.builds < 30


def test_sequences_that_take_turns_keep_their_lists():
    """Chunks of walkers, one after the other, through one potential."""
    generator, kept = torch.Generator().manual_seed(1), VerletList(4.0, skin=0.8)
    sequences = [10.0 * torch.rand(2 + n % 2, 20, 3, generator=generator) for n in range(5)]
    for _ in range(30):
        for n, x in enumerate(sequences):
            x = x + 0.01 * torch.randn(x.shape, generator=generator)
            mine = edges(x, 4.0, pairs=kept(x, None, (False,) * 3))
            for a, b in zip(mine, edges(x, 4.0), strict=True):
                assert torch.equal(a, b)
            sequences[n] = x
    assert kept.builds < 15


def test_strange_positions_keep_no_more_than_a_few_lists(monkeypatch):
    monkeypatch.setattr(neighbours, "_KEPT", 2000)
    generator, kept = torch.Generator().manual_seed(1), VerletList(4.0)
    for _ in range(50):
        kept(10.0 * torch.rand(1, 20, 3, generator=generator), None, (False,) * 3)
    assert kept.builds == 50 and sum(len(one.pairs.source) for one in kept._built) <= 2000


def test_another_cell_needs_another_list():
    atoms = bulk("Cu", cubic=True)
    x, cell = torch.as_tensor(atoms.positions)[None], torch.as_tensor(np.array(atoms.cell))
    kept = VerletList(4.0)
    kept(x, cell, (True,) * 3)
    kept(x, cell.clone(), (True,) * 3)
    assert kept.builds == 1
    kept(x, 1.1 * cell, (True,) * 3)
    kept(x * torch.nan, 1.1 * cell, (True,) * 3)
    kept(x, 1.1 * cell, (True, True, False))
    assert kept.builds == 4


def test_bad_radius():
    with pytest.raises(ValueError, match=names("cutoff=0.0", "positive", "Å")):
        VerletList(0.0)
