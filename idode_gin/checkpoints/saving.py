"""Save and restore the checkpoints of a run, with orbax.

A checkpoint is a directory `checkpoint_<step>` with four parts: `params`, `ema`, `training` (step,
optimizer state, metrics window, state of the guards) and `meta`, a JSON file that describes the
other three and holds a checksum of every leaf. orbax writes it under a temporary name and renames
it when complete; the checksums detect later damage to the files. The step also fixes the position
in the data, because the images of a step are a function of the step.

Old checkpoints are deleted here and not by orbax's preservation policies. `keep_best` judges a
checkpoint by an evaluation that runs after it is saved, while orbax takes metrics at the save only;
and nothing is deleted before its successor is flushed to disk.
"""

import contextlib
import functools
import pathlib
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging

from idode_gin import checks, types
from idode_gin.checkpoints import (
    files,
    orbax_internals,
    orbax_logging,
    reading,
    restoring,
    waiting,
)
from idode_gin.checkpoints import meta as checkpoint_meta
from idode_gin.checkpoints.config import (
    CheckpointConfig,
    RestoreCheckpointConfig,
    SaveCheckpointConfig,
)
from idode_gin.checkpoints.files import (
    DAMAGED_PREFIX,
    PREFIX,
    checkpoint_path,
    find,
    find_described,
    saved_steps,
)
from idode_gin.checkpoints.reading import RestoredParams, restore_params
from idode_gin.checkpoints.restoring import Fresh, Restored
from idode_gin.processes import exchange
from idode_gin.reports import fingerprints, paths
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
    "find_described",
    "restore_params",
    "saved_steps",
]

_AGREED = (checks.Preempted, checks.NonFiniteError)
"""Errors that every process raises at the same step."""


def _wait_for_others(*, key: str, timeout_ms: int) -> None:
    """Wait at a barrier of orbax for all processes; a failed save does not.

    orbax's thread that saves passes a last barrier after an error, too. The others wait at another
    one, for what this process could not write: all would wait for 20 minutes before its error is
    raised, which ends them.
    """
    has_failed = sys.exc_info()[0] is not None
    if not has_failed or threading.current_thread() is threading.main_thread():
        ocp.multihost.get_barrier_sync_fn()(key=key, timeout_ms=timeout_ms)


