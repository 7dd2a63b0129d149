"""A trace of a few training steps, for TensorBoard's profiler or Perfetto."""

import dataclasses
import os
from collections.abc import Callable
from typing import Any, final

import jax

from idode_gin import checks
from idode_gin.reports import paths


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class ProfileWindow:
    """The steps to trace.

    Args:
        start: step, counted from zero, before which the trace begins. The first step of a process
            compiles, which takes far longer than any other.
        steps: number of steps to trace.

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

    def check(self, train_steps: int, directory: str) -> None:
        """Raise ValueError unless the window lies inside the run, and the run on this machine."""
        if paths.in_bucket(directory):
            raise ValueError(
                f"A trace can be written on this machine only, not to a bucket, got {directory!r}. "
                "Profile a short run in a local MODEL_DIR, or leave Trainer.profile at None."
            )
        if self.stop > train_steps:
            raise ValueError(
                f"The profile window ends at step {self.stop} (ProfileWindow.start={self.start} + "
                f"steps={self.steps}), beyond the last step, {train_steps}. Start earlier, or "
                "trace fewer steps."
            )


class Profiler:
    """Traces the window's steps into a folder; does nothing without a window."""

    def __init__(
        self,
        window: ProfileWindow | None,
        folder: str | os.PathLike[str],
        say: Callable[[str], Any],
    ) -> None:
        self._window, self._folder, self._say = window, folder, say
        self._is_running = False

    def begin(self, step: int) -> None:
        """Print a note if training starts after the window does, which is then not traced."""
        if self._window is not None and step > self._window.start:
            self._say(
                f"Nothing is profiled: the window begins at step {self._window.start}, training "
                f"at step {step}."
            )

    def before(self, step: int) -> None:
        """Start the trace if the window begins; called before a step, with the steps before it."""
        if self._window is not None and step == self._window.start:
            jax.profiler.start_trace(str(self._folder))
            self._is_running = True

    def after(self, step: int, outputs: Any) -> None:
        """End the trace if `step` is the window's last, once its `outputs` are computed."""
        if self._is_running and self._window is not None and step == self._window.stop:
            jax.block_until_ready(outputs)
            self.close()
            self._say(f"Steps {self._window.start} to {step} are traced in {self._folder}.")

    def close(self) -> None:
        """End a trace that is still running."""
        if self._is_running:
            self._is_running = False
            jax.profiler.stop_trace()
