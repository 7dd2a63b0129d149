"""What all runs share: inputs, facts, partial results, locks, output folders, image loops."""
