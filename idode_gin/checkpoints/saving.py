"""Saving a run and finding it again. With `checkpoint_reading` the only owner of orbax.

A checkpoint is a directory `checkpoint_<step>` with four parts: `params`, `ema`, `training` (step,
optimizer state, window of metrics, memory of the guards) and `meta`, a JSON file that describes the
other three and holds a checksum of every leaf. orbax writes it under another name and renames it
when it is complete; the checksums catch what happens to the files afterwards. Which images a step
sees is a function of the step, so that with it the position in the data is saved.
"""

import contextlib
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from idode_gin import checks, types
from idode_gin.checkpoints import files, orbax_logging, restoring
from idode_gin.checkpoints import meta as checkpoint_meta
from idode_gin.checkpoints.config import (
    CheckpointConfig,
    RestoreCheckpointConfig,
    SaveCheckpointConfig,
)
from idode_gin.checkpoints.files import DAMAGED_PREFIX, PREFIX, checkpoint_path, find, saved_steps
from idode_gin.checkpoints.reading import RestoredParams, restore_params
from idode_gin.checkpoints.restoring import Fresh, Restored
from idode_gin.reports import fingerprints
from idode_gin.types import TrainState

__all__ = [
    "CheckpointConfig",
    "Checkpoints",
    "RestoreCheckpointConfig",
    "Restored",
    "RestoredParams",
    "SaveCheckpointConfig",
    "checkpoint_path",
    "find",
    "restore_params",
    "saved_steps",
]

_AGREED = (checks.Preempted, checks.NonFiniteError)
"""Errors that all processes raise at the same step."""


