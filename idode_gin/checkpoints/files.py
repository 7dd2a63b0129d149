"""Checkpoint directories: list them, resolve a path to one, select and delete old ones."""

import contextlib
import difflib
import errno
import glob
import json
import pathlib
import shutil
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from absl import logging

from idode_gin.checkpoints import meta, names
from idode_gin.checkpoints.meta import DamagedError
from idode_gin.checkpoints.names import PREFIX
from idode_gin.reports import files as report_files
from idode_gin.reports import paths

if TYPE_CHECKING:
    from idode_gin.reports import buckets

DAMAGED_PREFIX = "damaged_"
DELETED_PREFIX = "deleted_"
COMMITTED = "commit_success.txt"
"""What orbax writes last into a checkpoint in a bucket, where nothing can be renamed."""
_TIMES = "_CHECKPOINT_METADATA"
"""What orbax writes before that: when a save began, and when all parts were there."""
_ARRAYS = ("params", "ema", "training")
"""Parts of a checkpoint that hold arrays."""
_PARTS = (_TIMES, "meta", *_ARRAYS)
"""What a save of this project writes: one of these is there, wherever it was interrupted."""
PIN = "PINNED"
"""A checkpoint whose folder holds a file of this name is not deleted."""
SPACE_MARGIN = 1.1
"""Disk space reserved for a checkpoint, relative to the bytes of its arrays."""
_INDEX = "manifest.ocdbt"

Found = TypeVar("Found")


def saved_steps(directory: str | pathlib.Path) -> list[int]:
    """Return the steps of a run directory's complete checkpoints, ascending; [] without one."""
    found = _by_completeness(paths.of(directory))
    return sorted(int(each.name.rpartition("_")[2]) for each, is_whole in found if is_whole)


def _by_completeness(directory: pathlib.Path) -> list[tuple[pathlib.Path, bool]]:
    """Return the checkpoints of a directory, and whether each is complete; [] without one."""
    if not directory.is_dir():
        return []
    found = [each for each in directory.iterdir() if names.is_checkpoint(each.name)]
    if not paths.in_bucket(directory):
        return [(each, True) for each in found]
    return list(zip(found, report_files.side_by_side(is_complete, found), strict=True))


def is_complete(checkpoint: pathlib.Path) -> bool:
    """Return True for a complete checkpoint.

    In a bucket it holds the mark; or it was copied from a disk, where older releases of orbax write
    none.
    """
    if not paths.in_bucket(checkpoint):
        return checkpoint.is_dir()
    if (checkpoint / COMMITTED).exists():
        return True
    try:
        times = json.loads((checkpoint / _TIMES).read_bytes())
    except (FileNotFoundError, ValueError):
        return False
    return isinstance(times, dict) and times.get("commit_timestamp_nsecs") is not None


def warn_of_misnamed(directory: str | pathlib.Path) -> None:
    """Log a warning for each folder such as `checkpoint_007`, which is not a checkpoint's name."""
    directory = paths.of(directory)
    for name in sorted(each.name for each in directory.iterdir()) if directory.is_dir() else ():
        if names.is_misnamed(name):
            logging.warning(
                "%s is ignored: a checkpoint's folder is named %s_<step>, without leading zeros.",
                directory / name,
                PREFIX,
            )


def checkpoint_path(directory: str | pathlib.Path, step: int) -> pathlib.Path:
    """Return the path of the checkpoint of `step` in a run directory."""
    return paths.of(directory).absolute() / f"{PREFIX}_{step}"


def check_path(directory: str | pathlib.Path) -> None:
    """Raise ValueError for a run directory whose checkpoints nobody could read.

    orbax looks for what it has written by a pattern that begins with the whole path. If the pattern
    matches nothing, it takes the checkpoint for finished; if it matches another folder too, it
    merges that one's arrays.
    """
    path = str(paths.of(directory).absolute())
    if glob.has_magic(path) or "\\" in path:
        raise ValueError(
            "The path of a directory for checkpoints must not have `*`, `?`, `[` or a backslash, "
            f"which orbax takes for a pattern, got {path}. Choose another name, or name a symbolic "
            "link to it."
        )
    if names.is_checkpoint(paths.of(directory).name):
        raise ValueError(
            f"A run directory must not be named like a checkpoint in one, got {path}: programs "
            "would take it for that. Choose another name."
        )


