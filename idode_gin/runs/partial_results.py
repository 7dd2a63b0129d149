"""Values of images, saved while they are computed, so that an interrupted run can resume.

    <folder>/facts.json                            what the values depend on
    <folder>/more_facts.json                       facts that are known later, see `require`
    <folder>/part_<facts>_<number>_<content>.npz   `<section>/index` and the values of some images;
                                                   and `/seconds`, the time they took

A part is written atomically and never changed. Its name holds a digest of the facts, so that values
of two computations are never mixed, and a digest of its content, which detects damage.
"""

import dataclasses
import hashlib
import io
import json
import pathlib
import threading
import time
from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging

from idode_gin.processes import exchange
from idode_gin.reports import differences, files
from idode_gin.runs import run_lock

FORMAT = 1
WRITE_PERIOD = 5.0
"""Seconds between two parts: what a kill can lose, beside the batch in progress."""
_DIGITS = 16
_DAMAGED = (ValueError, KeyError, TypeError)
"""Errors of reading a damaged `facts.json`."""

Rows = dict[str, np.ndarray]
"""Values `[n, ...]` by name, one row per image."""


@dataclasses.dataclass(frozen=True)
class _Section:
    """Values `[N, ...]` of one section by name, and indices `[n]` that no part holds yet."""

    done: np.ndarray  # which images have values, bool [N]
    values: Rows = dataclasses.field(default_factory=dict)
    unwritten: list[np.ndarray] = dataclasses.field(default_factory=list)

    def put(self, index: np.ndarray, rows: Mapping[str, np.ndarray]) -> None:
        """Store the values `[n, ...]` of the images `index` `[n]`."""
        for name, each in rows.items():
            if name not in self.values:
                self.values[name] = np.zeros((len(self.done), *each.shape[1:]), each.dtype)
            self.values[name][index] = each
        self.done[index] = True

    def chosen(self, index: np.ndarray) -> Rows:
        """Return the index and the values of some images."""
        return {"index": index, **{name: each[index] for name, each in self.values.items()}}


