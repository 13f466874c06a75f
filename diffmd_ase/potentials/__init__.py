"""x → energy and forces: learned, analytic, from calculators, biases, and their sums."""

from .base import Evaluation, Potential, Sum

__all__ = ["Evaluation", "Potential", "Sum"]
