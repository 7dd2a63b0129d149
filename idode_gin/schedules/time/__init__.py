"""How fast time runs along a path: gamma(t)."""
