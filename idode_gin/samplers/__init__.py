"""Noise to images: the probability-flow ODE, and steps made for it."""
