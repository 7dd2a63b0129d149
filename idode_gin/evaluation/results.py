"""What an evaluation finds: its summary with every error there is, its table, and its files."""

import json
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from idode_gin import checks
from idode_gin.evaluation import parity, parquet
from idode_gin.evaluation import plots as eval_plots
from idode_gin.feed import data
from idode_gin.reports import files, plots
from idode_gin.runs import means

Scores = dict[str, np.ndarray]
"""Values `[N]` of all images of one bound, by name."""
SolverError = Mapping[str, Any]
"""What is known of the error of the solver that a bound is scored with; `error` in bits per dim."""
VARIATIONAL_BOUND = "variational_bound"
PLOTS = "plots"
TAKEN = (VARIATIONAL_BOUND, "histogram", "index")
"""Names of columns, which no likelihood can have."""
_SPREADS = ("repeats_sd", "trace_sd")  # their mean is no error of anything
_SHOWN_DIGITS = 12


def check_names(names: Sequence[str], taken: Sequence[str]) -> None:
    """Raises ValueError unless the names of likelihoods can name columns, files and entries."""
    for name in names:
        if name in taken:
            raise ValueError(f"`likelihoods` cannot use the name {name!r}: it is taken.")
        if not name or set(name) & set("/\\\0"):
            raise ValueError(
                f"`likelihoods` name columns and files: a name has a letter or more and no "
                f"slash, got {name!r}."
            )


def check_scores(name: str, scores: Scores) -> None:
    """Raises NonFiniteError unless every image has a finite figure and every solve arrived."""
    failed = ~np.isfinite(scores["bpd"]) | (scores.get("success", np.ones(1)) == 0)
    if failed.any():
        first = np.flatnonzero(failed)
        raise checks.NonFiniteError(
            f"{name}: {first.size} of {failed.size} images have no finite bits per dim, the first "
            f"at index {first[0]}. The solver did not reach the end within its step limit, or the "
            "network gave NaN. Raise the solver's max_steps or its tolerances, or evaluate an "
            "earlier checkpoint."
        )


def summarize(
    scores: Scores, *, num_repeats: int = 1, solver_error: SolverError | None = None
) -> dict[str, Any]:
    """Mean and errors of one bound, bits per dim; None where an error is not known.

        stderr                 s.d. over images / sqrt(N)
        stderr_dequantization  sqrt(mean over images of (s.d. over repeats)^2 / R / N)
        stderr_probes          sqrt(sum over images of (s.d. of the trace's noise)^2) / N

    The first holds the two others, and the second the third: noise makes figures differ. They say
    how much of it more repeats or more probes would take away.

    Args:
        scores: of all images.
        num_repeats: R, the repeats that a figure is the mean of.
        solver_error: of the solver; and `precision_error`, of arithmetic coarser than float32.
    """
    count = len(scores["bpd"])
    known = dict(solver_error or {})
    precision = known.pop("precision_error", None)
    found: dict[str, Any] = {
        "mean": float(np.mean(scores["bpd"])),
        "stderr": means.standard_error(scores["bpd"]),
        "stderr_dequantization": None,
        "stderr_probes": None,
        "solver_error": known or None,
        "precision_error": precision,
        "num_images": count,
        "nfe": float(np.mean(scores["nfe"])),
    }
    if "repeats_sd" in scores:
        found["stderr_dequantization"] = _root_of_sum(scores["repeats_sd"], count, num_repeats)
    if "trace_sd" in scores:
        found["stderr_probes"] = _root_of_sum(scores["trace_sd"], count, 1)
    parts = {each for each in scores if not each.startswith(parity.PREFIX)}
    parts -= {"bpd", "nfe", "success", *_SPREADS}
    return found | {part: _known(float(np.mean(scores[part]))) for part in sorted(parts)}


