"""What every loop shares: inputs, partial results, locks, output folders, the loop over images."""
