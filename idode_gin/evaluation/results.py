"""Files of an evaluation: one row per image, plots, the table and the summary."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from idode_gin.evaluation import parquet, summary
from idode_gin.evaluation import plots as eval_plots
from idode_gin.evaluation.summary import Scores
from idode_gin.feed import data
from idode_gin.reports import files, plots

Integrand = Callable[[], tuple[np.ndarray, np.ndarray]]
"""Gives gammas, and bits per dim per nat of gamma at them, `[G]` each."""
PLOTS = "plots"
TAKEN = (summary.VARIATIONAL_BOUND, "histogram", "index")
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
) -> None:
    """Write rows, plots, `table.txt`, and `summary.json` last: if it exists, so do the others.

    Args:
        directory: for the files; the plots go to `plots/`.
        found: the summary.
        scores: by bound.
        histogram: bits per dim of the histogram baseline, `[N]`.
        split: the images.
        integrand: of the variational bound.
    """
    write_rows(directory, columns(scores, histogram))
    draw(directory / PLOTS, scores, split, found["levels"], integrand)
    files.write_atomically(directory / "table.txt", summary.table(found, histogram) + "\n")
    files.write_json_atomically(directory / "summary.json", found)


def columns(scores: Mapping[str, Scores], histogram: np.ndarray | None) -> dict[str, np.ndarray]:
    """Return one row per image: `index`, and `<bound>/<value>` of every bound; `[N]` each."""
    count = len(next(iter(scores.values()))["bpd"])
    found = {"index": np.arange(count)}
    found |= {f"{name}/{key}": v for name, each in scores.items() for key, v in each.items()}
    return found if histogram is None else {**found, "histogram/bpd": histogram}


def write_rows(directory: pathlib.Path, rows: Mapping[str, np.ndarray]) -> None:
    """Write `results.npz`, and `results.parquet` with the same values if pyarrow is installed."""
    files.write_npz_atomically(directory / "results.npz", rows)
    path = directory / "results.parquet"
    if parquet.is_available():
        parquet.write_atomically(path, rows)
    else:
        path.unlink(missing_ok=True)  # left by an earlier evaluation, with other values
        logging.warning("%s is not written: pyarrow is not installed. Use results.npz.", path)


def draw(
    folder: pathlib.Path,
    scores: Mapping[str, Scores],
    split: data.ImageSplit,
    levels: int,
    integrand: Integrand,
) -> None:
    """Plot the distribution of bits per dim and of the NFE, and the integrand of the bound."""
    for name, each in scores.items():
        path = folder / f"bpd_{name}.png"
        eval_plots.plot_bpd_histogram(each["bpd"], split.images, levels, path, name=name)
    nfe = {name: each["nfe"] for name, each in scores.items()}
    eval_plots.plot_nfe_histogram(nfe, folder / "nfe.png")
    plots.plot_integrand(*integrand(), folder / "integrand.png")