def _root_of_sum(spread: np.ndarray, count: int, draws: int) -> float | None:
    return _known(math.sqrt(float(np.sum(spread**2)) / draws) / count)


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def table(summary: Mapping[str, Any], histogram: np.ndarray | None = None) -> str:
    """The results as text: which pixels of which dataset, then one line per bound."""
    variant = f", {summary['variant']}" if summary["variant"] else ""
    lines = [
        f"{summary['dataset']}{variant} / {summary['split']}: {summary['num_images']} images of "
        f"{'x'.join(str(each) for each in summary['image_shape'])}, {summary['levels']} levels, "
        f"sha256 {summary['sha256'][:_SHOWN_DIGITS]}, step {summary['step']}",
        f"{'bound':<20}{'bpd':>10}{'std. error':>12}{'solver error':>14}{'NFE':>8}",
    ]
    missed = []
    for name, each in bounds(summary).items():
        solver = each.get("solver_error") or {}
        if not solver.get("is_within", True):
            missed.append(f"The solver error of {name} is not within {solver['tolerance']:.1e}.")
        lines.append(
            f"{name:<20}{each['mean']:>10.4f}{_shown(each['stderr'], '12.4f')}"
            f"{_shown(solver.get('error'), '14.1e')}{each['nfe']:>8.0f}"
        )
    if histogram is not None:
        error = _shown(means.standard_error(histogram), "12.4f")
        lines.append(f"{'histogram':<20}{np.mean(histogram):>10.4f}{error}{'-':>14}{'-':>8}")
    return "\n".join(lines + missed)


def bounds(summary: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The entries of a summary that are bounds, by name."""
    entries = {name: each for name, each in summary.items() if isinstance(each, Mapping)}
    return {name: each for name, each in entries.items() if "nfe" in each}


def _shown(value: float | None, form: str) -> str:
    width = int(form.partition(".")[0])
    return f"{'-':>{width}}" if value is None else f"{value:>{form}}"


def columns(scores: Mapping[str, Scores], histogram: np.ndarray | None) -> dict[str, np.ndarray]:
    """One row per image: `index`, and `<bound>/<value>` of every bound; `[N]` each."""
    count = len(next(iter(scores.values()))["bpd"])
    found = {"index": np.arange(count)}
    found |= {f"{name}/{key}": v for name, each in scores.items() for key, v in each.items()}
    return found if histogram is None else {**found, "histogram/bpd": histogram}


def write(
    directory: pathlib.Path,
    summary: Mapping[str, Any],
    scores: Mapping[str, Scores],
    histogram: np.ndarray | None,
    split: data.ImageSplit,
    integrand: Callable[[], tuple[np.ndarray, np.ndarray]],
) -> None:
    """Writes rows, pictures, `table.txt`, and last `summary.json`: where that is, all others are.

    Args:
        directory: for the files; the pictures are in `plots/`.
        summary: of everything.
        scores: by bound.
        histogram: bits per dim to beat, `[N]`.
        split: the images.
        integrand: gives gammas and bits per dim per nat of gamma, `[G]` each.
    """
    _write_rows(directory, columns(scores, histogram))
    draw(directory / PLOTS, scores, split, summary["levels"], integrand)
    files.write_atomically(directory / "table.txt", table(summary, histogram) + "\n")
    text = json.dumps(summary, indent=2, allow_nan=False) + "\n"
    files.write_atomically(directory / "summary.json", text)


def draw(
    folder: pathlib.Path,
    scores: Mapping[str, Scores],
    split: data.ImageSplit,
    levels: int,
    integrand: Callable[[], tuple[np.ndarray, np.ndarray]],
) -> None:
    """Draws how every bound's bits per dim are spread, the NFE, and the bound's integrand."""
    for name, each in scores.items():
        path = folder / f"bpd_{name}.png"
        eval_plots.plot_bpd_histogram(each["bpd"], split.images, levels, path, name=name)
    nfe = {name: each["nfe"] for name, each in scores.items()}
    eval_plots.plot_nfe_histogram(nfe, folder / "nfe.png")
    plots.plot_integrand(*integrand(), folder / "integrand.png")


def _write_rows(directory: pathlib.Path, found: Mapping[str, np.ndarray]) -> None:
    """Writes `results.npz` and, where pyarrow is there, the same as `results.parquet`."""
    files.write_npz_atomically(directory / "results.npz", found)
    path = directory / "results.parquet"
    if parquet.is_available():
        parquet.write_atomically(path, found)
    else:
        path.unlink(missing_ok=True)  # of an earlier evaluation: it would not be these results
        logging.warning("No %s: pyarrow is not installed. results.npz holds the same.", path)