class Checkpoints:
    """The checkpoints of one run directory. A context: leaving it waits for the last save.

    Args:
        directory: the run directory.
        config: when to save, what to restore.
        facts: JSON-able numbers and strings that describe the run, kept in every checkpoint.
        bpd: bits per dim by step, or None where there was no evaluation: judges what is best.
    """

    def __init__(
        self,
        directory: str | pathlib.Path,
        config: CheckpointConfig,
        facts: Mapping[str, Any],
        bpd: Callable[[int], float | None] = lambda _: None,
    ) -> None:
        self._directory = pathlib.Path(directory).absolute()
        self._config = config
        self._facts = dict(facts)
        self._bpd = bpd
        self._lazy_manager: ocp.CheckpointManager | None = None
        self._last_save: int | None = None
        self._is_broken = False
        orbax_logging.silence_orbax()

    @property
    def _manager(self) -> ocp.CheckpointManager:
        # Not before restoring: a damaged checkpoint has then been moved out of orbax's sight.
        if self._lazy_manager is None:
            if jax.process_index() == 0:
                files.delete(self._directory, ())
            self._lazy_manager = ocp.CheckpointManager(
                self._directory,
                options=ocp.CheckpointManagerOptions(
                    step_prefix=PREFIX, max_to_keep=None, cleanup_tmp_directories=True
                ),
            )
        return self._lazy_manager

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._lazy_manager is None:
            return
        is_failing = kind is not None and not issubclass(kind, _AGREED)
        if jax.process_count() > 1 and (is_failing or self._is_broken):
            return  # a save ends once all processes have written: the others may be stuck in a step
        if self._is_broken:  # and that was told already
            with contextlib.suppress(Exception):
                self._lazy_manager.close()
            return
        self._wait()
        with self._explained(self._last_save):
            self._lazy_manager.close()

    def is_due(self, step: int) -> bool:
        """Whether the period asks for a checkpoint of `step`."""
        period = self._config.save.period
        return period is not None and step % period == 0

    def save(self, state: TrainState) -> None:
        """Saves the state, once per step; the files are written while training goes on.

        Returns once the state is copied off the devices: it may be donated then.

        Raises:
            checks.NonFiniteError: if the state holds a NaN or an infinity. Nothing is written.
            OSError: if this or the last checkpoint could not be written, or there is no room for
                this one; nothing of it counts.
        """
        step = int(state.step)
        self._wait()
        if step in saved_steps(self._directory):
            return
        parts = restoring.parts(state)
        if not fingerprints.all_finite(parts):
            raise checks.NonFiniteError(f"The state after step {step} holds a NaN or an infinity.")
        sums = {name: fingerprints.checksums(part) for name, part in parts.items()}
        meta = checkpoint_meta.describe(parts, sums, step=step, facts=self._facts)
        with self._explained(step):
            self._check_space(parts)
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    meta=ocp.args.JsonSave(meta),
                    **{name: ocp.args.StandardSave(part) for name, part in parts.items()},
                ),
                force=True,
            )
        self._last_save = step

    def last_good(self) -> pathlib.Path | None:
        """The newest checkpoint, after waiting for it to be complete.

        Raises:
            OSError: if it could not be written.
        """
        self._wait()
        steps = saved_steps(self._directory)
        return checkpoint_path(self._directory, steps[-1]) if steps else None

    def _wait(self) -> None:
        """Waits for the last save to be complete, then deletes what need not stay any longer.

        Raises:
            OSError: if it could not be written.
        """
        if self._lazy_manager is None or self._is_broken:
            return
        with self._explained(self._last_save):
            self._lazy_manager.wait_until_finished()
            if self._last_save is not None and jax.process_index() == 0:
                self._delete_old()

    def _delete_old(self) -> None:
        steps = saved_steps(self._directory)
        doomed = files.doomed(steps, self._config.save, self._bpd)
        if doomed:
            files.sync(checkpoint_path(self._directory, steps[-1]))
        files.delete(self._directory, doomed)

    def _check_space(self, parts: Mapping[str, Any]) -> None:
        """Raises OSError, on every process alike, where process 0 sees too little disk."""
        num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(parts))
        problem: OSError | None = None
        try:
            files.check_space(self._directory, num_bytes)
        except OSError as error:
            problem = error
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            first = multihost_utils.broadcast_one_to_all(np.asarray(problem is not None))
            if bool(first) and problem is None:
                problem = OSError("process 0 sees too little free disk")
            elif not bool(first):
                problem = None
        if problem is not None:
            raise problem

    @contextlib.contextmanager
    def _explained(self, step: int | None) -> Iterator[None]:
        """Turns what goes wrong while `step` is saved into an OSError that says what to do."""
        try:
            yield
        except Exception as error:  # orbax and tensorstore raise whatever they like
            self._is_broken = True
            steps = saved_steps(self._directory)
            good = f"{PREFIX}_{steps[-1]}" if steps else None
            raise OSError(
                f"The checkpoint of step {step} could not be saved in {self._directory} "
                f"({orbax_logging.reason(error)}). "
                + (f"The last good one there is {good}. " if good else "There is no other one. ")
                + "Free space there and give the same command again, or bind another MODEL_DIR"
                + (f", with INITIAL_CHECKPOINT_PATH = '{self._directory / good}'." if good else ".")
            ) from error

    def restore(
        self,
        abstract_state: TrainState,
        fresh: Callable[[], TrainState],
        new_optimizer: Callable[[types.Params], Any] | None = None,
    ) -> tuple[TrainState, Restored | None]:
        """The newest whole checkpoint of the directory, else the one asked for, else `fresh()`.

        A damaged checkpoint of the directory is moved aside, with a warning, and the one before
        it is taken; of another run directory the damaged ones are passed over, with a warning.

        Args:
            abstract_state: shapes, dtypes and shardings.
            fresh: makes the state of a run from scratch.
            new_optimizer: makes the state of an optimizer that is reset, for the parameters there
                are; None takes that of `fresh`.

        Returns:
            The state to go on from, and what it was restored from if it was.

        Raises:
            ValueError: if a checkpoint is another architecture's, all of them are damaged, or the
                one asked for is not there.
        """
        new = Fresh(state=fresh, optimizer=new_optimizer)
        own = self._restore_own(abstract_state, new)
        if own is not None:
            return own.state, own
        config = self._config.restore
        if not config.path:
            return fresh(), None

        def load(path: pathlib.Path) -> Restored:
            return restoring.start(path, abstract_state, config, new, self._facts)

        given = files.first_whole(config.path, config.mode, load)
        return given.state, given

    def plan(self, abstract_state: TrainState) -> str:
        """What `restore` would do, in words; reads no arrays, so that damage goes unseen.

        Raises:
            ValueError: as `restore` would.
        """
        config = self._config.restore
        if steps := saved_steps(self._directory):
            found = checkpoint_path(self._directory, steps[-1])
            meta = checkpoint_meta.read_meta(found)
            restoring.check_resume(found, meta, abstract_state, self._facts)
            return f"from {found}"
        if not config.path:
            return "from scratch"
        found = find(config.path, config.mode)
        meta = checkpoint_meta.read_meta(found)
        chosen = restoring.plan(found, meta, abstract_state, config, self._facts)
        return f"from {found}, of which\n{chosen.summary()}"

    def _restore_own(self, abstract_state: TrainState, fresh: Fresh) -> Restored | None:
        steps = saved_steps(self._directory)
        for step in reversed(steps):
            path = checkpoint_path(self._directory, step)
            try:
                return restoring.resume(path, abstract_state, fresh, self._facts)
            except checkpoint_meta.DamagedError as error:
                aside = path.with_name(DAMAGED_PREFIX + path.name)
                logging.warning("%s Moved to %s; trying the one before it.", error, aside.name)
                if jax.process_index() == 0:
                    shutil.rmtree(aside, ignore_errors=True)
                    path.rename(aside)
                if jax.process_count() > 1:  # none looks for what is there before that
                    from jax.experimental import multihost_utils

                    multihost_utils.sync_global_devices(f"{aside.name} is out of the way")
        if steps:
            raise ValueError(
                f"Every checkpoint of {self._directory} is damaged (steps {steps}). They were "
                f"renamed to {DAMAGED_PREFIX}{PREFIX}_<step>. Start again to train from scratch."
            )
        return None
