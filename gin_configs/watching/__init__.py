"""Profiles and external loggers of a training run."""
