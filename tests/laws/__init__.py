"""Laws: what every class of a kind must satisfy, and exactly solvable models."""
