"""Cache of decoded images on disk: written once, then memory-mapped or read whole.

A split is two files in the cache's folder,

    <task>-<split>-<key>-<fingerprint>.npy     integers [N, H, W, C], an ordinary NumPy file
    <task>-<split>-<key>-<fingerprint>.json    its fingerprint, size and time of change

where `key` identifies the files that the images were decoded from, and `fingerprint` is the start
of the SHA-256 of their pixels. The second is written last: without it, the first is ignored. A file
whose size or time changed is compared pixel by pixel before it is used again.
"""

import contextlib
import glob
import hashlib
import io
import json
import math
import os
import pathlib
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from absl import logging

from idode_gin.feed.image_fingerprints import Fingerprinter, ImageFingerprint, fingerprint
from idode_gin.reports import files, paths

FORMAT = 1
_SHOWN_DIGITS = 16
_KEY_DIGITS = 32
_PIECE = 1024  # images
_STALE_SECONDS = 24 * 3600


class CachedImages(NamedTuple):
    """A split from the cache."""

    images: np.ndarray
    """Integers `[N, H, W, C]`, read-only."""
    fingerprint: ImageFingerprint


def default_directory() -> pathlib.Path:
    """Return $IDODE_CACHE_DIR, or else the folder `idode_gin` in the user's cache folder.

    Raises:
        ValueError: if neither it nor XDG_CACHE_HOME is set, and there is no home folder.
    """
    if own := os.environ.get("IDODE_CACHE_DIR"):
        return pathlib.Path(paths.local(own, "IDODE_CACHE_DIR"))
    name = "The cache of decoded images, which IDODE_CACHE_DIR sets,"
    users = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(paths.local(users, name)) / "idode_gin"


def load(
    directory: str | os.PathLike[str],
    name: str,
    key: str,
    decode: Callable[[], Iterable[np.ndarray]],
    *,
    memory_map: bool,
    expected_bytes: int = 0,
) -> CachedImages:
    """Return the images of a split from the cache, decoding them into it if need be.

    If several processes call this at once, one decodes and the others wait for it.

    Args:
        directory: of the cache; created if missing.
        name: of task and split, part of the files' names.
        key: identifies what the images are decoded from.
        decode: yields them, integers `[n, H, W, C]`, in order.
        memory_map: leave them on disk, paged in as they are used; otherwise read them whole.
        expected_bytes: their size on disk, or 0 if unknown.

    Raises:
        ValueError: if the folder cannot be written, or lacks the space.
    """
    folder = pathlib.Path(paths.local(directory, "The cache of decoded images")).absolute()
    stem = f"{re.sub(r'[^A-Za-z0-9_.]+', '_', name)}-{key}"
    found = _find(folder, stem)  # without the lock: a complete cache may be read-only
    if found is None:
        with _explained(folder), only_one(folder, stem):
            found = _find(folder, stem)  # another process may have decoded it
            if found is None:
                _remove(folder, stem)
                check_space(folder, expected_bytes)
                found = _decode(folder, stem, decode())
    path, known = found
    images = np.load(path, mmap_mode="r" if memory_map else None)
    images.setflags(write=False)
    return CachedImages(images, known)


def join(
    directory: str | os.PathLike[str],
    name: str,
    parts: Sequence[CachedImages],
    *,
    memory_map: bool,
) -> CachedImages:
    """Return several mapped splits of the cache, concatenated, as one more split of it.

    Args:
        directory: of the cache.
        name: of the concatenation.
        parts: from `load`, mapped.
        memory_map: as for `load`.

    Raises:
        ValueError: as by `load`, and if their images differ in shape.
    """
    key = hashlib.sha256("".join(part.fingerprint.sha256 for part in parts).encode()).hexdigest()
    dtype = np.result_type(*(part.images.dtype for part in parts))

    def copy() -> Iterator[np.ndarray]:
        for part in parts:
            for piece in pieces(part):
                yield piece.astype(dtype, copy=False)

    return load(
        directory,
        name,
        key[:_KEY_DIGITS],
        copy,
        memory_map=memory_map,
        expected_bytes=sum(part.images.size for part in parts) * dtype.itemsize,
    )


def pieces(cached: CachedImages) -> Iterator[np.ndarray]:
    """Yield the images, `[n, H, W, C]`, some at a time.

    A memory map's images are read from its file, because pages read through the map stay in memory.
    """
    images = cached.images
    row = images.itemsize * math.prod(images.shape[1:])
    for start in range(0, len(images), _PIECE):
        piece = images[start : start + _PIECE]
        if isinstance(images, np.memmap) and images.filename:
            place = images.offset + start * row
            flat = np.fromfile(images.filename, images.dtype, piece.size, offset=place)
            piece = flat.reshape(piece.shape)
        yield piece


