"""x → energy and forces: learned, analytic, from calculators, biases, and their sums."""

from ..state import Evaluation
from .base import Potential, Sum

__all__ = ["Evaluation", "Potential", "Sum"]
