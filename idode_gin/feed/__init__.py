"""Datasets: from a task's name to a decoded split to batches."""
