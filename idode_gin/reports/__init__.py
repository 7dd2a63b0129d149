"""Metrics writers, plots, progress, files, hashes."""
