"""Programs: train, finetune, eval, sample, encode, interpolate."""
