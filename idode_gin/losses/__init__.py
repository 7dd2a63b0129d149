"""Training objectives and variational bounds."""
