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
    """Saves `state`, the last complete state of a run.

    The loop sets it after every step. A signal handler saves it from another thread, though never
    during a step, which donates it.
    """

    checkpoints: Checkpoints
    watch: Watch
    clock: Clock
    state: TrainState

    def save(self) -> None:
        """Save the state, once `watch` has seen every step before it. Raises as it does."""
        self.watch.drain()
        with self.clock.inside("checkpoint"):
            self.checkpoints.save(self.state)
