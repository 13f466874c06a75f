"""Potentials that guide or learn: variables, restraints, metadynamics, OPES."""
