"""Plumbing: data, devices, optimizer, checkpoints, metrics, signals."""
