"""Diffusion ODEs trained for maximum likelihood and scored exactly, declared in Gin files."""

__version__ = "0.1.0"