def _find(folder: pathlib.Path, stem: str) -> tuple[pathlib.Path, ImageFingerprint] | None:
    for described in sorted(folder.glob(f"{stem}-*.json")):
        path = described.with_suffix(".npy")
        try:
            meta = json.loads(described.read_text(encoding="utf-8"))
            known = ImageFingerprint.from_dict(meta["fingerprint"])
            if meta["format"] != FORMAT:
                continue
            if meta["file"] == _facts(path):
                return path, known
            # Copied or touched: compare the pixels.
            if fingerprint(np.load(path, mmap_mode="r")) == known:
                with contextlib.suppress(OSError):  # read-only: compared again next time
                    _describe(path, known)
                return path, known
        except (OSError, EOFError, ValueError, KeyError, TypeError):
            continue
    return None


def _remove(folder: pathlib.Path, stem: str) -> None:
    """Remove incomplete files of a split; call it under the lock, so that nothing writes them."""
    for each in [*folder.glob(f"{stem}-*.json"), *folder.glob(f"{stem}-*.npy")]:
        logging.warning("%s is damaged and will be decoded again.", each)
        each.unlink(missing_ok=True)


def _facts(path: pathlib.Path) -> dict[str, int]:
    status = path.stat()
    return {"bytes": status.st_size, "changed_ns": status.st_mtime_ns}


def _decode(
    folder: pathlib.Path, stem: str, chunks: Iterable[np.ndarray]
) -> tuple[pathlib.Path, ImageFingerprint]:
    partial = files.partial_path(folder / stem)
    try:
        with partial.open("wb") as file:
            known = _write(file, chunks)
            file.flush()
            os.fsync(file.fileno())
        path = folder / f"{stem}-{known.sha256[:_SHOWN_DIGITS]}.npy"
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    _describe(path, known)
    return path, known


def _describe(path: pathlib.Path, known: ImageFingerprint) -> None:
    meta = {"format": FORMAT, "fingerprint": known.as_dict(), "file": _facts(path)}
    files.write_atomically(path.with_suffix(".json"), json.dumps(meta, indent=2) + "\n")


def _write(file: BinaryIO, chunks: Iterable[np.ndarray]) -> ImageFingerprint:
    """Write a NumPy file whose first axis is known only at the end."""
    fingerprinter, first = Fingerprinter(), None
    for chunk in chunks:
        if first is None:
            first = chunk
            file.write(_header(chunk, 0))
        fingerprinter.add(chunk)
        file.write(np.ascontiguousarray(chunk, first.dtype).data)
    known = fingerprinter.result()
    assert first is not None  # otherwise `result` raises
    file.seek(0)
    # Of the same length as the first: NumPy's headers leave room for the first axis to grow.
    file.write(_header(first, known.num_images))
    return known


def _header(chunk: np.ndarray, num_images: int) -> bytes:
    buffer = io.BytesIO()
    described: dict[str, Any] = {
        "descr": np.lib.format.dtype_to_descr(chunk.dtype),
        "fortran_order": False,
        "shape": (num_images, *chunk.shape[1:]),
    }
    np.lib.format.write_array_header_1_0(buffer, described)
    return buffer.getvalue()


@contextlib.contextmanager
def only_one(folder: pathlib.Path, stem: str) -> Iterator[None]:
    """Let in one process at a time, of all that share the folder.

    What killed processes left of the same file goes first: it may fill the disk.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for partial in folder.glob(".*.partial"):  # left behind by killed processes
        with contextlib.suppress(OSError):
            if time.time() - partial.stat().st_mtime > _STALE_SECONDS:
                partial.unlink()
    with (folder / f".{stem}.lock").open("w") as lock:
        if files.lock(lock.fileno(), lock.name, wait=True):
            for partial in folder.glob(f".{glob.escape(stem)}.*.partial"):
                partial.unlink(missing_ok=True)
        yield


def check_space(folder: pathlib.Path, expected_bytes: int) -> None:
    """Raise OSError if the disk of a folder has no room for so many bytes."""
    free = shutil.disk_usage(folder).free
    if expected_bytes > free:
        raise OSError(f"it needs {expected_bytes / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free")


@contextlib.contextmanager
def _explained(folder: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        path = pathlib.Path(os.fsdecode(error.filename or folder))
        if not (path.is_relative_to(folder) or folder.is_relative_to(path)):
            raise  # it is one of the files that are decoded
        raise ValueError(
            f"Decoded images cannot be kept in {folder}: {error}. Name another folder by "
            "IDODE_CACHE_DIR or DatasetConfig.cache_dir; cache_dir = '' keeps them in memory only."
        ) from error
