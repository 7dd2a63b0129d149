"""A user's own images: a folder with one sub-folder per split, all images of one shape."""

import collections
import io
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from tasks.prepare import members, png
from tasks.prepare.datasets import Dataset
from tasks.prepare.records import Record, Source
from tasks.prepare.refusals import SourceError
from tasks.support import depth

SPLITS = ("train", "validation", "test")
_FORMATS = {
    **{".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP"},
    **{".ppm": "PPM", ".pgm": "PPM"},
}
_OTHER_IMAGES = {".gif", ".tif", ".tiff", ".avif", ".heic", ".jp2", ".jxl", ".tga", ".ico", ".svg"}
_CHANNELS = {"L": 1, "RGB": 3, "RGBA": 4}
_MOST_PIXELS = 4096 * 4096
_MOST_BYTES = 16 * _MOST_PIXELS  # of a file, which is held in memory
_SHOWN = 10


def read(dataset: Dataset, sources: Sequence[pathlib.Path], *, partial: bool) -> Source:
    """The images below `train/`, `validation/` and `test/`, in the order of their relative paths.

    Every file is decoded once before anything is written, so that all problems are told at once.
    Pixels are stored as the file holds them: no colour profile or orientation is applied.

    Raises:
        SourceError: with the first ten files that are no good, and how many there are.
    """
    if len(sources) != 1:
        raise SourceError(f"image_folder needs one folder, got {len(sources)} sources.")
    (source,) = sources
    members.check_source(source)
    if not source.is_dir():
        raise SourceError(
            f"--source {source} must be a folder; image_folder needs {dataset.sources}."
        )
    problems: list[str] = []
    files = _files(source, problems)
    if "train" not in files and "test" not in files and not problems:
        raise SourceError(f"{source} holds no images; image_folder needs {dataset.sources}.")
    shape = _common_shape(source, files, problems)
    if problems:
        listed = "".join(f"\n  {each}" for each in problems[:_SHOWN])
        more = f"\n  and {len(problems) - _SHOWN:,} more" if len(problems) > _SHOWN else ""
        raise SourceError(
            f"{source} must hold readable 8-bit images of one shape, grey, RGB or RGBA. "
            f"{len(problems):,} files are no good; mend or move them:{listed}{more}"
        )

    def records(split: str) -> Iterator[Record]:
        for index, file in enumerate(files[split]):
            yield Record(key=index, image=decode(file))

    return Source(
        dataset=dataset,
        splits={split: (lambda split=split: records(split)) for split in files},  # type: ignore[misc]
        sizes={split: len(each) for split, each in files.items()},
        image_shape=shape,
        partial=partial,
        in_order=True,
    )


def decode(path: pathlib.Path) -> np.ndarray:
    """Pixels of an image file, uint8 `[H, W, C]`.

    Raises:
        SourceError: if it is damaged, too large, or no 8-bit grey, RGB or RGBA image.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise SourceError(f"{path}: larger than {_MOST_BYTES:,} bytes.")
        content = path.read_bytes()
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror}.") from error
    if content.startswith(png.SIGNATURE):
        png.header(content, f"{path}:")
    file = io.BytesIO(content)
    try:
        with Image.open(file, formats=tuple(set(_FORMATS.values()))) as image:
            if image.width * image.height > _MOST_PIXELS:
                raise SourceError(
                    f"{path}: claims {image.width:,} x {image.height:,} pixels; at most "
                    f"{_MOST_PIXELS:,} are read."
                )
            if getattr(image, "n_frames", 1) != 1:
                raise SourceError(f"{path}: an animation. Save one frame.")
            if image.mode not in _CHANNELS:
                raise SourceError(
                    f"{path}: colour mode {image.mode}. Convert it, for instance with Pillow's "
                    "`Image.convert('RGB')`."
                )
            if found := depth.other_than_8_bits(image, file):
                raise SourceError(f"{path}: {found}, where 8 bits are read. {depth.WAY_OUT}")
            pixels = np.asarray(image)
    except SourceError:
        raise
    except Image.DecompressionBombError as error:
        raise SourceError(f"{path}: {error}") from error
    except Exception as error:  # whatever Pillow's parsers and decoders make of damage
        reason = str(error).replace(str(io.BytesIO), "")[:100] or type(error).__name__
        raise SourceError(f"{path}: cannot be decoded ({reason}).") from error
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _files(source: pathlib.Path, problems: list[str]) -> dict[str, list[pathlib.Path]]:
    files: dict[str, list[pathlib.Path]] = {}
    relative = sorted(path.relative_to(source).as_posix() for path in members.walk(source))
    for name in relative:
        split, _, rest = name.partition("/")
        suffix = pathlib.PurePosixPath(name).suffix.lower()
        if suffix in _OTHER_IMAGES:
            problems.append(f"{source / name}: {suffix} is not read. Convert it to PNG.")
        elif suffix in _FORMATS and (split not in SPLITS or not rest):
            problems.append(f"{source / name}: lies in none of {', '.join(SPLITS)}.")
        elif suffix in _FORMATS:
            files.setdefault(split, []).append(source / name)
    return {split: files[split] for split in SPLITS if split in files}


def _common_shape(
    source: pathlib.Path, files: dict[str, list[pathlib.Path]], problems: list[str]
) -> tuple[int, int, int]:
    """The shape of most images; the others become problems."""
    shapes: dict[pathlib.Path, tuple[int, int, int]] = {}
    for file in (file for each in files.values() for file in each):
        try:
            shapes[file] = decode(file).shape  # type: ignore[assignment]
        except SourceError as error:
            problems.append(str(error))
    counts = collections.Counter(shapes.values())
    if not counts:
        return (0, 0, 0)
    usual = counts.most_common(1)[0][0]
    for file, shape in shapes.items():
        if shape != usual:
            problems.append(f"{file}: {_by(shape)}, where {counts[usual]:,} are {_by(usual)}.")
    return usual


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
