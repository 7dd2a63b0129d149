"""A user's own images: a folder with one sub-folder per split, all images of one shape."""

import collections
import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from tasks.prepare import members, png, resizing
from tasks.prepare.datasets import Dataset
from tasks.prepare.records import Record, Source, source_of
from tasks.prepare.refusals import SourceError

SPLITS = ("train", "validation", "test")
_FORMATS = {
    **{".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP"},
    **{".ppm": "PPM", ".pgm": "PPM"},
}
_OTHER_IMAGES = {".gif", ".tif", ".tiff", ".avif", ".heic", ".jp2", ".jxl", ".tga", ".ico", ".svg"}
_MOST_BYTES = 256 << 20  # of a file, which is held in memory
_SHOWN = 10


def read(
    dataset: Dataset,
    sources: Sequence[pathlib.Path],
    *,
    partial: bool,
    size: int | None = None,
) -> Source:
    """Return the images of `train/`, `validation/`, `test/` in the order of their relative paths.

    Every file is decoded once before anything is written, so that all problems are reported
    together. Pixels are stored as they are in the file, without colour profile or orientation;
    with a `size`, images of any sizes are first reduced to it by `resizing.reduce`.

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
    files = _files(source, problems)
    if "train" not in files and "test" not in files and not problems:
        raise SourceError(f"{source} holds no images; image_folder needs {dataset.sources}.")
    shape = _common_shape(files, problems, size)
    if problems:
        listed = "".join(f"\n  {each}" for each in problems[:_SHOWN])
        more = f"\n  and {len(problems) - _SHOWN:,} more" if len(problems) > _SHOWN else ""
        raise SourceError(
            f"{source} must hold readable 8-bit images of one shape, grey, RGB or RGBA. "
            f"{len(problems):,} files are refused; repair or move them:{listed}{more}"
        )
    return source_of(
        dataclasses.replace(dataset, image_shape=shape),
        files,
        functools.partial(_records, size),
        partial=partial,
        sizes={split: len(each) for split, each in files.items()},
        in_order=True,
        resizing="" if size is None else resizing.in_words(size),
    )


def _records(
    size: int | None, dataset: Dataset, split: str, files: Sequence[pathlib.Path]
) -> Iterator[Record]:
    for index, file in enumerate(files):
        yield Record(key=index, image=decode(file, size))


def decode(path: pathlib.Path, size: int | None = None) -> np.ndarray:
    """Return the pixels of an image file, uint8 `[H, W, C]`, reduced if there is a size.

    Raises:
        SourceError: if it is damaged, too large, or no 8-bit grey, RGB or RGBA image, or
            smaller than `size`.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise SourceError(f"{path} is larger than {_MOST_BYTES:,} bytes.")
        content = path.read_bytes()
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}.") from error
    image = png.decode(content, str(path), formats=tuple(sorted(set(_FORMATS.values()))))
    return image if size is None else resizing.reduce(image, size, str(path))


def _files(source: pathlib.Path, problems: list[str]) -> dict[str, list[pathlib.Path]]:
    files: dict[str, list[pathlib.Path]] = {}
    relative = sorted(path.relative_to(source).as_posix() for path in members.walk(source))
    for name in relative:
        split, _, rest = name.partition("/")
        suffix = pathlib.PurePosixPath(name).suffix.lower()
        if suffix in _OTHER_IMAGES:
            problems.append(f"{source / name} is not read: {suffix}. Convert it to PNG.")
        elif suffix in _FORMATS and (split not in SPLITS or not rest):
            problems.append(f"{source / name} lies in none of {', '.join(SPLITS)}.")
        elif suffix in _FORMATS:
            files.setdefault(split, []).append(source / name)
    return {split: files[split] for split in SPLITS if split in files}


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