class PartialResults:
    """Rows of N images in one section or several, filled in any order, each image once.

    With several processes every one of them adds every row; process 0 reads and writes the files
    and broadcasts what it read. `folder` is created when the first part is written; `facts` are
    JSON-able; `hardware` names devices and versions, which may change how values are rounded.

    Raises:
        ValueError: if `folder` holds values that depend on other facts.
    """

    def __init__(
        self, folder: pathlib.Path, facts: Mapping[str, Any], num_images: int, hardware: str = ""
    ) -> None:
        self.num_images = num_images
        self.seconds_before = 0.0
        """Time that interrupted runs took for the values read."""
        self._folder = folder
        # As JSON returns it, with lists for tuples.
        self._facts = json.loads(json.dumps({"format": FORMAT, **facts}))
        self._hardware = hardware
        self._digest = _digest(json.dumps(self._facts, sort_keys=True).encode())
        self._sections: dict[str, _Section] = {}
        self.expected: dict[str, int] = {}
        """Images of a section, for reports, where they are not all."""
        self._number = 0  # of the last part
        self._last_write = time.monotonic()
        self._lock = threading.RLock()  # a thread writes when the process must exit at once
        self._read()

    @property
    def is_begun(self) -> bool:
        """True if any image has values."""
        return any(section.values for section in self._sections.values())

    def missing(self, section: str, images: np.ndarray | None = None) -> np.ndarray:
        """Return the indices of the images, or of some `images`, without values, rising."""
        index = np.arange(self.num_images) if images is None else images
        return index[~self._section(section).done[index]]

    def progress(self, unit: str = "images") -> str:
        """Return the number of images, or of another `unit`, done in each section, as text."""
        with self._lock:
            counts = [(int(each.done.sum()), name) for name, each in self._sections.items()]
        parts = [
            f"{count} of {self.expected.get(name, self.num_images)} {unit} of {name}"
            for count, name in counts
        ]
        return ", ".join(parts) or f"no {unit}"

    def add(self, section: str, index: np.ndarray, rows: Mapping[str, np.ndarray]) -> None:
        """Add the values `[n, ...]` of the images `index` `[n]`; write a part every few seconds."""
        with self._lock:
            self._section(section).put(index, rows)
            self._section(section).unwritten.append(index)
        if time.monotonic() - self._last_write >= WRITE_PERIOD:
            self.write()

    def rows(self, section: str, images: np.ndarray | None = None) -> Rows:
        """Return all values `[N, ...]` of a complete section, sorted by name; or of `images`."""
        assert not len(self.missing(section, images))
        found = dict(sorted(self._section(section).values.items()))
        return found if images is None else {name: each[images] for name, each in found.items()}

    def require(self, facts: Mapping[str, Any], unless_in: Collection[str] = ()) -> None:
        """Check that facts known after the start are those of the run that is resumed, if any.

        Values that are added from now on depend on them too; those in the sections `unless_in`
        do not.

        Raises:
            ValueError: if they differ, and values that depend on them are there.
        """
        path, current = self._folder / "more_facts.json", json.loads(json.dumps(facts))
        is_new = not any(
            each.done.any() for name, each in self._sections.items() if name not in unless_in
        )

        def compare() -> None:
            saved = None if is_new else files.read_json(path)
            if saved is None:
                run_lock.check(self._folder)
                files.write_json_atomically(path, current)
            else:
                _check_same(self._folder, saved, current)

        exchange.from_first(compare)

    def write(self) -> None:
        """Write the values that no part holds yet.

        Raises:
            OSError: naming the file, if it cannot be written; if the output folder was replaced.
        """
        with self._lock:
            unwritten = {name: each for name, each in self._sections.items() if each.unwritten}
            if unwritten and jax.process_index() == 0:
                run_lock.check(self._folder)
                now = time.monotonic()
                if not (self._folder / "facts.json").exists():
                    description = {"facts": self._facts, "place": self._hardware}
                    files.write_json_atomically(self._folder / "facts.json", description)
                sections = {
                    name: each.chosen(np.concatenate(each.unwritten))
                    for name, each in unwritten.items()
                }
                content = _packed(sections, now - self._last_write)
                self._last_write = now
                self._number += 1
                name = f"part_{self._digest}_{self._number:06d}_{_digest(content)}.npz"
                files.write_atomically(self._folder / name, content)
            for section in unwritten.values():
                section.unwritten.clear()

    def remove(self) -> None:
        """Remove the folder, once its values are saved elsewhere or are useless."""
        with self._lock:
            for section in self._sections.values():
                section.unwritten.clear()
            if jax.process_index() == 0:
                run_lock.check(self._folder)
                # Without it, what a kill leaves of the rest is in nobody's way.
                (self._folder / "facts.json").unlink(missing_ok=True)
                files.remove_folder(self._folder)

    def _section(self, name: str) -> _Section:
        if name not in self._sections:
            self._sections[name] = _Section(np.zeros(self.num_images, bool))
        return self._sections[name]

    def _read(self) -> None:
        if jax.process_count() == 1:
            self._read_parts()
            return
        content = exchange.from_first(self._read_and_pack)
        if jax.process_index() > 0:
            self._take(content)

    def _read_and_pack(self) -> bytes:
        self._read_parts()
        sections = {
            name: each.chosen(np.flatnonzero(each.done)) for name, each in self._sections.items()
        }
        return _packed(sections, self.seconds_before)

    def _read_parts(self) -> None:
        self._check_facts(self._folder / "facts.json")
        parts = []
        for path in sorted(self._folder.glob("part_*_*_*.npz")):
            _, facts, number, digest = path.stem.split("_", 3)
            if facts != self._digest:
                logging.warning("%s belongs to another computation and is skipped.", path)
            else:
                parts.append((path, number, digest))
        contents = files.side_by_side(lambda part: part[0].read_bytes(), parts)
        for (path, number, digest), content in zip(parts, contents, strict=True):
            if _digest(content) != digest:
                logging.warning("%s is damaged; its images are computed again.", path)
                path.unlink()
                continue
            self._number = max(self._number, int(number))
            self._take(content)

    def _take(self, content: bytes) -> None:
        """Add values packed by `_packed`."""
        sections = _unpacked(content)
        self.seconds_before += float(sections.pop("")["seconds"])
        for section, rows in sections.items():
            self._section(section).put(rows.pop("index"), rows)

    def _check_facts(self, path: pathlib.Path) -> None:
        try:
            saved, hardware = _described(path)
        except FileNotFoundError:
            return
        except _DAMAGED:
            logging.warning("%s is damaged; only parts with the same facts are used.", path)
            path.unlink()
            return
        _check_same(self._folder, saved, self._facts)
        if hardware != self._hardware:
            logging.warning(
                "The values in %s were computed on %s; the others are computed on %s. Different "
                "hardware rounds differently. To compute all on the same, remove that folder.",
                self._folder,
                hardware,
                self._hardware,
            )


def check(folder: pathlib.Path, facts: Mapping[str, Any], roots: Collection[str] = ()) -> None:
    """Check that values in `folder`, if any, depend on these facts; others are not compared.

    `facts` has all facts whose names begin with one of `roots`, as `likelihoods.uniform.solver`
    does with `likelihoods`: one that is saved and not among them is a difference.

    Raises:
        ValueError: if they depend on others.
    """
    try:
        saved, _ = _described(folder / "facts.json")
    except (FileNotFoundError, *_DAMAGED):
        return
    known = json.loads(json.dumps(dict(facts)))
    compared = (each for each in saved if each in known or each.partition(".")[0] in roots)
    _check_same(folder, {name: saved[name] for name in compared}, known)


def _described(path: pathlib.Path) -> tuple[dict[str, Any], str]:
    """Return the facts and the hardware in `facts.json`, if it is not damaged."""
    description = json.loads(path.read_text(encoding="utf-8"))
    return dict(description["facts"]), description["place"]


def _check_same(folder: pathlib.Path, saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    if changes := differences.changes(saved, current):
        raise ValueError(
            f"{folder} holds values of another computation, which cannot be mixed with these: "
            f"{differences.listed(changes)}. Restore the settings and the code that it started "
            f"with, choose another output directory, or remove {folder} to start again."
        )


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
        # Names of sections and of values may have slashes, and every section has an index.
        names = [key.removesuffix("/index") for key in arrays.files if key.endswith("/index")]
        for key in arrays.files:
            section = max((name for name in ("", *names) if key.startswith(f"{name}/")), key=len)
            sections.setdefault(section, {})[key.removeprefix(f"{section}/")] = arrays[key]
    return sections