class Checkpoints:
    """The checkpoints of one run directory. A context manager: exit waits for the last save.

    Args:
        directory: run directory.
        config: when to save, what to restore.
        facts: JSON-serializable numbers and strings that describe the run, saved in every
            checkpoint as they are then.
        evaluated: bits per dim of a step, and of how many images; None without an evaluation.
            Decides which are best.

    Attributes:
        directory: the run directory, absolute.

    Raises:
        ValueError: for a path that orbax cannot write to, see `files.check_path`.
    """

    def __init__(
        self,
        directory: str | pathlib.Path,
        config: CheckpointConfig,
        facts: Mapping[str, Any],
        evaluated: Callable[[int], tuple[float, int | None] | None] = lambda _: None,
    ) -> None:
        self.directory = paths.of(directory).absolute()
        files.check_path(directory)
        orbax_internals.accept(self.directory)
        self._config = config
        self._facts = facts
        self._evaluated = evaluated
        self._lazy_manager: ocp.CheckpointManager | None = None
        self._last_save: int | None = None
        self._whole: int | None = None  # the last step whose checkpoint is known to be complete
        self._is_broken = False
        self._identity: tuple[int, int] | None = None
        orbax_logging.silence_orbax()

    @property
    def _manager(self) -> ocp.CheckpointManager:
        # Created after restoring, when a damaged checkpoint has been renamed and orbax ignores it.
        if self._lazy_manager is None:
            if jax.process_index() == 0:
                files.delete(self.directory, ())
                files.delete_unfinished(self.directory, ocp.utils.TMP_DIR_SUFFIX)
            self._lazy_manager = ocp.CheckpointManager(
                self.directory,
                options=ocp.CheckpointManagerOptions(
                    step_prefix=PREFIX,
                    max_to_keep=None,
                    async_options=ocp.AsyncOptions(barrier_sync_fn=_wait_for_others),
                ),
            )
            self._identity = files.identity(self.directory)
        return self._lazy_manager

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, paths.StoreError):
            with self._resumable():
                raise error
        if self._lazy_manager is None:
            return
        is_failing = kind is not None and not issubclass(kind, _AGREED)
        if jax.process_count() > 1 and (is_failing or self._is_broken):
            return  # a save ends when all processes have written; the others may hang in a step
        if self._is_broken:  # already raised
            with contextlib.suppress(Exception):
                self._lazy_manager.close()
            return
        self._wait()
        with self._explained(self._last_save):
            self._lazy_manager.close()

    def is_due(self, step: int) -> bool:
        """Return True if `step` is to be saved."""
        save = self._config.save
        is_periodic = save.period is not None and step % save.period == 0
        return is_periodic or step in save.checkpoint_steps

    def save(self, state: TrainState) -> None:
        """Save the state, once per step. Files are written in the background.

        Returns when the state is copied off the devices, so that it may be donated.

        Raises:
            checks.NonFiniteError: if the state holds a NaN or an infinity. Nothing is written.
            OSError: if this or the previous checkpoint could not be written, or the disk has too
                little room for this one.
        """
        step = int(state.step)
        self._wait()
        # Process 0 decides: another may not see the newest folder of a network file system yet.
        there = checkpoint_path(self.directory, step)
        if exchange.from_first(lambda: b"saved" if files.is_complete(there) else None):
            return
        parts = restoring.parts(state)
        if not fingerprints.all_finite(parts):
            raise checks.NonFiniteError(f"The state after step {step} holds a NaN or an infinity.")
        sums = {name: fingerprints.checksums(part) for name, part in parts.items()}
        meta = checkpoint_meta.describe(parts, sums, step=step, facts=self._facts)
        with self._explained(step):
            manager = self._manager  # which first removes what a killed save left
            self._check_space(parts)
            manager.save(
                step,
                args=ocp.args.Composite(
                    meta=ocp.args.JsonSave(meta),
                    **{name: ocp.args.StandardSave(part) for name, part in parts.items()},
                ),
                force=True,
            )
        self._last_save = step

    def last_good(self) -> pathlib.Path | None:
        """Wait for the last save and return the newest checkpoint.

        Raises:
            OSError: if it could not be written.
        """
        self._wait()
        steps = saved_steps(self.directory)
        return checkpoint_path(self.directory, steps[-1]) if steps else None

    def _wait(self) -> None:
        """Wait for the last save, then delete checkpoints that need not be kept.

        Raises:
            OSError: if it could not be written.
        """
        if self._lazy_manager is None or self._is_broken:
            return
        with self._explained(self._last_save):
            waiting.while_answering(self.directory, self._lazy_manager.wait_until_finished)
            last, is_first = self._last_save, jax.process_index() == 0
            if last is None:
                return
            # orbax reports success for some checkpoints that cannot be read.
            is_new = is_first and last != self._whole
            if is_new and not files.has_index(checkpoint_path(self.directory, last)):
                raise OSError("orbax has not merged its arrays")
            self._whole = last
            if is_first:
                self._delete_old()

    def _delete_old(self) -> None:
        if self._identity != files.identity(self.directory):
            return  # another run may have begun at this path
        steps = saved_steps(self.directory)
        doomed = self._config.save.doomed(steps, self._evaluated)
        doomed = [step for step in doomed if not files.is_pinned(self.directory, step)]
        if doomed:
            files.sync(checkpoint_path(self.directory, steps[-1]))
        files.delete(self.directory, doomed)

    def _check_space(self, parts: Mapping[str, Any]) -> None:
        """Raise OSError on every process if process 0 has too little free disk."""
        num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(parts))
        exchange.from_first(lambda: files.check_space(self.directory, num_bytes))

    @contextlib.contextmanager
    def _explained(self, step: int | None) -> Iterator[None]:
        """Turn any error while saving `step` into an OSError with a way out."""
        with self._resumable(), self._explained_errors(step):
            yield

    @contextlib.contextmanager
    def _explained_errors(self, step: int | None) -> Iterator[None]:
        try:
            yield
        except paths.StoreError:
            self._is_broken = True
            raise
        except Exception as error:  # orbax and tensorstore raise errors of many types
            self._is_broken = True
            if self._identity not in (None, files.identity(self.directory)):
                raise OSError(
                    f"The checkpoint of step {step} could not be saved: {self.directory} was "
                    "deleted or replaced during the run. Put it back with its checkpoints and run "
                    "the same command again; without them it trains from the beginning."
                ) from error
            failed = (
                f"The checkpoint of step {step} could not be saved in {self.directory} "
                f"({orbax_logging.reason(error)})."
            )
            if paths.in_bucket(self.directory):  # threads of orbax would wait for it at the end
                raise paths.StoreError(failed) from error
            whole = filter(files.has_index, files.newest_first(self.directory))
            good = next((each.name for each in whole), None)
            raise OSError(
                failed
                + (f" The last good one is {good}." if good else " There is no other checkpoint.")
                + " Free space there and run the same command again, or "
                + (f"copy {self.directory / good} into" if good else "bind")
                + " another MODEL_DIR."
            ) from error

    def restore(
        self,
        abstract_state: TrainState,
        fresh: Callable[[], TrainState],
        new_optimizer: Callable[[types.Params], Any] | None = None,
    ) -> tuple[TrainState, Restored | None]:
        """Restore the newest intact checkpoint, else the configured path, else return `fresh()`.

        Damaged checkpoints of this directory are skipped with a warning, and renamed once an intact
        one is restored. Those of another run directory are skipped with a warning.

        Args:
            abstract_state: shapes, dtypes and shardings.
            fresh: makes the state of a run from scratch.
            new_optimizer: makes the state of an optimizer that is reset, from the parameters; None
                takes the state of `fresh`.

        Returns:
            The state, and what it was restored from (None from scratch).

        Raises:
            ValueError: if a checkpoint belongs to another architecture, all are damaged, or the
                configured path has none.
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

        given = reading.first_whole(config.path, config.mode, load)
        return given.state, given

    def plan(self, abstract_state: TrainState) -> str:
        """Describe what `restore` would do. Reads no arrays, so it does not detect their damage.

        Raises:
            ValueError: as `restore`.
        """
        config = self._config.restore
        files.warn_of_misnamed(self.directory)
        if own := files.newest_first(self.directory):
            if (newest := files.described(own)) is None:
                raise ValueError(self._all_damaged())
            found, meta = newest
            restoring.check_resume(found, meta, abstract_state, self._facts)
            damaged = ", ".join(each.name for each in own[: own.index(found)])
            return f"from {found}" + (f"; damaged: {damaged}" if damaged else "")
        if not config.path:
            return "from scratch"
        found, meta = files.find_described(config.path, config.mode)
        chosen = restoring.plan(found, meta, abstract_state, config, self._facts)
        return f"from {found}:\n{chosen.summary()}"

    def _restore_own(self, abstract_state: TrainState, fresh: Fresh) -> Restored | None:
        files.warn_of_misnamed(self.directory)
        own = reading.listed(lambda: files.newest_first(self.directory))
        damaged = list[pathlib.Path]()

        @reading.together
        def resume(path: pathlib.Path) -> Restored:
            return restoring.resume(path, abstract_state, fresh, self._facts)

        for path in own:
            self._whole = int(path.name.rpartition("_")[2])
            try:
                found = resume(path)
            except checkpoint_meta.DamagedError as error:
                logging.warning("%s Trying the one before it.", error)
                damaged.append(path)
                continue
            for each in damaged:  # not before: if none can be read, the fault may be the disk's
                logging.warning("Renaming %s to %s.", each, DAMAGED_PREFIX + each.name)
                exchange.from_first(functools.partial(files.put_aside, each))
            return found
        if own:
            raise ValueError(self._all_damaged())
        return None

    @contextlib.contextmanager
    def _resumable(self) -> Iterator[None]:
        """Add the last complete checkpoint to a StoreError."""
        try:
            yield
        except paths.StoreError as error:
            if (known := self._to_resume()) in str(error):
                raise
            raise paths.StoreError(f"{error} {known}") from error

    def _to_resume(self) -> str:
        good = self._whole
        known = "No checkpoint is" if good is None else f"{PREFIX}_{good} of {self.directory} is"
        return (
            f"{known} known to be complete. Run the same command again when the bucket answers: "
            "it resumes."
        )

    def _all_damaged(self) -> str:
        return (
            f"Every checkpoint of {self.directory} is damaged (steps "
            f"{saved_steps(self.directory)}). None was changed. If their disk is whole, move them "
            "and summary.json away: the same command then trains from scratch."
        )
