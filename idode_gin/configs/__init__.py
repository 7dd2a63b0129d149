"""Gin: find files, check names and types, build objects. Alone imports gin."""
