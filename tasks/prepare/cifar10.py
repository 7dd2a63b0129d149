"""CIFAR-10 as its authors publish it: batches pickled by Python 2, or the plain binary form."""

import io
import pathlib
import re
from collections.abc import Iterator, Sequence

import numpy as np

from tasks.prepare import members, pickles
from tasks.prepare.datasets import CIFAR10
from tasks.prepare.records import Record, Source, check_splits
from tasks.prepare.refusals import SourceError, shown

_BATCH = re.compile(r"(data_batch_[1-5]|test_batch|batches\.meta)(\.bin|\.txt)?")
_LARGEST = 64 << 20  # bytes; a published batch has 31 million
_PIXELS = 3 * 32 * 32


def read(sources: Sequence[pathlib.Path], *, partial: bool) -> Source:
    """CIFAR-10 from an archive or its extracted folder; 185 MB are held in memory.

    Raises:
        SourceError: if it is another dataset, incomplete or damaged.
    """
    found: dict[str, members.Member] = {}
    contents: dict[str, bytes] = {}
    for source in sources:
        names = []
        for member in members.iterate(source, largest=_LARGEST):
            names.append(member.name)
            _refuse_cifar100(member)
            match = _BATCH.fullmatch(member.basename)
            if match is None:
                continue
            if match[1] in found:
                raise SourceError(
                    f"{match[1]} is given twice, as {found[match[1]]} and as {member}. "
                    "Name one archive with --source."
                )
            found[match[1]], contents[match[1]] = member, member.read()
        if not any(member.source == source for member in found.values()):
            raise SourceError(
                f"{source} holds nothing of CIFAR-10, which needs {CIFAR10.sources}. "
                f"It holds {shown(names)}."
            )
    if "batches.meta" not in found:
        raise SourceError(f"The sources lack batches.meta; CIFAR-10 needs {CIFAR10.sources}.")
    label_names = _label_names(found["batches.meta"], contents.pop("batches.meta"))
    batches = {
        "train": [name for name in sorted(contents) if name != "test_batch"],
        "test": [name for name in contents if name == "test_batch"],
    }
    batches = {split: names for split, names in batches.items() if names}
    check_splits(CIFAR10, batches, sources, partial=partial)
    if len(batches.get("train", ())) != 5 and not partial:
        raise SourceError(
            f"CIFAR-10 has data_batch_1 to data_batch_5, the sources hold "
            f"{shown(batches['train'])}. Download the archive again."
        )

    def records(split: str) -> Iterator[Record]:
        index = 0
        for name in batches[split]:
            images, labels = _batch(found[name], contents[name])
            for image, label in zip(images, labels, strict=True):
                fields: dict[str, int | str] = {}
                fields |= {"id": f"{split}_{index:05d}", "label": int(label)}
                yield Record(key=index, image=image, fields=fields)
                index += 1

    return Source(
        dataset=CIFAR10,
        splits={split: (lambda split=split: records(split)) for split in batches},  # type: ignore[misc]
        sizes=CIFAR10.sizes,
        image_shape=(32, 32, 3),
        label_names=label_names,
        partial=partial,
    )


def _refuse_cifar100(member: members.Member) -> None:
    first = member.name.split("/")[0]
    if first.startswith("cifar-100") or member.basename in (
        *("fine_label_names.txt", "coarse_label_names.txt"),
    ):
        raise SourceError(
            f"{member.source} is CIFAR-100, of which {member.name} is a part; CIFAR-10 needs "
            f"{CIFAR10.sources}."
        )


def _label_names(member: members.Member, content: bytes) -> tuple[str, ...]:
    if member.basename.endswith(".txt"):
        names = [name for name in content.decode("ascii", "replace").split("\n") if name]
    else:
        listed = _unpickled(member, content).get("label_names")
        if not isinstance(listed, list) or not all(isinstance(n, bytes | str) for n in listed):
            raise SourceError(f"{member} lists no label_names. Download the archive again.")
        names = [n.decode("ascii", "replace") if isinstance(n, bytes) else n for n in listed]
    if len(names) != 10 or len(set(names)) != 10:
        raise SourceError(f"{member} must name 10 labels, and names {shown(names)}.")
    return tuple(names)


def _batch(member: members.Member, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 `[n, 32, 32, 3]` and labels `[n]`."""
    is_binary = member.basename.endswith(".bin")
    rows, labels = _binary(member, content) if is_binary else _pickled(member, content)
    if len(labels) != len(rows) or (labels >= 10).any():
        raise SourceError(
            f"{member} must have a label 0 to 9 for each image, got {len(labels)} labels up to "
            f"{max(labels, default=0)} for {len(rows)} images. Download the archive again."
        )
    return rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels


def _binary(member: members.Member, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    if len(content) % (1 + _PIXELS):
        raise SourceError(
            f"{member} must have {1 + _PIXELS:,} bytes per image, got {len(content):,} bytes: "
            "it is cut short or damaged. Download the archive again."
        )
    table = np.frombuffer(content, np.uint8).reshape(-1, 1 + _PIXELS)
    return table[:, 1:], table[:, 0]


def _pickled(member: members.Member, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    fields = _unpickled(member, content)
    rows, labels = fields.get("data"), fields.get("labels")
    if not isinstance(rows, np.ndarray) or rows.dtype != np.uint8 or rows.shape[1:] != (_PIXELS,):
        got = f"{rows.dtype} {rows.shape}" if isinstance(rows, np.ndarray) else shown([*fields])
        raise SourceError(f"{member} must hold uint8 'data' [N, {_PIXELS}], got {got}.")
    if not isinstance(labels, list) or not all(type(n) is int and 0 <= n < 256 for n in labels):
        raise SourceError(f"{member} must list 'labels' 0 to 9. Download the archive again.")
    return rows, np.array(labels, np.int64)


def _unpickled(member: members.Member, content: bytes) -> dict:
    fields = pickles.load(lambda: io.BytesIO(content), len(content), str(member))
    if "fine_labels" in fields or "fine_label_names" in fields:
        raise SourceError(f"{member} is of CIFAR-100; CIFAR-10 needs {CIFAR10.sources}.")
    return fields
