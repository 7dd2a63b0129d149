"""The files that generation writes: an archive of arrays, a picture, and a summary."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from idode_gin.reports import files, plots


def write(
    output_dir: str,
    summary: Mapping[str, Any],
    archive: str,
    arrays: Mapping[str, np.ndarray],
    picture: str,
    images: np.ndarray,
    columns: int | None = None,
) -> None:
    """Write everything from process 0; `summary.json` last.

    Args:
        output_dir: for the files.
        summary: with `levels`, the number of values a pixel can have.
        archive: name of the `.npz` file.
        arrays: its contents.
        picture: name of the PNG file.
        images: shown in it, integers `[N, H, W, C]`.
        columns: tiles per row; None makes the picture about square.
    """
    if jax.process_index() != 0:
        return
    directory = pathlib.Path(output_dir)
    files.write_npz_atomically(directory / archive, arrays)
    plots.image_grid(images, summary["levels"], directory / picture, columns)
    files.write_json_atomically(directory / "summary.json", summary)
    print(f"Wrote {archive} and {picture} to {directory}.", flush=True)


def columns_for(images: np.ndarray) -> int:
    """Return the number of grid columns that shows `images` `[N, H, W, C]` in one row."""
    return len(images) * (1 if images.shape[3] in (1, 3) else images.shape[3])
