"""Verification kit: for our own tests and for authors of potentials and kernels.

    from diffmd_ase.testing import check_kernel, check_kernel_exact, check_potential, targets

    def test_potential():
        check_potential(MyPotential(system), x)

    def test_kernel():
        case = targets.banana()
        kernel = MyKernel(case.drift, case.target, kT=case.kT, h=case.h)
        check_kernel(kernel, case.sample(4, seed=0))
        check_kernel_exact(kernel, case)

`targets` are cases with exact samples and exact means, `mutants` the classic bugs of a
Metropolis step, which those checks must catch in your kernel as well. Every check raises
``AssertionError`` saying what was expected and what was found.
"""

from . import mutants, targets
from .case import Case
from .kernels import (
    check_antisymmetric,
    check_detailed_balance,
    check_kernel,
    check_kernel_exact,
    enumerate_moves,
    log_ratio,
    zscores,
)
from .noise import Prescribed, Recorded, check_addresses
from .potentials import assert_zscore, check_equivariant, check_potential, check_stress

__all__ = [
    "Case",
    "Prescribed",
    "Recorded",
    "check_addresses",
    "assert_zscore",
    "check_antisymmetric",
    "check_detailed_balance",
    "check_equivariant",
    "check_kernel",
    "check_kernel_exact",
    "check_potential",
    "check_stress",
    "enumerate_moves",
    "log_ratio",
    "mutants",
    "targets",
    "zscores",
]
