"""Spacings of the steps of a grid."""

import abc
import dataclasses
from typing import final

import numpy as np


class AbstractSpacing(abc.ABC):
    """Positions of the ends of a given number of steps, as fractions of the interval."""

    @abc.abstractmethod
    def fractions(self, steps: int) -> np.ndarray:
        """Return positions, increasing from 0 to 1, float64 `[steps + 1]`."""


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Equal(AbstractSpacing):
    """Equal steps."""

    def fractions(self, steps: int) -> np.ndarray:
        """Return i / steps."""
        return np.linspace(0.0, 1.0, steps + 1)


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Tabulated(AbstractSpacing):
    """Spacing from a table with linear interpolation.

    Args:
        table: positions of equal shares of the steps, increasing from 0 to 1. A table with
            `steps + 1` entries is the grid itself.

    Raises:
        ValueError: if it does not increase from 0 to 1.
    """

    table: tuple[float, ...]

    def __post_init__(self) -> None:
        values = np.asarray(self.table, np.float64)
        ends = values.size >= 2 and (values[0], values[-1]) == (0, 1)
        if not ends or not np.all(np.diff(values) > 0):
            raise ValueError(
                "`table` must increase from 0 to 1, such as (0.0, 0.2, 0.5, 1.0), got "
                f"table={self.table}."
            )

    def fractions(self, steps: int) -> np.ndarray:
        """Return the table interpolated at i / steps."""
        shares = np.linspace(0.0, 1.0, len(self.table))
        return np.interp(np.linspace(0.0, 1.0, steps + 1), shares, self.table)
