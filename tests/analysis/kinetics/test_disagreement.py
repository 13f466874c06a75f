"""The spread of a committee, as an estimate of its error."""

import numpy as np
import pytest
import torch

from diffmd_ase.analysis.kinetics.certificate import certify_frames
from diffmd_ase.analysis.kinetics.disagreement import committee_rate
from diffmd_ase.noise import Noise
from diffmd_ase.potentials.analytic import Harmonic
from diffmd_ase.potentials.committee import Mean
from diffmd_ase.sampling.euler import EulerMaruyama


def test_members_with_errors_of_their_own():
    """Centres off by b each, at random: E|Δs|²/4 = 3 b²/4, of the truth and of the spread."""
    rng, b = np.random.default_rng(0), 0.2
    members = [Harmonic(1.0, centre=b * rng.standard_normal((1, 3))) for _ in range(300)]
    x = torch.from_numpy(rng.standard_normal((1, 40, 1, 3)))
    rate = committee_rate(EulerMaruyama(Mean(*members), kT=1.0, h=0.1), x)
    assert rate.value == pytest.approx(3 * b**2 / 4, rel=4 * (2 / 900) ** 0.5)
    # one of them, against the truth: the same on average
    true = [
        certify_frames(
            EulerMaruyama(m, kT=1.0, h=0.1), x[:, :4], Harmonic(1.0), n_steps=1, noise=Noise(0),
            accepted=True,
        ).path.rate.value
        for m in members[:30]
    ]  # fmt: skip
    assert abs(np.mean(true) - rate.value) < 4 * np.std(true) / len(true) ** 0.5


def test_what_all_have_wrong_is_not_seen():
    wrong = Mean(Harmonic(1.0, centre=5.0), Harmonic(1.0, centre=5.0))
    kernel = EulerMaruyama(wrong, kT=1.0, h=0.1)
    assert committee_rate(kernel, torch.zeros(3, 1, 3)).value == 0


def test_no_committee():
    with pytest.raises(ValueError, match="Harmonic"):
        committee_rate(EulerMaruyama(Harmonic(1.0), kT=1.0, h=0.1), torch.zeros(3, 1, 3))
