"""Rules for steps with a loss that is not finite or jumps: skip or stop."""
