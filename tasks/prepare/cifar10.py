"""CIFAR-10 as its authors publish it: batches pickled by Python 2, or the plain binary form."""

import pathlib
import re
from collections.abc import Iterator, Sequence

import numpy as np

from tasks.prepare import members, pickles
from tasks.prepare.datasets import CIFAR10, Dataset
from tasks.prepare.records import Record, Source, check_splits, source_of
from tasks.prepare.refusals import SourceError, shown

_BATCH = re.compile(r"(data_batch_[1-5]|test_batch|batches\.meta)(\.bin|\.txt)?")
_LARGEST = 64 << 20  # bytes; a published batch has 31 million
_PIXELS = 3 * 32 * 32


def read(sources: Sequence[pathlib.Path], *, partial: bool) -> Source:
    """Return CIFAR-10 from an archive or its extracted folder; 185 MB are held in memory.

    Raises:
        SourceError: if it is another dataset, incomplete or damaged.
    """
    found = _find(sources)
    if "batches.meta" not in found:
        raise SourceError(f"The sources lack batches.meta; CIFAR-10 needs {CIFAR10.sources}.")
    label_names = _label_names(found.pop("batches.meta"))
    batches: dict[str, list[members.Member]] = {}
    for name in sorted(found):
        batches.setdefault("test" if name == "test_batch" else "train", []).append(found[name])
    check_splits(CIFAR10, batches, sources, partial=partial)
    if len(batches.get("train", ())) != 5 and not partial:
        raise SourceError(
            f"CIFAR-10 has data_batch_1 to data_batch_5, the sources hold "
            f"{shown([each.name for each in batches['train']])}. Download the archive again."
        )
    return source_of(CIFAR10, batches, _records, partial=partial, label_names=label_names)


def _find(sources: Sequence[pathlib.Path]) -> dict[str, members.Member]:
    found: dict[str, members.Member] = {}
    for source in sources:
        names = []
        for member in members.iterate(source, largest=_LARGEST):
            names.append(member.name)
            if member.name.startswith("cifar-100") or re.fullmatch(
                r"(fine|coarse)_label_names\.txt", member.basename
            ):
                raise _is_cifar100(member)
            match = _BATCH.fullmatch(member.basename)
            if match is not None:
                members.add_once(found, match[1], member)
                found[match[1]] = member.in_memory()
        if not any(member.source == source for member in found.values()):
            raise SourceError(
                f"{source} holds nothing of CIFAR-10, which needs {CIFAR10.sources}. "
                f"It holds {shown(names)}."
            )
    return found


def _records(dataset: Dataset, split: str, batches: Sequence[members.Member]) -> Iterator[Record]:
    index = 0
    for batch in batches:
        for image, label in zip(*_images(batch), strict=True):
            fields: dict[str, int | str] = {"id": f"{split}_{index:05d}", "label": int(label)}
            yield Record(key=index, image=image, fields=fields)
            index += 1


def _label_names(member: members.Member) -> tuple[str, ...]:
    if member.basename.endswith(".txt"):
        names = [name for name in member.read().decode("ascii", "replace").split("\n") if name]
    else:
        listed = _unpickled(member).get("label_names")
        if not isinstance(listed, list) or not all(isinstance(n, bytes | str) for n in listed):
            raise SourceError(f"{member} lists no label_names. Download the archive again.")
        names = [n.decode("ascii", "replace") if isinstance(n, bytes) else n for n in listed]
    if len(names) != 10 or len(set(names)) != 10:
        raise SourceError(f"{member} must name 10 labels, and names {shown(names)}.")
    return tuple(names)


def _images(member: members.Member) -> tuple[np.ndarray, np.ndarray]:
    """Return the images of a batch, uint8 `[n, 32, 32, 3]`, and labels `[n]`."""
    rows, labels = _binary(member) if member.basename.endswith(".bin") else _pickled(member)
    if len(labels) != len(rows) or (labels >= 10).any():
        raise SourceError(
            f"{member} must have a label 0 to 9 for each image, got {len(labels)} labels up to "
            f"{max(labels, default=0)} for {len(rows)} images. Download the archive again."
        )
    return rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels


def _binary(member: members.Member) -> tuple[np.ndarray, np.ndarray]:
    if member.size % (1 + _PIXELS):
        raise SourceError(
            f"{member} must have {1 + _PIXELS:,} bytes per image, got {member.size:,} bytes: "
            "it is cut short or damaged. Download the archive again."
        )
    table = np.frombuffer(member.read(), np.uint8).reshape(-1, 1 + _PIXELS)
    return table[:, 1:], table[:, 0]


def _pickled(member: members.Member) -> tuple[np.ndarray, np.ndarray]:
    fields = _unpickled(member)
    rows, labels = fields.get("data"), fields.get("labels")
    if not isinstance(rows, np.ndarray) or rows.dtype != np.uint8 or rows.shape[1:] != (_PIXELS,):
        got = f"{rows.dtype} {rows.shape}" if isinstance(rows, np.ndarray) else shown([*fields])
        raise SourceError(f"{member} must hold uint8 'data' [N, {_PIXELS}], got {got}.")
    if not isinstance(labels, list) or not all(type(n) is int and 0 <= n < 256 for n in labels):
        raise SourceError(f"{member} must list 'labels' 0 to 9. Download the archive again.")
    return rows, np.array(labels, np.int64)


def _unpickled(member: members.Member) -> dict:
    fields = pickles.load(member)
    if "fine_labels" in fields or "fine_label_names" in fields:
        raise _is_cifar100(member)
    return fields


def _is_cifar100(member: members.Member) -> SourceError:
    return SourceError(f"{member} belongs to CIFAR-100; CIFAR-10 needs {CIFAR10.sources}.")
