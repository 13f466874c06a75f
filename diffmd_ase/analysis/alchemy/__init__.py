"""Free energies of a coupling from samples at several λ; the estimators are those of alchemlyb."""
