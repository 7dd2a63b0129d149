"""Copies of data in a bucket on this machine, for libraries that read files alone."""

import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from idode_gin.feed import image_cache
from idode_gin.reports import files, paths, progress

if TYPE_CHECKING:
    from idode_gin.reports import buckets

FOLDER, MANIFEST = "copies", "manifest.json"
_TOGETHER = 64
"""Files that are requested at once."""


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
    """Copy what is at `address`; once in a process, so that all it reads is of one time."""
    source: Any = paths.of(address)
    wanted = source.objects()
    if not wanted:
        raise ValueError(f"{name} = {address!r}: there is nothing in the bucket.")
    folder = image_cache.default_directory() / FOLDER / _digest(address)
    target = folder / source.name
    try:
        with image_cache.only_one(folder, FOLDER):
            _update(source, wanted, target, folder / MANIFEST)
    except paths.StoreError:
        raise
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
    have = {each for each in wanted if _is_there(target / each, known.get(each), wanted[each])}
    for each in known.keys() - wanted.keys():
        (target / each).unlink(missing_ok=True)
    missing = sorted(wanted.keys() - have)
    done = {each: wanted[each] for each in have}
    _write(manifest, done)
    if not missing:
        return
    image_cache.check_space(target.parent, sum(wanted[each][0] for each in missing))
    with progress.phase(f"copying {source} to {target}", len(missing), unit="files") as phase:
        for some in _pieces(missing):
            source.download({each: target / each for each in some})
            done |= {each: wanted[each] for each in some}
            _write(manifest, done)  # so that an interrupted copy is continued
            phase.advance(len(some))


def _is_there(path: pathlib.Path, known: tuple[int, str] | None, wanted: tuple[int, str]) -> bool:
    return known == wanted and path.is_file() and path.stat().st_size == wanted[0]


def _read(manifest: pathlib.Path) -> dict[str, tuple[int, str]]:
    try:
        found = json.loads(manifest.read_text(encoding="utf-8"))
        return {str(name): (int(size), str(version)) for name, (size, version) in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}  # copied anew


def _write(manifest: pathlib.Path, known: Mapping[str, tuple[int, str]]) -> None:
    files.write_atomically(manifest, json.dumps(known))


def _pieces(names: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(names), _TOGETHER):
        yield names[start : start + _TOGETHER]


def _digest(address: str) -> str:
    return hashlib.sha256(address.encode()).hexdigest()[:32]
