"""Uniform quantiles of a batch of times."""
