"""Errors that end the program with exit code 2: the rule, what arrived, a way out."""


class SourceError(ValueError):
    """A source is missing, damaged, malicious, or another dataset than requested."""


class TargetError(ValueError):
    """The dataset cannot be written to the requested place."""


def shown(names: list[str], limit: int = 10) -> str:
    """Return the first few of many names, for messages."""
    more = f", and {len(names) - limit:,} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "nothing") + more
