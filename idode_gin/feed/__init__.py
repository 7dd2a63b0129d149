"""From a task name to a decoded split to batches on devices."""
