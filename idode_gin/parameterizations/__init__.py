"""Parameterizations: the meaning of the network's output as an affine map to noise."""
