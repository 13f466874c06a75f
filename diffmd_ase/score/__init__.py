"""Snapshots → p(x): the data, the networks, the losses, the training loop, the model."""
