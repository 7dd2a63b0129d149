"""Samplers: noise to images by the probability-flow ODE or by special steps."""
