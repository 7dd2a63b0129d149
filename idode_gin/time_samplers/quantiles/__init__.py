"""The uniform numbers behind a batch of times."""
