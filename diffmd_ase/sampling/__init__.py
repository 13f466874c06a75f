"""State and noise → state: kernels, and chains of their steps."""
