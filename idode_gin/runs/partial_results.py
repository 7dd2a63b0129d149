"""Values of images, kept on disk as they are computed: a killed process is gone on from.

    <folder>/facts.json                            what is computed, in words
    <folder>/part_<facts>_<number>_<content>.npz   rows of it: `<section>/index` and the values;
                                                   and `/seconds` that they took

Parts appear whole or not at all and are never changed. Their names hold the digest of the facts, so
that values of two computations are never mixed, and of the content, so that damage is noticed.
"""

import hashlib
import io
import json
import pathlib
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging

from idode_gin.reports import files

FORMAT = 1
WRITE_PERIOD = 5.0
"""Seconds between two parts: what a kill can lose, beside the batch that is being worked on."""
_DIGITS = 16
_SHOWN = 5

Rows = dict[str, np.ndarray]
"""Values `[n, ...]` by name, one row per image."""


class PartialResults:
    """Rows of N images in one section or several, filled in any order, each once.

    With several processes every one of them is given every row; the first reads and writes, and
    tells the others what it read.

    Args:
        folder: for the files; made when there is something to keep.
        facts: what the values are a function of, beside the image's number, as JSON holds it.
        num_images: N.
        place: what the values may depend on in their last digits: devices and versions.

    Raises:
        ValueError: if `folder` holds values of another computation.
    """

    def __init__(
        self, folder: pathlib.Path, facts: Mapping[str, Any], num_images: int, place: str = ""
    ) -> None:
        self.num_images = num_images
        self._folder, self._place = folder, place
        self._facts = json.loads(json.dumps({"format": FORMAT, **facts}))
        text = json.dumps(self._facts, sort_keys=True)
        self._digest = hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]
        self._done: dict[str, np.ndarray] = {}
        self._values: dict[str, Rows] = {}
        self._unwritten: dict[str, list[np.ndarray]] = {}
        self._is_told, self._number = False, 0
        self._last_part = self._last_write = time.monotonic()
        self.seconds_before = 0.0
        """That other processes, before this one, took for what they wrote."""
        self._lock = threading.RLock()  # a thread writes when the process must leave at once
        self._read()

    @property
    def is_begun(self) -> bool:
        """Whether there are values."""
        return bool(self._values)

    def missing(self, section: str) -> np.ndarray:
        """Numbers of the images that have no values yet, rising."""
        return np.flatnonzero(~self._is_done(section))

    def progress(self) -> str:
        """How far every section that was begun is, in words."""
        with self._lock:
            counts = [(int(done.sum()), name) for name, done in self._done.items()]
        parts = [f"{count} of {self.num_images} images of {name}" for count, name in counts]
        return ", ".join(parts) or "no image"

    def add(self, section: str, index: np.ndarray, rows: Mapping[str, np.ndarray]) -> None:
        """Takes the values `[n, ...]` of the images `index` `[n]`, and now and then writes a part.

        Raises:
            OSError: naming the file, if the disk refuses it.
        """
        with self._lock:
            self._put(section, index, rows)
            self._unwritten.setdefault(section, []).append(index)
        if time.monotonic() - self._last_write >= WRITE_PERIOD:
            self.write()

    def rows(self, section: str) -> Rows:
        """Every value `[N, ...]` of a section that misses none, by name."""
        assert self._is_done(section).all()
        return {name: self._values[section][name] for name in sorted(self._values[section])}

    def write(self) -> None:
        """Writes what was not yet written.

        Raises:
            OSError: naming the file, if the disk refuses it.
        """
        with self._lock:
            self._last_write = time.monotonic()
            if self._unwritten and jax.process_index() == 0:
                if not self._is_told:
                    told = {"facts": self._facts, "place": self._place}
                    text = json.dumps(told, indent=2, sort_keys=True) + "\n"
                    files.write_atomically(self._folder / "facts.json", text)
                    self._is_told = True
                self._number += 1
                sections = {
                    section: self._chosen(section, np.concatenate(index))
                    for section, index in self._unwritten.items()
                }
                content = _packed(sections, self._last_write - self._last_part)
                self._last_part = self._last_write
                name = f"part_{self._digest}_{self._number:06d}_{_digest(content)}.npz"
                files.write_atomically(self._folder / name, content)
            self._unwritten = {}

    def remove(self) -> None:
        """Removes the folder: its values are elsewhere, or of no more use."""
        with self._lock:
            self._unwritten = {}
            if jax.process_index() == 0:
                shutil.rmtree(self._folder, ignore_errors=True)

    def _is_done(self, section: str) -> np.ndarray:
        return self._done.setdefault(section, np.zeros(self.num_images, bool))

    def _put(self, section: str, index: np.ndarray, rows: Mapping[str, np.ndarray]) -> None:
        values = self._values.setdefault(section, {})
        for name, each in rows.items():
            if name not in values:
                values[name] = np.zeros((self.num_images, *each.shape[1:]), each.dtype)
            values[name][index] = each
        self._is_done(section)[index] = True

    def _chosen(self, section: str, index: np.ndarray) -> Rows:
        """The index and the values of some images of a section."""
        values = self._values[section].items()
        return {"index": index, **{name: each[index] for name, each in values}}

    def _read(self) -> None:
        if jax.process_count() == 1:
            self._read_parts()
            return
        content = _told_by_first(self._read_and_pack)
        self.seconds_before = 0.0  # what the first process read it is told, too
        self._take(content)

    def _read_and_pack(self) -> bytes:
        self._read_parts()
        sections = {
            name: self._chosen(name, np.flatnonzero(done)) for name, done in self._done.items()
        }
        return _packed(sections, self.seconds_before)

    def _read_parts(self) -> None:
        self._check_facts()
        for path in sorted(self._folder.glob("part_*_*_*.npz")):
            _, facts, number, digest = path.stem.split("_", 3)
            if facts != self._digest:
                logging.warning("%s belongs to another computation and is left out.", path)
                continue
            content = path.read_bytes()
            if _digest(content) != digest:
                logging.warning("%s is damaged: the images in it are computed again.", path)
                path.unlink()
                continue
            self._number = max(self._number, int(number))
            self._take(content)

    def _take(self, content: bytes) -> None:
        """Takes what `_packed` made."""
        sections = _unpacked(content)
        self.seconds_before += float(sections.pop("")["seconds"])
        for section, rows in sections.items():
            self._put(section, rows.pop("index"), rows)

    def _check_facts(self) -> None:
        path = self._folder / "facts.json"
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            saved, place = dict(told["facts"]), told["place"]
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError):
            logging.warning("%s is damaged: only parts of this very computation are used.", path)
            return
        different = _differences(saved, self._facts)
        if different:
            more = f"; and {len(different) - _SHOWN} more" if len(different) > _SHOWN else ""
            raise ValueError(
                f"{self._folder} holds the beginning of another computation, whose values cannot "
                f"be mixed with these: {'; '.join(different[:_SHOWN])}{more}. Go on with what it "
                f"was begun with, choose another output directory, or remove {self._folder} to "
                "begin anew."
            )
        self._is_told = True
        if place != self._place:
            logging.warning(
                "The values in %s were computed on %s, the others now on %s. They are as right as "
                "those; to have all from one place, remove that folder.",
                self._folder,
                place,
                self._place,
            )


