"""Gin files; a package, so that they are found in an installed wheel."""
