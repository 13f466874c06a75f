"""What a training minimises: the losses of all sets of snapshots, weighted by their frames."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from . import losses
from .networks.inputs import Inputs
from .plan import Expert
from .sets import temperings
from .snapshots import Snapshots
from .torsion_moves import Moves

__all__ = ["Objective", "SetLoss"]

Drawn = dict[str, Tensor]


class Objective:
    """The loss of one expert: the mean over the frames of all sets.

    Parameters
    ----------
    expert : gives the weights of the terms, and the noise levels
    sets : of them the structure and the number of frames are used
    """

    def __init__(self, expert: Expert, sets: tuple[Snapshots, ...], device):
        total = sum(len(part) for part in sets)
        self.shares = [len(part) / total for part in sets]
        self.parts = [
            SetLoss(expert, part, tempering, device)
            for part, tempering in zip(sets, temperings(sets), strict=True)
        ]

    def __call__(self, network: nn.Module, batches: list[Tensor], generator) -> dict:
        """Mean losses by name of one batch (B, N, 3 or 6) of each set; ``loss``: their sum."""
        return self.terms(network, self.draw(batches, generator))

    def draw(self, batches: list[Tensor], generator: torch.Generator) -> list[Drawn]:
        """What chance says of one batch of each set: see `SetLoss.draw`."""
        return [part.draw(x, generator) for part, x in zip(self.parts, batches, strict=True)]

    def terms(self, network: Callable[..., Tensor], drawn: list[Drawn]) -> dict[str, Tensor]:
        """Mean losses by name of what was ``drawn``, a function of tensors of fixed shapes."""
        together: dict[str, Tensor] = {}
        for part, share, one in zip(self.parts, self.shares, drawn, strict=True):
            for name, value in part.terms(network, one).items():
                together[name] = together.get(name, 0.0) + share * value
        return together


class SetLoss:
    """The loss of one expert on a batch of snapshots of one set, ``E_n = (T_1/T_n) E``.

    Terms with squared scores are weighted by T_n/T_1 (see `sets`).

    Parameters
    ----------
    snapshots : their structure and size of forces are used
    tempering : T_1/T_n
    """

    DELTA = 0.02  # rad, angular noise: far below the width of a torsional well
    MOVES = 3  # bonds turned at most in a contrastive move

    def __init__(self, expert: Expert, snapshots: Snapshots, tempering: float, device):
        self.expert, self.tempering = expert, tempering
        self.inputs = Inputs.of(snapshots.system, device=device)
        self.moving = torch.as_tensor(snapshots.moving, device=device)[:, None]
        self.force2 = 0.0  # mean square of a component of F/kT
        self.force_weight = float(expert.force_weight)
        if self.force_weight:
            known = np.flatnonzero(snapshots.labelled)[:1000]
            if len(known):
                self.force2 = float(np.mean(snapshots.reduced_forces[known] ** 2))
        self.moves = self.permutations = None
        if not snapshots.system.periodic:
            self.permutations = torch.as_tensor(snapshots.topology.permutations, device=device)
            if len(snapshots.topology.rotors):
                self.moves = Moves(snapshots.topology, device)

    def __call__(self, network: nn.Module, x: Tensor, generator: torch.Generator) -> dict:
        """Mean losses by name; ``loss`` is their weighted sum. x is of `fit.frames_of`."""
        return self.terms(network, self.draw(x, generator))

    def draw(self, x: Tensor, generator: torch.Generator) -> Drawn:
        """Noise, and moves between modes, of the frames x: all that takes random numbers.

        Tensors by name, whose shapes follow from that of x.
        """
        e, n = self.expert, len(x)

        def random(shape):
            return torch.randn(shape, generator=generator, dtype=x.dtype).to(x.device)

        if self.permutations is not None:
            which = torch.randint(len(self.permutations), (n,), generator=generator)
            order = self.permutations[which.to(x.device)]
            x = x.gather(1, order[:, :, None].expand_as(x))
        x, *told = x.split(3, dim=-1)
        sigma = losses.log_uniform(n, *e.sigma, generator)
        if e.focus:
            sigma[::2] = losses.log_uniform(len(sigma[::2]), *e.focus, generator)
        sigma = sigma.to(x)
        epsilon = random(x.shape) * self.moving
        noisy = x + sigma[:, None, None] * epsilon
        points = [noisy, x - sigma[:, None, None] * epsilon]
        drawn = {"sigma": sigma, "epsilon": epsilon}
        if e.corrects:
            drawn["base"] = told.pop()
        if self.force_weight:
            drawn["labels"] = told.pop()
        if e.torsional > 0 and self.moves is not None:
            rotor, xi = self.moves.choose(n, generator), random((n,))
            points += [self.moves.rotate(x, rotor, sign * self.DELTA * xi) for sign in (1, -1)]
            drawn |= {"rotor": rotor, "xi": xi}
        drawn["points"] = torch.cat(points)
        # noise is added before the move, which is symmetric at every noise level
        if e.contrastive > 0 and self.moves is not None:
            drawn["contrastive"] = self.moves.scramble(noisy, self.MOVES, generator)
        if e.mirror > 0:
            drawn["mirror"] = -noisy
        return drawn

    def terms(self, network: Callable[..., Tensor], drawn: Drawn) -> dict[str, Tensor]:
        """Mean losses by name of what was ``drawn``, a function of tensors of fixed shapes.

        ``network``: a module, or what can be called as one.
        """
        e, of_first = self.expert, self.inputs.energy(network)

        def energy(positions, level):
            return self.tempering * of_first(positions, level)

        sigma, epsilon, x = drawn["sigma"], drawn["epsilon"], drawn["points"]
        copies = len(x) // len(sigma)
        _, scores = losses.score(energy, x, sigma.repeat(copies), create_graph=True)
        if e.corrects:
            scores = scores + drawn["base"].repeat(copies, 1, 1)
        plus, minus, *turned = (scores * self.moving).chunk(copies)
        terms = {"denoising": losses.denoising_loss(plus, minus, epsilon, sigma).mean()}
        matched = terms["denoising"]
        if self.force_weight:
            known = drawn["labels"].isfinite().all(-1).all(-1)
            labels = torch.where(known[:, None, None], drawn["labels"], 0.0)
            wrong = losses.force_loss(plus, minus, labels * self.moving, sigma) * known
            # where noise hides the forces they say less than the noise itself
            terms["forces"] = (wrong / (1 + sigma**2 * self.force2)).mean()
            told_of = 1 + self.force_weight * known.to(x).mean()
            matched = (matched + self.force_weight * terms["forces"]) / told_of
        loss = e.denoising / self.tempering * matched
        if turned:
            rotor, xi = drawn["rotor"], drawn["xi"]
            g_plus, g_minus = (
                self.moves.angular_score(p, s, rotor)
                for p, s in zip(x.chunk(copies)[2:], turned, strict=True)
            )
            terms["torsional"] = losses.torsional_loss(g_plus, g_minus, xi, self.DELTA).mean()
            loss = loss + e.torsional / self.tempering * terms["torsional"]
        negatives = {name: drawn[name] for name in ("contrastive", "mirror") if name in drawn}
        if negatives:
            together = torch.cat([x[: len(sigma)], *negatives.values()])
            first, *moved = energy(together, sigma.repeat(1 + len(negatives))).chunk(
                1 + len(negatives)
            )
            for name, other in zip(negatives, moved, strict=True):
                terms[name] = losses.contrastive_loss(first, other).mean()
                loss = loss + getattr(e, name) * terms[name]
        return {**terms, "loss": loss}
