"""One run, one model, one task, one objective, and the numbers."""
