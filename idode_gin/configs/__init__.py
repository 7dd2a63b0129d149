"""Gin: find files, check names and types, build objects. The only room that imports gin."""
