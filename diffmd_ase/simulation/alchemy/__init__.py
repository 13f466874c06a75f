"""Free-energy differences as runs that leave files: end states, protocols, results."""
