"""Image files of a user: which there are, their shape by the header, and their pixels.

Pixels are an array in which nothing of the file is lost or changed, and which does not depend on
its format: a file of which Pillow would make another picture is refused.
"""

import contextlib
import mimetypes
import os
import pathlib
import unicodedata
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from tasks.formats import depth

SPLITS = ("train", "validation", "test")
"""Folders of a user's images."""
_OF_MACS = "__MACOSX"
"""Folder that a Mac's archive leaves beside others, with hidden files alone."""
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
"""Pillow's names: the content decides the format, not the file's name."""
CHANNELS = {"L": 1, "RGB": 3, "RGBA": 4}
"""Number of channels of each colour mode that holds 8 bits per channel."""
MAX_PIXELS = 1 << 27
"""Bound of an image, above most cameras. A small file can claim to be as large as memory."""
MAX_BYTES = 256 << 20  # of a file

_WAY_OUT = "Reduce it first, or remove it."
_TIFF_EXTRA_SAMPLES = 338
_PLAIN_ALPHA = (2,)


def files_below(root: pathlib.Path) -> tuple[list[pathlib.Path], list[str]]:
    """Return every file below a folder but hidden ones, sorted, and sentences about problems.

    Links are followed. A link to a folder around it is not: it would lead in circles, or to what is
    beside `root`. A second link to one folder, a link to nothing, and what may not be read are
    problems.
    """
    files: list[pathlib.Path] = []
    problems: list[str] = []
    reached: dict[str, str] = {}
    around = {str(each) for each in pathlib.Path(os.path.realpath(root)).parents}

    def unreadable(error: OSError) -> None:
        problems.append(f"{error.filename} cannot be read: {error.strerror}.")

    for folder, folders, names in os.walk(root, onerror=unreadable, followlinks=True):
        real = os.path.realpath(folder)
        if real in around:
            folders.clear()
            continue
        if (other := reached.setdefault(real, folder)) != folder:
            folders.clear()
            if not pathlib.Path(folder).is_relative_to(other):
                problems.append(f"{other} and {folder} are one folder: remove one of the links.")
            continue
        folders[:] = sorted(each for each in folders if not each.startswith("."))
        found = [pathlib.Path(folder, each) for each in names if not each.startswith(".")]
        for each in found:
            if os.path.isfile(each):
                files.append(each)
            elif os.path.lexists(each):
                kind = "a link to nothing" if os.path.islink(each) else "a pipe or a device"
                problems.append(f"{each} is {kind}. Remove it.")
            else:
                problems.append(f"{each} cannot be read: its folder may not be entered (x).")
    return sorted(files), problems


def classes_of(
    root: pathlib.Path, files: Mapping[str, Sequence[pathlib.Path]]
) -> tuple[list[str], dict[str, list[int]]]:
    """Return the names of the classes in a folder, and the class of each file of some splits.

    The first folder below a split's own names the class. Classes are numbered in the order of
    their names, those of all splits together; there are none if a file is in no such folder.

    Args:
        root: holds a folder for each split.
        files: split -> files in it.
    """
    inside = {
        split: [each.relative_to(root / split).parts for each in found]
        for split, found in files.items()
    }
    if any(len(parts) < 2 for found in inside.values() for parts in found):
        return [], {}
    folders = [each for split in SPLITS for each in root.glob(f"{split}/*") if each.is_dir()]
    names = {each.name for each in folders if not each.name.startswith(".")}
    if not any(parts[0] == _OF_MACS for found in inside.values() for parts in found):
        names.discard(_OF_MACS)
    return numbered(names, inside)


def numbered(
    names: Iterable[str], inside: Mapping[str, Sequence[Sequence[str]]]
) -> tuple[list[str], dict[str, list[int]]]:
    """Return the names of classes in order, and the number of each file's first folder.

    Args:
        names: of the classes, in any order.
        inside: split -> of each file, the parts of its path below the folders of classes.

    Raises:
        ValueError: if two names are the same text in different Unicode, as a copy from a Mac has.
    """
    ordered = sorted(set(names))
    seen: dict[str, str] = {}
    for name in ordered:
        other = seen.setdefault(unicodedata.normalize("NFC", name), name)
        if other != name:
            raise ValueError(
                f"The folders {ascii(other)} and {ascii(name)} look alike and would be two "
                f"classes: both are {name!r} in different Unicode. Rename one as the other."
            )
    number = {name: place for place, name in enumerate(ordered)}
    return ordered, {split: [number[parts[0]] for parts in each] for split, each in inside.items()}


def is_image(path: pathlib.Path) -> bool:
    """Return whether a file is an image by its name, or by its first bytes."""
    if (mimetypes.guess_type(path)[0] or "").startswith("image/"):
        return True
    try:
        with _open(path):
            return True
    except Exception:  # Pillow's parsers raise many types for damage
        return False


