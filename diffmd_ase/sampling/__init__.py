"""State and noise → state: kernels, the loop, reverse diffusion."""
