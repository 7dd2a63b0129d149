"""Sources of a user's own images: a folder of image files, or one .npz file."""

import contextlib
import lzma
import math
import pathlib
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, Self, final

import numpy as np
import seqio
import tensorflow as tf
from PIL import Image

from idode_gin.feed.image_fingerprints import ImageFingerprint
from tasks.support import depth
from tasks.support.sources import digest, file_facts, with_static_shape
from tasks.support.tfds_files import INFO, TfdsFiles

SPLITS = ("train", "validation", "test")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
CHANNELS = {"L": 1, "RGB": 3, "RGBA": 4}
"""Of the colour modes that hold 8 bits per channel."""
MAX_PIXELS = 1 << 24  # per image; a small file can claim to be as large as memory

_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
"""Pillow's names: a file is what its content says, whatever it is called."""
# What `zipfile` and NumPy's reader of headers, which parses the text of a Python dict, make of
# damage and forgery.
_NO_ARRAY = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError),
    *(ValueError, KeyError, IndexError, TypeError, OverflowError, MemoryError, RuntimeError),
    *(SyntaxError, tokenize.TokenError, AttributeError),
)
_NO_PATH = (
    "{name!r} needs to know where your images are: bind DATA_PATH in gin "
    "(--gin.DATA_PATH=\"'/my/images'\"). {layout}"
)


class _Reader(Protocol):
    """Reads the splits of one folder or file."""

    layout: str

    def files(self, path: pathlib.Path, split: str) -> list[pathlib.Path]:
        """What the split is read from, checked to be there."""

    def array(self, path: pathlib.Path, split: str) -> np.ndarray | None:
        """The same as one array `[N, H, W, C]`, if that is how they are kept."""

    def dataset(self, path: pathlib.Path, split: str) -> tf.data.Dataset:
        """All images of the split, in order."""


@final
class OwnImages(seqio.DataSource):
    """Images at a path that is not known when the task is registered: `at(path)` gives it one.

    Args:
        name: of the task.
        reader: of this kind of path.
        path: where the images are, or None as long as nobody has said.
    Raises, when read:
        ValueError: without a path, and for files that are missing or are not what they must be.
    """

    def __init__(self, name: str, reader: _Reader, path: pathlib.Path | None = None) -> None:
        super().__init__(splits=SPLITS)
        self.augmentation = None
        self.variant = "your own images"
        self._name, self._reader, self._path = name, reader, path

    @property
    def plain(self) -> Self:
        """Itself."""
        return self

    @property
    def supports_arbitrary_sharding(self) -> bool:
        """No."""
        return False

    def at(self, path: str) -> "OwnImages":
        """The same source, reading what is at `path`."""
        return OwnImages(self._name, self._reader, pathlib.Path(path).expanduser())

    def list_shards(self, split: str) -> Sequence[str]:
        """One: seqio then shares out single images."""
        return [split]

    def num_input_examples(self, split: str) -> int | None:
        """Unknown: seqio asks before anything is read, and a wrong path is reported then."""
        return None

    def known(self, split: str) -> None:
        """Nothing is."""
        return None

    def check_recorded(self, split: str, found: ImageFingerprint) -> None:
        """Raises ValueError if a prepared folder changed since it was written."""
        path = self._known_path()
        if (path / INFO).is_file():
            _prepared(path, split).check_recorded(found)

    def other_variants(self, num_images: int, split: str) -> None:
        """There are none."""
        return None

    def cache_key(self, split: str) -> str:
        """Digest of the place, names, sizes and times of the files that hold the split."""
        path = self._known_path()
        files = self._reader.files(path, split)
        root = path if path.is_dir() else path.parent
        facts = [(each.relative_to(root).as_posix(), *file_facts(each)) for each in files]
        return digest([self._name, str(root.absolute()), split, facts])

    def array(self, split: str) -> np.ndarray | None:
        """The split as one array, where the file holds it so; None otherwise."""
        return self._reader.array(self._known_path(), split)

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        **unused: Any,
    ) -> tf.data.Dataset:
        """Dicts with "image", uint8 `[H, W, C]`, in the order of names; the task shuffles."""
        if shard_info and shard_info.num_shards > 1:
            raise ValueError(f"{self._name!r} has one shard, got num_shards={shard_info}.")
        return self._reader.dataset(self._known_path(), split)

    def _known_path(self) -> pathlib.Path:
        if self._path is None:
            raise ValueError(_NO_PATH.format(name=self._name, layout=self._reader.layout))
        if not self._path.exists():
            raise ValueError(
                f"{self._name!r} found nothing at {self._path} (DATA_PATH). {self._reader.layout}"
            )
        return self._path


