"""Well-tempered metadynamics of many walkers, in torch.

Every ``pace`` steps each walker puts a hill G (module `hills`) where it is,

    V ← V + w G(s - s_t),   w = w_0 exp[-V(s_t)/(kT (γ - 1))]

(Barducci, Bussi & Parrinello, PRL 100, 020603 (2008)). In the end V(s) = -(1 - 1/γ) F(s) + c.
Reweighting: frames have the weight ``exp[(V - c)/kT]`` with

    c = kT ln [∫ exp(γ V/((γ - 1) kT)) ds / ∫ exp(V/((γ - 1) kT)) ds]

(Tiwary & Parrinello, J. Phys. Chem. B 119, 736 (2015)); V - c is ``rbias``, c is ``rct``.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...io.plumed_writer import KJ_PER_MOL, PlumedFile
from .base import DepositedBias
from .cv import CV
from .hills import Grid, HillGrid, HillList, HillSum

__all__ = ["Metadynamics", "reweighting_constant"]

_BLOCK = 256  # walkers whose hills are put down together
_TENSORS = 32  # that hills are remembered in, at most


def reweighting_constant(V: Tensor, kT: float, biasfactor: float | None) -> Tensor:
    """``c = kT ln [Σ exp(γ V/((γ - 1) kT)) / Σ exp(V/((γ - 1) kT))]`` over the last axis of V.

    ``biasfactor`` is γ; without one it is the limit γ → ∞, ``kT ln <exp(V/kT)>``. ``V`` (…, n)
    at n points of a grid and ``kT`` have one unit, which is that of c (…) (Tiwary & Parrinello,
    J. Phys. Chem. B 119, 736 (2015)).
    """
    inner = 0.0 if biasfactor is None else 1.0 / (biasfactor - 1.0)
    upper, lower = ((k / kT * V).logsumexp(-1) for k in (1.0 + inner, inner))
    return kT * (upper - lower)


class Metadynamics(DepositedBias):
    """Well-tempered metadynamics, equal to PLUMED's METAD on the same positions.

    With ``walkers="shared"`` all walkers feel and build one bias, and deposit one after the
    other, each seeing the hills of those before it (a PLUMED instance that serves all walkers
    does the same). With ``walkers="independent"`` each has its own; the first deposit tells
    how many there are. Evaluation deposits nothing; `update` does.

    Parameters
    ----------
    cvs : one or several `CV`; 1 to 3 variables if there is a grid
    kT : in eV
    sigma : widths of the hills in the units of the variables, one or d
    height : w_0 in eV
    pace : steps between hills
    biasfactor : γ > 1; None: plain metadynamics, w = w_0
    grid : where to tabulate the bias; None: all hills are kept and summed
    walkers : "shared" or "independent"
    file : HILLS in PLUMED's units (nm, kJ/mol, ps), as ``plumed sum_hills`` reads it;
        independent walkers write FILE.0, FILE.1, …
    timestep_ps : of the column ``time``; without it time counts steps
    restart : go on from the hills in ``file``

    Raises
    ------
    ValueError : settings that do not fit, see the messages; restart without a file;
        `update`: variables outside the grid, or not finite
    FileExistsError : ``file`` exists without ``restart``
    FileNotFoundError : ``restart`` and no ``file`` there
    """

    def __init__(
        self,
        cvs: CV | Sequence[CV],
        *,
        kT: float,
        sigma,
        height: float,
        pace: int,
        biasfactor: float | None = None,
        grid: Grid | None = None,
        walkers: str = "shared",
        file=None,
        timestep_ps: float = 1.0,
        restart: bool = False,
    ):
        super().__init__(cvs, kT=kT, sigma=sigma, pace=pace, timestep_ps=timestep_ps)
        if not height > 0:
            raise ValueError(f"{height=} must be positive (eV)")
        if biasfactor is not None and not 1 < biasfactor < float("inf"):
            raise ValueError(f"{biasfactor=} must be greater than 1, or None for no tempering")
        if walkers not in ("shared", "independent"):
            raise ValueError(f"{walkers=} must be 'shared' or 'independent'")
        self.height, self.biasfactor, self.walkers = height, biasfactor, walkers
        self._hills: HillSum = (
            HillList(self.cv, self.sigma) if grid is None else HillGrid(self.cv, self.sigma, grid)
        )
        self._deposits: list[tuple[Tensor, Tensor]] = []  # centres (W, m, d), heights (W, m)
        self._sizes: list[int] = []  # hills of each deposit
        self._ids: list[int] | None = None  # of independent walkers, once there are any
        self._files: dict[int, PlumedFile] = {}
        self._path = None if file is None else Path(file).absolute()
        self._unread: str | None = None
        # on a grid that all walkers share and none can leave
        on_grid = isinstance(self._hills, HillGrid) and not self._hills.bounded
        self.compiles = on_grid and walkers == "shared" and self.cv.compiles
        self._start_files(restart)

    def bias(self, s):
        self._check_read()
        if self._ids is not None and len(self._ids) > 1 and s.shape[-2:-1] != (len(self._ids),):
            raise ValueError(
                f"{len(self._ids)} walkers have biases of their own, but the variables are "
                f"{tuple(s.shape)}: expected (*batch, {len(self._ids)}, {len(self.cv)})"
            )
        return self._hills(s)

    def deposit(self, step, s):
        self._check_read()
        self._hills.check(s)
        for block in self._blocks(s):
            rows = self._rows(step, block, self._next_heights(block))
            # the numbers that a restart reads: it is bitwise the run that was not interrupted
            self._put(*(part.to(s.device) for part in self._hills_of(rows)))
            self._write(rows)

    @property
    def hills(self) -> tuple[Tensor, Tensor]:
        """Centres (W, n, d) and heights (W, n) in eV of all hills so far, W = 1 if shared."""
        if not self._deposits:
            n = 1 if self._ids is None else len(self._ids)
            return torch.zeros(n, 0, len(self.cv)).double(), torch.zeros(n, 0).double()
        centres, heights = zip(*self._deposits, strict=True)
        return torch.cat(centres, 1), torch.cat(heights, 1)

    @property
    def rct(self) -> Tensor:
        """c(t) in eV, one number or (W,), summed over the grid; it needs one."""
        if not isinstance(self._hills, HillGrid):
            raise ValueError("c(t) is an integral over a grid: give grid= to Metadynamics")
        c = reweighting_constant(self._hills.values, self.kT, self.biasfactor)
        return c if len(c) > 1 else c[0]

    def free_energy(self, s: Tensor) -> Tensor:
        """``F(s) = -γ/(γ - 1) V(s)`` in eV, up to a constant."""
        factor = 1.0 if self.biasfactor is None else self.biasfactor / (self.biasfactor - 1.0)
        return -factor * self.bias(s)[0]

    @property
    def columns(self):
        more = ("rbias", "rct") if isinstance(self._hills, HillGrid) else ()
        return (*super().columns, *more)

    def describe(self, x: Tensor) -> dict[str, Tensor]:
        """What a COLVAR line says of positions x: the variables, ``bias`` and, on a grid,
        ``rbias`` and ``rct`` (eV), each (*batch)."""
        said = super().describe(x)
        if isinstance(self._hills, HillGrid):
            rct = self.rct.expand(said["bias"].shape)
            said |= {"rbias": said["bias"] - rct, "rct": rct}
        return said

    def select(self, keep) -> None:
        if self._ids is None:
            return
        self._hills.select(keep)
        kept = keep.cpu()
        self._deposits = [(c[kept], h[kept]) for c, h in self._deposits]
        self._ids = [w for w, kept in zip(self._ids, keep.tolist(), strict=True) if kept]

    def checkpoint(self) -> dict:
        saved: dict = {"ids": self._ids, "sizes": list(self._sizes)}
        if self._path is not None:
            return saved | {"files": {str(w): f.length for w, f in self._files.items()}}
        return saved | {"hills": [_packed(part) for part in self.hills]}

    def restore(self, saved, x, step) -> None:
        self._ids, self._unread = saved["ids"], None
        if self._path is not None:
            for walker in [w for w in self._files if str(w) not in saved["files"]]:
                self._files.pop(walker).path.unlink()  # begun after the checkpoint
            for walker, length in saved["files"].items():
                self._file(int(walker), restart=True).truncate(length)
            self._load()
            return
        n, d = 1 if self._ids is None else len(self._ids), len(self.cv)
        centres, heights = map(_unpacked, saved["hills"])
        self._replay(centres.reshape(n, -1, d), heights.reshape(n, -1), saved["sizes"], x.device)

    def _blocks(self, s: Tensor):
        """The values of the variables as (m, d) of one bias, or all (W, d) with own ones."""
        if self.walkers == "shared":
            return s.reshape(-1, s.shape[-1]).split(_BLOCK)
        if s.ndim > 2:
            raise ValueError(f"independent walkers are one batch (B, N, 3), got {tuple(s.shape)}")
        s = s.reshape(-1, s.shape[-1])
        if self._ids is None:
            self._ids = list(range(len(s)))
            self._hills = self._hills.like(len(s))
        elif len(s) != len(self._ids):
            raise ValueError(f"{len(s)} walkers, but {len(self._ids)} have biases of their own")
        return [s]

    def _next_heights(self, s: Tensor) -> Tensor:
        """Heights (m,) of the hills of walkers at s (m, d).

        Of one bias each sees those before it: ``w_j = w(V + Σ_{i<j} w_i G_i)`` is strictly
        triangular, so that sweeps over all j reach its one solution, exactly after at most m
        and in practice after a few.
        """
        if self.biasfactor is None:
            return torch.full_like(s[:, 0], self.height)
        gathered = self._hills.gather(s)
        heights = self._tempered(s, gathered)
        if self._ids is not None or len(s) == 1:
            return heights
        later = self._hills.influence(s).flatten(2)
        later = later * torch.ones_like(later[..., 0]).triu(1)[..., None]
        for _ in range(len(s)):
            added = (heights @ later.flatten(1)).view(gathered.shape)
            new = self._tempered(s, gathered + added)
            if torch.equal(new, heights):
                break
            heights = new
        return heights

    def _tempered(self, s: Tensor, gathered: Tensor) -> Tensor:
        V, _ = self._hills.blend(s, gathered)
        return self.height * torch.exp(-V / (self.kT * (self.biasfactor - 1.0)))

    def _put(self, s: Tensor, heights: Tensor) -> None:
        """The hills of one deposit, centres (m, d) and heights (m,)."""
        own = self._ids is not None
        centres, heights = (s[:, None], heights[:, None]) if own else (s[None], heights[None])
        self._hills.add(centres, heights)
        self._remember(centres, heights)

    def _replay(self, centres: Tensor, heights: Tensor, sizes, device) -> None:
        self._hills, self._deposits, self._sizes = self._hills.like(len(centres)), [], []
        parts = (part.to(device).split(sizes, 1) for part in (centres, heights))
        for deposit in zip(*parts, strict=True):
            self._hills.add(*deposit)
            self._remember(*deposit)

    def _remember(self, centres: Tensor, heights: Tensor) -> None:
        self._sizes.append(heights.shape[1])
        self._deposits.append((centres.cpu(), heights.cpu()))
        if len(self._deposits) > _TENSORS:  # each takes far more than what it holds
            self._deposits = [self.hills]

    @property
    def _scale(self) -> float:
        """What HILLS multiplies heights with: sum_hills then gives -F."""
        tempered = self.biasfactor is not None
        return KJ_PER_MOL * (self.biasfactor / (self.biasfactor - 1.0) if tempered else 1.0)

    def _start_files(self, restart: bool) -> None:
        if self._path is None:
            if restart:
                raise ValueError("restart=True reads the hills of file=: give file=")
            return
        path = self._path
        own = sorted(path.parent.glob(f"{path.name}.[0-9]*"), key=lambda p: int(p.suffix[1:]))
        there = own if self.walkers == "independent" else [path] * path.exists()
        if not restart and there:
            raise FileExistsError(
                f"{there[0]} exists: give restart=True to go on with it, or move it away"
            )
        if restart and not there and self.walkers == "independent":
            self._unread = (
                f"restart=True, but there are no {path}.0, {path}.1, … to go on with: restore a "
                "checkpoint, if the run was killed before its first hills"
            )
            return
        if restart and not there:
            raise FileNotFoundError(f"restart=True, but there is no {self._path} to go on with")
        if restart:
            if self.walkers == "independent":
                self._ids = [int(p.suffix[1:]) for p in own]
            self._load()
        elif self.walkers == "shared":
            self._file(0, restart=False)

    def _file(self, walker: int, *, restart: bool) -> PlumedFile:
        if walker not in self._files:
            path = self._path if self.walkers == "shared" else f"{self._path}.{walker}"
            constants = {"multivariate": "false", "kerneltype": "stretched-gaussian"}
            more = ["height", "biasf"]
            self._files[walker] = self.open_file(path, more, constants, restart=restart)
        return self._files[walker]

    def _check_read(self) -> None:
        if self._unread is not None:
            raise ValueError(self._unread)

    def _rows(self, step: int, s: Tensor, heights: Tensor) -> np.ndarray:
        """Rows (m, columns) of HILLS: in its units, and with its heights."""
        stored = heights.cpu().numpy() * self._scale
        return self.rows(step, s, self.sigma.expand_as(s), stored, self.biasfactor or -1.0)

    def _hills_of(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Centres (…, d) and heights (…) in eV of rows (…, columns) of HILLS."""
        centres = rows[..., 1 : len(self.cv) + 1] / np.array(self.cv.plumed_units)
        return torch.from_numpy(centres), torch.from_numpy(rows[..., -2] / self._scale)

    def _write(self, rows: np.ndarray) -> None:
        if self._path is None:
            return
        if self._ids is None:
            self._file(0, restart=False).append(rows)
            return
        for walker, row in zip(self._ids, rows, strict=True):
            self._file(walker, restart=False).append(row[None])

    def _load(self) -> None:
        """The hills of the files; rows of one time were one deposit."""
        d, unit = len(self.cv), np.array(self.cv.plumed_units)
        every = [self._file(w, restart=True).read() for w in self._ids or [0]]
        if len({len(rows) for rows in every}) > 1:
            self._unread = (
                f"the files {self._path}.* have different numbers of hills (lost walkers, or a "
                "run that was killed): restore a checkpoint, or move some of them away"
            )
            return
        rows = np.stack(every)
        widths = rows[..., d + 1 : 2 * d + 1] / unit
        if not np.allclose(widths, self.sigma.numpy(), rtol=1e-9, atol=0):
            raise ValueError(
                f"the hills in {self._path} have other widths than sigma={self.sigma.tolist()}"
            )
        gamma = self.biasfactor or -1.0
        if not np.allclose(rows[..., -1], gamma):
            raise ValueError(f"the hills in {self._path} have another bias factor than {gamma}")
        _, counts = np.unique(rows[0, :, 0], return_counts=True)
        sizes = [n for count in counts.tolist() for n in _in_blocks(count)]
        self._replay(*self._hills_of(rows), sizes, "cpu")


def _in_blocks(size: int) -> list[int]:
    return [_BLOCK] * (size // _BLOCK) + [size % _BLOCK] * (size % _BLOCK > 0)


def _packed(values: Tensor) -> str:
    return base64.b64encode(values.cpu().numpy().tobytes()).decode()


def _unpacked(text: str) -> Tensor:
    return torch.from_numpy(np.frombuffer(base64.b64decode(text)).copy())
