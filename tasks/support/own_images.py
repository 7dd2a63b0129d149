"""Sources of a user's own images: a folder of image files, or one .npz file."""

import abc
import pathlib
from typing import Any, final

import numpy as np
import tensorflow as tf

from idode_gin.feed import copies
from idode_gin.feed.image_fingerprints import ImageFingerprint
from tasks.formats.image_files import SPLITS, classes_of, files_below, image_shape, read_image
from tasks.support import npz_arrays
from tasks.support.sources import AbstractImages, digest, with_static_shape
from tasks.support.tfds_files import INFO, TfdsFiles

UNCHANGED = "your own images"
"""Variant of images whose pixels are those of the user's files."""


class AbstractOwnImages(AbstractImages):
    """A user's images of one layout, at a path that is unknown when the task is registered.

    Args:
        path: where the images are, or None while unknown.
    Raises, when read:
        ValueError: without a path, and for files that are missing or unsuitable.
    """

    variant = UNCHANGED
    layout: str
    """What must be at the path, in sentences."""

    def __init__(self, path: pathlib.Path | None = None) -> None:
        super().__init__(SPLITS)
        self._path = path

    @abc.abstractmethod
    def files(self, split: str) -> list[pathlib.Path]:
        """Return the files of the split, checked to be there."""

    def at(self, path: str) -> "AbstractOwnImages":
        """Return the same source, reading `path`."""
        return type(self)(copies.local(path, "DATA_PATH"))

    def check_there(self, split: str) -> None:
        """Raise ValueError if files of the split are missing; decodes nothing."""
        self.files(split)

    def cache_key(self, split: str) -> str:
        """Return a digest of the split's folder and its files' names, sizes and times."""
        files = self.files(split)
        root = self.path if self.path.is_dir() else self.path.parent
        stats = [(each.relative_to(root).as_posix(), each.stat()) for each in files]
        facts = [(name, each.st_size, each.st_mtime_ns) for name, each in stats]
        return digest([self.name, str(root.absolute()), split, facts])

    @property
    def path(self) -> pathlib.Path:
        """Path of the images, checked to exist."""
        if self._path is None:
            raise ValueError(
                f"{self.name!r} needs the path of your images: bind DATA_PATH in gin "
                f"(--gin.DATA_PATH=\"'/my/images'\"). {self.layout}"
            )
        if not self._path.exists():
            raise ValueError(
                f"{self.name!r} found nothing at {self._path} (DATA_PATH). {self.layout}"
            )
        return self._path


