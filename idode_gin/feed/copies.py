"""Copies of data in a bucket on this machine, for libraries that read files alone."""

import functools
import hashlib
import json
import os
import pathlib
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from idode_gin.feed import image_cache
from idode_gin.reports import files, paths, progress

if TYPE_CHECKING:
    from idode_gin.reports import buckets

FOLDER, MANIFEST = "copies", "manifest.json"
_TOGETHER = 64
"""Files that are requested at once."""
_PERIOD = 30.0
"""Seconds after which what is copied is noted, for a copy that is killed."""


def local(address: str | os.PathLike[str], name: str) -> pathlib.Path:
    """Return a path on this machine as it is, and the path of a copy of what is in a bucket.

    The copy is made in the cache folder, once for all processes of a machine. Later programs copy
    what the bucket has changed since, and remove what it no longer has.

    Args:
        address: as the user wrote it.
        name: what the message calls it, such as `DATA_PATH`.

    Raises:
        ValueError: if it is no such address, nothing is there, or the disk cannot hold the copy.
        paths.StoreError: if the bucket does not answer.
    """
    given = paths.stored(address, name)
    return _copied(given, name) if paths.in_bucket(given) else pathlib.Path(given)


@functools.cache
def _copied(address: str, name: str) -> pathlib.Path:
    """Copy what is at `address`, once in a process.

    A process that waited while another one did it lists the bucket no second time.
    """
    asked = time.time()
    source: Any = paths.of(address)
    folder = image_cache.default_directory() / FOLDER / _digest(address)
    target, manifest = folder / source.name, folder / MANIFEST
    try:
        with image_cache.only_one(folder, FOLDER):
            if manifest.exists() and manifest.stat().st_mtime >= asked:
                return target
            wanted = source.objects()
            if not wanted:
                raise ValueError(
                    f"{name}: there is nothing at {address}. Check the address, and that you may "
                    "list the bucket."
                )
            _update(source, wanted, target, manifest)
            os.utime(manifest, (time.time(),) * 2)  # the kernel's own clock is coarser
    except paths.StoreError:
        raise
    except FileNotFoundError as error:
        raise ValueError(
            f"{name}: {address} changed while it was copied ({error}). Run the same command again."
        ) from error
    except OSError as error:
        raise ValueError(
            f"The data in {address} cannot be copied to {folder}: {error}. Name another folder by "
            "IDODE_CACHE_DIR."
        ) from error
    return target


def _update(
    source: "buckets.BucketPath",
    wanted: Mapping[str, tuple[int, str]],
    target: pathlib.Path,
    manifest: pathlib.Path,
) -> None:
    known = _read(manifest)
    done = {
        each: facts
        for each, facts in wanted.items()
        if known.get(each) == facts and _has_size(target / each, facts[0])
    }
    _remove_others(target, wanted)
    missing = sorted(wanted.keys() - done.keys())
    if not missing and done == known:
        return
    image_cache.check_space(target.parent, sum(wanted[each][0] for each in missing))
    written = time.monotonic()
    try:
        with progress.phase(f"copying {source} to {target}", len(missing), unit="files") as phase:
            for some in _pieces(missing):
                source.download({each: target / each for each in some})
                done |= {each: wanted[each] for each in some}
                phase.advance(len(some))
                if time.monotonic() - written > _PERIOD:
                    _write(manifest, done)
                    written = time.monotonic()
    finally:
        _write(manifest, done)  # so that an interrupted copy is continued
    print(f"Copied {len(missing)} of {len(wanted)} files of {source} to {target}.", flush=True)


def _remove_others(target: pathlib.Path, wanted: Mapping[str, Any]) -> None:
    """Remove files that are not wanted, and folders that hold none: they look like classes."""
    if target.is_dir() and "." in wanted:  # a file has taken the folder's name
        shutil.rmtree(target)
    elif target.is_file() and "." not in wanted:
        target.unlink()
    for folder, _, names in os.walk(target, topdown=False):
        here = pathlib.Path(folder)
        for name in names:
            if (here / name).relative_to(target).as_posix() not in wanted:
                (here / name).unlink()
        if not any(here.iterdir()):
            here.rmdir()


def _has_size(path: pathlib.Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _read(manifest: pathlib.Path) -> dict[str, tuple[int, str]]:
    try:
        found = json.loads(manifest.read_text(encoding="utf-8"))
        return {str(name): (int(size), str(version)) for name, (size, version) in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}  # copied again


def _write(manifest: pathlib.Path, known: Mapping[str, tuple[int, str]]) -> None:
    files.write_atomically(manifest, json.dumps(known))


def _pieces(names: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(names), _TOGETHER):
        yield names[start : start + _TOGETHER]


def _digest(address: str) -> str:
    return hashlib.sha256(address.encode()).hexdigest()[:32]
