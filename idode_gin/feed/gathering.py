"""Collects images that arrive some at a time into one array, without a second copy."""

from typing import final

import numpy as np

_GROWTH = 16  # one part in so many more than is needed


@final
class Gathered:
    """Rows in one array that grows in place.

    Takes the memory of the rows if their number is known, and up to a 16th more if it is not (on
    Linux, which moves pages instead of copying them).

    Args:
        what: name of the rows, for messages.
        expected: number of rows, or 0 if unknown. A wrong number only costs memory.
    """

    def __init__(self, what: str, expected: int = 0) -> None:
        self._what = what
        self._expected = expected
        self._array: np.ndarray | None = None
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, rows: np.ndarray) -> None:
        """Append `[n, ...]`; dtypes are promoted as by `np.result_type`.

        Raises:
            ValueError: if they differ in shape from those before.
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
        """Return all rows `[N, ...]`, and keep none.

        Raises:
            ValueError: if there are none.
        """
        if self._array is None:
            raise ValueError(f'There was no "{self._what}" to gather.')
        self._resize(self._count)
        array, self._array, self._count = self._array, None, 0
        return array

    def _first(self, rows: np.ndarray) -> np.ndarray:
        # Memory that is allocated but never written costs nothing: too large a number is harmless.
        try:
            if self._expected:
                return np.empty((self._expected, *rows.shape[1:]), rows.dtype)
        except (MemoryError, ValueError):
            pass
        # NumPy requests huge pages for large arrays, which the system cannot move. An array that
        # starts small and grows has none.
        return np.empty((1, *rows.shape[1:]), rows.dtype)

    def _resize(self, length: int) -> None:
        assert self._array is not None
        # The array is private until `result`: there are no references to check.
        self._array.resize((length, *self._array.shape[1:]), refcheck=False)
