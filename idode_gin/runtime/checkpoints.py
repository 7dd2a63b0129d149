"""Saving a run and finding it again. The only owner of orbax.

A checkpoint is a directory `checkpoint_<step>` with four parts: `params`, `ema`, `training` (step,
optimizer state, window of metrics) and `meta`, a JSON file that describes the other three and holds
a checksum of every leaf. orbax writes it under another name and renames it when it is complete;
the checksums catch what happens to the files afterwards.
"""

import contextlib
import dataclasses
import gc
import logging as python_logging
import pathlib
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, final

import jax
import orbax.checkpoint as ocp
from absl import logging

from idode_gin import checks, types
from idode_gin.runtime import checkpoint_meta, fingerprints
from idode_gin.runtime.train_state import TrainState

PREFIX = "checkpoint"
DAMAGED_PREFIX = "damaged_"
_STEP_DIRECTORY = re.compile(rf"{PREFIX}_(\d+)")
_MODES = ("latest", "specific")


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class SaveCheckpointConfig:
    """When to save, and how much of it to keep.

    Args:
        period: steps between checkpoints; the last step of a run is saved in any case. None saves
            nothing but that.
        keep: the newest so many checkpoints stay, older ones are deleted; None keeps all. With 1
            there is none to fall back on if the only one is damaged.

    Raises:
        ValueError: if a number is not positive.
    """

    period: int | None = 1000
    keep: int | None = 3

    def __post_init__(self) -> None:
        for name in ("period", "keep"):
            if (value := getattr(self, name)) is not None:
                checks.check_positive(f"SaveCheckpointConfig.{name}", value)


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class RestoreCheckpointConfig:
    """What a run starts from while its own directory holds no checkpoint.

    Args:
        path: a run directory (its newest checkpoint) or one `checkpoint_<step>` directory. None or
            "" starts from scratch.
        mode: "latest" insists that `path` is a run directory, "specific" that it is one
            checkpoint; None takes either.
        fresh_start: take the parameters and their EMA only: step 0, a new optimizer. Otherwise
            the run goes on from the checkpoint's step with its optimizer.

    Raises:
        ValueError: if `mode` is unknown.
    """

    path: str | None = None
    mode: str | None = None
    fresh_start: bool = False

    def __post_init__(self) -> None:
        if self.mode is not None and self.mode not in _MODES:
            raise ValueError(
                f"`mode` must be one of {_MODES} or None, got mode={self.mode!r}. "
                f"{checks.nearest(str(self.mode), _MODES)}"
            )


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Saving and restoring.

    Args:
        save: when and how much.
        restore: what to start from.
    """

    save: SaveCheckpointConfig = SaveCheckpointConfig()
    restore: RestoreCheckpointConfig = RestoreCheckpointConfig()


def saved_steps(directory: str | pathlib.Path) -> list[int]:
    """Steps of the complete checkpoints of a run directory, rising; [] if there is no directory."""
    directory = pathlib.Path(directory)
    if not directory.is_dir():
        return []
    found = [_STEP_DIRECTORY.fullmatch(each.name) for each in directory.iterdir()]
    return sorted(int(match[1]) for match in found if match)


def checkpoint_path(directory: str | pathlib.Path, step: int) -> pathlib.Path:
    """Where the checkpoint of `step` lies in a run directory."""
    return pathlib.Path(directory).absolute() / f"{PREFIX}_{step}"


def find(path: str | pathlib.Path, mode: str | None = None) -> pathlib.Path:
    """The one checkpoint that `path` stands for: itself, or the newest of a run directory.

    Args:
        path: a `checkpoint_<step>` directory or a run directory.
        mode: as in `RestoreCheckpointConfig`.

    Raises:
        ValueError: if there is none; with what the directory holds instead.
    """
    path = pathlib.Path(path).expanduser().absolute()
    is_specific = _STEP_DIRECTORY.fullmatch(path.name) is not None
    if path.is_file():
        raise ValueError(
            f"No checkpoint at {path}: it is a file. Give a run directory that holds "
            f"{PREFIX}_<step> directories, or one of those."
        )
    if not path.is_dir():
        beside = saved_steps(path.parent) if is_specific else []
        hint = f" Saved steps beside it: {beside}." if beside else ""
        raise ValueError(f"No checkpoint at {path}: there is no such directory.{hint}")
    if mode is not None and is_specific != (mode == "specific"):
        raise ValueError(
            f"mode={mode!r} asks for a {'checkpoint' if mode == 'specific' else 'run'} directory, "
            f"got {path}. Leave `mode` at None to take either."
        )
    if is_specific:
        return path
    steps = saved_steps(path)
    if not steps:
        names = sorted(each.name for each in path.iterdir())
        shown = ", ".join(names[:8]) or "nothing"
        raise ValueError(
            f"No checkpoint in {path}: it holds {shown}. Give a run directory that holds "
            f"{PREFIX}_<step> directories, or one of those."
        )
    return checkpoint_path(path, steps[-1])


def restore_params(
    path: str | pathlib.Path, abstract_params: Any, *, ema: bool = True
) -> tuple[types.Params, int]:
    """Parameters of a checkpoint, and its step.

    Args:
        path: a run directory (its newest checkpoint) or a `checkpoint_<step>` directory.
        abstract_params: shapes and dtypes, such as `jax.eval_shape` gives; leaves with a sharding
            are placed accordingly, the others are replicated over all devices.
        ema: the moving average, or else the last parameters themselves.

    Raises:
        ValueError: if there is no checkpoint, it is damaged, or another network's.
    """
    found = find(path)
    part = "ema" if ema else "params"
    try:
        meta = checkpoint_meta.read_meta(found)
        return _load_parts(found, meta, {part: abstract_params})[part], int(meta["step"])
    except checkpoint_meta.DamagedError as error:
        before = _before(found)
        if before is None:
            raise
        raise checkpoint_meta.DamagedError(
            f"{error} The one before it is --gin.CHECKPOINT_PATH=\"'{before}'\""
        ) from error


def read_facts(path: str | pathlib.Path) -> dict[str, Any]:
    """What the run that wrote a checkpoint said of itself.

    Raises:
        ValueError: if there is no checkpoint, or it is damaged.
    """
    return dict(checkpoint_meta.read_meta(find(path))["facts"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Restored:
    """A state, the checkpoint it came from, and what the run that wrote it said of itself."""

    state: TrainState
    path: pathlib.Path
    facts: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run directory. A context: leaving it waits for the last save.

    Args:
        directory: the run directory.
        config: when to save, what to restore.
        facts: JSON-able numbers and strings that describe the run, kept in every checkpoint.
    """

    def __init__(
        self, directory: str | pathlib.Path, config: CheckpointConfig, facts: Mapping[str, Any]
    ) -> None:
        self._directory = pathlib.Path(directory).absolute()
        self._config = config
        self._facts = dict(facts)
        self._lazy_manager: ocp.CheckpointManager | None = None
        self._last_save: int | None = None
        self._is_broken = False
        _silence_orbax()

    @property
    def _manager(self) -> ocp.CheckpointManager:
        # Not before restoring: a damaged checkpoint has then been moved out of orbax's sight.
        if self._lazy_manager is None:
            self._lazy_manager = ocp.CheckpointManager(
                self._directory,
                options=ocp.CheckpointManagerOptions(
                    step_prefix=PREFIX,
                    max_to_keep=self._config.save.keep,
                    cleanup_tmp_directories=True,
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
        if self._is_broken:  # and that was told already
            with contextlib.suppress(Exception):
                self._lazy_manager.close()
            return
        with self._explained(self._last_save):
            self._lazy_manager.close()

    def is_due(self, step: int) -> bool:
        """Whether the period asks for a checkpoint of `step`."""
        period = self._config.save.period
        return period is not None and step % period == 0

    def save(self, state: TrainState) -> None:
        """Saves the state, once per step; the files are written while training goes on.

        Raises:
            checks.NonFiniteError: if the state holds a NaN or an infinity. Nothing is written.
            OSError: if this or the last checkpoint could not be written; nothing of it counts.
        """
        step = int(state.step)
        with self._explained(step):
            if step in self._manager.all_steps():
                return
        self._wait()
        parts = _parts(state)
        finite, sums = _inspect(parts)
        if not finite:
            raise checks.NonFiniteError(f"The state after step {step} holds a NaN or an infinity.")
        meta = checkpoint_meta.describe(parts, sums, step=step, facts=self._facts)
        with self._explained(step):
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
        """Waits for the last save to be complete. Raises OSError if it could not be written."""
        if self._lazy_manager is not None and not self._is_broken:
            with self._explained(self._last_save):
                self._lazy_manager.wait_until_finished()

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
                f"({_reason(error)}). "
                + (f"The last good one there is {good}. " if good else "There is no other one. ")
                + "Free space there and give the same command again, or bind another MODEL_DIR"
                + (f", with INITIAL_CHECKPOINT_PATH = '{self._directory / good}'." if good else ".")
            ) from error

    def restore(
        self, abstract_state: TrainState, fresh: Callable[[], TrainState]
    ) -> tuple[TrainState, Restored | None]:
        """The newest whole checkpoint of the directory, else the one asked for, else `fresh()`.

        A damaged checkpoint of the directory is moved aside, with a warning, and the one before
        it is taken.

        Args:
            abstract_state: shapes, dtypes and shardings.
            fresh: makes the state of a run from scratch.

        Returns:
            The state to go on from, and what it was restored from if it was.

        Raises:
            ValueError: if a checkpoint is another architecture's, all of them are damaged, or the
                one asked for is not there.
        """
        own = self._restore_own(abstract_state)
        if own is not None:
            return own.state, own
        restore = self._config.restore
        if not restore.path:
            return fresh(), None
        found = find(restore.path, restore.mode)
        if not restore.fresh_start:
            given = _load(found, abstract_state)
            return given.state, given
        meta = checkpoint_meta.read_meta(found)
        wanted = {"params": abstract_state.params, "ema": abstract_state.ema}
        state = dataclasses.replace(fresh(), **_load_parts(found, meta, wanted))
        return state, Restored(state=state, path=found, facts=meta["facts"])

    def plan(self, abstract_state: TrainState) -> str:
        """What `restore` would do, in words; reads no arrays, so that damage goes unseen.

        Raises:
            ValueError: as `restore` would.
        """
        restore = self._config.restore
        if steps := saved_steps(self._directory):
            found = checkpoint_path(self._directory, steps[-1])
        elif restore.path:
            found = find(restore.path, restore.mode)
        else:
            return "from scratch"
        wanted = _parts(abstract_state)
        parameters_only = restore.fresh_start and not steps
        if parameters_only:
            del wanted["training"]
        checkpoint_meta.check_same_leaves(found, checkpoint_meta.read_meta(found), wanted)
        return f"from {'the parameters of ' if parameters_only else ''}{found}"

    def _restore_own(self, abstract_state: TrainState) -> Restored | None:
        steps = saved_steps(self._directory)
        for step in reversed(steps):
            path = checkpoint_path(self._directory, step)
            try:
                return _load(path, abstract_state)
            except checkpoint_meta.DamagedError as error:
                aside = path.with_name(DAMAGED_PREFIX + path.name)
                logging.warning("%s Moved to %s; trying the one before it.", error, aside.name)
                if jax.process_index() == 0:
                    shutil.rmtree(aside, ignore_errors=True)
                    path.rename(aside)
        if steps:
            raise ValueError(
                f"Every checkpoint of {self._directory} is damaged (steps {steps}). They were "
                f"renamed to {DAMAGED_PREFIX}{PREFIX}_<step>. Start again to train from scratch."
            )
        return None


def _load(path: pathlib.Path, abstract_state: TrainState) -> Restored:
    meta = checkpoint_meta.read_meta(path)
    loaded = _load_parts(path, meta, _parts(abstract_state))
    state = TrainState(params=loaded["params"], ema=loaded["ema"], **loaded["training"])
    return Restored(state=state, path=path, facts=meta["facts"])


def _load_parts(
    checkpoint: pathlib.Path, meta: Mapping[str, Any], wanted: Mapping[str, Any]
) -> dict[str, Any]:
    """Parts of a checkpoint as trees like `wanted`, checked leaf by leaf."""
    checkpoint_meta.check_same_leaves(checkpoint, meta, wanted)
    loaded = {}
    for name, abstract in wanted.items():
        target = checkpoint_meta.as_saved(checkpoint, meta, name, abstract)
        try:
            with _silent_stragglers(), ocp.StandardCheckpointer() as reader:
                tree = reader.restore(checkpoint / name, target)
        except Exception as error:  # orbax and tensorstore raise whatever they like
            raise checkpoint_meta.DamagedError(
                f"{checkpoint} is damaged: its {name} cannot be read ({_reason(error)})."
            ) from error
        sums = jax.jit(fingerprints.checksums)(tree)
        checkpoint_meta.check_sums(checkpoint, meta, name, sums, tree)
        loaded[name] = jax.tree.map(lambda leaf, want: leaf.astype(want.dtype), tree, abstract)
    return loaded


def _before(checkpoint: pathlib.Path) -> pathlib.Path | None:
    """The newest earlier checkpoint beside this one whose description can be read."""
    own = int(checkpoint.name.rpartition("_")[2])
    for step in reversed(saved_steps(checkpoint.parent)):
        path = checkpoint_path(checkpoint.parent, step)
        if step < own:
            with contextlib.suppress(ValueError):
                checkpoint_meta.read_meta(path)
                return path
    return None


def _reason(error: BaseException) -> str:
    """The first line of an error, and of that what fits in a sentence."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if "No space left on device" in str(error):
        return "No space left on device"
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:120]}{' …' if lines[0][120:] else ''}"


class _StragglerFilter(python_logging.Filter):
    """Drops asyncio's reports of reads that failed after the first one had."""

    def filter(self, record: python_logging.LogRecord) -> bool:
        return "exception was never retrieved" not in record.getMessage()


@contextlib.contextmanager
def _silent_stragglers() -> Iterator[None]:
    """One failure to read is raised; of the others, a page for each leaf, nothing is printed.

    Reads that are still under way when the first one fails report to an event loop that is closed.
    """
    log, straggler = python_logging.getLogger("asyncio"), _StragglerFilter()
    hook = sys.unraisablehook

    def unless_closed(unraisable: Any) -> None:
        if "Event loop is closed" not in str(unraisable.exc_value):
            hook(unraisable)

    log.addFilter(straggler)
    sys.unraisablehook = unless_closed
    try:
        yield
    except Exception:
        # Some come even later: the hook and the filter stay, which a program meets once or twice.
        gc.collect()
        raise
    log.removeFilter(straggler)
    sys.unraisablehook = hook


def _silence_orbax() -> None:
    """No tracebacks in the log from orbax, which raises the same errors as well."""
    logging.get_absl_logger().addFilter(_is_told_once)


def _is_told_once(record: python_logging.LogRecord) -> bool:
    return not (record.exc_info and "orbax" in pathlib.Path(record.pathname).parts)


def _parts(state: TrainState) -> dict[str, Any]:
    training = {"step": state.step, "opt_state": state.opt_state, "window": state.window}
    return {"params": state.params, "ema": state.ema, "training": training}


@jax.jit
def _inspect(parts: dict[str, Any]) -> tuple[jax.Array, dict[str, jax.Array]]:
    sums = {name: fingerprints.checksums(part) for name, part in parts.items()}
    return fingerprints.all_finite(parts), sums
