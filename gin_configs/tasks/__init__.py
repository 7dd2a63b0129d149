"""Datasets; each file defines their names, sizes and smallest gamma."""
