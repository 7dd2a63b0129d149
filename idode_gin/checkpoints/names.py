"""Names of checkpoints' folders: `checkpoint_<step>`, without leading zeros."""

import re

PREFIX = "checkpoint"
_NAME = re.compile(rf"{PREFIX}_(0|[1-9][0-9]*)")
_MISNAMED = re.compile(rf"{PREFIX}_[-+]?\d+")


def is_checkpoint(name: str) -> bool:
    """Return True for a name such as `checkpoint_7`."""
    return _NAME.fullmatch(name) is not None


def is_misnamed(name: str) -> bool:
    """Return True for a name such as `checkpoint_007`, which is ignored."""
    return _MISNAMED.fullmatch(name) is not None and not is_checkpoint(name)
