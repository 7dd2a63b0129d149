"""Where a dataset goes: written aside, and moved into its place when it is whole.

<data_dir>/.preparing.<dataset>/       while it is written; nobody takes this for a dataset
    lock                               held by the process that writes
    <dataset>/<version>/               moved to its place by one rename
    replaced/                          the dataset before, between two renames
"""

import contextlib
import errno
import fcntl
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import IO

from tasks.prepare.refusals import TargetError

FINISHED = "dataset_info.json"


def default_data_dir() -> pathlib.Path:
    """TFDS's own default."""
    return pathlib.Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def check_free(data_dir: pathlib.Path, needed: int) -> None:
    """Raises TargetError unless the disk has room for `needed` bytes."""
    existing = data_dir.absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise TargetError(
            f"The dataset may need {needed / 1e9:.1f} GB in {data_dir}, where {free / 1e9:.1f} GB "
            "are free. Make room, or name another disk with --tfds_data_dir."
        )


def check_unused(data_dir: pathlib.Path, folder: str, *, overwrite: bool) -> None:
    """Raises TargetError if there is something where the dataset goes, unless it may be replaced.

    With `overwrite` a folder is replaced, a file is not.
    """
    final = data_dir / folder
    if not os.path.lexists(final) or (overwrite and final.is_dir() and not final.is_symlink()):
        return
    finished = (final / FINISHED).is_file()
    raise TargetError(
        f"{final} {'is a finished dataset' if finished else 'exists'}; it is left as it is. "
        "Replace it with --overwrite, or name another place with --tfds_data_dir."
    )


@contextlib.contextmanager
def staged(data_dir: pathlib.Path, folder: str, *, overwrite: bool) -> Iterator[pathlib.Path]:
    """A data directory to write to; on a normal exit its `folder` moves to that of `data_dir`.

    What an earlier process left when it was killed is cleared away first, and a dataset that it
    had moved aside goes back to its place. After an exception nothing is left.

    Args:
        data_dir: TFDS's data directory.
        folder: of the dataset, below it.
        overwrite: whether to replace a dataset that is there.

    Raises:
        TargetError: if the place is taken, not writable, or written to by another process.
    """
    final = data_dir / folder
    aside = data_dir / f".preparing.{folder.replace('/', '.')}"
    with _explained(data_dir):
        if "://" in str(data_dir):
            raise TargetError(f"--tfds_data_dir must be a folder of this machine, got {data_dir}.")
        data_dir.mkdir(parents=True, exist_ok=True)
        lock = _lock(aside)
    try:
        with _explained(data_dir):
            _recover(aside, final)
            check_unused(data_dir, folder, overwrite=overwrite)
        yield aside
        with _explained(data_dir):
            _sync(aside / folder)
            _swap(aside / folder, final, aside / "replaced")
    finally:
        _put_back(final, aside / "replaced")
        shutil.rmtree(aside, ignore_errors=True)
        lock.close()


@contextlib.contextmanager
def _explained(data_dir: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TargetError(explain(error, data_dir)) from error


def explain(error: OSError, data_dir: pathlib.Path) -> str:
    """What to do about a disk's error."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        reason, advice = "the disk is full", "Make room, or"
    else:
        reason, advice = error.strerror or str(error), "Give yourself permission, or"
    return (
        f"{data_dir} cannot be written to: {reason}. Nothing was left behind. {advice} name "
        "another place with --tfds_data_dir."
    )


def _lock(aside: pathlib.Path) -> IO[str]:
    while True:
        aside.mkdir(exist_ok=True)
        try:
            file = (aside / "lock").open("a")
        except FileNotFoundError:  # the process that had it just finished
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise TargetError(
                f"Another process is preparing this dataset (it holds {aside / 'lock'}). "
                "Wait for it, or stop it."
            ) from None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), (aside / "lock").stat()):
                return file
        file.close()


def _recover(aside: pathlib.Path, final: pathlib.Path) -> None:
    _put_back(final, aside / "replaced")
    for left in aside.iterdir():
        if left.name != "lock":
            shutil.rmtree(left)


def _put_back(final: pathlib.Path, replaced: pathlib.Path) -> None:
    if replaced.exists() and not final.exists():
        final.parent.mkdir(parents=True, exist_ok=True)
        replaced.rename(final)


def _swap(new: pathlib.Path, final: pathlib.Path, replaced: pathlib.Path) -> None:
    final.parent.mkdir(parents=True, exist_ok=True)
    if final.exists():
        final.rename(replaced)
    new.rename(final)


def _sync(folder: pathlib.Path) -> None:
    """The content must reach the disk before the name does."""
    for path in [*folder.rglob("*"), folder]:
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
