"""One recipe of the maths each: SCHEDULE, PARAMETERIZATION, TIME_SAMPLER, LOSS."""
