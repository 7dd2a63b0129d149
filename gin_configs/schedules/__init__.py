"""Objectives; each file defines SCHEDULE, PARAMETERIZATION, TIME_SAMPLER and LOSS."""
