"""What becomes of bad steps: left out, or stopped at."""
