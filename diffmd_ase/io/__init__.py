"""What is on disk: trajectories, checkpoints, tables of PLUMED."""
