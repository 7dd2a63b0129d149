"""Paths from data to noise: signal and noise amplitudes as functions of gamma."""
