"""Generation: samples, encodings and interpolations."""
