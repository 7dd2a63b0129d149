"""The place of a dataset: written aside, and moved to its place when it is complete.

<data_dir>/.preparing.<dataset>/       while it is written; no reader takes this for a dataset
    lock                               held by the process that writes
    <dataset>/<version>/               moved to its place by one rename
    replaced/                          the previous dataset, between two renames
"""

import contextlib
import errno
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import IO

from idode_gin.reports import files, paths
from tasks.prepare import stopping
from tasks.prepare.refusals import TargetError

FINISHED = "dataset_info.json"
REPLACED = "replaced"
"""Folder of a dataset that is being replaced, below the place where the other one is written."""


def default_data_dir() -> pathlib.Path:
    """Return TFDS's own default.

    Raises:
        TargetError: if it is no path on this machine, or there is no home folder.
    """
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    try:
        return pathlib.Path(paths.local(default, "The data folder, which --tfds_data_dir sets,"))
    except ValueError as error:
        raise TargetError(str(error)) from error


def check_free(data_dir: pathlib.Path, folder: str, needed: int) -> None:
    """Raise TargetError unless the disk has room for `needed` bytes.

    What a killed process left counts as free: `staged` removes it first.
    """
    existing = data_dir.absolute()
    while not os.path.exists(existing):  # False too where it may not be looked
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    aside = _aside(data_dir, folder)
    left = (each for each in aside.glob("*") if each != aside / REPLACED)
    free += sum(each.stat().st_size for part in left for each in part.rglob("*") if each.is_file())
    if free < needed:
        raise TargetError(
            f"The dataset may need {needed / 1e9:.1f} GB in {data_dir}, where {free / 1e9:.1f} GB "
            "are free. Make room, or name another disk with --tfds_data_dir."
        )


def check_unused(data_dir: pathlib.Path, folder: str, *, overwrite: bool) -> None:
    """Raise TargetError if the dataset's place is taken; `overwrite` may replace a folder."""
    final = data_dir / folder
    if not os.path.lexists(final) or (overwrite and final.is_dir() and not final.is_symlink()):
        return
    finished = (final / FINISHED).is_file()
    raise TargetError(
        f"{final} {'is a finished dataset' if finished else 'exists'}; it is left unchanged. "
        "Replace it with --overwrite, or name another place with --tfds_data_dir."
    )


@contextlib.contextmanager
def staged(data_dir: pathlib.Path, folder: str, *, overwrite: bool) -> Iterator[pathlib.Path]:
    """Give a data directory to write to; on a normal exit move its `folder` to `data_dir`.

    Files that a killed process left are removed first, and a dataset that it had moved aside goes
    back to its place. After an exception nothing is left.

    Args:
        data_dir: TFDS's data directory.
        folder: place of the dataset below it.
        overwrite: whether to replace a dataset that exists.

    Raises:
        TargetError: if the place is taken, not writable, or written to by another process.
    """
    final = data_dir / folder
    aside = _aside(data_dir, folder)
    replaced = aside / REPLACED
    with _explained(data_dir):
        aside.mkdir(parents=True, exist_ok=True)
        lock = _lock(aside)
    try:
        with _explained(data_dir):
            _put_back(final, replaced)
            for left in aside.iterdir():
                if left.name != "lock":
                    shutil.rmtree(left)
            check_unused(data_dir, folder, overwrite=overwrite)
        yield aside
        with _explained(data_dir):
            _sync(aside / folder)
            stopping.check()
            final.parent.mkdir(parents=True, exist_ok=True)
            if final.exists():
                final.rename(replaced)
            (aside / folder).rename(final)
    finally:
        _put_back(final, replaced)
        shutil.rmtree(aside, ignore_errors=True)
        lock.close()


def _aside(data_dir: pathlib.Path, folder: str) -> pathlib.Path:
    return data_dir / f".preparing.{folder.replace('/', '.')}"


@contextlib.contextmanager
def _explained(data_dir: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TargetError(explain(error, data_dir)) from error


def explain(error: OSError, data_dir: pathlib.Path) -> str:
    """Return a disk's error with advice."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        reason, advice = "the disk is full", "Make room, or"
    else:
        reason, advice = error.strerror or str(error), "Give yourself permission, or"
    return (
        f"{data_dir} cannot be written to: {reason}. Nothing was left behind. {advice} name "
        "another place with --tfds_data_dir."
    )


def _lock(aside: pathlib.Path) -> IO[str]:
    file = (aside / "lock").open("a")
    with contextlib.suppress(BlockingIOError, FileNotFoundError):
        files.lock(file.fileno(), file.name, wait=False)
        # A process that finishes removes the file, perhaps since it was opened here.
        if os.path.samestat(os.fstat(file.fileno()), (aside / "lock").stat()):
            return file
    file.close()
    raise TargetError(
        f"Another process is preparing this dataset (it holds {aside / 'lock'}). Wait for it, or "
        "stop it."
    )


def _put_back(final: pathlib.Path, replaced: pathlib.Path) -> None:
    if replaced.exists() and not final.exists():
        final.parent.mkdir(parents=True, exist_ok=True)
        replaced.rename(final)


def _sync(folder: pathlib.Path) -> None:
    """Write the content to the disk, before the rename makes it visible."""
    for path in [*folder.rglob("*"), folder]:
        files.flush(path)
