"""Evaluations that cost less than all bounds."""
