"""What fits of energies that are linear in their parameters share: folds, the weight of labels."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from .linear_form import DRAWS, Frames, Linear, gradient_noise, label_gradients, moments
from .shrinkage import choose_ridges, solve
from .snapshot_checks import ORDERED
from .snapshots import Snapshots

__all__ = ["FOLDS", "draws", "folds", "folds_in_units", "label_weight", "mixed"]

log = logging.getLogger(__name__)

FOLDS = 5
_MOST_WEIGHT = 1e5  # of labels
_DRAWN, _MOST_DRAWS = 1500, 3  # of noise: of all frames together, of each frame at most
_NOISY = 2000  # frames, for the variance of score matching


def draws(count: int) -> int:
    """Of noise for each of ``count`` frames, where a slope along a direction costs as much as J."""
    return max(1, min(_MOST_DRAWS, _DRAWN // count))


def mixed(snapshots: Snapshots, frames: int, generator) -> Tensor:
    """Numbers of ``frames`` at most, in random order.

    Where they are ordered in time every fifth is of one part of it: what a fold leaves out has no
    neighbours in the others, which would know it.

    ``snapshots`` : whose correlation says whether they are; ``generator`` : of the order
    """
    order = torch.randperm(len(snapshots), generator=generator)[:frames]
    if snapshots.correlation <= ORDERED or len(order) < FOLDS:
        return order
    parts = order[: len(order) // FOLDS * FOLDS].sort().values.reshape(FOLDS, -1)
    return parts[:, torch.randperm(parts.shape[1], generator=generator)].T.flatten()


def folds(
    form: Linear, frames: Frames, sigma: float, generator, draws: int = DRAWS
) -> tuple[Tensor, Tensor]:
    """G and b of each fifth of the frames, (K, F, F) and (K, F).

    Parameters
    ----------
    form, frames, generator, draws : as of `moments`
    sigma : noise in Å
    """
    count = len(frames.positions)
    parts = [frames.take(slice(n, None, FOLDS)) for n in range(min(FOLDS, count))]
    each = [moments(form, part, sigma, generator, draws) for part in parts]
    grams, drives = (torch.stack(kind) for kind in zip(*each, strict=True))
    return grams, drives


def folds_in_units(
    form: Linear, frames: Frames, sigma: float, generator, draws: int = DRAWS
) -> tuple[Tensor, ...]:
    """Units of the parameters (F,), and in them G and b of `folds`.

    In units in which G has the diagonal one, ridges do not see Å or radians.

    Parameters
    ----------
    form, frames, sigma, generator, draws : as of `folds`
    """
    grams, drives = folds(form, frames, sigma, generator, draws)
    unit = grams.mean(0).diagonal().clamp_min(1e-20).rsqrt()
    return unit, unit[:, None] * grams * unit, unit * drives


def label_weight(
    form: Linear, frames: Frames, sigma: float, generator, draws: int = DRAWS
) -> float:
    """w = ⟨gᵀG⁻¹g⟩ of score matching over that of labels, of frames that were left out.

    With g the gradients of the two losses of one frame and n, m frames of each, the mean of
    ``θ_SM`` and ``θ_labels`` weighted by n and w m has the force error of least variance there.
    Where labels lie in the span of the form their residual is zero and w has no bound.

    Parameters
    ----------
    form, frames, generator, draws : as of `moments`, some of the frames labelled
    sigma : noise in Å
    """
    alone = frames._replace(weight=0.0, labels=None)
    unit, grams, drives = folds_in_units(form, frames, sigma, generator)
    ridges, _ = choose_ridges(grams, drives, form.group)
    ridge = ridges[form.group]
    told, noisy = [], []
    for k, gram, drive in _left_out(grams, drives):
        theta = solve(gram, drive, ridge)
        metric = torch.linalg.inv(gram + torch.diag(ridge))
        fold = frames.take(slice(k, None, FOLDS))
        if fold.labelled.any():
            pulls = label_gradients(form, unit, theta, fold.take(fold.labelled))
            told.append(torch.einsum("fm,fg,gm->m", pulls, metric, pulls))
        some = alone.take(slice(k, None, FOLDS)).take(slice(0, _NOISY // FOLDS))
        noise = gradient_noise(form, unit, theta, some, sigma, generator, draws)
        noisy.append((metric * noise).sum())
    weight = float(torch.stack(noisy).mean() / torch.cat(told).mean().clamp_min(1e-30))
    weight = min(max(weight, 1 / _MOST_WEIGHT), _MOST_WEIGHT)
    log.info("weight of labels %.3g", weight)
    return weight


def _left_out(grams: Tensor, drives: Tensor):
    """Number of each fold, and the mean G and b of the others."""
    for k in range(len(grams)):
        rest = [n for n in range(len(grams)) if n != k]
        yield k, grams[rest].mean(0), drives[rest].mean(0)
