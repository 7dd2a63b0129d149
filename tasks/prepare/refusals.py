"""What the program refuses, with exit code 2: the rule, what arrived, a way out."""


class SourceError(ValueError):
    """A source is missing, damaged, malicious, or not the dataset that was asked for."""


class TargetError(ValueError):
    """The dataset cannot be written where it was asked for."""


def shown(names: list[str], limit: int = 10) -> str:
    """The first few of many names, for messages."""
    more = f", and {len(names) - limit:,} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "nothing") + more
