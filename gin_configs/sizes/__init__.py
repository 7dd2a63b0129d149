"""Sizes; each file defines NETWORK and the settings of a training."""
