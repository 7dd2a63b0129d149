"""Save, restore, warm-start and follow checkpoints. Alone imports orbax."""
