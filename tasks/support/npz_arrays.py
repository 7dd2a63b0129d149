"""Arrays of images in .npz files, which may be damaged or forged."""

import math
import pathlib
import zipfile

import numpy as np

from idode_gin import checks

LAYOUT = (
    "It must be a .npz file with an array uint8 (or uint16, for more than 256 levels) "
    "[N, H, W, C] for each split that is used, as numpy.savez(path, train=..., "
    "validation=..., test=...) writes it."
)


def read_array(path: pathlib.Path, name: str) -> np.ndarray:
    """Return an array of a .npz file, `[N, H, W, C]`; pickled objects are refused, not run.

    Raises:
        ValueError: with the file's name, if it is not such a file, or lacks such an array.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _check_named(archive, name)
            _check_size(archive, name, path.stat().st_size)
            with archive.open(f"{name}.npy") as member:
                images = np.lib.format.read_array(member, allow_pickle=False)
                if member.read(1):  # reading to the end compares the checksum
                    raise ValueError(f"{name!r} holds more than its header says")
    except Exception as error:  # zipfile and NumPy's reader raise many types for damage
        raise _unreadable(path, error) from error
    shape = list(images.shape)
    if images.dtype not in (np.uint8, np.uint16) or images.ndim != 4 or images.size == 0:
        raise ValueError(
            f"{name!r} in {path} must be uint8 or uint16 [N, H, W, C] and not empty, got "
            f"{images.dtype} {shape}.{checks.axes_hint(images.shape)}{checks.integers_hint(images)}"
        )
    if shape[1] in (1, 3, 4) and shape[2] == shape[3] > 4:
        raise ValueError(
            f"{name!r} in {path} must be [N, H, W, C], got {shape}, which would be images of "
            f"{shape[3]} channels: it looks like [N, C, H, W]. Save numpy.moveaxis(images, 1, -1)."
        )
    return images


def check_held(path: pathlib.Path, name: str) -> None:
    """Raise ValueError, as `read_array` does, unless a .npz file holds an array of that name."""
    try:
        with zipfile.ZipFile(path) as archive:
            _check_named(archive, name)
    except Exception as error:  # likewise
        raise _unreadable(path, error) from error


def _unreadable(path: pathlib.Path, error: Exception) -> ValueError:
    reason = str(error) or type(error).__name__
    return ValueError(f"{path} cannot be read: {reason:.200}. {LAYOUT}")


def _check_named(archive: zipfile.ZipFile, name: str) -> None:
    held = [each[:-4] for each in archive.namelist() if each.endswith(".npy")]
    if name not in held:
        raise ValueError(f"there is no array {name!r}; arrays: {', '.join(held) or 'none'}")


def _check_size(archive: zipfile.ZipFile, name: str, file_bytes: int) -> None:
    """Raise ValueError, before allocating, if the header claims more than the file can hold."""
    with archive.open(f"{name}.npy") as member:
        version = np.lib.format.read_magic(member)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read_header is None:
            raise ValueError(f"{name!r} has the unknown format {version}")
        shape, _, dtype = read_header(member)
        wanted = member.tell() + math.prod(shape) * dtype.itemsize
    info = archive.getinfo(f"{name}.npy")
    # Deflate compresses to no less than 1/1032 of the size.
    most = min(info.file_size, 1032 * min(info.compress_size, file_bytes))
    if wanted > most:
        raise ValueError(f"{name!r} claims {wanted:,} bytes, and the file holds {most:,}")
