"""Networks; each file defines NETWORK."""
