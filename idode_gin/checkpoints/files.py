"""Checkpoint directories: list them, resolve a path to one, select and delete old ones."""

import contextlib
import errno
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Sequence
from typing import TypeVar

from absl import logging

from idode_gin.checkpoints import meta
from idode_gin.checkpoints.config import SaveCheckpointConfig
from idode_gin.checkpoints.meta import DamagedError
from idode_gin.reports import paths

PREFIX = "checkpoint"
DAMAGED_PREFIX = "damaged_"
DELETED_PREFIX = "deleted_"
SPACE_MARGIN = 1.1
"""Disk space reserved for a checkpoint, relative to the bytes of its arrays."""
_STEP_DIRECTORY = re.compile(rf"{PREFIX}_(\d+)")

Found = TypeVar("Found")


def saved_steps(directory: str | pathlib.Path) -> list[int]:
    """Return the steps of a run directory's complete checkpoints, ascending; [] without one."""
    directory = pathlib.Path(directory)
    if not directory.is_dir():
        return []
    found = [_STEP_DIRECTORY.fullmatch(each.name) for each in directory.iterdir()]
    return sorted(int(match[1]) for match in found if match)


def checkpoint_path(directory: str | pathlib.Path, step: int) -> pathlib.Path:
    """Return the path of the checkpoint of `step` in a run directory."""
    return pathlib.Path(directory).absolute() / f"{PREFIX}_{step}"


def find(path: str | pathlib.Path, mode: str | None = None) -> pathlib.Path:
    """Return the checkpoint that `path` names: itself, or the newest of a run directory.

    Args:
        path: a `checkpoint_<step>` directory or a run directory.
        mode: as in `RestoreCheckpointConfig`.

    Raises:
        ValueError: if there is none; the message lists what the directory holds.
    """
    return candidates(path, mode)[0]


def candidates(path: str | pathlib.Path, mode: str | None = None) -> list[pathlib.Path]:
    """Return the checkpoint at `path`, or those of a run directory, newest first.

    Raises:
        ValueError: as `find`.
    """
    if path == "":  # pathlib takes it for the current directory
        raise ValueError(
            f"No checkpoint at '': the path must be a run directory with {PREFIX}_<step> "
            "directories, or one of those, got an empty string."
        )
    path = pathlib.Path(paths.local(path, "The path of a checkpoint")).absolute()
    is_specific = _STEP_DIRECTORY.fullmatch(path.name) is not None
    if path.is_file():
        raise ValueError(
            f"No checkpoint at {path}: it is a file. Give a run directory with {PREFIX}_<step> "
            "directories, or one of those."
        )
    if not path.is_dir():
        beside = saved_steps(path.parent) if is_specific else []
        hint = f" Saved steps beside it: {beside}." if beside else ""
        raise ValueError(f"No checkpoint at {path}: there is no such directory.{hint}")
    if mode is not None and is_specific != (mode == "specific"):
        raise ValueError(
            f"mode={mode!r} requires a {'checkpoint' if mode == 'specific' else 'run'} directory, "
            f"got {path}. Leave `mode` at None to accept both."
        )
    if is_specific:
        return [path]
    steps = saved_steps(path)
    if not steps:
        names = sorted(each.name for each in path.iterdir())
        shown = ", ".join(names[:8]) or "nothing"
        raise ValueError(
            f"No checkpoint in {path}: it holds {shown}. Give a run directory with {PREFIX}_<step> "
            "directories, or one of those."
        )
    return [checkpoint_path(path, step) for step in reversed(steps)]


def first_whole(
    path: str | pathlib.Path, mode: str | None, load: Callable[[pathlib.Path], Found]
) -> Found:
    """Return `load` of the newest intact checkpoint; log a warning for each damaged one.

    Raises:
        ValueError: as `find`, or from `load`.
        DamagedError: if `path` is one damaged checkpoint, or all of a run are damaged.
    """
    found = candidates(path, mode)
    for checkpoint, before in zip(found, [*found[1:], None], strict=True):
        try:
            return load(checkpoint)
        except DamagedError as error:
            if before is None:
                raise DamagedError(f"{error} {_way_out(checkpoint, len(found))}") from error
            logging.warning("%s TAKING THE ONE BEFORE IT: %s.", error, before)
    raise AssertionError("`candidates` returns at least one path or raises")


def _way_out(checkpoint: pathlib.Path, tried: int) -> str:
    if tried > 1:
        return f"So are the {tried - 1} after it, and there is none before it."
    for step in reversed(saved_steps(checkpoint.parent)):
        before = checkpoint_path(checkpoint.parent, step)
        if step < int(checkpoint.name.rpartition("_")[2]):
            with contextlib.suppress(ValueError):
                meta.read_meta(before)
                return f"The one before it is --gin.CHECKPOINT_PATH=\"'{before}'\""
    return "There is none before it."


def doomed(
    steps: Sequence[int], config: SaveCheckpointConfig, bpd: Callable[[int], float | None]
) -> list[int]:
    """Return the steps whose checkpoints may be deleted.

    Args:
        steps: steps of the complete checkpoints, ascending.
        config: what to keep.
        bpd: bits per dim of a step, None if unknown.
    """
    if config.keep is None:
        return []
    stay = set(steps[-config.keep :])
    if config.keep_period is not None:
        stay |= {step for step in steps if step % config.keep_period == 0}
    if config.keep_best is not None:
        judged = [(value, -step) for step in steps if (value := bpd(step)) is not None]
        stay |= {-step for _, step in sorted(judged)[: config.keep_best]}
    return [step for step in steps if step not in stay]


def delete(directory: pathlib.Path, steps: Sequence[int]) -> None:
    """Delete checkpoints, and what an interrupted deletion left behind.

    Each is renamed first, so that a partly deleted one is never taken for a checkpoint.
    """
    for step in steps:
        path = checkpoint_path(directory, step)
        path.rename(path.with_name(DELETED_PREFIX + path.name))
    for path in directory.glob(f"{DELETED_PREFIX}{PREFIX}_*"):
        shutil.rmtree(path, ignore_errors=True)


def sync(checkpoint: pathlib.Path) -> None:
    """Flush every file of a checkpoint from the page cache to disk."""
    for path in [*checkpoint.rglob("*"), checkpoint, checkpoint.parent]:
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def check_space(directory: pathlib.Path, num_bytes: int) -> None:
    """Raise OSError if the disk of `directory` has no room for arrays of `num_bytes` bytes."""
    needed = int(SPACE_MARGIN * num_bytes) + (1 << 16)
    while not directory.exists():
        directory = directory.parent
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"it needs about {_megabytes(needed)} of disk space and {_megabytes(free)} are free",
        )


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"