def _differences(saved: Mapping[str, Any], facts: Mapping[str, Any]) -> list[str]:
    """In words, every fact that is another one than when the folder was begun."""
    nothing = "nothing"
    return [
        f"{name} was {saved.get(name, nothing)} and is {facts.get(name, nothing)} now"
        for name in sorted(saved.keys() | facts.keys())
        if saved.get(name, nothing) != facts.get(name, nothing)
    ]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:_DIGITS]


def _packed(sections: Mapping[str, Rows], seconds: float) -> bytes:
    arrays = {
        f"{section}/{name}": each
        for section, rows in sections.items()
        for name, each in rows.items()
    }
    arrays["/seconds"] = np.asarray(seconds)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def _unpacked(content: bytes) -> dict[str, Rows]:
    sections: dict[str, Rows] = {}
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        for key in arrays.files:
            section, _, name = key.rpartition("/")
            sections.setdefault(section, {})[name] = arrays[key]
    return sections


def _told_by_first(make: Callable[[], bytes]) -> bytes:
    """What `make` gives on the first process, on all of them; if it raises there, all raise."""
    from jax.experimental import multihost_utils

    content, error = b"", None
    if jax.process_index() == 0:
        try:
            content = b"\0" + make()
        except (ValueError, OSError) as found:
            content, error = b"\1" + str(found).encode(), found
    size = multihost_utils.broadcast_one_to_all(np.asarray([len(content)], np.uint32))
    sent = np.frombuffer(content.ljust(int(size[0]), b"\0"), np.uint8)
    told = np.asarray(multihost_utils.broadcast_one_to_all(sent), np.uint8).tobytes()
    if told[:1] == b"\1":
        raise error or ValueError(told[1:].decode())
    return told[1:]
