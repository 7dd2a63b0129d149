"""Samplers; each file defines SAMPLER."""
