"""What trajectories say of dynamics: certificates of error, kinetics, paths."""
