"""Curvature of energies, and the temperature that follows from it.

What needs forces only is here for learned networks and for any potential
(`potentials.curvature`): differences, Hutchinson's divergence, power iteration. Then what is
written on a model's card: the largest curvature, and the temperatures of its snapshots.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from itertools import islice

import torch
from torch import Tensor, nn

from .losses import score
from .model import ScoreModel
from .networks.inputs import Inputs
from .sets import Sets, temperings
from .snapshots import Snapshots

__all__ = [
    "both_sides",
    "configurational_temperatures",
    "derivative",
    "divergence",
    "largest_curvature",
    "power_iteration",
    "temperature_ratio",
]

_COORDINATES = 12_000  # that a temperature is measured by: about 1 %
_CONVERGED = 0.25  # of the balance that holds at the minimum
_SUSPECT = 0.1  # of a temperature: beyond the error of a fit that does not fit all sets
_ITERATIONS = 40
_BATCH = 16
_COSTLY_FRAMES, _COSTLY_ITERATIONS, _STEP = 4, 25, 2e-3  # with a baseline; and Å of differences

Field = Callable[[Tensor], Tensor]  # (*batch, N, 3) -> (*batch, N, 3)


def both_sides(forces: Field, x: Tensor, direction: Tensor, step: float) -> tuple[Tensor, Tensor]:
    """``F(x + step v), F(x - step v)`` (*batch, N, 3): ``forces`` F, ``direction`` v like ``x``."""
    ahead, behind = (forces(x + s * direction) for s in (step, -step))
    return ahead, behind


def derivative(forces: Field, x: Tensor, direction: Tensor, step: float) -> Tensor:
    """``[F(x + step v) - F(x - step v)]/(2 step) ≈ Jv`` (*batch, N, 3) with J = ∂F/∂x.

    ``forces`` F of positions; ``direction`` v, of the shape of ``x``; the error is of second order
    in ``step``.
    """
    ahead, behind = both_sides(forces, x, direction, step)
    return (ahead - behind) / (2 * step)


def divergence(ahead: Tensor, behind: Tensor, direction: Tensor, step: float) -> Tensor:
    """``v·[F(x + step v) - F(x - step v)]/(2 step)`` (*batch): ∇·F on average over v.

    v random with mean 0 and ⟨vvᵀ⟩ = 1 (Hutchinson, Commun. Stat. 19, 433 (1990)).

    Parameters
    ----------
    ahead, behind : (*batch, N, 3) forces at x + step v and x - step v
    direction : v (*batch, N, 3)
    step : of the difference
    """
    return (direction * (ahead - behind)).sum((-2, -1)) / (2 * step)


def power_iteration(
    product: Field, v: Tensor, shift: Tensor | float = 0.0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Without end ``v, Hv`` (*batch, N, 3), v of norm 1, ever nearer to the largest |λ + shift|.

        v ← (Hv + shift v)/|Hv + shift v|

    Parameters
    ----------
    product : v → Hv
    v : (*batch, N, 3) to begin with
    shift : of the spectrum, one for each of the batch, (*batch, 1, 1)
    """
    while True:
        v = v / v.flatten(-2).norm(dim=-1)[..., None, None]
        image = product(v)
        yield v, image
        v = image + shift * v


def temperature_ratio(squares: Tensor, slopes: Tensor) -> tuple[float, float]:
    """``⟨|F|²/kT⟩/⟨-∇·F⟩``, the temperature of frames over that of kT, and its standard error.

    1 for frames of the law exp(-U/kT) (Rugh, Phys. Rev. Lett. 78, 772 (1997); Butler et al.,
    J. Chem. Phys. 109, 6519 (1998)). ``squares`` and ``slopes``: (M,) of ``|F|²/kT`` and
    ``-∇·F``, in one unit, of independent frames.
    """
    mean = slopes.mean()
    ratio = float(squares.mean() / mean)
    return ratio, float((squares - ratio * slopes).std() / mean) / len(squares) ** 0.5


