"""The networks: one molecule, metals, any neighbours."""
