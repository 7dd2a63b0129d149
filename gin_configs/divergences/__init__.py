"""Estimators of the divergence; each file defines DIVERGENCE."""
