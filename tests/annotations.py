"""How annotations are checked in the test run: an int is a float too, as type checkers have it."""

import collections
from typing import Any

import beartype

_check: Any = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))
_times_defined: collections.Counter[tuple[str, str]] = collections.Counter()
_MOST = 4


def check(function: Any) -> Any:
    """Return a function, or class, that checks the annotations of each call.

    A function within another is defined anew by every call of that one, and the code that checks it
    is written anew, a tenth of a test's time. It is checked the first times that it is defined.
    """
    name = (function.__module__, function.__qualname__)
    if "<locals>" in function.__qualname__:
        _times_defined[name] += 1
    return function if _times_defined[name] > _MOST else _check(function)
