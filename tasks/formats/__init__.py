"""Facts about published datasets and file formats, for `tasks.support` and `tasks.prepare`."""
