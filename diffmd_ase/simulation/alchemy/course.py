"""An alchemical run from its settings to its result: plan, protocol, estimate, files."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...analysis.alchemy.einstein import crystal_free_energy, lattice_shifts
from ...analysis.alchemy.estimates import CoupledEstimate, estimate
from ...analysis.alchemy.plots import alchemy_figure, works_figure
from ...analysis.alchemy.works import from_works
from ...analysis.statistics import Estimate
from ...independent.from_noise import Annealed
from ...io.atomic import replacing
from ...io.json_text import to_json
from ...io.lock import locked
from ...libraries import quiet_alchemlyb
from ...noise import Noise
from ...potentials.analytic import Harmonic, HarmonicCrystal
from ...potentials.ase_calculator import AsePotential
from ...potentials.base import unwrapped
from ..settings import json_object
from .end_states import EINSTEIN, HARMONIC, CoupledKernels, couple
from .plan import Plan, first_pass, with_weights
from .protocols import PARTICLES, annealed, from_diffusion, sampled, switched
from .settings import AlchemyFiles, AlchemySettings

__all__ = ["AlchemyResult", "alchemy"]

_MAY_CHANGE = {"steps", "skip", "prefix", "device"}  # from a run to its restart


@dataclass
class AlchemyResult:
    """ΔF = F_B - F_A as shown: ``numbers``, ``verdicts``, and the ``files`` that were written."""

    best: Estimate  # in kT
    numbers: dict[str, Any]
    verdicts: list[dict[str, Any]]
    files: list[Path] = field(default_factory=list)


def alchemy(
    settings: AlchemySettings,
    *,
    restart: bool = False,
    progress: Callable[..., None] | None = None,
    kernels: CoupledKernels | None = None,
) -> AlchemyResult:
    """Make the run that ``settings`` ask for, or go on with it, and write its result.

    Parameters
    ----------
    restart : go on with whatever is on disk: plan, trajectory, works
    progress : told the name of a stage and the part of it that is done
    kernels : end states that are made already, in place of those that the settings name

    Raises
    ------
    FileExistsError : another run left its files, and this is no restart
    ImportError : alchemlyb is not installed, which is known before anything is computed
    ValueError : what does not fit together
    """
    quiet_alchemlyb()
    files, report = AlchemyFiles(settings.prefix), progress or (lambda stage, done: None)
    if not restart:
        files.check_free()
    made = kernels or _couple(settings)
    plan = _planned(settings, made, files, report)
    if settings.protocol == "switching":
        works = switched(settings, made, plan, files, report)
        found = from_works(works.forward, works.backward)
        best, numbers, verdicts = found.best, found.numbers(), found.verdicts
        figure, rows = works_figure(works.forward, works.backward, best), _works_rows(works)
        more: list[Path] = []
    elif settings.protocol in ("smc", "diffusion"):
        if settings.protocol == "smc":
            best, verdicts = annealed(settings, made, plan, files, report), []
        else:
            best, noise = from_diffusion(settings, made, plan, report)
            verdicts = [_evenness(noise, settings.walkers)]
        numbers, figure, more = {"SMC_kT": best.value, "SMC_error_kT": best.error}, None, []
        rows = [["estimate (kT)", "error (kT)"], [best.value, best.error]]
        few = best.n_effective
        verdicts.append({"good": bool(few >= 20), "text": f"weights are worth {few:.0f} samples"})
    else:
        samples, _ = sampled(settings, made, plan, files, report)
        result = estimate(samples, skip=settings.skip)
        best, numbers, verdicts = result.best, result.numbers(), result.verdicts
        figure, rows = alchemy_figure(result), _window_rows(result)
        more = samples.after(settings.skip).write(files.prefix)
    numbers = {"dF_kT": best.value, "dF_error_kT": best.error} | numbers
    numbers |= _effort(settings, made, plan, best) | _crystal(settings, made, best)
    verdicts = [*_failures(made), *verdicts]
    if settings.start in (EINSTEIN, HARMONIC) and "F_eV_per_atom" not in numbers:
        text = (
            "no absolute free energy: it needs a crystal, periodic everywhere, without fixed atoms"
        )
        verdicts.append({"good": None, "text": text})
    written = _write(files, numbers, verdicts, figure, rows)
    return AlchemyResult(best, numbers, verdicts, [*written, *more])


def _couple(settings: AlchemySettings) -> CoupledKernels:
    return couple(
        settings.start,
        settings.end,
        settings.structure,
        temperature_K=settings.temperature,
        end_atoms=settings.end_structure,
        soft=settings.soft_core,
        plain=settings.plain,
        start_options=json_object("--start-options", settings.start_options),
        end_options=json_object("--end-options", settings.end_options),
        device=settings.device,
    )


def _planned(
    settings: AlchemySettings, kernels: CoupledKernels, files: AlchemyFiles, report
) -> Plan:
    asked = settings.model_dump_json(exclude=_MAY_CHANGE)
    if files.plan.exists():
        plan = Plan.load(files.plan)
        _check_same(files, json.loads(asked), json.loads(plan.asked))
        return plan
    report("first pass", 0.0)
    noise = Noise(settings.seed).child(0)
    plan = first_pass(kernels, settings.windows, settings.first_pass, noise=noise)
    if settings.protocol == "expanded":
        report("first pass", 0.5)
        again = Noise(settings.seed).child(3)
        walkers, steps, every = settings.walkers, settings.first_pass, settings.every
        plan = with_weights(kernels, plan, walkers, steps, every, noise=again)
    plan = replace(plan, asked=asked)
    with locked(files.run.lock, f"the files of {files.prefix}"):
        plan.save(files.plan)
    report("first pass", 1.0)
    return plan


def _check_same(files: AlchemyFiles, now: dict[str, Any], before: dict[str, Any]) -> None:
    for name, value in now.items():
        if value != before.get(name):
            raise ValueError(
                f"restart of {files.prefix}: {name.replace('_', '-')} {value} now, but the run has "
                f"{before.get(name)}; repeat its settings, or choose another prefix"
            )


def _effort(
    settings: AlchemySettings, kernels: CoupledKernels, plan: Plan, best: Estimate
) -> dict[str, Any]:
    """Evaluations of each end state, and how many an error of 0.1 kT takes."""
    ends = settings.protocol in ("switching", "smc")
    walkers = settings.walkers * (2 if ends else len(plan.lambdas))
    frames = settings.steps // settings.every
    draws = frames if settings.protocol in ("exchange", "expanded") else 0
    count = kernels.spent + plan.evaluations + walkers * (settings.steps + frames + draws)
    if settings.protocol == "diffusion":
        count = plan.evaluations + settings.walkers * PARTICLES * settings.switch_steps
    elif ends:
        count += int(best.n_effective) * (settings.switch_steps + 1)
    return {
        "evaluations_of_each_end": count,
        "evaluations_for_0.1_kT": count * (best.error / 0.1) ** 2,
        "length_of_path_kT": plan.length,
        "factor_of_step": plan.factor,
    }


def _crystal(settings: AlchemySettings, kernels: CoupledKernels, best: Estimate) -> dict[str, Any]:
    """The absolute free energy, where A is an ideal crystal, and its centre alone is held."""
    system, ideal = kernels.system, kernels.coupling.inner.potentials[0]
    named = settings.start in (EINSTEIN, HARMONIC)
    if not (named and system.pbc.all() and kernels.centre_held):
        return {}
    told: dict[str, Any] = {}
    if isinstance(ideal, HarmonicCrystal):
        stiffness: Any = np.linalg.eigvalsh(ideal.hessian.numpy())
    elif isinstance(ideal, Harmonic):
        stiffness = float(ideal.k)
        told = {"einstein_k_eV_A2": stiffness}
    else:
        return {}
    kT, shifts = kernels.kT, lattice_shifts(kernels.x.numpy(), system)
    whole = crystal_free_energy(
        Estimate(best.value * kT, best.error * kT, best.n_effective),
        stiffness=stiffness,
        kT=kT,
        masses=system.masses,
        volume=float(abs(np.linalg.det(system.cell))),
        shifts=shifts,
    )
    return told | {
        "lattice_shifts": shifts,
        "centre_of_mass_eV_per_atom": whole.centre / whole.atoms,
        "F_eV_per_atom": whole.total / whole.atoms,
        "F_configurational_eV_per_atom": whole.configurational / whole.atoms,
        "F_error_eV_per_atom": whole.coupling.error / whole.atoms,
    }


def _failures(kernels: CoupledKernels) -> list[dict[str, Any]]:
    ends = [unwrapped(t) for p in kernels.coupling.inner.potentials for t in unwrapped(p).terms]
    return [
        {
            "good": False,
            "text": f"{type(end.calculator).__name__} failed for {end.failed} structures, which "
            f"were rejected (since this start): {end.last_failure}",
        }
        for end in ends
        if isinstance(end, AsePotential) and end.failed
    ]


def _window_rows(result: CoupledEstimate) -> list[list]:
    head = ["lambda", "F (kT)", "error (kT)", "dU/dlambda (kT)", "error (kT)"]
    head += ["effective samples", "overlap with next"]
    overlap = [*result.neighbour_overlap, np.nan]
    columns: list[Any] = [result.states, result.profile, result.profile_error, result.slope]
    columns += [result.slope_error, result.n_effective, overlap]
    return [head, *map(list, zip(*columns, strict=True))]


def _evenness(found: Annealed, populations: int) -> dict[str, Any]:
    """Whether populations that came from noise agree on how likely what they found is."""
    text = f"populations from noise are worth {found.populations:.1f} of {populations}"
    good = found.populations >= max(2.0, 0.25 * populations)
    if not good:
        text += ": what they found differs in weight; take more --steps (levels) or --walkers"
    return {"good": bool(good), "text": text}


def _works_rows(works) -> list[list]:
    both = zip(works.forward, works.backward, strict=True)
    return [["work forward (kT)", "work backward (kT)"], *map(list, both)]


def _write(files: AlchemyFiles, numbers, verdicts, figure, rows) -> list[Path]:
    with replacing(files.json) as part:
        part.write_text(to_json(numbers | {"verdicts": verdicts}))
    with replacing(files.csv) as part, open(part, "w", newline="") as file:
        csv.writer(file).writerows(rows)
    if figure is None:
        return [files.json, files.csv]
    with replacing(files.png) as part:
        figure.savefig(part, format="png", dpi=130, facecolor="white")
    return [files.json, files.csv, files.png]
