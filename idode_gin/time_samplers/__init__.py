"""Time samplers: the distribution of gamma in training."""