def has_index(checkpoint: pathlib.Path) -> bool:
    """Return True unless orbax has left out an index of arrays, which cannot be read then."""
    parts = (checkpoint / name for name in _ARRAYS)
    return all((each / _INDEX).exists() for each in parts if each.is_dir())


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
    path = paths.of(paths.stored(path, "The path of a checkpoint")).absolute()
    is_specific = names.is_checkpoint(path.name)
    if path.is_file():
        raise ValueError(
            f"No checkpoint at {path}: it is a file. Give a run directory with {PREFIX}_<step> "
            "directories, or one of those."
        )
    if not path.is_dir():
        beside = saved_steps(path.parent) if is_specific else []
        hint = f" Saved steps beside it: {beside}." if beside else _like(path)
        raise ValueError(f"No checkpoint at {path}: there is no such directory.{hint}")
    if mode is not None and is_specific != (mode == "specific"):
        raise ValueError(
            f"mode={mode!r} requires a {'checkpoint' if mode == 'specific' else 'run'} directory, "
            f"got {path}. Leave `mode` at None to accept both."
        )
    if is_specific:
        if not is_complete(path):
            raise ValueError(
                f"No checkpoint at {path}: it is not complete. Its save or deletion is in progress "
                f"or was interrupted. Saved steps beside it: {saved_steps(path.parent)}."
            )
        return [path]
    if (path / "meta" / "metadata").is_file():
        raise ValueError(
            f"No checkpoint at {path}: it holds one, but the folder of a checkpoint must be named "
            f"{PREFIX}_<step>, without leading zeros. Rename it to {PREFIX}_"
            f"{meta.read(path)['step']}."
        )
    if not saved_steps(path):
        held = sorted(each.name for each in path.iterdir())
        shown = ", ".join(held[:8]) or "nothing"
        raise ValueError(
            f"No checkpoint in {path}: it holds {shown}. Give a run directory with {PREFIX}_<step> "
            "directories, or one of those."
        )
    return newest_first(path)


def _like(path: pathlib.Path) -> str:
    """Return a hint at the folder with the nearest name, where `path` goes astray."""
    if paths.in_bucket(path):
        return ""
    stray = next(each for each in (path, *path.parents) if each.parent.is_dir())
    with contextlib.suppress(OSError):
        unusable = (DAMAGED_PREFIX, DELETED_PREFIX, ".")
        folders = [
            each.name
            for each in stray.parent.iterdir()
            if each.is_dir() and not each.name.startswith(unusable)
        ]
        if near := difflib.get_close_matches(stray.name, folders, n=1):
            return f" Did you mean {stray.parent / near[0]}?"
    return ""


def newest_first(directory: str | pathlib.Path) -> list[pathlib.Path]:
    """Return the paths of a run directory's complete checkpoints, newest first; [] without one."""
    return [checkpoint_path(directory, step) for step in reversed(saved_steps(directory))]


def described(paths: Iterable[pathlib.Path]) -> tuple[pathlib.Path, dict[str, Any]] | None:
    """Return the first checkpoint whose description is intact, with it; None without one."""
    for path in paths:
        with contextlib.suppress(DamagedError):
            return path, meta.read_meta(path)
    return None


def holds(path: str | pathlib.Path) -> bool:
    """Return True if `path` is a checkpoint of this library, or a folder whose newest one is."""
    path = pathlib.Path(path)
    steps = saved_steps(path)
    checkpoint = checkpoint_path(path, steps[-1]) if steps else path
    return (checkpoint / "meta").is_dir()


def find_described(
    path: str | pathlib.Path, mode: str | None = None
) -> tuple[pathlib.Path, dict[str, Any]]:
    """Return the newest checkpoint at `path` whose description is intact, with it.

    Raises:
        ValueError: as `first_whole`.
    """
    return first_whole(path, mode, lambda each: (each, meta.read_meta(each)))


def first_whole(
    path: str | pathlib.Path,
    mode: str | None,
    load: Callable[[pathlib.Path], Found],
    listed: Callable[
        [Callable[[], Sequence[pathlib.Path]]], Sequence[pathlib.Path]
    ] = lambda find: find(),
) -> Found:
    """Return `load` of the newest intact checkpoint; log a warning for each damaged one.

    `listed` returns the paths that a function finds; on several processes, the same on all.

    Raises:
        ValueError: as `find`, or from `load`.
        DamagedError: if `path` is one damaged checkpoint, or all of a run are damaged.
    """
    found = listed(lambda: candidates(path, mode))
    if found[0].name != paths.of(path).name:
        warn_of_misnamed(path)
    for checkpoint, before in zip(found, [*found[1:], None], strict=True):
        try:
            return load(checkpoint)
        except DamagedError as error:
            if before is None:
                raise DamagedError(f"{error} {_way_out(checkpoint, len(found))}") from error
            logging.warning("%s TAKING THE ONE BEFORE IT: %s.", error, before)
    raise AssertionError("there is at least one path")


