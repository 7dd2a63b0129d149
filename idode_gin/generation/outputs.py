"""Outputs of generation, and the checks and figures that encoding and interpolation share."""

import io
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from idode_gin.feed import data
from idode_gin.reports import files, paths, plots, progress
from idode_gin.runs import means, run_lock

SAMPLES = "samples"
"""Folder in the output folder that holds the samples as pictures."""


def write(
    output_dir: str,
    summary: Mapping[str, Any],
    archive: str,
    arrays: Mapping[str, np.ndarray],
    picture: str,
    images: np.ndarray,
    columns: int | None = None,
) -> None:
    """Write everything from process 0; `summary.json` last, and none of earlier output meanwhile.

    The picture shows `images`, integers `[N, H, W, C]` in `0..summary["levels"]-1`, in `columns`
    tiles per row; None makes it about square.
    """
    if jax.process_index() != 0:
        return
    directory = paths.of(output_dir)
    _outdate(directory)
    with progress.phase(f"writing {archive} and {picture}"):
        files.write_npz_atomically(directory / archive, arrays)
        plots.image_grid(images, summary["levels"], directory / picture, columns)
        files.write_json_atomically(directory / "summary.json", summary)
    print(f"Wrote {archive} and {picture} to {directory}.", flush=True)


def check_pngs(output_dir: str) -> None:
    """Raise ValueError if the folder `SAMPLES` of `output_dir` holds other files than samples."""
    folder = paths.of(output_dir) / SAMPLES
    if (folder.is_symlink() or folder.exists()) and not _is_ours(folder):
        raise ValueError(
            f"The samples are written as {folder}/00000.png …, and there are other files than such "
            "pictures. Choose another `output_dir`, or set `png_files` to False."
        )


def write_pngs(output_dir: str, images: np.ndarray | None) -> None:
    """Write `SAMPLES/00000.png`, `00001.png` … from process 0, as tools for FID read them.

    The folder is absent until all are written, and then holds no others; in a bucket, where
    nothing can be renamed, it grows. Of earlier samples none are left. See `check_pngs`.

    Args:
        output_dir: the output folder.
        images: uint8 `[N, H, W, C]`; nothing is written for None, or if C is neither 1 nor 3,
            which a PNG cannot hold.
    """
    if jax.process_index() != 0:
        return
    from PIL import Image

    _outdate(paths.of(output_dir))
    folder = paths.of(output_dir) / SAMPLES
    partial = folder.with_name(f".{SAMPLES}.partial")
    for each in filter(_is_ours, (partial, folder)):  # of a process that was killed; of others
        files.remove_folder(each)
    if images is None:
        return
    if images.shape[3] not in (1, 3):
        print(f"No {folder}: a PNG has 1 or 3 channels, not {images.shape[3]}.", flush=True)
        return
    digits = max(5, len(str(len(images) - 1)))
    phase = progress.phase(f"writing {SAMPLES}/*.png", len(images))
    with files.naming(folder), phase as going_on:
        partial = folder if paths.in_bucket(folder) else partial
        partial.mkdir(parents=True)

        def write(index: int) -> None:
            pixels = images[index, ..., 0] if images.shape[3] == 1 else images[index]
            content = io.BytesIO()
            Image.fromarray(pixels).save(content, format="PNG")
            (partial / f"{index:0{digits}}.png").write_bytes(content.getvalue())

        for _ in files.side_by_side(write, range(len(images))):
            going_on.advance(1)
        if partial != folder:
            partial.rename(folder)
    print(f"Wrote {len(images)} images to {folder}.", flush=True)


def _outdate(directory: pathlib.Path) -> None:
    """Remove the summary of earlier output, which would describe new files.

    Raises:
        OSError: if another program may have begun there since.
    """
    run_lock.check(directory)
    (directory / "summary.json").unlink(missing_ok=True)


def _is_ours(folder: pathlib.Path) -> bool:
    if folder.is_symlink() or not folder.is_dir():
        return False
    return all(re.fullmatch(r"\d{5,}\.png", each.name) for each in folder.iterdir())


def columns_for(images: np.ndarray) -> int:
    """Return the number of grid columns that shows `images` `[N, H, W, C]` in one row."""
    return len(images) * (1 if images.shape[3] in (1, 3) else images.shape[3])


def check_indices(indices: tuple[int, ...], split: data.ImageSplit, name: str, remedy: str) -> None:
    """Raise ValueError if there are no `indices`, or one is not in the split.

    `name` is the setting that holds them, `remedy` a binding with valid ones.
    """
    inside = range(split.num_images)
    outside = [each for each in indices if each not in inside]
    if outside or not indices:
        got = f"{outside[0]}" if outside else "none"
        raise ValueError(
            f"`{name}` must be places in {split}, 0 to {split.num_images - 1}, at least one, got "
            f"{got}. Bind others: {remedy}"
        )


def round_trip(error: np.ndarray, index: np.ndarray) -> dict[str, Any]:
    """Return mean, its standard error and maximum of round-trip errors, of each image once.

    Args:
        error: errors of any shape.
        index: places of their images, of the same shape.
    """
    _, once = np.unique(index, return_index=True)
    error = np.ravel(error)[once]
    unit = {"unit": "levels, root mean square over pixels"}
    return {**unit, **means.summarize(error), "max": float(np.max(error))}
