"""Checkpoints that an evaluation scores; each file defines CHECKPOINTS."""
