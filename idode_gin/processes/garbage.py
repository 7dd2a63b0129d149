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


def spare() -> None:
    """Never collect what there is now, nor anything when the process ends.

    What was imported stays to the end, and the end frees everything anyway: a last search through
    all objects of jax takes seconds.
    """
    gc.freeze()
    atexit.register(gc.freeze)
