"""How far the work is: a bar on a terminal, a plain line now and then elsewhere."""

import sys
import time
from types import TracebackType
from typing import Any

LINE_PERIOD = 10.0
"""Seconds between plain lines."""


class Progress:
    """Counts images.

    Args:
        what: the work, for instance "writing train".
        total: images; None: not known.
    """

    def __init__(self, what: str, total: int | None) -> None:
        self._what, self._total, self._done = what, total, 0
        self._began = self._last_line = time.monotonic()
        self._bar: Any = None
        if sys.stderr.isatty():
            import tqdm

            self._bar = tqdm.tqdm(total=total, desc=what, unit="img", dynamic_ncols=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif error is None:
            self._line()

    @property
    def done(self) -> int:
        """Images so far."""
        return self._done

    def add(self, num_images: int) -> None:
        """Shows that so many more are done."""
        self._done += num_images
        if self._bar is not None:
            self._bar.update(num_images)
        elif time.monotonic() - self._last_line >= LINE_PERIOD:
            self._line()

    def _line(self) -> None:
        self._last_line = time.monotonic()
        rate = self._done / max(self._last_line - self._began, 1e-9)
        total = "" if self._total is None else f" of {self._total:,}"
        print(f"{self._what}: {self._done:,}{total}, {rate:,.0f} images/s", flush=True)
