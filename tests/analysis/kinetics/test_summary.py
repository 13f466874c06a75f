"""Variables block by block, states, slow modes, and what the summary refuses to say."""

import numpy as np
import pytest
import torch
from messages import names
from peroxide import peroxide
from three_states import P, chain

from diffmd_ase.analysis.kinetics.states import Box, boxes, clusters, last_visited, torsion_states
from diffmd_ase.analysis.kinetics.summary import kinetics
from diffmd_ase.analysis.kinetics.variables import Variable, Variables, read_variables
from diffmd_ase.geometry import dihedrals
from diffmd_ase.io.blocks import blocks, measured
from diffmd_ase.io.trajectory import RunInfo, Trajectory, TrajectoryWriter
from diffmd_ase.state import State
from diffmd_ase.system import System

HOOH = System(np.array([1, 8, 8, 1]), np.array([1.0, 16.0, 16.0, 1.0]))


def written(path, x, *, h=1e-3, valid=True, extra=None):
    info = RunInfo(seed=1, kT=0.025, h=h, kinetics_valid=valid, extra=extra or {})
    with TrajectoryWriter.create(path, HOOH, range(x.shape[1]), info) as writer:
        for t, positions in enumerate(x):
            here = torch.tensor(positions)
            writer.append(State(here, torch.zeros(len(here)), here, step=5 * t))
    return path


def of_states(states, rng):
    """A torsion (T, W, 1) that tells the states of a chain, 120° apart."""
    angle = np.radians(-120 + 120 * states) + rng.normal(0, 0.1, states.shape)
    return Variables(("t",), angle[..., None], (True,), 0.5, "Å²")


def test_blocks_are_the_whole(tmp_path, rng):
    x = peroxide(60, rng).reshape(20, 3, 4, 3)
    x[12:, 1] = np.nan  # a lost walker
    path = written(tmp_path / "a.h5", x)
    reader = Trajectory(path)
    sizes = [len(b) for b in blocks(reader, skip=0.1, most=7 * 3 * 4 * 12)]
    assert sizes == [7, 7, 4]
    found = measured(reader, lambda x: x[:, :, 0, 0], skip=0.1, most=7 * 3 * 4 * 12)
    assert np.array_equal(found, x[2:, :, 0, 0].astype(np.float32), equal_nan=True)
    with pytest.raises(ValueError, match=names("(20,)", "(20, 3)")):
        measured(reader, lambda x: x[:, 0, 0, 0])
    wide = Variable("wide", lambda x: np.linalg.norm(x[..., 0, :] - x[..., 3, :], axis=-1))
    told = read_variables([path], ["torsion:0,1,2,3", wide])
    assert told.values.shape == (20, 2, 2) and told.spacing == pytest.approx(5e-3)
    exact = dihedrals(x[:, [0, 2]].astype(np.float32).astype(float), [[0, 1, 2, 3]])[..., 0]
    assert np.allclose(told.values[..., 0], exact, atol=1e-5)
    assert "1 lost walkers" in told.notes[0]


def test_files_without_a_common_clock(tmp_path, rng):
    x = peroxide(60, rng).reshape(20, 3, 4, 3)
    one, other = written(tmp_path / "a.h5", x), written(tmp_path / "b.h5", x, h=2e-3)
    biased = written(tmp_path / "c.h5", x, valid=False)
    words = ["torsion:0,1,2,3"]
    assert read_variables([one, one], words).values.shape == (20, 6, 1)
    with pytest.raises(ValueError, match=names("0.01", "0.005")):
        read_variables([one, other], words)
    with pytest.raises(ValueError, match="has no clock"):
        read_variables([biased], words)
    with pytest.raises(ValueError, match="nothing of its time step"):
        read_variables([tmp_path / "a.xyz"], words)
    with pytest.raises(ValueError, match="no torsion of heavy atoms"):
        read_variables([one])


def test_states(rng):
    numbers = chain(400, 6, 1)
    found = of_states(numbers, rng)
    box = [Box.parse(t) for t in ("a=t:-180:-60", "b=t:-60:60", "c=t:60:180")]
    told = boxes(found, box)
    assert np.array_equal(told.numbers, numbers) and told.names == ("a", "b", "c")
    # cores: what lies between counts to the last one
    cores = boxes(found, [Box.parse("a=t:-170:-70"), Box.parse("c=t:100:140")])
    assert np.array_equal(cores.inside("a") | cores.inside("c"), np.ones_like(numbers, bool))
    filled = last_visited(np.array([[-1], [1], [-1], [0]]))
    assert filled[:, 0].tolist() == [1, 1, 1, 0]
    for other in (torsion_states(found), clusters(found, 3)):
        pairs = set(zip(other.numbers.ravel().tolist(), numbers.ravel().tolist(), strict=True))
        assert len(pairs) == 3
    # through 180°
    wrapped = Box("w", {"t": (170.0, -50.0)}).inside(found)
    assert wrapped[numbers == 0].mean() > 0.99 and not wrapped[numbers == 2].any()
    for words, text in [
        ("expected name=variable:low:high", "a=t"),
        ("none of the variables", "a=u:0:1"),
        ("no frame is in it", "a=t:80:81"),
        ("overlap", "a=t:-180:180"),
    ]:
        with pytest.raises(ValueError, match=words):
            boxes(found, [Box.parse(text), box[1]])


