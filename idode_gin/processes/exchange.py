"""Small values that all processes get, over their devices."""

from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from idode_gin.processes import joining
from idode_gin.reports import paths

_ERRORS = (ValueError, OSError, paths.StoreError)


def from_first(make: Callable[[], bytes | None]) -> bytes:
    """Return on all processes what `make` returns on process 0, where alone it is called.

    None is returned as b"".

    Raises:
        ValueError: if `make` raises one; so do all processes. Likewise for an OSError, and a
            `paths.StoreError`.
    """
    if jax.process_count() == 1:
        return make() or b""
    content = b""
    if jax.process_index() == 0:
        try:
            content = b"\0" + (make() or b"")
        except _ERRORS as error:
            kind = 1 + isinstance(error, OSError) + isinstance(error, paths.StoreError)
            content = bytes([kind]) + str(error).encode()
    joining.wait_for_all("made")  # `make` may take minutes, in a bucket
    # As bytes: numbers would be rounded to the width that jax is set to.
    size = int.from_bytes(_broadcast(len(content).to_bytes(8, "little")), "little")
    received = _broadcast(content.ljust(size, b"\0"))
    if received[0]:
        raise _ERRORS[received[0] - 1](received[1:].decode())
    return received[1:]


def _broadcast(content: bytes) -> bytes:
    """Return the bytes of process 0; all processes pass equally many."""
    sent = np.frombuffer(content, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(sent), np.uint8).tobytes()


def is_any(flag: bool) -> bool:
    """Return True on all processes if `flag` holds on any; all must call this."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))