def image_shape(path: pathlib.Path) -> tuple[int, int, int]:
    """Return (height, width, channels) from a file's header; nothing is decoded.

    Raises:
        ValueError: if it is not an image, too large, animated, not 8-bit grey, RGB or RGBA, or
            holds an orientation or transparency that its pixels alone lose.
    """
    with _opened(path) as (image, _):
        return _shape(image)


def read_image(path: pathlib.Path, shape: tuple[int, int, int]) -> np.ndarray:
    """Return the pixels of a file, uint8 `[H, W, C]`.

    Raises:
        ValueError: with the file's name, if it cannot be read or has another shape.
    """
    with _opened(path) as (image, file):
        try:
            image.verify()  # compares the checksums of a PNG; afterwards it must be opened again
            file.seek(0)
            with _open(file) as image:
                pixels = np.asarray(image)
                found = _shape(image)
        except Exception as error:  # Pillow's decoders raise many types for damage
            raise ValueError(f"{path} cannot be decoded: {error}. Replace or remove it.") from error
        _check_kept(path, image)  # PNG may hold both after its pixels
    if found != shape:
        raise ValueError(f"{path} must be {shape}, but it changed while being read.")
    return pixels.reshape(shape)


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[tuple[Image.Image, IO[bytes]]]:
    """Open an image; raise ValueError unless its header is one that may be decoded."""
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(path.open("rb"))
            start = file.read(8)
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
        if os.fstat(file.fileno()).st_size > MAX_BYTES:
            raise ValueError(f"{path} is larger than {MAX_BYTES:,} bytes. Replace or remove it.")
        try:
            file.seek(0)
            image = stack.enter_context(_open(file))
            too_large = image.width * image.height > MAX_PIXELS
            frames = 1 if too_large else getattr(image, "n_frames", 1)
            bits = depth.other_than_8_bits(image, file)
        except UnidentifiedImageError as error:
            raise ValueError(
                f"{path} is not an image that can be read ({', '.join(FORMATS)}): it starts with "
                f"{start!r}. Convert it or move it away; only hidden files are skipped."
            ) from error
        except Image.DecompressionBombError as error:  # beyond Pillow's own, larger bound
            raise ValueError(
                f"{path} claims to have more than {MAX_PIXELS:,} pixels, the most that an image "
                f"may have. {_WAY_OUT}"
            ) from error
        except Exception as error:  # Pillow's parsers raise many types for damage
            raise ValueError(
                f"{path} is not a readable image: {error}. Replace or remove it."
            ) from error
        if too_large:
            raise ValueError(
                f"{path} claims to be {image.height} x {image.width}, but images may have at most "
                f"{MAX_PIXELS:,} pixels. {_WAY_OUT}"
            )
        if bits:
            raise ValueError(f"{path} must have 8 bits per channel, got {bits}. {depth.WAY_OUT}")
        if image.mode not in CHANNELS or frames != 1:
            raise ValueError(
                f"{path} must be one picture of 8-bit grey, RGB or RGBA ({', '.join(CHANNELS)}), "
                f"got mode {image.mode!r} and {frames} frames. {_advice(image)}"
            )
        _check_kept(path, image)
        yield image, file


def _open(file: pathlib.Path | IO[bytes]) -> Image.Image:
    """Open an image; Pillow warns of fewer pixels than `MAX_PIXELS`, which is the bound here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(file, formats=FORMATS)


def _check_kept(path: pathlib.Path, image: Image.Image) -> None:
    """Raise ValueError if pixels lose what the header adds to them, or Pillow changes them."""
    try:
        # Not PngImageFile's method, which decodes the image to look behind it.
        orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation)
    except Exception as error:  # Pillow's parsers raise many types for damage
        raise ValueError(f"{path} has damaged EXIF data: {error}. Save it without.") from error
    if orientation in range(2, 9):
        raise ValueError(
            f"{path} has EXIF orientation {orientation}: viewers turn it, but not its array. Save "
            "it turned (Pillow's `ImageOps.exif_transpose`), or without that tag."
        )
    if image.mode != "RGBA" and image.has_transparency_data:
        raise ValueError(
            f"{path} marks a colour as transparent, which its {image.mode} pixels do not hold. "
            f"{_advice(image)} Or save it without the mark."
        )
    tags = getattr(image, "tag_v2", {})
    if (extra := tags.get(_TIFF_EXTRA_SAMPLES, _PLAIN_ALPHA)) != _PLAIN_ALPHA:
        raise ValueError(
            f"{path} has ExtraSamples {extra}, which Pillow drops, or divides its colours by. Save "
            f"it with no more channels than colours, or with plain alpha, {_PLAIN_ALPHA}."
        )


def _shape(image: Image.Image) -> tuple[int, int, int]:
    return image.height, image.width, CHANNELS[image.mode]


def _advice(image: Image.Image) -> str:
    if image.has_transparency_data and image.mode != "RGBA":
        mode = "RGBA"
    elif image.mode in CHANNELS:
        return "Save one of them."
    else:
        mode = "L" if image.mode == "1" else "RGB"
    return f"Convert it, for instance with Pillow's `Image.convert({mode!r})`."
