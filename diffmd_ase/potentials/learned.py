"""The learned score as a potential: the only place where a score becomes a force."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations

import numpy as np
import torch
from ase.data import chemical_symbols
from ase.symbols import Symbols
from torch import Tensor

from ..io.limits import lacks_memory
from ..score.extrapolation import coordinates_outside, extrapolation
from ..score.length_units import cell_doubt
from ..score.model import ScoreModel, resolve_device
from ..score.neighbours import Pairs, VerletList
from ..score.networks.embedded import EmbeddedNetwork
from ..score.networks.gradients import Compile, deformed
from ..score.networks.inputs import Inputs
from ..score.networks.liquid import LiquidNetwork
from ..score.structure import Structure
from ..score.uncertainty import force_errors
from ..state import Evaluation
from ..system import System
from .base import Potential, add_term, unwrapped
from .baseline import baseline_of

__all__ = ["ScorePotential", "compiling_pays", "scores"]

log = logging.getLogger(__name__)

_COMPILER = 45.0  # s that compiling takes, at most
_SAVED = 0.7  # of an evaluation, at least
_CHUNK = 1 << 15  # atoms in one call of a network of neighbours, at most
_CACHED = 1 << 8  # of one that passes messages, where what they take is to stay near a CPU
_VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))


class ScorePotential(Potential):
    """``E = kT_train·E_θ(x, σ)`` and ``F = kT_train·s = -∇E`` in eV and eV/Å.

    The energy knows no temperature: at T the score is F/kT. That of snapshots of several
    temperatures is one energy for all (`score.sets`); elsewhere it is an assumption.
    Energies of two compositions have no common zero. Where the card names a baseline, its energy,
    forces and stress are added at the smallest noise.

    Parameters
    ----------
    system : default, the one the model was trained on
    sigma : noise level in Å, default the smallest
    device, dtype : of the network; default float32. Positions of any dtype come in, and
        energies and forces go out in the dtype and on the device of the positions
    compile : energy and gradient as one function of `torch.compile`, several times faster after
        some twenty seconds (a few, where torch's cache on disk has it): True, at once; False,
        never; "auto", after ``PAYS`` calls. Compiled or not, they agree but for rounding

    Attributes
    ----------
    compiled : what ``compile`` has come to; None: not yet
    looked_at : the first positions that are asked for are compared with the molecule that the model
        knows, where bonds that are broken and atoms in another order are a warning, unless True

    The stress is None without a cell.

    Raises
    ------
    ValueError : elements, pairs of elements, number of atoms, pbc or σ the model does not know;
        positions that do not fit the system; another word for ``compile``
    """

    PAYS = 20_000  # calls that save what compiling costs

    def __init__(
        self,
        model: ScoreModel,
        system: System | None = None,
        *,
        sigma: float | None = None,
        device: str = "auto",
        dtype: torch.dtype | None = None,
        compile: Compile = "auto",
    ):
        if compile not in (True, False, "auto"):
            raise ValueError(f"{compile=}: expected True, False or 'auto'")
        self.compiled = None if compile == "auto" else bool(compile)
        self._calls = 0
        self.model = model
        self.system = system or model.system
        self._count = len(self.system)
        self.sigma = model.card.sigma_min if sigma is None else float(sigma)
        # networks of neighbours know any number of atoms, those of one molecule its own
        self._cutoff = model.cutoff(self.sigma)
        _check(model, self.system, transferable=self._cutoff is not None)
        self.kT_train = model.card.kT
        self.device, self.dtype = resolve_device(device), dtype or torch.float32
        self._level = model.level(self.sigma)
        self._network = model.network_at(self.sigma, self.device, self.dtype, self.system.numbers)
        self._inputs = Inputs.of(self.system, dtype=self.dtype, device=self.device)
        self._lists: list[VerletList] = []  # of chunks of a batch; they change no value
        self._most: int | None = None  # structures that memory holds at once, if that is known
        self.looked_at = self._warned = False
        self.baseline: Potential | None = None
        if model.card.baseline is not None and self._level == model.card.sigma_min:
            self.baseline = baseline_of(model, self.system, device=device)
            self.per_walker = self.baseline.per_walker
        self._alone = self._cutoff is None and self.baseline is None
        self._sigma = torch.full((1,), self._level, dtype=self.dtype, device=self.device)

    def __call__(self, x: Tensor, *, stress: bool = False) -> Evaluation:
        batch = x.shape[:-2]
        if x.shape[-2:] != (self._count, 3):
            raise ValueError(
                f"positions {tuple(x.shape)} for {self._count} atoms: expected "
                f"(*batch, {self._count}, 3)"
            )
        if not self.looked_at:
            self.recognise(x)
        self._calls += 1
        if self.compiled is None and self._calls > self.PAYS:
            log.info("compiled after %d calls: a long run begins, which that pays for", self.PAYS)
            self.compiled = True
        stress = stress and self._inputs.cell is not None
        rows = x.detach() if x.ndim < 4 else x.detach().flatten(0, -3)
        if self.compiled and not stress and (made := self.within(_there, rows)):
            return Evaluation(made[0].reshape(batch), made[1].reshape(x.shape))
        parts = self._in_parts(self._flat(x), stress)
        energy, forces, virial = (
            None if p[0] is None else torch.cat(p) for p in zip(*parts, strict=True)
        )
        own = Evaluation(
            energy.to(x).reshape(batch),
            forces.to(x).reshape(x.shape),
            None if virial is None else virial.to(x).reshape(*batch, 6),
        )
        if self.baseline is None:
            return own
        return add_term(own, self.baseline, x, stress=stress)[0]

    def within(
        self, step: Callable[..., tuple[Tensor, ...]], *rows: Tensor
    ) -> tuple[Tensor, ...] | None:
        """``step(at, *rows)`` as one compiled function; ``at(y)`` gives energy and forces at y.

        None where there is none, and its parts are to be made one after the other: of networks as
        they are written, with a list of neighbours or a baseline.

        Parameters
        ----------
        step : a function of a module; what it gives has the axis of structures first
        rows : the first are positions (N, 3) or (B, N, 3) in Å; others have as many axes, or fewer
            and none of structures
        """
        x = rows[0]
        fits = x.ndim in (2, 3) and x.shape[-2] == self._count and x.device == self.device
        if not (self.compiled and self._alone and fits and self._most is None and x.numel()):
            return None
        if not self.looked_at:
            self.recognise(x)
        function = self.model.compiled_at(self._network)
        try:
            return function.within(step, rows, self._sigma, self._inputs, self.kT_train)
        except RuntimeError as error:
            self._halve(1 if x.ndim == 2 else len(x), error)
            return None

    def _in_parts(self, x: Tensor, stress: bool) -> list:
        """Evaluations of x (M, N, 3), as many at once as memory has been found to hold."""
        while True:
            parts = x.split(max(1, self._at_once(len(x))))
            try:
                return [self._evaluate(part, stress, n) for n, part in enumerate(parts)]
            except RuntimeError as error:
                self._halve(len(parts[0]), error)

    def _at_once(self, count: int) -> int:
        far = self.device.type != "cpu" or isinstance(
            self._network, EmbeddedNetwork | LiquidNetwork
        )
        most = (_CHUNK if far else _CACHED) // self._count
        size = count if self._cutoff is None else max(1, most)
        return size if self._most is None else min(size, self._most)

    def _halve(self, count: int, error: RuntimeError) -> None:
        """Half of ``count`` structures at once from now on; an ``error`` of another kind raises."""
        if count < 2 or not lacks_memory(error):
            raise error
        self._most = count // 2
        self._lists.clear()
        warnings.warn(
            f"no memory for {count} structures of {self._count} atoms at once: {self._most} at a "
            "time from now on, which changes no more than the rounding",
            stacklevel=4,
        )

    def select(self, keep: Tensor) -> None:
        if self.baseline is not None:
            self.baseline.select(keep)

    def extrapolation(self, x: Tensor) -> Tensor | None:
        """How far positions x (*batch, N, 3) are from the snapshots (*batch): 1 at their edge.

        None of a model that does not know (see `score.extrapolation`).
        """
        value = extrapolation(self._network, self._flat(x), self._inputs)
        return None if value is None else value.to(x).reshape(x.shape[:-2])

    def force_errors(self, x: Tensor) -> Tensor | None:
        """Standard errors (*batch, N, 3) in eV/Å of the forces at x.

        By the covariance of the fitted parameters, and the misfit of the form where snapshots
        carried forces; the statistical part alone without. None of a model that does not know it.
        """
        value = force_errors(self._network, self._flat(x), self._inputs)
        if value is None:
            return None
        known = self.model.card.force_error
        misfit = {} if known is None else known.misfit
        beyond = [misfit.get(symbol, 0.0) for symbol in Symbols(self.system.numbers)]
        value = self.kT_train * value.to(x).reshape(x.shape)
        return torch.hypot(value, value.new_tensor(beyond)[:, None])

    def outside(self, x: Tensor) -> str | None:
        """What one structure x (N, 3) has that no snapshot had, in words; None if nothing."""
        (flat,) = self._flat(x)
        words = coordinates_outside(self._network, flat, self.system.numbers, self._inputs)
        if words is None and (self.extrapolation(x) or 0.0) > 1:
            words = "its coordinates are in combinations that no snapshot had"
        return words

    def describe(self, x: Tensor) -> dict[str, Tensor]:
        value = self.extrapolation(x)
        if value is None:
            return {}
        beyond = (value > 1).reshape(-1)
        if not self._warned and beyond.any():
            self._warned = True
            first = x.reshape(-1, *x.shape[-2:])[beyond][0]
            warnings.warn(
                f"{int(beyond.sum())} of {len(beyond)} structures are outside of the snapshots "
                f"that this model was trained on, where it guesses ({self.outside(first)}; "
                f"extrapolation {float(value.max()):.2g}, 1 is their edge); train on snapshots "
                "that hold such structures",
                stacklevel=2,
            )
        return {"extrapolation": value}

    def _flat(self, x: Tensor) -> Tensor:
        return x.detach().reshape(-1, *x.shape[-2:]).to(self.device, self.dtype)

    def recognise(self, x: Tensor) -> None:
        """Warn, once for each call, of positions x (*batch, N, 3) that are of another molecule."""
        self.looked_at = True
        known = Structure.of(self.model.expert(self.sigma), self.system)
        structures = x.detach().cpu().double().reshape(-1, self._count, 3).numpy()
        words = known.doubt(structures) if known is not None and len(structures) else None
        if words is not None:
            warnings.warn(words, stacklevel=2)

    def scale_doubt(self, x: np.ndarray) -> str:
        """In which other unit than Å positions ``x`` (M, N, 3) seem to be; "" for none.

        By the bonds of the molecule that the model knows, or by the volume of an atom.
        """
        known = Structure.of(self.model.expert(self.sigma), self.system)
        return cell_doubt(self.model.card, self.system) if known is None else known.scale(x)

    def _pairs(self, x: Tensor, chunk: int) -> Pairs | None:
        """The neighbours, of networks that have them."""
        if self._cutoff is None:
            return None
        if chunk == len(self._lists):
            self._lists.append(VerletList(self._cutoff))
        cell, pbc = self._inputs.cell, self._inputs.pbc
        pairs = self._lists[chunk](x, cell, pbc)
        if self.compiled and isinstance(self._network, EmbeddedNetwork):
            return replace(
                pairs, chosen=True
            )  # those beyond count nothing, and choosing costs more
        return pairs.closer(self._cutoff, x, cell)

    def _evaluate(self, x: Tensor, stress: bool, chunk: int):
        pairs = self._pairs(x, chunk)
        strain = x.new_zeros(len(x), 3, 3) if stress else None
        sigma, made = self._sigma, None
        if self.compiled:
            function = self.model.compiled_at(self._network)
            made = function(x, strain, sigma, self._inputs, pairs)
        slopes, energy = self._as_written(x, strain, sigma, pairs) if made is None else made
        virial = None
        if stress:
            volume = torch.linalg.det(self._inputs.cell).abs()
            full = self.kT_train * slopes[1] / volume
            virial = torch.stack([full[:, a, b] for a, b in _VOIGT], dim=-1)
        return self.kT_train * energy, -self.kT_train * slopes[0], virial

    def _as_written(self, x: Tensor, strain: Tensor | None, sigma: Tensor, pairs: Pairs | None):
        """What `Compiled` gives, by automatic differentiation."""
        told, neighbours = self._inputs, {} if pairs is None else {"pairs": pairs}
        with torch.enable_grad():
            at = x = x.detach().requires_grad_()
            inputs = [x]
            if strain is not None:
                inputs.append(strain := strain.detach().requires_grad_())
                at, told = deformed(x, strain, told)
            energy = self._network(at, sigma, **told._asdict(), **neighbours)
            slopes = torch.autograd.grad(energy.sum(), inputs)
        return slopes, energy.detach()


def _there(at: Callable, x: Tensor) -> tuple[Tensor, ...]:
    return at(x)


def scores(potential: Potential) -> Iterator[ScorePotential]:
    """The learned scores among the terms of a ``potential``."""
    for term in potential.terms:
        inner = unwrapped(term)
        if isinstance(inner, ScorePotential):
            yield inner


def compiling_pays(potential: ScorePotential, x: Tensor, calls: int) -> bool:
    """Whether ``calls`` at x (*batch, N, 3), of which three are timed, save what compiling costs.

    Raises as the potential does.
    """
    potential(x)
    begun = time.perf_counter()
    for _ in range(3):
        potential(x)
    each = (time.perf_counter() - begun) / 3
    pays = _SAVED * each * calls > _COMPILER
    log.info(
        "%s: %d steps of %.2g ms save %.0f s, compiling costs up to %.0f s",
        "compiled" if pays else "not compiled",
        calls,
        1e3 * each,
        _SAVED * each * calls,
        _COMPILER,
    )
    return pays


def _check(model: ScoreModel, system: System, *, transferable: bool) -> None:
    known = model.system
    if not transferable:
        if not np.array_equal(known.numbers, system.numbers):
            raise ValueError(
                f"this model knows {known.formula} in the order {_ordered(known)}, not "
                f"{system.formula} in the order {_ordered(system)}; use the same atoms in the "
                "order of its snapshots, or train an equivariant model"
            )
    else:
        _check_elements([set(part.numbers) for part in model.card.systems], system)
    if known.periodic != system.periodic or not np.array_equal(known.pbc, system.pbc):
        raise ValueError(
            f"pbc={system.pbc.tolist()} but this model was trained with pbc={known.pbc.tolist()}"
        )


def _ordered(system: System) -> str:
    return str(Symbols(system.numbers)) if len(system) <= 30 else f"of {len(system)} atoms"


def _check_elements(known: list[set[int]], system: System) -> None:
    """All elements are known, and each two of them from some snapshots that held both."""
    asked, every = set(system.numbers.tolist()), set().union(*known)
    if strange := asked - every:
        raise ValueError(
            f"this model knows {_symbols(every)}, not {_symbols(strange)} (of {system.formula}); "
            "train on snapshots that hold all elements"
        )
    for pair in combinations(sorted(asked), 2):
        if not any(set(pair) <= one for one in known):
            raise ValueError(
                f"{system.formula}: no snapshots of this model held {_symbols(set(pair))} "
                "together, so that it knows nothing of their bonds; train on some that do"
            )


def _symbols(numbers: set[int]) -> str:
    return ", ".join(chemical_symbols[z] for z in sorted(numbers))