def test_kinetics_of_a_known_chain(rng, tmp_path):
    """Times, passages and populations of the exact chain, and a file of each kind."""
    pytest.importorskip("deeptime", reason="Markov models need deeptime")
    numbers = chain(2500, 20, 7)
    found = kinetics(of_states(numbers, rng), boxes(of_states(numbers, rng), BOXES), lag=1.0)
    eigenvalues = np.sort(np.linalg.eigvals(P).real)[::-1][1:]
    for told, exact in zip(found.model.timescales, -0.5 / np.log(eigenvalues), strict=True):
        assert abs(told.value - exact) < 4 * told.error < exact
    # of cosines and sines blurred by noise: a lower bound
    assert (
        0.5 * -0.5 / np.log(eigenvalues[0]) < found.modes[0].value < found.model.timescales[0].value
    )
    pi = np.linalg.matrix_power(P, 4000)[0]
    for told, exact in zip(found.populations, pi, strict=True):
        assert abs(told.value - exact) < 4 * told.error
    there = next(p for p in found.passages if (p.start, p.end) == ("a", "c"))
    exact = 0.5 * np.linalg.solve(np.eye(2) - P[:2, :2], [1, 1])[0]
    assert abs(there.counted.value - exact) < 4 * there.counted.error
    assert max(row.z for row in found.consistency) < 4 and not found.notes
    files = found.write(tmp_path / "k.json")
    assert all(f.stat().st_size for f in files)
    assert "implied timescale,1" in files[1].read_text()


BOXES = [Box.parse(t) for t in ("a=t:-180:-60", "b=t:-60:60", "c=t:60:180")]


def test_what_cannot_be_said_is_a_note(rng):
    numbers = chain(60, 4, 0)
    short = of_states(numbers, rng)
    found = kinetics(short, boxes(short, BOXES))
    assert found.model is None and not found.correlations
    words = " ".join(found.notes)
    assert "integrated time" in words and "transitions in or out" in words and "passages" in words
    with pytest.raises(ValueError, match=names("20 Å²", "30")):
        kinetics(short, boxes(short, BOXES), lag=20.0)
    one = Variables(short.names, short.values[:, :1], short.angular, 0.5, "Å²")
    with pytest.raises(ValueError, match=names("60", "80")):
        one.in_parts()


def test_noise_without_memory_has_a_picture(rng, tmp_path):
    """C is below zero at the first lag: nothing is left for an axis of logarithms."""
    values = rng.normal(size=(200, 8, 1))
    values[1::2] *= -1
    values[1::2] -= 0.5 * values[::2]
    found = kinetics(Variables(("t",), values, (False,), 0.5, "Å²"), None)
    assert len(found.correlations["t"].lags) == 1
    found.write(tmp_path / "k.json")
    assert (tmp_path / "k.png").stat().st_size > 1000


def test_vamp_score_and_fluxes(rng):
    """The score of a chain is 1 + Σλ² at most; the flux of two states its rate."""
    pytest.importorskip("deeptime", reason="VAMP needs deeptime")
    from diffmd_ase.analysis.kinetics.markov import markov_model
    from diffmd_ase.analysis.kinetics.slow_modes import slow_modes, vamp_score

    numbers = chain(2500, 20, 8)
    features = (numbers[..., None] == np.arange(3)).astype(float)
    eigenvalues = np.sort(np.linalg.eigvals(P).real)[::-1]
    score = vamp_score(features, 1)
    assert abs(score.value - (eigenvalues**2).sum()) < 4 * score.error < 0.1
    noise = vamp_score(rng.normal(size=(2500, 20, 3)), 1)
    assert noise.value < 1.1
    modes = slow_modes(features, 1, 0.5)
    projected = modes(features)
    assert projected.shape == (2500, 20, 2)
    with pytest.raises(ValueError, match=names("lag=2500")):
        slow_modes(features, 2500, 0.5)
    model = markov_model(numbers, 1, 0.5)
    committor = model.committor([0], [2])
    exact = P[1, 2] / (1 - P[1, 1])
    assert abs(committor[1].value - exact) < 4 * committor[1].error
    pi = np.linalg.matrix_power(P, 4000)[0]
    flux = model.flux([0], [2])
    exact = pi[0] * P[0, 1] * exact / 0.5
    assert abs(flux.value - exact) < 4 * flux.error < exact
