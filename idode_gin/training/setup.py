"""Setup of a run: everything fixed before its first step, and the state it starts from."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, final

import numpy as np

from idode_gin import types
from idode_gin.checkpoints import steps_left
from idode_gin.checkpoints.saving import Checkpoints, Restored
from idode_gin.devices.partitioning import PjitPartitioner
from idode_gin.feed import batches as batch_lib
from idode_gin.feed import data
from idode_gin.models import DiffusionODE
from idode_gin.runs import facts as facts_lib
from idode_gin.runs import resuming, run_inputs
from idode_gin.training.programs import Program
from idode_gin.types import TrainState


@final
@dataclasses.dataclass(frozen=True)
class Images:
    """A split, the size and order of its batches, and the devices that they are put on."""

    split: data.ImageSplit
    config: data.DatasetConfig
    partitioner: PjitPartitioner

    @functools.cached_property
    def rows(self) -> np.ndarray:
        """Places in a global batch that this process's devices hold, integers `[n]`."""
        return self.partitioner.local_rows(self.config.batch_size)

    def put(self, batch: types.Batch) -> types.Batch:
        """Return global arrays of a batch, of which this process has `rows`."""
        return self.partitioner.put_batch(batch, self.config.batch_size)

    def train_batch(self, step: int) -> types.Batch:
        """Return the batch of a training step, counted from 0, on the devices."""
        return self.put(batch_lib.train_batch(self.split, self.config, step, self.rows))

    def num_evaluated(self, batches: int | None) -> int:
        """Return the number of images in so many batches of an evaluation; None for all."""
        count = self.split.num_images
        return count if batches is None else min(count, batches * self.config.batch_size)

    def eval_batches(self, batches: int | None = None) -> Iterator[types.Batch]:
        """Return every image once, in order: `rows` of each batch, on the host.

        Images of so many `batches` only are spread evenly over the split, which may be sorted by
        class.
        """
        index = data.spread(self.num_evaluated(batches), self.split.num_images)
        return batch_lib.eval_batches(self.split, self.config.batch_size, self.rows, index)


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
    """Everything about a run that is fixed before its first step.

    `facts`, JSON-able, describe the run in its checkpoints. Training ends at `train_steps`.
    `warnings` are printed before it begins. `settled` is called before the first step, when nothing
    can refuse to train any more.
    """

    directory: pathlib.Path
    model: DiffusionODE
    train: Images
    eval: Images | None
    program: Program
    facts: dict[str, Any]
    train_steps: int
    warnings: Sequence[str] = ()
    settled: Callable[[], Any] | None = None


@final
@dataclasses.dataclass(frozen=True)
class Start:
    """The state that training starts from, and the checkpoint it was restored from, if any.

    A run stopped before its first update is resumed, but has not trained.
    """

    state: TrainState
    step: int
    restored: Restored | None
    is_resumed: bool
    has_trained: bool


def images_of(
    model: DiffusionODE,
    partitioner: PjitPartitioner,
    train_dataset: data.DatasetConfig,
    eval_dataset: data.DatasetConfig | None,
) -> tuple[Images, Images | None, dict[str, Any]]:
    """Load the images of a run, to train and to evaluate on, and return the facts about them.

    Raises:
        ValueError: if their shapes differ.
    """
    train = Images(run_inputs.load(train_dataset, model), train_dataset, partitioner)
    if eval_dataset is None:
        return train, None, facts_lib.image_facts(train.split)
    split, shape = run_inputs.load(eval_dataset, model), train.split.image_shape
    if split.image_shape != shape:
        raise ValueError(
            f"Images for training and evaluation must have one shape, but {train.split} "
            f"has {shape} and {split} has {split.image_shape}."
        )
    return (
        train,
        Images(split, eval_dataset, partitioner),
        facts_lib.image_facts(train.split, split),
    )


def resume_or_begin(setup: Setup, saved: Checkpoints) -> Start:
    """Restore the newest checkpoint of the run; else begin from another run's, or from scratch.

    Logs a warning for every fact that changed since the checkpoint was saved.

    Raises:
        ValueError: if a checkpoint does not fit the run, or leaves no steps to train.
    """
    program, directory = setup.program, setup.directory
    state, restored = saved.restore(program.abstract_state, program.init, program.init_optimizer)
    step = int(state.step)
    is_resumed = restored is not None and restored.path.parent == directory
    began: dict[str, Any] = {steps_left.FIRST_STEP: step, steps_left.STARTED_FROM: None}
    if restored is not None and is_resumed:
        is_done = step >= setup.train_steps
        resuming.check_resumed(directory, restored.facts, setup.facts, setup.model, is_done=is_done)
        began = {name: restored.facts[name] for name in began if name in restored.facts}
    elif restored is not None:  # may be another checkpoint than `Trainer.check_start` saw
        steps_left.check_step(restored.path, step, setup.train_steps)
        began[steps_left.STARTED_FROM] = str(restored.path)
    setup.facts.update(began)  # before the first save
    has_trained = is_resumed and step not in (0, setup.facts.get(steps_left.FIRST_STEP))
    return Start(state, step, restored, is_resumed, has_trained)
