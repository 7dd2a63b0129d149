"""Saving the state of a run, from the loop or from a signal handler."""

import dataclasses
from typing import final

from idode_gin.checkpoints.saving import Checkpoints
from idode_gin.training.guards import Watch
from idode_gin.training.throughput import Clock
from idode_gin.types import TrainState


@final
@dataclasses.dataclass(kw_only=True)
class Saver:
    """Saves the last complete state of a run.

    Args:
        checkpoints: checkpoints of the run.
        watch: checks that every step before the state is good.
        clock: counts the time of saving.
        state: last complete state. A signal handler saves it from another thread, so the loop
            sets it after every step, and lets no handler save during a step, which donates it.
    """

    checkpoints: Checkpoints
    watch: Watch
    clock: Clock
    state: TrainState

    def save(self) -> None:
        """Wait for the steps in flight and save the state.

        Raises:
            checks.NonFiniteError: if a step in flight stops the run. Nothing is saved.
            OSError: if the checkpoint could not be written.
        """
        self.watch.drain()
        with self.clock.inside("checkpoint"):
            self.checkpoints.save(self.state)
