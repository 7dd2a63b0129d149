"""How the steps of a grid are spaced."""

import abc
import dataclasses
from typing import final

import numpy as np


class AbstractSpacing(abc.ABC):
    """Where the ends of a given number of steps lie, as fractions of the whole."""

    @abc.abstractmethod
    def fractions(self, steps: int) -> np.ndarray:
        """Rising from 0 to 1, float64 `[steps + 1]`."""


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Equal(AbstractSpacing):
    """Steps of one size."""

    def fractions(self, steps: int) -> np.ndarray:
        """i / steps."""
        return np.linspace(0.0, 1.0, steps + 1)


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Tabulated(AbstractSpacing):
    """Spacing as in a table, between whose entries it is linear.

    Args:
        table: where equal shares of the steps lie, rising from 0 to 1; with as many entries as a
            grid has ends, it is the grid.

    Raises:
        ValueError: if it does not rise from 0 to 1.
    """

    table: tuple[float, ...]

    def __post_init__(self) -> None:
        """Checks the table."""
        values = np.asarray(self.table, np.float64)
        ends = values.size >= 2 and (values[0], values[-1]) == (0, 1)
        if not ends or not np.all(np.diff(values) > 0):
            raise ValueError(
                "`table` must rise from 0 to 1, such as (0.0, 0.2, 0.5, 1.0), got "
                f"table={self.table}."
            )

    def fractions(self, steps: int) -> np.ndarray:
        """The table, at i / steps of its length."""
        shares = np.linspace(0.0, 1.0, len(self.table))
        return np.interp(np.linspace(0.0, 1.0, steps + 1), shares, self.table)
