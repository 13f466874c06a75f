"""On-the-fly probability enhanced sampling (OPES) of many walkers.

Weighted components estimate the probability of the variables, and the bias makes it the
well-tempered one, ``p^(1/γ)``,

    P(s) = Σ_k h_k G_k(s) / Σ_k w_k        V(s) = kT (1 - 1/γ) ln(P(s)/Z + ε)

with ``w = exp(V/kT)`` of every deposit, ε = exp[-ΔE/((1 - 1/γ) kT)] for the barrier ΔE, Z the
mean of P at the components, and components that shrink with the effective number of samples
(Invernizzi & Parrinello, J. Phys. Chem. Lett. 11, 2731 (2020)). `OPESExplore` estimates the
biased probability instead, ``V = kT (γ - 1) ln(P/Z + ε)``, and explores faster (Invernizzi &
Parrinello, J. Chem. Theory Comput. 18, 3988 (2022)). Components closer than one σ are merged, so
that their number stays small. Frames have the weight exp(V/kT) in both. PLUMED, and its file,
call the components kernels.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from ...io.plumed_writer import PlumedFile
from .base import DepositedBias, per_variable
from .components import Components
from .cv import CV

__all__ = ["OPES", "OPESExplore"]


class _OPES(DepositedBias):
    """What both have in common; they differ in what a deposit weighs and in the prefactor."""

    _action: str

    def __init__(
        self,
        cvs: CV | Sequence[CV],
        *,
        kT: float,
        sigma,
        barrier: float,
        pace: int,
        biasfactor: float | None = None,
        sigma_min=None,
        compression: float = 1.0,
        file=None,
        timestep_ps: float = 1.0,
        restart: bool = False,
    ):
        super().__init__(cvs, kT=kT, sigma=sigma, pace=pace, timestep_ps=timestep_ps)
        if not barrier > kT:
            raise ValueError(f"{barrier=} must be greater than {kT=} (eV): what is to be crossed")
        if not compression >= 0:
            raise ValueError(f"{compression=} must not be negative")
        self.biasfactor = barrier / kT if biasfactor is None else float(biasfactor)
        if not self.biasfactor > 1:
            raise ValueError(f"{biasfactor=} must be greater than 1")
        self.barrier = barrier
        self.sigma_min = 0.0 * self.sigma
        if sigma_min is not None:
            self.sigma_min = per_variable(self.cv, sigma_min, "sigma_min", positive=True)
        prefactor = self._prefactor
        self.epsilon = math.exp(-barrier / prefactor / kT)
        if not self.epsilon > 0:
            raise ValueError(f"{barrier=} is too high for {kT=}: exp(-barrier/kT) is zero")
        self._components = Components(self.cv, self._cutoff, compression)
        # deposits begin with one of the weight exp(V/kT) of an empty bias, against 0/0
        weight = self.epsilon**prefactor
        self._counter, self._sums = 1, (weight, weight * weight)
        self._file = self._start_file(file, compression, restart)

    @property
    @abstractmethod
    def _prefactor(self) -> float:
        """V is kT times this times a logarithm."""

    @property
    @abstractmethod
    def _cutoff(self) -> float:
        """Components end at so many sigmas."""

    @property
    @abstractmethod
    def _norm(self) -> float:
        """What the sum of the components is divided by to be a probability."""

    @property
    @abstractmethod
    def _size(self) -> float:
        """How many samples set the width of the next component."""

    @abstractmethod
    def _height(self, weight: float) -> float:
        """Of a component that has the initial sigma, for a deposit of weight exp(V/kT)."""

    @property
    @abstractmethod
    def _first_sigma(self) -> Tensor:
        """Sigma of components before they shrink, (d,)."""

    def bias(self, s):
        probability, slope = self._components(s)
        norm = self._norm * self.zed
        value = probability / norm + self.epsilon
        scale = self.kT * self._prefactor
        return scale * value.log(), (scale / norm / value)[..., None] * slope

    def deposit(self, step, s):
        """The walkers deposit one after the other, each with the bias of those before it, as
        one PLUMED instance does that serves them all."""
        centres = s.reshape(-1, len(self.cv)).cpu()
        sigmas, heights, log_weights = zip(*map(self._add, centres), strict=True)
        if self._file is not None:
            sigma = torch.stack(sigmas)
            self._file.append(self.rows(step, centres, sigma, heights, log_weights))

    @property
    def zed(self) -> float:
        """Z, the mean of the probability at the components; 1 without any."""
        return self._components.mean_at_centres / self._norm if len(self._components) else 1.0

    @property
    def rct(self) -> float:
        """``kT ln <exp(V/kT)>`` over the deposits, in eV; flat when converged, not a weight."""
        return self.kT * math.log(self._sums[0] / self._counter)

    @property
    def neff(self) -> float:
        """Effective number of deposits, ``(1 + Σw)²/(1 + Σw²)``."""
        return (1.0 + self._sums[0]) ** 2 / (1.0 + self._sums[1])

    @property
    def components(self) -> tuple[Tensor, ...]:
        """Centres (n, d), sigmas (n, d) and heights (n,) of the merged components."""
        c = self._components
        return c.centres, c.sigmas, c.heights

    @property
    def columns(self):
        return (*super().columns, "rct", "zed", "neff", "nker")

    def describe(self, x: Tensor) -> dict[str, Tensor]:
        """What a COLVAR line says of positions x: the variables and ``bias`` (eV), ``rct``,
        ``zed``, ``neff`` and ``nker``, each (*batch)."""
        said = super().describe(x)
        totals = {"rct": self.rct, "zed": self.zed, "neff": self.neff}
        totals["nker"] = float(len(self._components))
        return said | {n: torch.full_like(said["bias"], v) for n, v in totals.items()}

    def checkpoint(self) -> dict:
        saved = {"counter": self._counter, "sums": self._sums}
        saved["kernels"] = self._components.saved()
        return saved if self._file is None else saved | {"length": self._file.length}

    def restore(self, saved, x, step) -> None:
        self._counter, self._sums = saved["counter"], tuple(saved["sums"])
        self._components.restore(saved["kernels"])
        if self._file is not None:
            self._file.truncate(saved["length"])

    def _add(self, centre: Tensor) -> tuple[Tensor, float, float]:
        """Sigma (d,), height and log weight of a new component at ``centre`` (d,)."""
        probability = self._components.at(centre) / self._norm
        log_weight = self._prefactor * math.log(probability / self.zed + self.epsilon)
        weight = math.exp(log_weight)
        self._counter += 1
        self._sums = self._sums[0] + weight, self._sums[1] + weight * weight
        d = len(centre)
        shrink = (self._size * (d + 2.0) / 4.0) ** (-1.0 / (4.0 + d))
        # the normalisation of a component but for what cancels in P/Z
        shrinks = (self.sigma_min / self._first_sigma).clamp(min=shrink)
        sigma = self._first_sigma * shrinks
        height = self._height(weight) / float(shrinks.prod())
        self._components.add(centre, sigma, height)
        return sigma, height, log_weight

    def _start_file(self, path, compression: float, restart: bool) -> PlumedFile | None:
        if path is None:
            if restart:
                raise ValueError("restart=True goes on with file=: give file=")
            return None
        constants = {
            "action": f"{self._action}_kernels",
            "biasfactor": f"{self.biasfactor:.17g}",
            "epsilon": f"{self.epsilon:.17g}",
            "kernel_cutoff": f"{self._cutoff:.17g}",
            "compression_threshold": f"{compression:.17g}",
        }
        return self.open_file(path, ["height", "logweight"], constants, restart=restart)


class OPES(_OPES):
    """OPES_METAD: converges fast where the variables are good.

    Equal to PLUMED's OPES_METAD with a given SIGMA on the same positions. All walkers share
    one bias (for one each, `Ladder` of as many as there are walkers); it knows no limits of
    range.

    Parameters
    ----------
    cvs : one or several `CV`
    kT : in eV
    sigma : first widths of the components in the units of the variables, one or d
    barrier : ΔE in eV, the highest that is to be crossed; V stays below it
    pace : steps between components
    biasfactor : γ, default ``barrier/kT``; ``inf`` for a flat target
    sigma_min : components do not shrink below these
    compression : components closer than so many sigmas are merged; 0: never
    file : KERNELS in PLUMED's units; it is a record, a restart takes a checkpoint
    timestep_ps : of the column ``time``; without it time counts steps
    restart : go on with the ``file`` that is there

    Raises
    ------
    ValueError : settings that do not fit, see the messages
    FileExistsError : ``file`` exists without ``restart``
    """

    _action = "OPES_METAD"

    @property
    def _prefactor(self):
        return 1.0 - 1.0 / self.biasfactor

    @property
    def _cutoff(self):
        return math.sqrt(2.0 * self.barrier / self._prefactor / self.kT)

    @property
    def _norm(self):
        return self._sums[0]

    @property
    def _size(self):
        return self.neff

    @property
    def _first_sigma(self):
        return self.sigma

    def _height(self, weight):
        return weight

    def free_energy(self, s: Tensor) -> Tensor:
        """``F(s) = -kT ln P(s)`` in eV, up to a constant; infinite where no component reaches."""
        return -self.kT * self._components(s)[0].log()


class OPESExplore(_OPES):
    """OPES_METAD_EXPLORE: for variables that are not so good; parameters as of `OPES`.

    ``V = kT (γ - 1) ln(P/Z + ε)`` with P of the biased samples. Equal to PLUMED's
    OPES_METAD_EXPLORE with a given SIGMA on the same positions.

    Raises
    ------
    ValueError : as `OPES`, and an infinite bias factor
    FileExistsError : ``file`` exists without ``restart``
    """

    _action = "OPES_METAD_EXPLORE"

    @property
    def _prefactor(self):
        if math.isinf(self.biasfactor):
            raise ValueError("OPESExplore needs a finite biasfactor; use OPES for a flat target")
        return self.biasfactor - 1.0

    @property
    def _cutoff(self):
        return math.sqrt(2.0 * self.barrier / self.kT)

    @property
    def _norm(self):
        return float(self._counter)

    @property
    def _size(self):
        return float(self._counter)

    @property
    def _first_sigma(self):
        # the biased probability is wider
        return self.sigma * math.sqrt(self.biasfactor)

    def _height(self, weight):
        return 1.0

    def free_energy(self, s: Tensor) -> Tensor:
        """``F(s) = -γ kT ln P(s)`` in eV, up to a constant; infinite where no component reaches."""
        return -self.biasfactor * self.kT * self._components(s)[0].log()
