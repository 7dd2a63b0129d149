"""One network each: defines NETWORK."""
