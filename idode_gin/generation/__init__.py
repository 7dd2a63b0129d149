"""Loops that draw: samples, encodings, interpolations."""
