"""Parts shared by all runs: inputs, facts, partial results, locks, output folders, image loops."""
