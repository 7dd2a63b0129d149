"""Files of an evaluation: one row per image, plots, the table and the summary.

The only module that uses pyarrow.
"""

import importlib.util
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from idode_gin.evaluation import plots as eval_plots
from idode_gin.evaluation import summary
from idode_gin.evaluation.summary import Scores
from idode_gin.feed import data
from idode_gin.reports import files, plots, progress

Integrand = Callable[[], tuple[np.ndarray, np.ndarray, int]]
"""Gives gammas, bits per dim per nat of gamma at them, `[G]` each, and of how many images."""
PLOTS = "plots"
TAKEN = (summary.VARIATIONAL_BOUND, summary.CLASSIFICATION, "histogram", "index", "place")
"""Names of columns that no likelihood can have."""


def check_names(names: Sequence[str], taken: Sequence[str]) -> None:
    """Raise ValueError unless the names of likelihoods can name columns, files and entries."""
    for name in names:
        if name in taken:
            raise ValueError(f"`likelihoods` cannot use the name {name!r}: it is taken.")
        if not name or set(name) & set("/\\\0"):
            raise ValueError(
                f"`likelihoods` name columns and files: a name has a letter or more and no "
                f"slash, got {name!r}."
            )


def write(
    directory: pathlib.Path,
    found: Mapping[str, Any],
    scores: Mapping[str, Scores],
    histogram: np.ndarray | None,
    split: data.ImageSplit,
    integrand: Integrand,
    classes: Mapping[str, np.ndarray],
) -> None:
    """Write rows, plots, `table.txt`, and `summary.json` last: if it exists, so do the others.

    `found` is the summary, `histogram` the bits per dim of the histogram baseline, `[N]`; `classes`
    are those of a classification by name, `[N]`, if there is one.
    """
    rows = {"index": np.arange(split.num_images)}
    if split.whole is not None:
        rows["place"] = split.place_of(rows["index"])
    rows |= {f"{name}/{key}": v for name, each in scores.items() for key, v in each.items()}
    rows |= {f"{summary.CLASSIFICATION}/{name}": each for name, each in classes.items()}
    with progress.phase(f"writing results to {directory}"):
        write_rows(directory, rows if histogram is None else {**rows, "histogram/bpd": histogram})
    draw(directory / PLOTS, scores, split, found["levels"], integrand)
    files.write_atomically(directory / "table.txt", summary.table(found, histogram) + "\n")
    files.write_json_atomically(directory / "summary.json", found)


def write_rows(directory: pathlib.Path, rows: Mapping[str, np.ndarray]) -> None:
    """Write the columns `[N]` as `results.npz`, and as `results.parquet` if pyarrow is installed.

    The same columns give the same bytes.
    """
    files.write_npz_atomically(directory / "results.npz", rows)
    path = directory / "results.parquet"
    if importlib.util.find_spec("pyarrow") is None:
        path.unlink(missing_ok=True)  # left by an earlier evaluation, with other values
        logging.warning("%s is not written: pyarrow is not installed. Use results.npz.", path)
        return
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({name: pyarrow.array(each) for name, each in rows.items()})
    files.write_atomically(path, lambda file: parquet.write_table(table, file))


def draw(
    folder: pathlib.Path,
    scores: Mapping[str, Scores],
    split: data.ImageSplit,
    levels: int,
    integrand: Integrand,
) -> None:
    """Plot the distribution of bits per dim and of the NFE, and the integrand of the bound."""
    with progress.phase("plotting"), plots.optional(f"Distributions in {folder}"):
        places = split.place_of(np.arange(split.num_images))
        for name, each in scores.items():
            path = folder / f"bpd_{name}.png"
            eval_plots.plot_bpd_histogram(
                each["bpd"], split.images, levels, path, name=name, places=places
            )
        nfe = {name: each["nfe"] for name, each in scores.items()}
        eval_plots.plot_nfe_histogram(nfe, folder / "nfe.png")
    path = folder / "integrand.png"
    with progress.phase("computing the integrand of the bound"), plots.optional(str(path)):
        gammas, values, count = integrand()
        plots.plot_integrand(gammas, values, path, None if count == split.num_images else count)
