"""Biases with memory under dynamics that are not ours."""

from __future__ import annotations

import torch

from ..potentials.base import Potential

__all__ = ["Observer"]


class Observer:
    """Lets ``bias`` learn once per step of a plain ASE dynamics; see `Potential.observer`.

    Parameters
    ----------
    bias : that of the calculator of ``dyn.atoms``
    dyn : any dynamics or optimiser of ASE: its ``nsteps`` says when a step has ended
    """

    def __init__(self, bias: Potential, dyn):
        self.bias, self.dyn, self._last = bias, dyn, dyn.nsteps
        self._start = torch.tensor(dyn.atoms.positions)  # where observers are not called at first
        # before all others, so that a frame has what acted, not what was learned from it
        dyn.insert_observer(self.say)

    def say(self) -> None:
        """What the bias says of the atoms, in their ``info``."""
        atoms = self.dyn.atoms
        described = self.bias.describe(torch.tensor(atoms.positions))
        atoms.info |= {name: float(value) for name, value in described.items()}

    def __call__(self) -> None:
        """Learn from the step that has ended, if it is a new one; at first from the start."""
        atoms, step = self.dyn.atoms, self.dyn.nsteps
        x, before = torch.tensor(atoms.positions), self._last
        learned = self.bias.begin(x if step == before else self._start, before)
        if step > before:
            self._last = step
            learned = self.bias.update(x, step) or learned
        if learned:
            atoms.calc.reset()  # its results are those before the bias has learned
