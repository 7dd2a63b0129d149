"""Outputs of generation, and the checks and figures that encoding and interpolation share."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from idode_gin.feed import data
from idode_gin.reports import files, plots, progress
from idode_gin.runs import means


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

    The picture shows `images`, integers `[N, H, W, C]` in `0..summary["levels"]-1`, in `columns`
    tiles per row; None makes it about square.
    """
    if jax.process_index() != 0:
        return
    directory = pathlib.Path(output_dir)
    with progress.phase(f"writing {archive} and {picture}"):
        files.write_npz_atomically(directory / archive, arrays)
        plots.image_grid(images, summary["levels"], directory / picture, columns)
        files.write_json_atomically(directory / "summary.json", summary)
    print(f"Wrote {archive} and {picture} to {directory}.", flush=True)


def columns_for(images: np.ndarray) -> int:
    """Return the number of grid columns that shows `images` `[N, H, W, C]` in one row."""
    return len(images) * (1 if images.shape[3] in (1, 3) else images.shape[3])


def check_indices(indices: tuple[int, ...], split: data.ImageSplit, name: str, remedy: str) -> None:
    """Raise ValueError if there are no `indices`, or one is not in the split.

    `name` is the setting that holds them, `remedy` a binding with valid ones.
    """
    outside = [each for each in indices if not 0 <= each < split.num_images]
    if outside or not indices:
        got = f"{outside[0]}" if outside else "none"
        raise ValueError(
            f"`{name}` must be places in {split}, 0 to {split.num_images - 1}, at least one, got "
            f"{got}. Bind others: {remedy}"
        )


def round_trip(error: np.ndarray) -> dict[str, Any]:
    """Return mean, its standard error and maximum of round-trip errors of any shape."""
    unit = {"unit": "levels, root mean square over pixels"}
    return {**unit, **means.summarize(error), "max": float(np.max(error))}
