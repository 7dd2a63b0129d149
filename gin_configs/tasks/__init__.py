"""One dataset each: its name and its sizes."""