@final
class FolderReader:
    """Image files in `<path>/train`, `<path>/validation` and `<path>/test`, at any depth.

    Or, at `path`, what `python -m tasks.prepare image_folder` has made of such a folder.
    """

    layout = (
        "It must hold a folder for each split that is used (train, validation, test) with image "
        "files of one size and colour mode, 8 bits per channel; or be the folder that "
        "`python -m tasks.prepare image_folder` has named."
    )

    def files(self, path: pathlib.Path, split: str) -> list[pathlib.Path]:
        """Every file in the split's folder but hidden ones, by name; each must be an image's."""
        if (path / INFO).is_file():
            return [path / INFO, *_prepared(path, split).shards()]
        folder = path / split
        if not folder.is_dir():
            raise ValueError(f"There is no folder {folder}. {self.layout}")
        found = (each for each in folder.rglob("*") if each.is_file())
        files = sorted(
            each
            for each in found
            if not any(part.startswith(".") for part in each.relative_to(folder).parts)
        )
        if not files:
            raise ValueError(f"There are no images in {folder}. {self.layout}")
        for each in files:
            if each.suffix.lower() not in SUFFIXES:
                raise ValueError(
                    f"{each} is no image: files must end in {', '.join(SUFFIXES)}. Move it away; "
                    "only hidden files are passed over."
                )
        return files

    def array(self, path: pathlib.Path, split: str) -> None:
        """They are files."""

    def dataset(self, path: pathlib.Path, split: str) -> tf.data.Dataset:
        """Images as they are read; all headers are compared before the first."""
        if (path / INFO).is_file():
            prepared = _prepared(path, split)
            images = prepared.dataset(shuffle=False, seed=None, shard_info=None)
            return with_static_shape(images, prepared.image_shape, str(path))
        files = self.files(path, split)
        shape = image_shape(files[0])
        for each in files[1:]:
            if image_shape(each) != shape:
                raise ValueError(
                    f"{each} is {image_shape(each)}, but {files[0]} is {shape} (height, width, "
                    "channels). Images of a split must have one size and colour mode."
                )

        def read(place: np.ndarray) -> np.ndarray:
            return read_image(files[int(place)], shape)

        images = tf.data.Dataset.range(len(files)).map(
            lambda place: {"image": tf.numpy_function(read, [place], tf.uint8, stateful=False)},
            num_parallel_calls=tf.data.AUTOTUNE,
        )
        return with_static_shape(images, shape, str(path / split))


@final
class NpzReader:
    """One .npz file with an array `[N, H, W, C]` for each split, of the split's name.

    Of uint8, or of uint16 for more than 256 levels: those for the feed only, for seqio is told of
    uint8 when the task is registered.
    """

    layout = (
        "It must be a .npz file with an array uint8 (or uint16, for more than 256 levels) "
        "[N, H, W, C] for each split that is used, as numpy.savez(path, train=..., "
        "validation=..., test=...) writes it."
    )

    def files(self, path: pathlib.Path, split: str) -> list[pathlib.Path]:
        """The one file."""
        if not path.is_file():
            raise ValueError(f"{path} is no file. {self.layout}")
        return [path]

    def array(self, path: pathlib.Path, split: str) -> np.ndarray:
        """The array; memory for it and nothing else is taken."""
        (file,) = self.files(path, split)
        return read_array(file, split)

    def dataset(self, path: pathlib.Path, split: str) -> tf.data.Dataset:
        """The array's images; TensorFlow holds a copy of them in memory."""
        (file,) = self.files(path, split)
        images = read_array(file, split)
        dataset = tf.data.Dataset.from_tensor_slices({"image": images})
        name = f"{split!r} in {file}"
        return with_static_shape(dataset, images.shape[1:], name, (tf.uint8, tf.uint16))


