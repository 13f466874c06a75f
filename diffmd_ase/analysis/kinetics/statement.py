"""A certificate in words and in numbers: what each part says, and what it is conditional on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..statistics import Estimate

if TYPE_CHECKING:
    from .certificate import Certificate

__all__ = ["facts", "statement"]

_TRIVIAL = 2.0  # nats: sqrt(KL/2) = 1, what any two laws are within


def statement(certificate: Certificate, tolerance: float) -> str:
    """Sentences, a paragraph for each part; ``tolerance`` is that of the certified lag."""
    parts = [_equilibrium(certificate), _path(certificate, tolerance), _step(certificate)]
    return "\n".join(part for part in parts if part)


def _equilibrium(certificate: Certificate) -> str:
    found = certificate.equilibrium
    if found is None:
        return "Equilibrium: not compared, since the model or the reference has no energy."
    if not found.overlap:
        return (
            f"Equilibrium: the energies do not overlap (std(U - E) = {found.spread} kT, "
            f"{found.samples} samples are worth {found.effective * found.samples:.1f}): no bound "
            "on averages, and none on time correlations. Another system, another force field, or "
            "samples too far from the reference."
        )
    return (
        f"Equilibrium (estimated, on the visited support, from {found.samples} samples worth "
        f"{found.effective:.0%}): chi2 = {found.chi2}, std(U - E) = {found.spread} kT, so that "
        f"every average is within {found.bound} of its standard deviation of the reference's. "
        "Modes that no sample visited are not seen."
    )


def _path(certificate: Certificate, tolerance: float) -> str:
    path = certificate.path
    if path is None:
        return "Paths: not compared, since only plain Euler–Maruyama steps have a path density."
    said = f"Time correlations: the score's error is worth {path.rate} nats per Å² of D·t. "
    if certificate.equilibrium is None:
        return said + "Without energies no lag is certified."
    lag = certificate.certified_lag(tolerance)
    if lag == 0:
        reason = f"KL of the equilibria alone, {certificate.equilibrium.kl} nats, exceeds it"
        return said + f"No lag is certified to {tolerance:g}: {reason}."
    return said + (
        f"Averages of f(x(0), x(t)) in [0, 1] are certified to {tolerance:g} up to D·t = "
        f"{lag:.3g} Å² ({lag / path.h:.0f} steps), against the reference's chain at the same step."
    )


def _step(certificate: Certificate) -> str:
    path, total = certificate.path, certificate.total
    if path is None or total is None:
        return _rejections(certificate)
    said = (
        f"Step: at h = {path.h:.3g} Å² (hλ = {path.stiffness:.2g} on the visited support) its own "
        f"error is {path.discretisation} nats a step, most of it of the stiffest bonds; its bound "
        f"is {path.bound}. "
    )
    said += _rejections(certificate)
    span = certificate.n_steps * path.h
    said += (
        f"Over all {certificate.n_steps} steps (D·t = {span:.3g} Å²) the paths are within "
        f"{total} nats of the reference's diffusion"
    )
    trivial = ", which certifies nothing: such a bound grows with the run."
    return said + (trivial if total.value > _TRIVIAL else ".")


def _rejections(certificate: Certificate) -> str:
    found = certificate.log_alpha
    return "" if found is None else f"As proposals, steps have -⟨log α⟩ = {found}. "


def facts(certificate: Certificate, tolerance: float) -> dict[str, Any]:
    """All numbers by name; ``tolerance`` is that of the certified lag."""
    path, found = certificate.path, certificate.equilibrium
    result: dict[str, Any] = {"n_steps": certificate.n_steps}
    if found is not None:
        result["equilibrium"] = {
            "conditional_on": "estimated, on the visited support",
            "samples": found.samples,
            "effective_fraction": found.effective,
            "overlap": found.overlap,
            "chi2": found.chi2.to_dict(),
            "kl_nats": found.kl.to_dict(),
            "std_energy_kT": found.spread.to_dict(),
            "bound_sigma_f": found.bound.to_dict(),
        }
    if path is not None:
        lag = None if found is None else certificate.certified_lag(tolerance)
        result["path"] = {
            "conditional_on": "averages along the chain; the Lipschitz constant is that of the "
            "visited support",
            "h_A2": path.h,
            "h_lambda": path.stiffness,
            "freedom": path.freedom,
            "rate_nats_per_A2": path.rate.to_dict(),
            "score_kl": _told(certificate.score_kl),
            "discretisation_kl": _told(certificate.discretisation_kl),
            "discretisation_bound": _told(certificate.discretisation_bound),
            "path_kl": _told(certificate.path_kl),
            "total": _told(certificate.total),
            "tolerance": tolerance,
            "certified_lag_A2": lag,
        }
    if certificate.log_alpha is not None:
        result["minus_log_alpha"] = _told(certificate.log_alpha)
    return result | {"statement": statement(certificate, tolerance)}


def _told(estimate: Estimate | None) -> dict[str, float | None] | None:
    return None if estimate is None else estimate.to_dict()