def _way_out(checkpoint: pathlib.Path, tried: int) -> str:
    if tried > 1:
        return f"So are the {tried - 1} after it, and there is none before it."
    for step in reversed(saved_steps(checkpoint.parent)):
        before = checkpoint_path(checkpoint.parent, step)
        if step < int(checkpoint.name.rpartition("_")[2]):
            with contextlib.suppress(ValueError):
                meta.read_meta(before)
                return (
                    f"The one before it is --gin.CHECKPOINT_PATH=\"'{before}'\" (in training "
                    "INITIAL_CHECKPOINT_PATH)."
                )
    return "There is none before it."


def is_pinned(directory: pathlib.Path, step: int) -> bool:
    """Return True if the user has pinned the checkpoint of `step`."""
    return (checkpoint_path(directory, step) / PIN).exists()


def delete(directory: pathlib.Path, steps: Sequence[int]) -> None:
    """Delete checkpoints, and what an interrupted deletion left behind on a disk.

    Each is renamed first, so that a partly deleted one is never taken for a checkpoint. In a bucket
    what shows that it is complete goes first; see `delete_unfinished`.
    """
    if paths.in_bucket(directory):
        for step in steps:
            _in_bucket(checkpoint_path(directory, step)).delete(_TIMES, COMMITTED)
        return
    for step in steps:
        path = checkpoint_path(directory, step)
        path.rename(path.with_name(DELETED_PREFIX + path.name))
    for path in directory.glob(f"{DELETED_PREFIX}{PREFIX}_*"):
        shutil.rmtree(path, ignore_errors=True)


def delete_unfinished(directory: pathlib.Path, suffix: str) -> None:
    """Delete what interrupted saves and deletions left, of our checkpoints alone.

    orbax's own cleaning runs beside the first save, which may need the room. In a bucket it would
    take every folder without its mark for an unfinished checkpoint: results of an evaluation,
    events, other runs.

    Args:
        directory: the run directory.
        suffix: what orbax adds to the name of a folder that it writes on a disk.
    """
    if not paths.in_bucket(directory):
        for path in directory.glob(f"{PREFIX}_*{suffix}*"):
            shutil.rmtree(path, ignore_errors=True)
    else:
        for checkpoint, is_whole in _by_completeness(directory):
            if not is_whole and any((checkpoint / name).exists() for name in _PARTS):
                _in_bucket(checkpoint).delete()


def put_aside(path: pathlib.Path) -> None:
    """Rename a damaged checkpoint, and replace an earlier one of that name."""
    aside = path.with_name(DAMAGED_PREFIX + path.name)
    if paths.in_bucket(path):
        _in_bucket(aside).rmtree(missing_ok=True)
        _in_bucket(path).move_to(_in_bucket(aside), _TIMES, COMMITTED)
        return
    if aside.is_dir() and not aside.is_symlink():
        shutil.rmtree(aside, ignore_errors=True)
    else:
        aside.unlink(missing_ok=True)
    path.rename(aside)


def stamp(checkpoint: pathlib.Path) -> tuple[int, Any]:
    """Return the number of files of a checkpoint and the time of the last change."""
    if paths.in_bucket(checkpoint):
        return _in_bucket(checkpoint).stamp()
    times = [0]
    with contextlib.suppress(OSError):  # it may be deleted meanwhile
        times += [each.stat().st_mtime_ns for each in checkpoint.rglob("*")]
    return len(times), max(times)


def _in_bucket(path: Any) -> "buckets.BucketPath":
    return path


def identity(directory: pathlib.Path) -> tuple[int, int] | None:
    """Return numbers that change if a directory is deleted and made again; None without one.

    None in a bucket, which has no directories.
    """
    if paths.in_bucket(directory):
        return None
    try:
        found = directory.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def sync(checkpoint: pathlib.Path) -> None:
    """Flush every file of a checkpoint from the page cache to disk; a bucket has none."""
    if paths.in_bucket(checkpoint):
        return
    for path in [*checkpoint.rglob("*"), checkpoint, checkpoint.parent]:
        report_files.flush(path)


def check_space(directory: pathlib.Path, num_bytes: int) -> None:
    """Raise OSError if the disk of `directory` has no room for arrays of `num_bytes` bytes."""
    if paths.in_bucket(directory):
        return
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
