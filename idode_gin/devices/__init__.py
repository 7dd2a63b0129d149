"""Mesh, axis rules, partitioning, memory and FLOPs from shapes, compilation cache."""
