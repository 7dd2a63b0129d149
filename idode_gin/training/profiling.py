"""A trace of a few training steps, for TensorBoard's profiler or Perfetto."""

import dataclasses
import os
import pathlib
from collections.abc import Callable
from typing import Any, final

import jax

from idode_gin import checks


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class ProfileWindow:
    """Which steps to trace.

    Args:
        start: the step, counted from zero, before which the trace begins. The first step of a
            process compiles, and drowns all others.
        steps: how many are traced.

    Raises:
        ValueError: if a number is out of range.
    """

    start: int = 10
    steps: int = 5

    def __post_init__(self) -> None:
        checks.check_integer("ProfileWindow.start", self.start, at_least=0)
        checks.check_integer("ProfileWindow.steps", self.steps, at_least=1)

    @property
    def stop(self) -> int:
        """The step at which the trace ends."""
        return self.start + self.steps

    def check(self, train_steps: int) -> None:
        """Raises ValueError unless the window lies inside the run."""
        if self.stop > train_steps:
            raise ValueError(
                f"The profile window ends at step {self.stop} (ProfileWindow.start={self.start} + "
                f"steps={self.steps}), beyond the last step, {train_steps}. Start earlier, or "
                "trace fewer steps."
            )


class Profiler:
    """Traces the window's steps into a folder. Does nothing without a window.

    Args:
        window: which steps; None for none.
        folder: where the trace goes.
        say: is told where it went, or that the window is over before it began.
    """

    def __init__(
        self,
        window: ProfileWindow | None,
        folder: str | os.PathLike[str],
        say: Callable[[str], Any],
    ) -> None:
        self._window, self._folder, self._say = window, pathlib.Path(folder), say
        self._is_running = False

    def begin(self, step: int) -> None:
        """Says so if training starts beyond the start of the window, which is then not traced."""
        if self._window is not None and step > self._window.start:
            self._say(
                f"Nothing is profiled: the window begins at step {self._window.start}, training "
                f"at step {step}."
            )

    def before(self, step: int) -> None:
        """Before the step that follows `step` others is sent to the device."""
        if self._window is not None and step == self._window.start:
            jax.profiler.start_trace(str(self._folder))
            self._is_running = True

    def after(self, step: int, outputs: Any) -> None:
        """After `step` steps were sent; waits for `outputs` of the window's last one."""
        if self._is_running and self._window is not None and step == self._window.stop:
            jax.block_until_ready(outputs)
            self.close()
            self._say(f"Steps {self._window.start} to {step} are traced in {self._folder}.")

    def close(self) -> None:
        """Ends a trace that is still running."""
        if self._is_running:
            self._is_running = False
            jax.profiler.stop_trace()