def largest_curvature(
    model: ScoreModel, snapshots: Snapshots, *, frames: int = 32, seed: int = 0
) -> float:
    """Largest eigenvalue of -∇s at σ_min (1/Å²) over some frames, by power iteration.

    Euler–Maruyama is stable for ``h·λ < 2`` only.

    Parameters
    ----------
    model : its network for the smallest noise is asked
    snapshots : of atoms that the model knows
    frames : how many of them, drawn by the seed
    """
    if model.card.baseline is not None:
        return _largest_with_baseline(model, snapshots, seed)
    network = model.expert(model.card.sigma_min)
    generator = torch.Generator().manual_seed(seed)
    index = torch.randperm(len(snapshots), generator=generator)[:frames]
    device = next(network.buffers()).device
    x = torch.as_tensor(snapshots.positions[index.numpy()], dtype=torch.float32, device=device)
    x = x.requires_grad_()
    energy = Inputs.of(snapshots.system, device=device).energy(network)
    value = energy(x, x.new_full((len(x),), model.card.sigma_min))
    (gradient,) = torch.autograd.grad(value.sum(), x, create_graph=True)

    def product(v: Tensor) -> Tensor:
        return torch.autograd.grad(gradient, x, v, retain_graph=True)[0]

    shift = x.new_zeros(len(x), 1, 1)
    for _ in range(2):
        start = torch.randn(x.shape, generator=generator).to(x)
        for v, image in islice(power_iteration(product, start, shift), _ITERATIONS):
            rayleigh = (v * image).sum((1, 2))
        # where the largest in size is negative: once more, with the spectrum moved above zero
        shift = (-rayleigh).clamp_min(0)[:, None, None]
        if not shift.any():
            break
    return float(rayleigh.max())


def _largest_with_baseline(model: ScoreModel, snapshots: Snapshots, seed: int) -> float:
    """The same by differences of forces, of few frames: a baseline may take long."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.randperm(len(snapshots), generator=generator)[:_COSTLY_FRAMES].numpy()
    x = torch.as_tensor(snapshots.positions[index])
    potential, kT = model.potential(snapshots.system), model.card.kT

    def product(v: Tensor) -> Tensor:
        return -derivative(lambda y: potential(y).forces, x, v, _STEP) / kT

    start = torch.randn(x.shape, generator=generator).to(x)
    for v, image in islice(power_iteration(product, start), _COSTLY_ITERATIONS):
        largest = float((v * image).sum((1, 2)).max())
    return largest


def configurational_temperatures(network: nn.Module, sigma: float, sets: Sets) -> list[float]:
    """The temperature (K) that each set has by the forces of ``network``.

        T = T_n ⟨|s_n|²⟩ / ⟨-∇·s_n⟩        -∇·s ≈ ε·(s₋ - s₊)/(2σ)

    which is that of its label if energy and label are right (`temperature_ratio`). One set always
    agrees with its own energy; of several, one with a wrong label does not: that is a warning.

    Parameters
    ----------
    network : its energy, in kT of the first set
    sigma : noise level σ in Å
    """
    kelvins, suspects, squared, curved = [], [], 0.0, 0.0
    for part, tempering in zip(sets, temperings(sets), strict=True):
        squares, slopes = _squares_and_slopes(network, sigma, part, tempering)
        ratio, error = temperature_ratio(squares, slopes)
        kelvins.append(part.temperature_K * ratio)
        measured = float(slopes.mean() / slopes.std()) * len(slopes) ** 0.5 > 4
        if measured and abs(ratio - 1) > max(_SUSPECT, 4 * error):
            suspects.append((part, kelvins[-1]))
        squared += len(part) / tempering * float(squares.mean())
        curved += len(part) / tempering * float(slopes.mean())
    # at the minimum of the loss of all sets their ratio is 1: elsewhere the energy is to blame
    if len(sets) > 1 and abs(squared - curved) < _CONVERGED * curved:
        for part, kelvin in suspects:
            warnings.warn(
                f"{part.source} is said to be at {part.temperature_K:g} K but fits the energy of "
                f"all sets at {kelvin:.0f} K: a wrong temperature here or in another set, "
                "snapshots out of equilibrium, or an energy that depends on temperature",
                stacklevel=3,
            )
    return kelvins


def _squares_and_slopes(
    network: nn.Module, sigma: float, part: Snapshots, tempering: float
) -> tuple[Tensor, Tensor]:
    """|s|² and -∇·s (M,) of some frames."""
    generator = torch.Generator().manual_seed(0)
    count = max(128, _COORDINATES // (3 * len(part.system)))
    index = torch.randperm(len(part), generator=generator)[:count].numpy()
    energy = Inputs.of(part.system).energy(network)
    moving = torch.as_tensor(part.moving)[:, None]

    def own_score(x: Tensor) -> Tensor:
        return tempering * score(energy, x, x.new_full((len(x),), sigma))[1] * moving

    squares, slopes = [], []
    for x in torch.as_tensor(part.positions[index], dtype=torch.float32).split(_BATCH):
        epsilon = torch.randn(x.shape, generator=generator, dtype=x.dtype) * moving
        plus, minus = both_sides(own_score, x, epsilon, sigma)
        squares.append(0.5 * (plus.square() + minus.square()).sum((1, 2)))
        slopes.append(-divergence(plus, minus, epsilon, sigma))
    return torch.cat(squares).double(), torch.cat(slopes).double()
