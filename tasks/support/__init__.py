"""Sources, augmentation, feature converter, metric and registration, shared by the tasks."""