def image_shape(path: pathlib.Path) -> tuple[int, int, int]:
    """(height, width, channels) by a file's header: nothing is decoded.

    Raises:
        ValueError: if it is no image, too large, animated, or not 8 bits of grey, RGB or RGBA.
    """
    with _opened(path) as image:
        return image.height, image.width, CHANNELS[image.mode]


def read_image(path: pathlib.Path, shape: tuple[int, int, int]) -> np.ndarray:
    """The pixels of a file, uint8 `[H, W, C]`.

    Raises:
        ValueError: with the file's name, if it cannot be read or has another shape.
    """
    with _opened(path) as image:
        if (image.height, image.width, CHANNELS[image.mode]) != shape:
            raise ValueError(f"{path} must be {shape}, it was changed while being read.")
        try:
            return np.asarray(image, np.uint8).reshape(shape)
        except Exception as error:  # whatever Pillow's decoders make of damage
            raise ValueError(f"{path} cannot be decoded: {error}. Replace or remove it.") from error


def read_array(path: pathlib.Path, name: str) -> np.ndarray:
    """An array of a .npz file, `[N, H, W, C]`; pickled objects are refused, not run.

    Raises:
        ValueError: with the file's name, if it is not such a file or lacks such an array.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            suffix = ".npy"
            held = [
                each.removesuffix(suffix) for each in archive.namelist() if each.endswith(suffix)
            ]
            if name not in held:
                raise ValueError(f"there is no array {name!r}; arrays: {', '.join(held) or 'none'}")
            _check_size(archive, name, path.stat().st_size)
            with archive.open(f"{name}{suffix}") as member:
                images = np.lib.format.read_array(member, allow_pickle=False)
                if member.read(1):  # at the end the checksum of the whole is compared
                    raise ValueError(f"{name!r} holds more than its header says")
    except _NO_ARRAY as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"{path} cannot be read: {reason:.200}. {NpzReader.layout}") from error
    if images.dtype not in (np.uint8, np.uint16) or images.ndim != 4 or images.size == 0:
        raise ValueError(
            f"{name!r} in {path} must be uint8 or uint16 [N, H, W, C] and not empty, got "
            f"{images.dtype} {list(images.shape)}. Grey images need a last axis of 1."
        )
    return images


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[Image.Image]:
    """An image whose header was read and is that of one that may be decoded."""
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(path.open("rb"))
            with warnings.catch_warnings():
                # We have our own bound.
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                image = stack.enter_context(Image.open(file, formats=_FORMATS))
            too_large = image.width * image.height > MAX_PIXELS
            frames = 1 if too_large else getattr(image, "n_frames", 1)
            found = depth.other_than_8_bits(image, file)
        except Exception as error:  # whatever Pillow's parsers make of damage
            raise ValueError(
                f"{path} is no readable image: {error}. Replace or remove it."
            ) from error
        if too_large:
            raise ValueError(
                f"{path} says that it is {image.height} x {image.width}; images of more than "
                f"{MAX_PIXELS:,} pixels are not read."
            )
        if image.mode not in CHANNELS or frames != 1:
            raise ValueError(
                f"{path} must be one picture of 8-bit grey, RGB or RGBA ({', '.join(CHANNELS)}), "
                f"got mode {image.mode!r} and {frames} frames. Convert it."
            )
        if found:
            raise ValueError(f"{path} must have 8 bits per channel, got {found}. {depth.WAY_OUT}")
        yield image


def _check_size(archive: zipfile.ZipFile, name: str, file_bytes: int) -> None:
    """A header may claim any size: memory is not asked for before the file's own size agrees."""
    with archive.open(f"{name}.npy") as member:
        version = np.lib.format.read_magic(member)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read_header is None:
            raise ValueError(f"{name!r} is of the unknown format {version}")
        shape, _, dtype = read_header(member)
        wanted = member.tell() + math.prod(shape) * dtype.itemsize
    info = archive.getinfo(f"{name}.npy")
    # Deflate makes nothing smaller than 1/1032 of its size.
    most = min(info.file_size, 1032 * min(info.compress_size, file_bytes))
    if wanted > most:
        raise ValueError(f"{name!r} claims {wanted:,} bytes, and the file holds {most:,}")


def _prepared(path: pathlib.Path, split: str) -> TfdsFiles:
    remedy = "Prepare it again: python -m tasks.prepare image_folder --overwrite ..."
    return TfdsFiles(folder=path, split=split, name="image_folder", remedy=remedy)
