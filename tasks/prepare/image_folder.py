"""A user's own images: a folder with one sub-folder per split, all images of one shape."""

import collections
import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from tasks.formats import image_files
from tasks.prepare import members, resizing, splitting
from tasks.prepare.datasets import Dataset
from tasks.prepare.records import Record, Source, source_of
from tasks.prepare.refusals import SourceError

_SHOWN = 10


def read(
    dataset: Dataset,
    sources: Sequence[pathlib.Path],
    *,
    partial: bool,
    size: int | None = None,
    shares: splitting.Shares | None = None,
) -> Source:
    """Return the images of `train/`, `validation/`, `test/` in the order of their relative paths.

    Every file is decoded once before anything is written, so that all problems are reported
    together. All files of these folders but hidden ones must be images. Pixels are stored as they
    are in the file, without colour profile, and a file with an orientation is refused; with a
    `size`, images of any sizes are first reduced to it by `resizing.reduce`. If every image lies in
    a folder of its split's, those are its classes: see `image_files.classes_of`. With `shares`, the
    folder holds no splits but images at any depth, which `splitting.split` puts into splits.

    Raises:
        SourceError: with the first ten refused files, and their number.
    """
    source = sources[0]
    members.check_source(source)
    if len(sources) != 1 or not source.is_dir():
        raise SourceError(
            f"--source {source} must be a folder, the only source, for image_folder needs "
            f"{dataset.sources}."
        )
    problems: list[str] = []
    files = _files(source, problems) if shares is None else _split(source, problems, shares)
    if "train" not in files and "test" not in files and not problems:
        found = "images for validation alone" if files else "no images"
        raise SourceError(f"{source} holds {found}; image_folder needs {dataset.sources}.")
    shape = _common_shape(files, problems, size)
    if problems:
        listed = "".join(f"\n  {each}" for each in problems[:_SHOWN])
        more = f"\n  and {len(problems) - _SHOWN:,} more" if len(problems) > _SHOWN else ""
        count = "1 file is" if len(problems) == 1 else f"{len(problems):,} files are"
        raise SourceError(
            f"{source} must hold readable 8-bit images of one shape, grey, RGB or RGBA. "
            f"{count} refused; repair or move what is named:{listed}{more}"
        )
    classes_of = image_files.classes_of if shares is None else _classes
    try:
        names, labels = classes_of(source, files)
    except ValueError as error:
        raise SourceError(str(error)) from error
    for name in names:
        if "\n" in name or name != name.encode("utf-8", "replace").decode():
            raise SourceError(
                f"A folder below {source} that names a class must have a name of one line in "
                f"UTF-8, got {name!r}. Rename it."
            )
    return source_of(
        dataclasses.replace(dataset, image_shape=shape),
        files,
        functools.partial(_records, size, labels),
        partial=partial,
        sizes={split: len(each) for split, each in files.items()},
        in_order=True,
        label_names=tuple(names),
        resizing="" if size is None else resizing.in_words(size),
        splitting="" if shares is None else splitting.in_words(shares),
    )


def _records(
    size: int | None,
    labels: Mapping[str, Sequence[int]],
    dataset: Dataset,
    split: str,
    files: Sequence[pathlib.Path],
) -> Iterator[Record]:
    for index, file in enumerate(files):
        fields: dict[str, int | str] = {}
        if labels:
            fields = {"id": f"{split}_{index:05d}", "label": labels[split][index]}
        image = decode(file, size)
        if image.shape != dataset.image_shape:
            raise SourceError(
                f"{file} is {_by(image.shape)} now and was {_by(dataset.image_shape)}: it changed "
                "meanwhile. Prepare the folder again."
            )
        yield Record(key=index, image=image, fields=fields)


def decode(path: pathlib.Path, size: int | None = None) -> np.ndarray:
    """Return the pixels of an image file, uint8 `[H, W, C]`, reduced if there is a size.

    Raises:
        SourceError: if it cannot be read as it is, see `image_files`, or is smaller than `size`.
    """
    try:
        image = image_files.read_image(path, image_files.image_shape(path))
    except ValueError as error:
        raise SourceError(str(error)) from error
    return image if size is None else resizing.reduce(image, size, str(path))


def _files(source: pathlib.Path, problems: list[str]) -> dict[str, list[pathlib.Path]]:
    """Return the files of each split; images elsewhere and bad links are added to the problems.

    Raises:
        SourceError: if there are images, but no folder of a split.
    """
    files: dict[str, list[pathlib.Path]] = {}
    outside: list[pathlib.Path] = []
    for entry in sorted(source.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.name in image_files.SPLITS and entry.is_dir():
            files[entry.name], found = image_files.files_below(entry)
            problems += found
            continue
        elsewhere = image_files.files_below(entry)[0] if entry.is_dir() else [entry]
        outside += filter(image_files.is_image, elsewhere)
    splits = ", ".join(image_files.SPLITS)
    if outside and not files:
        raise SourceError(
            f"{source} must have folders of splits ({splits}), got {len(outside):,} images in "
            f"none, such as {outside[0]}. Move them, or let them be split: --split 0.8,0.1,0.1"
        )
    if outside:
        more = f", nor do {len(outside) - 1:,} other images" if outside[1:] else ""
        problems.append(f"{outside[0]} lies in none of {splits}{more}.")
    return {split: files[split] for split in image_files.SPLITS if files.get(split)}


def _split(
    source: pathlib.Path, problems: list[str], shares: splitting.Shares
) -> dict[str, list[pathlib.Path]]:
    """Return all files below `source` in splits; bad links are added to the problems.

    Raises:
        SourceError: if there are folders of splits, or a split gets no file.
    """
    if found := [name for name in image_files.SPLITS if (source / name).is_dir()]:
        raise SourceError(
            f"--split is for images that are in no folders of splits, but {source} has "
            f"{', '.join(found)}. Leave --split out."
        )
    files, bad = image_files.files_below(source)
    problems += bad
    return splitting.split(source, files, shares) if files else {}


def _classes(
    source: pathlib.Path, files: Mapping[str, Sequence[pathlib.Path]]
) -> tuple[list[str], dict[str, list[int]]]:
    """Return the first folders below `source` as classes; none if an image is in no folder."""
    inside = {
        split: [each.relative_to(source).parts for each in found] for split, found in files.items()
    }
    every = [parts for found in inside.values() for parts in found]
    if any(len(parts) < 2 for parts in every):
        return [], {}
    return image_files.numbered((parts[0] for parts in every), inside)


def _common_shape(
    files: dict[str, list[pathlib.Path]], problems: list[str], size: int | None
) -> tuple[int, int, int]:
    """Return the shape of most images; the others are added to the problems."""
    shapes: dict[pathlib.Path, tuple[int, int, int]] = {}
    for file in (file for each in files.values() for file in each):
        try:
            shapes[file] = decode(file, size).shape  # type: ignore[assignment]
        except SourceError as error:
            problems.append(str(error))
    counts = collections.Counter(shapes.values())
    if not counts:
        return (0, 0, 0)
    usual = counts.most_common(1)[0][0]
    for file, shape in shapes.items():
        if shape != usual:
            problems.append(f"{file} is {_by(shape)}; {counts[usual]:,} are {_by(usual)}.")
    return usual


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
