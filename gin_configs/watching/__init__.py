"""How a run is watched beside its metrics: a profile, Weights & Biases."""
