"""Sources of a user's own images: a folder of image files, or one .npz file."""

import pathlib
from typing import Any, Protocol, final

import numpy as np
import tensorflow as tf

from idode_gin.feed.image_fingerprints import ImageFingerprint
from tasks.support import image_files, npz_arrays
from tasks.support.sources import AbstractImages, digest, with_static_shape
from tasks.support.tfds_files import INFO, TfdsFiles

SPLITS = ("train", "validation", "test")


class _Reader(Protocol):
    """Reads the splits of one kind of path."""

    layout: str

    def files(self, path: pathlib.Path, split: str) -> list[pathlib.Path]:
        """Return the files of the split, checked to be there."""

    def array(self, path: pathlib.Path, split: str) -> np.ndarray | None:
        """Return the split as one array `[N, H, W, C]` if it is stored as one, else None."""

    def dataset(self, path: pathlib.Path, split: str) -> tf.data.Dataset:
        """Return all images of the split, in order."""


@final
class OwnImages(AbstractImages):
    """Images at a path that is unknown when the task is registered; `at(path)` sets it.

    Args:
        name: of the task.
        reader: of this kind of path.
        path: where the images are, or None while unknown.
    Raises, when read:
        ValueError: without a path, and for files that are missing or break the reader's rules.
    """

    variant = "your own images"

    def __init__(self, name: str, reader: _Reader, path: pathlib.Path | None = None) -> None:
        super().__init__(SPLITS)
        self.name, self._reader, self._path = name, reader, path

    def at(self, path: str) -> "OwnImages":
        """Return the same source, reading `path`."""
        return OwnImages(self.name, self._reader, pathlib.Path(path).expanduser())

    def num_input_examples(self, split: str) -> None:
        """Return None: seqio asks before anything is read; a wrong path is reported on reading."""
        return None

    def check_recorded(self, split: str, found: ImageFingerprint) -> None:
        """Raise ValueError if a prepared folder changed since it was written."""
        path = self._known_path()
        if (path / INFO).is_file():
            _prepared(path, split).check_recorded(found)

    def cache_key(self, split: str) -> str:
        """Return a digest of the split's folder and its files' names, sizes and times."""
        path = self._known_path()
        files = self._reader.files(path, split)
        root = path if path.is_dir() else path.parent
        stats = [(each.relative_to(root).as_posix(), each.stat()) for each in files]
        facts = [(name, each.st_size, each.st_mtime_ns) for name, each in stats]
        return digest([self.name, str(root.absolute()), split, facts])

    def array(self, split: str) -> np.ndarray | None:
        """Return the split as one array if its file stores it as one, else None."""
        return self._reader.array(self._known_path(), split)

    def images(self, split: str, **reading: Any) -> tf.data.Dataset:
        """Return dicts with "image", `[H, W, C]`, in the order of names; the task shuffles."""
        return self._reader.dataset(self._known_path(), split)

    def _known_path(self) -> pathlib.Path:
        if self._path is None:
            raise ValueError(
                f"{self.name!r} needs the path of your images: bind DATA_PATH in gin "
                f"(--gin.DATA_PATH=\"'/my/images'\"). {self._reader.layout}"
            )
        if not self._path.exists():
            raise ValueError(
                f"{self.name!r} found nothing at {self._path} (DATA_PATH). {self._reader.layout}"
            )
        return self._path


@final
class FolderReader:
    """Image files in `<path>/train`, `<path>/validation` and `<path>/test`, at any depth.

    `path` may also be a folder that `python -m tasks.prepare image_folder` has written.
    """

    layout = (
        "It must hold a folder for each split that is used (train, validation, test) with image "
        "files of one size and colour mode, 8 bits per channel; or be a folder that "
        "`python -m tasks.prepare image_folder` has written."
    )

    def files(self, path: pathlib.Path, split: str) -> list[pathlib.Path]:
        """Return every file in the split's folder but hidden ones, by name; all must be images."""
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
            if each.suffix.lower() not in image_files.SUFFIXES:
                raise ValueError(
                    f"{each} is not an image: files must end in {', '.join(image_files.SUFFIXES)}. "
                    "Move it away; only hidden files are skipped."
                )
        return files

    def array(self, path: pathlib.Path, split: str) -> None:
        """Return None: the images are single files."""

    def dataset(self, path: pathlib.Path, split: str) -> tf.data.Dataset:
        """Return the images; the headers of all are compared before the first is decoded."""
        if (path / INFO).is_file():
            prepared = _prepared(path, split)
            images = prepared.dataset(shuffle=False, seed=None, shard_info=None)
            return with_static_shape(images, prepared.image_shape, str(path))
        files = self.files(path, split)
        shape = image_files.image_shape(files[0])
        for each in files[1:]:
            if (found := image_files.image_shape(each)) != shape:
                raise ValueError(
                    f"{each} is {found}, but {files[0]} is {shape} (height, width, "
                    "channels). Images of a split must have one size and colour mode."
                )

        def read(place: np.ndarray) -> np.ndarray:
            return image_files.read_image(files[int(place)], shape)

        images = tf.data.Dataset.range(len(files)).map(
            lambda place: {"image": tf.numpy_function(read, [place], tf.uint8, stateful=False)},
            num_parallel_calls=tf.data.AUTOTUNE,
        )
        return with_static_shape(images, shape, str(path / split))


@final
class NpzReader:
    """One .npz file with an array `[N, H, W, C]` for each split, of the split's name.

    Arrays are uint8, or uint16 for more than 256 levels. Only the feed reads uint16: the task
    declares uint8 to seqio when it is registered.
    """

    layout = npz_arrays.LAYOUT

    def files(self, path: pathlib.Path, split: str) -> list[pathlib.Path]:
        """Return the one file."""
        if not path.is_file():
            raise ValueError(f"{path} is not a file. {self.layout}")
        return [path]

    def array(self, path: pathlib.Path, split: str) -> np.ndarray:
        """Return the array; allocates its memory and nothing else."""
        (file,) = self.files(path, split)
        return npz_arrays.read_array(file, split)

    def dataset(self, path: pathlib.Path, split: str) -> tf.data.Dataset:
        """Return the array's images; TensorFlow holds a copy of them in memory."""
        (file,) = self.files(path, split)
        images = npz_arrays.read_array(file, split)
        dataset = tf.data.Dataset.from_tensor_slices({"image": images})
        name = f"{split!r} in {file}"
        return with_static_shape(dataset, images.shape[1:], name, (tf.uint8, tf.uint16))


def _prepared(path: pathlib.Path, split: str) -> TfdsFiles:
    remedy = "Prepare it again: python -m tasks.prepare image_folder --overwrite ..."
    return TfdsFiles(folder=path, split=split, name="image_folder", remedy=remedy)
