"""What the datasets share: sources, augmentation, feature converter, metric, registration."""
