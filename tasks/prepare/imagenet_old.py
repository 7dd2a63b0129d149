"""The old downsampled ImageNet of van den Oord et al.: two tar files of PNG files.

Refs: https://arxiv.org/abs/1601.06759.
"""

import dataclasses
import pathlib
import re
from collections.abc import Iterator, Sequence

from tasks.prepare import imagenet_new, members, png
from tasks.prepare.datasets import Dataset
from tasks.prepare.records import Record, Source, check_splits, source_of
from tasks.prepare.refusals import SourceError

_NAME = re.compile(r"(?:^|/)(train|valid)_(\d+x\d+)(?:[./]|$)")
_SPLITS = {"train": "train", "valid": "validation"}


def read(dataset: Dataset, sources: Sequence[pathlib.Path], *, partial: bool) -> Source:
    """Return the dataset from its two tar files, or their extracted folders; keys are file names.

    Raises:
        SourceError: if it is another dataset or the other size. A damaged file is found when it is
            read.
    """
    found: dict[str, pathlib.Path] = {}
    for source in _opened(sources, dataset):
        split = _split(dataset, source)
        if split in found:
            raise SourceError(f"{found[split]} and {source} both hold split {split!r}.")
        found[split] = source
    check_splits(dataset, found, sources, partial=partial)
    in_order = {split: found[split] for split in dataset.sizes if split in found}
    return source_of(dataset, in_order, _records, partial=partial)


def _records(dataset: Dataset, split: str, source: pathlib.Path) -> Iterator[Record]:
    names = set()
    for member in _pngs(dataset, source):
        if member.name in names:
            raise SourceError(f"{member} is there twice. Download the archive again.")
        names.add(member.name)
        if (match := _NAME.search(member.name)) and _SPLITS[match[1]] != split:
            raise SourceError(f"{member} is not of split {split!r}, unlike the files before.")
        content = member.read()
        image = png.decode(content, str(member), shape=dataset.image_shape)
        yield Record(key=member.name, image=image, png=content)


def _opened(sources: Sequence[pathlib.Path], dataset: Dataset) -> Iterator[pathlib.Path]:
    """Yield the sources; a folder that holds extracted archives is replaced by these."""
    for source in sources:
        names = [f"{name}_{dataset.config}" for name in _SPLITS]
        inside = [source / name for name in names if (source / name).is_dir()]
        yield from inside or [source]


def _pngs(dataset: Dataset, source: pathlib.Path) -> Iterator[members.Member]:
    largest = png.most_bytes(dataset.image_shape)
    root = f"{source.name}/" if source.is_dir() else ""
    for member in members.iterate(source, largest=largest):
        # Files that macOS and editors add; TFDS skips them too.
        if member.basename.startswith(".") or member.name.endswith("~"):
            continue
        if not member.basename.lower().endswith(".png"):
            raise SourceError(f"{member} is no PNG file; {dataset.title} needs {dataset.sources}.")
        if root and not _NAME.search(member.name):
            member = dataclasses.replace(member, name=root + member.name)
        yield member


def _split(dataset: Dataset, source: pathlib.Path) -> str:
    members.check_source(source)
    if (source.is_dir() or members.is_zip(source) or source.suffix == ".npz") and (
        imagenet_new.is_batches(source)
    ):
        raise SourceError(
            f"{source} is the new variant (Chrabaszcz et al.); {dataset.title} needs "
            f"{dataset.sources}. Prepare it as `imagenet{dataset.image_shape[0]}_new`, if that is "
            "the one you want: bits per dim of the two cannot be compared."
        )
    first = next(_pngs(dataset, source), None)
    if first is None:
        raise SourceError(f"{source} holds no file; {dataset.title} needs {dataset.sources}.")
    match = _NAME.search(first.name) or _NAME.search(source.name)
    if match is None:
        raise SourceError(
            f"{source} must hold a folder train_{dataset.config} or valid_{dataset.config}, and "
            f"starts with {first.name}; {dataset.title} needs {dataset.sources}."
        )
    if match[2] != dataset.config:
        raise SourceError(
            f"{source} holds {match[2]} images; {dataset.title} needs {dataset.sources}."
        )
    return _SPLITS[match[1]]
