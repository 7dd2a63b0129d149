"""Python's garbage collector, kept out of where all it does is take time."""

import atexit
import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def paused() -> Iterator[None]:
    """Collect no garbage meanwhile.

    Imports and the tracing of a large network make millions of objects that stay. The collector
    goes through all of them again and again, a fifth of the time, and frees nothing.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def leave_to_the_end() -> None:
    """Collect nothing when the process ends, which frees everything anyway.

    A last search through all objects of jax takes seconds.
    """
    atexit.register(gc.freeze)
