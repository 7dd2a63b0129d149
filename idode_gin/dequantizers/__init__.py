"""Dequantizers: from integer pixels to the start of the ODE, with its density."""
