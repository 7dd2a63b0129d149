"""Which checkpoints of a run directory an evaluation scores: CHECKPOINTS."""
