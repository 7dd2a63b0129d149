"""Progress of training, on a terminal and elsewhere."""

import math
import sys
import time
from typing import Any

import jax

LINE_PERIOD = 10.0
"""Seconds between plain lines if the output is not a terminal."""


class Progress:
    """A progress bar on a terminal, otherwise a plain line every `LINE_PERIOD` seconds.

    Args:
        start: first step.
        stop: last step.
        batch_size: images per step.
        enabled: False prints nothing.
    """

    def __init__(self, start: int, stop: int, batch_size: int, *, enabled: bool = True) -> None:
        self._stop, self._batch_size = stop, batch_size
        self._enabled = enabled
        self._began: tuple[float, int] | None = None
        self._last_line = -math.inf
        self._bar: Any = None
        if enabled and sys.stderr.isatty():
            import tqdm

            self._bar = tqdm.tqdm(
                initial=start, total=stop, unit="step", dynamic_ncols=True, smoothing=0.1
            )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def say(self, text: str) -> None:
        """Print a line without breaking the bar."""
        if self._bar is not None:
            self._bar.write(text)
        elif self._enabled:
            print(text, flush=True)

    def update(self, step: int, bpd: float) -> None:
        """Report that the device has finished `step` (0 for none yet), and its training loss."""
        now = time.monotonic()
        if step == 0:
            return
        if self._began is None:
            self._began = (now, step)  # the first step includes compilation
        seconds, steps = now - self._began[0], step - self._began[1]
        rate = steps / seconds if steps and seconds > 0 else 0.0
        if self._bar is not None:
            self._bar.set_postfix_str(
                f"{bpd:.4f} bpd, {rate * self._batch_size:.0f} images/s", refresh=False
            )
            self._bar.update(step - self._bar.n)
        elif (
            self._enabled and rate and (now - self._last_line >= LINE_PERIOD or step == self._stop)
        ):
            self._last_line = now
            left = _duration((self._stop - step) / rate)
            print(
                f"step {step}/{self._stop}  {bpd:.4f} bpd  {rate * self._batch_size:.0f} images/s  "
                f"{left} left",
                flush=True,
            )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def image_bar(what: str, count: int, done: int) -> Any:
    """Return a progress bar of images on a terminal of process 0; a context with `update`."""
    import tqdm

    is_off = True if jax.process_index() else None  # None: off without a terminal
    return tqdm.tqdm(
        desc=what, total=count, initial=done, unit="image", dynamic_ncols=True, disable=is_off
    )
