"""Images that come some at a time, made one array without ever being there twice."""

from typing import final

import numpy as np

_GROWTH = 16  # one part in so many more than is needed


@final
class Gathered:
    """Rows in one array that grows where it lies.

    Takes the memory of the rows where their number is known, and up to a 16th more where it is not
    (on Linux, where the system can move pages instead of copying them).

    Args:
        what: the rows are, for messages.
        expected: how many there will be, or 0. A wrong number costs memory and nothing else.
    """

    def __init__(self, what: str, expected: int = 0) -> None:
        self._what = what
        self._expected = expected
        self._array: np.ndarray | None = None
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, rows: np.ndarray) -> None:
        """Adds `[n, ...]` after those before; dtypes are joined as NumPy joins them.

        Raises:
            ValueError: if they have another shape than those before.
        """
        if self._array is None:
            self._array = self._first(rows)
        if rows.shape[1:] != self._array.shape[1:]:
            raise ValueError(
                f'Every "{self._what}" of a split must have one shape, but number {self._count} is '
                f"{list(rows.shape[1:])} and number 0 is {list(self._array.shape[1:])}. Crop or "
                "resize in the task's preprocessors."
            )
        self._array = self._array.astype(np.result_type(self._array, rows), copy=False)
        end = self._count + len(rows)
        if end > len(self._array):
            self._resize(end + end // _GROWTH)
        self._array[self._count : end] = rows
        self._count = end

    def result(self) -> np.ndarray:
        """All rows `[N, ...]`, which then belong to the caller.

        Raises:
            ValueError: if there were none.
        """
        if self._array is None:
            raise ValueError(f'There was no "{self._what}" to gather.')
        self._resize(self._count)
        array, self._array, self._count = self._array, None, 0
        return array

    def _first(self, rows: np.ndarray) -> np.ndarray:
        # Memory that is asked for and not written takes none: a number too large does no harm.
        try:
            if self._expected:
                return np.empty((self._expected, *rows.shape[1:]), rows.dtype)
        except (MemoryError, ValueError):
            pass
        # NumPy asks for huge pages in what it makes large, and that the system cannot move. What
        # begins small and is made larger it can.
        return np.empty((1, *rows.shape[1:]), rows.dtype)

    def _resize(self, length: int) -> None:
        assert self._array is not None
        # Nobody else has seen the array: there are no references to check for.
        self._array.resize((length, *self._array.shape[1:]), refcheck=False)


def narrowed(images: np.ndarray) -> np.ndarray:
    """uint8 as it is, other integers as int32, which is what a device holds; the rest as it is.

    Raises:
        ValueError: if a value is outside of int32.
    """
    if images.dtype.kind not in "iu" or images.dtype in (np.uint8, np.int32):
        return images
    narrow = images.astype(np.int32)
    if not np.array_equal(narrow, images):
        raise ValueError(
            f"Pixels must be integers in 0..V-1, held by int32, got {images.dtype} between "
            f"{images.min()} and {images.max()}. Map them to 0..V-1 in the task's preprocessors."
        )
    return narrow
