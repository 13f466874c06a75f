"""Conformance of potentials: what the kernels, the runs and the ASE adapters rely on.

The checks are numerical: choose positions where forces are neither zero nor huge.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from copy import deepcopy
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..potentials.base import Potential
from ..state import Evaluation
from ..system import System

__all__ = ["assert_zscore", "check_equivariant", "check_potential", "check_stress"]

_RATTLE = 0.02  # Å, between the structures of a batch


def check_potential(
    potential: Potential,
    x: Tensor,
    *,
    step: float = 1e-4,
    rtol: float = 1e-6,
    dtypes: tuple[torch.dtype, ...] = (torch.float64, torch.float32),
    factory: Callable[[System], Potential] | None = None,
    translation_invariant: bool = False,
) -> None:
    """Everything the package expects of a potential, at and near ``x``.

    Flags and shapes for (N, 3), (B, N, 3) and (T, B, N, 3); dtype and device kept, no graph
    left; pure (positions not written to, twice the same); batch = single; energy None
    exactly if not conservative; ``F = -dE/dx`` by finite differences, coordinate by
    coordinate and along random directions; ``update``; stress by finite strain.

    Parameters
    ----------
    potential : the one to check; one with memory learns from ``x``, so give a fresh one, and
        one that needs a base as the sum ``model + bias``
    x : (N, 3) in Å, one structure that is not at a minimum
    step : of the finite differences in Å; a network in float32 needs about 1e-2
    rtol : of the finite differences, relative to the largest force; float32: about 1e-2
    dtypes : precisions to evaluate in
    factory : ``System -> Potential``, to rebuild the potential for strained cells; needed
        if it offers a stress
    translation_invariant : energy and forces must not change when all atoms are shifted

    Raises
    ------
    AssertionError : the potential does not conform
    ValueError : x is not (N, 3)
    """
    if x.ndim != 2 or x.shape[-1] != 3:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected one structure (N, 3)")
    x = x.detach().double()
    _check_flags(potential, x)
    for dtype in dtypes:
        _check_shapes(potential, x.to(dtype))
        _check_pure(potential, x.to(dtype))
        _check_batch(potential, x.to(dtype))
    if potential.conservative:
        _check_forces(potential, x, step, rtol)
    if translation_invariant:
        _check_translation(potential, x, rtol)
    offered = _has_stress_argument(potential) and potential(x, stress=True).stress is not None
    if offered:
        _require(factory is not None, "it offers a stress: give factory= so that it is checked")
        check_stress(factory, potential.system, x, step=step, rtol=rtol)
    # last, for a potential with memory is another one afterwards
    _check_update(potential, x)


def check_stress(
    factory: Callable[[System], Potential],
    system: System,
    x: Tensor,
    *,
    step: float = 1e-4,
    rtol: float = 1e-6,
) -> None:
    """Stress (xx yy zz yz xz xy) = (1/V) dE/dε by finite strain of cell and positions.

    ``factory(system)`` gives the potential of a cell; ``step`` is the largest displacement of
    an atom in Å, ``rtol`` is relative to the largest component. Raises ``AssertionError``.
    """
    _require(system is not None and system.cell is not None, "a stress needs a system with a cell")
    x = x.detach().double()
    volume = abs(np.linalg.det(system.cell))
    stress = factory(system)(x, stress=True).stress
    _require(
        stress is not None and stress.shape == (6,),
        f"stress of one structure is {_shape(stress)}, expected (6,)",
    )
    size = step / float(x.abs().max().clamp(min=1.0))

    def energy(i: int, j: int, amount: float) -> Tensor:
        strain = np.eye(3)
        strain[i, j] += amount / 2
        strain[j, i] += amount / 2
        strained = System(system.numbers, system.masses, system.cell @ strain, system.pbc)
        return factory(strained)(x @ x.new_tensor(strain)).energy

    pairs = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
    numerical = torch.stack([_derivative(partial(energy, *p), size) for p in pairs])
    _require_close(stress, numerical / volume, rtol, "stress and (1/V) dE/dε")


def check_equivariant(
    potential: Potential, x: Tensor, *, reflections: bool = False, rtol: float = 1e-10
) -> None:
    """``E(xRᵀ) = E(x)`` and ``F(xRᵀ) = F(x)Rᵀ`` for rotations R, and shifts of all atoms.

    ``potential`` must be of a system without pbc. ``reflections`` adds improper rotations
    (achiral potentials). ``rtol`` is relative to the largest force, and to 1 eV for the energy;
    float32 networks: 1e-5. Raises ``AssertionError``.
    """
    here = _evaluated(potential, x)
    generator = torch.Generator().manual_seed(0)
    for number in range(4):
        matrix = torch.randn(3, 3, generator=generator, dtype=torch.float64)
        rotation = torch.linalg.qr(matrix).Q
        rotation = rotation * torch.linalg.det(rotation).sign()
        if reflections and number % 2:
            rotation = -rotation
        rotation = rotation.to(x)
        there = _evaluated(potential, x @ rotation.T)
        kind = "reflection" if reflections and number % 2 else "rotation"
        _require_close(there.forces, here.forces @ rotation.T, rtol, f"forces after a {kind}")
        if here.energy is not None:
            _require_close(there.energy, here.energy, rtol, f"energy after a {kind}", floor=1.0)
    _check_translation(potential, x, rtol)


def assert_zscore(value, exact, stderr=None, *, limit: float = 4.0) -> None:
    """Every ``|value - exact| / stderr`` is below ``limit``.

    Without ``stderr``, ``value`` holds independent samples along its first axis, and their
    mean and its standard error are used.

    Raises
    ------
    AssertionError : with the worst z-score, value and expectation
    ValueError : a standard error that is not positive
    """
    value = np.asarray(value, dtype=float)
    if stderr is None:
        stderr = value.std(0, ddof=1) / np.sqrt(len(value))
        value = value.mean(0)
    value, exact, stderr = np.broadcast_arrays(value, np.asarray(exact, float), stderr)
    if not (stderr > 0).all():
        raise ValueError(f"{stderr=} must be positive: a z-score needs an error")
    z = (value - exact) / stderr
    worst = np.unravel_index(np.argmax(np.where(np.isnan(z), np.inf, np.abs(z))), z.shape)
    if not abs(z[worst]) < limit:  # NaN fails as well
        place = f" at {tuple(map(int, worst))}" if z.ndim else ""
        raise AssertionError(
            f"z = {z[worst]:.2f}{place}: {value[worst]:.6g} ± {stderr[worst]:.2g}, expected "
            f"{exact[worst]:.6g}, limit |z| < {limit:g}"
        )


def _check_flags(potential, x) -> None:
    _require(isinstance(potential, Potential), f"{type(potential).__name__} is not a Potential")
    for name in ("conservative", "has_memory", "needs_base"):
        flag = getattr(potential, name)
        _require(isinstance(flag, bool), f"{name} is {flag!r}, expected True or False")
    _require(not potential.needs_base, "it needs a base: check the sum model + bias")
    system = potential.system
    _require(
        system is None or len(system) == len(x),
        f"it is bound to {0 if system is None else len(system)} atoms, x has {len(x)}",
    )


def _check_shapes(potential, x) -> None:
    for shape in ((), (3,), (2, 3), (1,)):
        points = _rattled(x, shape)
        value = _evaluated(potential, points)
        where = f"for positions {tuple(points.shape)} of {x.dtype}"
        if potential.conservative:
            _require(value.energy is not None, "it is conservative, but the energy is None")
            _require_like(value.energy, x, shape, f"energy {where}")
        else:
            _require(value.energy is None, "it is not conservative, but gives an energy")
        _require_like(value.forces, x, points.shape, f"forces {where}")
        if _has_stress_argument(potential):
            stress = Evaluation(*potential(points, stress=True)).stress
            if stress is not None:
                _require_like(stress, x, (*shape, 6), f"stress {where}")


def _check_pure(potential, x) -> None:
    points = _rattled(x, (2,))
    given = points.clone()
    first = _evaluated(potential, points)
    kept = deepcopy(first)
    _require(torch.equal(points, given), "a call writes to the positions it is given")
    _evaluated(potential, _rattled(x, (3,)) + 0.1)
    # results of one call must survive the next: chains keep them
    _require_same(first, kept, x, "a later call changes the arrays given by an earlier one")
    _require_same(_evaluated(potential, points), kept, x, "the same call twice")


def _check_batch(potential, x) -> None:
    points = _rattled(x, (2, 3))
    value = _evaluated(potential, points)
    for index in np.ndindex(2, 3):
        part = Evaluation(*(None if p is None else p[index] for p in value))
        _require_same(
            _evaluated(potential, points[index].clone()), part, x, "single and batch results"
        )
    # the same numbers in another memory layout
    strided = points.transpose(0, 1).contiguous().transpose(0, 1)
    _require_same(_evaluated(potential, strided), value, x, "strided and contiguous input")


def _check_forces(potential, x, step, rtol) -> None:
    forces = _evaluated(potential, x).forces
    generator = torch.Generator().manual_seed(0)
    count = x.numel()
    # of a large system some coordinates, and directions that mix all of them
    some = torch.randperm(count, generator=generator)[:96].to(x.device)
    axes = torch.nn.functional.one_hot(some, count).to(x).reshape(-1, *x.shape)
    mixed = torch.randn(4, *x.shape, generator=generator, dtype=torch.float64).to(x)
    mixed = mixed / mixed.flatten(1).norm(dim=1)[:, None, None]
    for directions, name in ((axes, "coordinate"), (mixed, "random direction")):
        exact = -(directions * forces).sum((-2, -1))
        numerical = _derivative(partial(_energy_along, potential, x, directions), step)
        _require_close(
            exact,
            numerical,
            rtol,
            f"-F and dE/dx by {name}",
            floor=float(forces.abs().max()),
        )


def _energy_along(potential, x, directions, amount: float) -> Tensor:
    return potential(x + amount * directions).energy


def _check_translation(potential, x, rtol) -> None:
    here = _evaluated(potential, x)
    there = _evaluated(potential, x + x.new_tensor([0.7, -1.3, 2.1]))
    _require_close(there.forces, here.forces, rtol, "forces after a shift of all atoms")
    if here.energy is not None:
        _require_close(there.energy, here.energy, rtol, "energy after a shift", floor=1.0)


def _check_update(potential, x) -> None:
    before, given = deepcopy(_evaluated(potential, x)), x.clone()
    changed = potential.update(x, 1)
    _require(torch.equal(x, given), "update writes to the positions it is given")
    _require(isinstance(changed, bool), f"update returned {changed!r}, expected True or False")
    after = _evaluated(potential, x)
    if not potential.has_memory:
        _require(not changed, "update returned True, but has_memory is False")
    if changed:
        parts = [(a, b) for a, b in zip(before, after, strict=True) if a is not None]
        _require(
            any(not torch.equal(a, b) for a, b in parts),
            "update returned True, but energy and forces at that point are the same",
        )
    else:
        _require_same(after, before, x, "update returned False: results before and after")


def _evaluated(potential, x) -> Evaluation:
    value = Evaluation(*potential(x))
    for name, part in zip(value._fields, value, strict=True):
        if part is None:
            continue
        _require(isinstance(part, Tensor), f"{name} is {type(part).__name__}, expected a Tensor")
        _require(not part.requires_grad, f"{name} carries a graph: detach it, chains keep results")
    return value


def _derivative(energy: Callable[[float], Tensor], step: float) -> Tensor:
    """dE/da at 0 by the five-point formula, error O(step⁴)."""
    near, far = energy(step) - energy(-step), energy(2 * step) - energy(-2 * step)
    return (8.0 * near - far) / (12.0 * step)


def _rattled(x, shape) -> Tensor:
    """(*shape, N, 3): ``x`` itself for (), else structures near it."""
    if not shape:
        return x.clone()
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(*shape, *x.shape, generator=generator, dtype=torch.float64)
    return x + _RATTLE * noise.to(x)


def _has_stress_argument(potential) -> bool:
    # a potential in a script may be __call__(self, x) alone
    return "stress" in inspect.signature(potential).parameters


def _shape(value):
    return None if value is None else tuple(value.shape)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def _require_like(value, x, shape, name) -> None:
    _require(
        value.shape == torch.Size(shape), f"{name}: shape {_shape(value)}, expected {tuple(shape)}"
    )
    _require(value.dtype == x.dtype, f"{name}: {value.dtype}, expected that of the positions")
    _require(value.device == x.device, f"{name} is on {value.device}, positions on {x.device}")
    _require(bool(torch.isfinite(value).all()), f"{name}: not finite; check at another x")


def _require_same(a: Evaluation, b: Evaluation, x, message) -> None:
    """Equal but for the round-off of another order of summation."""
    rtol = 1e-10 if x.dtype == torch.float64 else 1e-4
    for name, p, q in zip(a._fields, a, b, strict=True):
        _require((p is None) == (q is None), f"{message}: {name} is None in one of them")
        if p is not None:
            _require_close(p, q, rtol, f"{message}: {name}", floor=1.0)


def _require_close(a: Tensor, b: Tensor, rtol: float, message: str, *, floor: float = 1e-3):
    """``|a - b| ≤ rtol·max(|b|, floor)`` with the largest component of b."""
    scale = max(float(b.abs().max()), floor)
    error = float((a - b).abs().max())
    _require(
        error <= rtol * scale,
        f"{message} differ by {error:.3g} where they are up to {scale:.3g} (allowed "
        f"{rtol * scale:.1g})",
    )
