"""Laws: identities that every class of a kind satisfies, and exactly solvable models."""
