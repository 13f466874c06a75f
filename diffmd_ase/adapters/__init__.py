"""ASE: calculators and dynamics; no physics of their own."""
