"""Gin files; a package, so that they are found from an installed wheel."""
