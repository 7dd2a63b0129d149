"""Wait for orbax as long as the bucket answers.

tensorstore, which reads and writes the arrays of a checkpoint, repeats a request that fails 32
times, with pauses of up to 32 seconds: for a quarter of an hour, and without an end if a connection
stays silent. Its context can limit that (`gcs_request_retries`), but orbax 0.12 makes that context
itself and takes no other. A limit on the time of a save would end slow ones as well. So while one
runs, the bucket is looked at by gcsfs, which gives up sooner.
"""

import concurrent.futures
import pathlib
import threading
from collections.abc import Callable
from typing import TypeVar

from idode_gin.reports import paths

LOOK = 15.0
"""Seconds between two looks at the bucket."""
PATIENCE = 90.0
"""Seconds that a look may take; a refused one ends after about 40."""

T = TypeVar("T")


def while_answering(folder: pathlib.Path, act: Callable[[], T]) -> T:
    """Return `act()`; for a folder in a bucket, give up when the bucket does not answer.

    `act` is not interrupted then: it continues in a thread.

    Raises:
        paths.StoreError: if the bucket does not answer.
    """
    if not paths.in_bucket(folder):
        return act()
    found = _begun(act)
    while not _is_done(found, LOOK):
        look = _begun(folder.exists)
        if not _is_done(look, PATIENCE):
            raise paths.StoreError(f"{folder} cannot be reached: no answer in {PATIENCE:g} s.")
        look.result()
    return found.result()


def _begun(act: Callable[[], T]) -> "concurrent.futures.Future[T]":
    """Call `act` in a thread that does not hold up the end of the program."""
    future: concurrent.futures.Future[T] = concurrent.futures.Future()

    def run() -> None:
        try:
            future.set_result(act())
        except BaseException as error:  # raised where the result is asked for
            future.set_exception(error)

    threading.Thread(target=run, name="while_answering", daemon=True).start()
    return future


def _is_done(future: "concurrent.futures.Future[T]", seconds: float) -> bool:
    return not concurrent.futures.wait([future], seconds).not_done
