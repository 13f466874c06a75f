"""Old names of modules and of what is in them: they work, with a ``DeprecationWarning``.

``from diffmd_ase.potentials.cvs import Torsion`` is what scripts and plugins were told to write;
the variable now lives in ``diffmd_ase.potentials.biases.cvs``. A finder answers for modules that
are gone (Python asks it only where no file does); modules that are still there but have given
names away forward them.
"""

import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from typing import Any

__all__ = ["MOVED", "forward", "install"]

_PACKAGE = __package__
MOVED = {
    "analysis.barrier": "analysis.free_energy.barrier",
    "analysis.hills": "analysis.free_energy.hills_files",
    "analysis.plumed_files": "io.plumed_tables",
    "analysis.report": "report.report",
    "analysis.reweighting": "analysis.free_energy.reweighting",
    "calculator": "adapters.calculator",
    "checkpoint": "io.checkpoint",
    "demo": "cli.demo_parts report.make",
    "doctor": "cli.doctor",
    "dynamics": "adapters.dynamics adapters.batch",
    "fes": "analysis.free_energy.from_files",
    "h5md": "io.h5md io.atomic io.run_info",
    "potentials.calculators": "potentials.ase_calculator",
    "potentials.cv_base": "potentials.biases.cv",
    "potentials.cvbias": "potentials.biases.base",
    "potentials.cvs": "potentials.biases.cvs",
    "potentials.frozen": "potentials.biases.recorded",
    "potentials.hills": "potentials.biases.hills",
    "potentials.metadynamics": "potentials.biases.metadynamics",
    "potentials.opes": "potentials.biases.opes",
    "potentials.recorded": "potentials.biases.recorded",
    "potentials.restraints": "potentials.biases.restraints",
    "sampling.annealed": "independent.reverse",
    "sampling.iid": "independent.draws",
    "sampling.path": "independent.paths",
    "sampling.smc": "independent.smc",
    "sampling.tally": "sampling.acceptance",
    "sampling.weights": "independent.weights",
    "score.diffusion": "score.losses score.torsion_moves",
    "score.embedded": "score.networks.embedded score.embedded_fit",
    "score.experts": "score.plan",
    "score.mechanics": "score.force_field",
    "score.network": "score.networks.build score.networks.molecule score.networks.embedded "
    "score.networks.equivariant score.networks.equivariant_config score.networks.inputs",
    "score.networks.noise_level": "score.networks.inputs",
    "score.prior": "score.force_field_fit",
    "series": "io.read_trajectories",
    "storage": "io.trajectory io.run_info",
    "simulation.ranks": "io.ranks",
    "targets": "potentials.named",
}
"""Old name of a module below the package, and the modules that have its public names now."""


def forward(module: str, places: str) -> Callable[[str], Any]:
    """The ``__getattr__`` of ``module``, whose names have moved to ``places``, modules of ours.

    Raises ``AttributeError``, as a module does, for a name that none of them has.
    """

    def lookup(name: str):
        ours = name.startswith("_") or _is_submodule(module, name)  # found without us
        for place in () if ours else places.split():
            target = import_module(f"{_PACKAGE}.{place}")
            if name in target.__all__:
                warnings.warn(
                    f"{module}.{name} has moved: import it from {target.__name__}",
                    DeprecationWarning,
                    stacklevel=2,
                )
                return getattr(target, name)
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return lookup


def _is_submodule(module: str, name: str) -> bool:
    is_package = sys.modules[module].__spec__.submodule_search_locations is not None
    return is_package and find_spec(f"{module}.{name}") is not None


class _Finder(MetaPathFinder, Loader):
    def find_spec(self, fullname, path=None, target=None):
        package, _, name = fullname.partition(".")
        return ModuleSpec(fullname, self) if package == _PACKAGE and name in MOVED else None

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        places = MOVED[module.__name__.partition(".")[2]]
        module.__getattr__ = forward(module.__name__, places)


def install() -> None:
    """Let Python ask for the old names, after everything else."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
