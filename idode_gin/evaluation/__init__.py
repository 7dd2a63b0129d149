"""Score a split: evaluator, per-image scores, results, checkpoint series, pilot runs, parity."""
