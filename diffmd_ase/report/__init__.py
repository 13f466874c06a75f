"""A model, samples and trajectories as one HTML page."""
