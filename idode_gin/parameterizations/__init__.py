"""What the network's output means: affine maps from output to noise."""
