"""What is bound to what: train, finetune, eval, sample, encode, interpolate."""
