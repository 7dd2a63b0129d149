"""Comparisons with the evaluations of other programs."""