@final
class FolderImages(AbstractOwnImages):
    """Image files in `<path>/train`, `<path>/validation` and `<path>/test`, at any depth.

    `path` may also be a folder that `python -m tasks.prepare image_folder` has written. The first
    folder below a split's own names the class of an image; classes are numbered in the order of
    their names, those of all splits together.
    """

    name = "image_folder"
    layout = (
        "DATA_PATH must hold a folder for each split that is used (train, validation, test) with "
        "image files of one size and colour mode, 8 bits per channel; or be a folder that "
        "`python -m tasks.prepare image_folder` has written, which splits with --split 0.8,0.1,0.1."
    )

    @property
    def variant(self) -> str:  # type: ignore[override]  # depends on what is on disk
        """Description of the images, with what preparing them did to them."""
        prepared = None if self._path is None else self._prepared(self._path, "")
        return ", ".join([UNCHANGED, *([] if prepared is None else prepared.changes)])

    def files(self, split: str) -> list[pathlib.Path]:
        """Return every file in the split's folder but hidden ones, by name; all must be images."""
        if (prepared := self._prepared(self.path, split)) is not None:
            return [self.path / INFO, *prepared.shards()]
        folder = self.path / split
        if self.path.is_file():
            raise ValueError(
                f"DATA_PATH must be a folder for {self.name!r}, got the file {self.path}. "
                f"{self.layout} An .npz file is read by gin_configs/experiments/image_npz.gin."
            )
        if not folder.is_dir():
            raise ValueError(f"There is no folder {folder}. {self.layout}")
        files, problems = files_below(folder)
        if problems:
            more = f" There are {len(problems) - 1:,} more such problems." if problems[1:] else ""
            raise ValueError(problems[0] + more)
        if not files:
            raise ValueError(f"There are no images in {folder}. {self.layout}")
        return files

    def images(self, split: str, **reading: Any) -> tf.data.Dataset:
        """Return the images by name; the headers of all are compared before one is decoded."""
        if (prepared := self._prepared(self.path, split)) is not None:
            images = prepared.dataset(shuffle=False, seed=None, shard_info=None)
            return with_static_shape(images, prepared.image_shape, str(self.path))
        files = self.files(split)
        shape = image_shape(files[0])
        for each in files[1:]:
            if (found := image_shape(each)) != shape:
                raise ValueError(
                    f"{each} is {found}, but {files[0]} is {shape} (height, width, "
                    "channels). Images of a split must have one size and colour mode."
                )

        def read(place: np.ndarray) -> np.ndarray:
            return read_image(files[int(place)], shape)

        images = tf.data.Dataset.range(len(files)).map(
            lambda place: {"image": tf.numpy_function(read, [place], tf.uint8, stateful=False)},
            num_parallel_calls=tf.data.AUTOTUNE,
        )
        return with_static_shape(images, shape, str(self.path / split))

    def check_recorded(self, split: str, found: ImageFingerprint) -> None:
        """Raise ValueError if a prepared folder changed since it was written."""
        if (prepared := self._prepared(self.path, split)) is not None:
            prepared.check_recorded(found)

    def labels(self, split: str, num_classes: int) -> np.ndarray | None:
        """Return the number of each image's folder; None if an image is in none.

        Raises:
            ValueError: if the folders are another number.
        """
        if (prepared := self._prepared(self.path, split)) is not None:
            return prepared.labels(num_classes)
        names, labels = classes_of(self.path, {split: self.files(split)})
        if not names:
            return None
        if len(names) != num_classes:
            raise ValueError(
                f"{self.path} has {len(names)} folders of classes, {', '.join(names[:10])}, but "
                f"the model is conditioned on one of {num_classes}. Set NUM_CLASSES = {len(names)}."
            )
        return np.array(labels[split])

    def class_names(self, split: str) -> list[str]:
        """Return the names of the folders of classes, or those that preparing recorded."""
        if (prepared := self._prepared(self.path, split)) is not None:
            return prepared.class_names()
        return classes_of(self.path, {split: self.files(split)})[0]

    def _prepared(self, path: pathlib.Path, split: str) -> TfdsFiles | None:
        if not (path / INFO).is_file():
            return None
        remedy = "Prepare it again: python -m tasks.prepare image_folder --overwrite ..."
        return TfdsFiles(folder=path, split=split, name=self.name, remedy=remedy)


@final
class NpzImages(AbstractOwnImages):
    """One .npz file with an array `[N, H, W, C]` for each split, of the split's name.

    Arrays are uint8, or uint16 for more than 256 levels. Only the feed reads uint16: the task
    declares uint8 to seqio when it is registered.
    """

    name = "image_npz"
    layout = npz_arrays.LAYOUT

    def files(self, split: str) -> list[pathlib.Path]:
        """Return the one file."""
        if not self.path.is_file():
            raise ValueError(f"{self.path} is not a file. {self.layout}")
        return [self.path]

    def check_there(self, split: str) -> None:
        """Raise ValueError unless the file holds an array of the split's name."""
        (file,) = self.files(split)
        npz_arrays.check_held(file, split)

    def array(self, split: str) -> np.ndarray:
        """Return the array; allocates its memory and nothing else."""
        (file,) = self.files(split)
        return npz_arrays.read_array(file, split)

    def images(self, split: str, **reading: Any) -> tf.data.Dataset:
        """Return the array's images; TensorFlow holds a copy of them in memory."""
        images = self.array(split)
        dataset = tf.data.Dataset.from_tensor_slices({"image": images})
        name = f"{split!r} in {self.path}"
        return with_static_shape(dataset, images.shape[1:], name, (tf.uint8, tf.uint16))
