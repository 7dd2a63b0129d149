"""Columns as a Parquet file, for data frames and databases. The only module that uses pyarrow."""

import importlib.util
import os
from collections.abc import Mapping

import numpy as np

from idode_gin.reports import files


def is_available() -> bool:
    """Return True if pyarrow is installed."""
    return importlib.util.find_spec("pyarrow") is not None


def write_atomically(path: str | os.PathLike[str], columns: Mapping[str, np.ndarray]) -> None:
    """Replace a Parquet file with N rows of the columns, `[N]` each, in their order.

    The same columns give the same bytes.
    """
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({name: pyarrow.array(each) for name, each in columns.items()})
    files.write_atomically(path, lambda file: parquet.write_table(table, file))
