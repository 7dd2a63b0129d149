"""The summary of an evaluation: means over images, with every error that is known, and a table."""

import math
import types
from collections.abc import Mapping
from typing import Any

import numpy as np

from idode_gin.evaluation import parity as parity_lib
from idode_gin.evaluation.pilot_run import Chosen, SolverError
from idode_gin.losses.base import AbstractBound
from idode_gin.runs import facts, means
from idode_gin.time_samplers.discrete_steps import DiscreteSteps

Scores = dict[str, np.ndarray]
"""Values `[N]` of all images under one bound, by name."""
VARIATIONAL_BOUND = "variational_bound"
CLASSIFICATION = "classification"
TAKEN = (VARIATIONAL_BOUND, CLASSIFICATION, "histogram_bpd", "parity", "devices", "wall_seconds")
"""Entries of every summary."""
DISCRETE_TIME = "discrete_time_"
"""Bounds in discrete time are named by this and their number of steps."""
_SPREADS = ("repeats_sd", "trace_sd")  # their mean is not an error
_SHOWN_DIGITS = 12


def assemble(
    head: Mapping[str, Any],
    scores: Mapping[str, Scores],
    chosen: Mapping[str, Chosen],
    bound: AbstractBound,
    histogram: np.ndarray | None,
    parity: parity_lib.AbstractParity | None,
    discrete: Mapping[str, AbstractBound] = types.MappingProxyType({}),
) -> dict[str, Any]:
    """Return the summary of one checkpoint, without the time that it took.

    A bound in discrete time is compared with the variational bound, unless that is of a chain too.

    `head` holds its first entries, `histogram` the bits per dim of the histogram baseline, `[N]`.
    `bound` is the variational bound, `chosen` the likelihoods, `discrete` the bounds in discrete
    time.
    """
    found = {
        **head,
        "histogram_bpd": None if histogram is None else float(np.mean(histogram)),
        VARIATIONAL_BOUND: summarize(scores[VARIATIONAL_BOUND]),
    }
    is_chain = isinstance(getattr(bound, "time_sampler", None), DiscreteSteps)
    for name in discrete:
        gap = {} if is_chain else _gap(scores[name], scores[VARIATIONAL_BOUND])
        found[name] = summarize(scores[name]) | gap
    for name, (estimator, error) in chosen.items():
        found[name] = summarize(scores[name], num_repeats=estimator.num_repeats, solver_error=error)
    likelihoods = {name: each.estimator for name, each in chosen.items()}
    for name, used in {VARIATIONAL_BOUND: bound, **discrete, **likelihoods}.items():
        found[name]["settings"] = facts.described("bound", used)
    if parity is None:
        return found
    return {**found, "parity": parity.summarize(scores, head.get("whole_split"))}


def summarize(
    scores: Scores, *, num_repeats: int = 1, solver_error: SolverError | None = None
) -> dict[str, Any]:
    """Return mean and errors of one bound, bits per dim; an error is None where it is unknown.

    Means of the parts of an ODE's bound, such as `log_prior`, are in nats per image.

        stderr                 s.d. over images / sqrt(N)
        stderr_dequantization  sqrt(mean over images of (s.d. over repeats)^2 / R / N)
        stderr_probes          sqrt(sum over images of (s.d. of the trace's noise)^2) / N

    The first includes the two others, and the second the third: noise spreads the figures. They
    show how much of it more repeats or more probes would remove.

    Args:
        scores: of all images.
        num_repeats: R, the number of repeats averaged in a figure.
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
    parts = {each for each in scores if not parity_lib.is_prefixed(each)}
    parts -= {"bpd", "nfe", "success", *_SPREADS}
    return found | {part: _known(float(np.mean(scores[part]))) for part in sorted(parts)}


def _gap(discrete: Scores, continuous: Scores) -> dict[str, float | None]:
    """Return by how much discrete time costs, with its paired standard error, bits per dim."""
    difference = discrete["bpd"] - continuous["bpd"]
    return {
        "above_continuous": float(np.mean(difference)),
        "above_continuous_stderr": means.standard_error(difference),
    }


def table(summary: Mapping[str, Any], histogram: np.ndarray | None = None) -> str:
    """Return the results as text: a line that identifies the pixels, then one line per bound."""
    variant = f", {summary['variant']}" if summary["variant"] else ""
    lines = [
        f"{summary['dataset']}{variant} / {summary['split']}: {how_many(summary)} images of "
        f"{'x'.join(str(each) for each in summary['image_shape'])}, {summary['levels']} levels, "
        f"sha256 {summary['sha256'][:_SHOWN_DIGITS]}, step {summary['step']}",
        f"{'bound':<20}{'bpd':>10}{'std. error':>12}{'solver error':>14}{'NFE':>8}",
    ]
    missed = []
    for name, each in bounds(summary).items():
        solver = each.get("solver_error") or {}
        if not solver.get("is_within", True):
            missed.append(f"The solver error of {name} is not within {solver['tolerance']:.1e}.")
        if (gap := each.get("above_continuous")) is not None:
            error = shown(each["above_continuous_stderr"], "0.4f")
            missed.append(f"{name} is {gap:.4f} ± {error} above the variational bound.")
        lines.append(
            f"{name:<20}{each['mean']:>10.4f}{shown(each['stderr'], '12.4f')}"
            f"{shown(solver.get('error'), '14.1e')}{each['nfe']:>8.0f}"
        )
    if histogram is not None:
        error = shown(means.standard_error(histogram), "12.4f")
        lines.append(f"{'histogram':<20}{np.mean(histogram):>10.4f}{error}{'-':>14}{'-':>8}")
    if (classified := summary.get(CLASSIFICATION)) is not None:
        error = "" if classified["stderr"] is None else f" ± {classified['stderr']:.4f}"
        lines.append(
            f"{CLASSIFICATION} by {classified['by']}: accuracy {classified['accuracy']:.4f}{error} "
            f"on {classified['num_images']} images, {classified['num_classes']} classes"
        )
    return "\n".join(lines + missed)


def how_many(summary: Mapping[str, Any]) -> str:
    """Return the number of images scored; with that of the split, such as `100 of 300`, if more."""
    return " of ".join(str(summary[k]) for k in ("num_images", "whole_split") if summary.get(k))


def bounds(summary: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the entries of a summary that are bounds, by name."""
    return {
        name: each for name, each in summary.items() if isinstance(each, Mapping) and "nfe" in each
    }


def _root_of_sum(spread: np.ndarray, count: int, draws: int) -> float | None:
    return _known(math.sqrt(float(np.sum(spread**2)) / draws) / count)


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def shown(value: float | None, form: str) -> str:
    """Return a number as text in the format `form`; "-" of the same width for None."""
    width = int(form.partition(".")[0])
    return f"{'-':>{width}}" if value is None else f"{value:>{form}}"
