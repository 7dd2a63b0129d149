"""Estimated cost of an evaluation, in network evaluations and in the time of its training run.

Imports nothing heavy: the last lines of training use it.
"""

import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

ODE_EVALUATIONS = 50
"""Network evaluations of a solve where they are unknown: a pilot mostly chooses 25 to 60."""
_PILOT_EVALUATIONS = 512
"""Those of all grids that a pilot tries on one image: of one draw, however many are scored."""
_WITH_TRACE = 2
"""A network evaluation with its trace costs no more than two without."""
_TRAINING = 3
"""A training step costs about three network evaluations for each image of its batch."""
QUICK_FILE, QUICK_IMAGES = "gin_configs/evaluations/quick.gin", 1000
QUICK, FULL = 8, 64 + 3 * _WITH_TRACE * ODE_EVALUATIONS
"""Evaluations for an image, in units of one without trace: of `QUICK_FILE`, and by default."""


def in_words(
    times: Mapping[str, int],
    likelihoods: Mapping[str, Any],
    pilot_images: int,
    operations: float,
    checkpoint: pathlib.Path | None,
    facts: Mapping[str, Any],
) -> str:
    """Return the cost of an evaluation as lines of text.

    Args:
        times: network evaluations for an image, of each bound that solves no ODE.
        likelihoods: each an `ODELikelihood`, by name.
        pilot_images: images of each one's pilot; 0 for none.
        operations: floating-point operations of one network evaluation, for an image.
        checkpoint: that is scored; None if it is not there yet.
        facts: of the run that it is of.
    """
    of_bounds = {**times, **{name: _of_solve(each) for name, each in likelihoods.items()}}
    total = sum(of_bounds.values())
    pilots = pilot_images * _PILOT_EVALUATIONS * _WITH_TRACE * len(likelihoods)
    listed = ", ".join(f"{name} {count:,}" for name, count in of_bounds.items())
    more = "; with its trace, an evaluation counts twice" if likelihoods else ""
    lines = [
        f"Estimated cost of an image: {total:,} network evaluations, "
        f"{total * operations:.2g} FLOPs.\n  {listed}{more}."
    ]
    if pilots:
        lines.append(f"Pilots, once: {pilots:,} network evaluations.")
    if speed := checkpoint and _speed(checkpoint.parent, facts):
        seconds = [each * operations / speed for each in (1000 * total, pilots)]
        more = f", and {roughly(seconds[1])} for the pilots" if pilots else ""
        lines.append(f"Time as fast as in training: {roughly(seconds[0])} for 1,000 images{more}.")
    if total > QUICK and likelihoods:
        lines.append(
            f"For the variational bound alone, of {QUICK_IMAGES:,} images: --gin_file={QUICK_FILE}."
        )
    return "\n".join(lines) + "\n"


def _of_solve(estimator: Any) -> int:
    """Return the network evaluations of an `ODELikelihood` for an image."""
    solver = estimator.solver
    stages = getattr(getattr(solver, "tableau", None), "c", (1,))
    steps = getattr(solver, "steps", None)
    evaluations = ODE_EVALUATIONS if steps is None else steps * len(stages)
    return int(evaluations * _WITH_TRACE * estimator.num_repeats * estimator.num_importance)


def _speed(run: pathlib.Path, facts: Mapping[str, Any]) -> float | None:
    """Return the floating-point operations per second of a finished run; None if unknown."""
    found = _summary(run)
    try:
        return float(found["flops_per_step"] * found["images_per_second"] / facts["batch_size"])
    except (LookupError, TypeError, ZeroDivisionError):
        return None


def compared_with_training(run: pathlib.Path) -> str:
    """Return a line if an evaluation by default costs more than a run's training did; else "".

    For as many images as the split has that the run evaluated on, at the speed of its training.
    """
    found = _summary(run)
    try:
        images, speed = found["eval_data"]["num_images"], found["images_per_second"]
        few, cost = min(images, QUICK_IMAGES), _TRAINING * speed
        quick, full = few * QUICK / cost, images * FULL / cost
        if full <= found["seconds"]["train"]:
            return ""
    except (LookupError, TypeError, ZeroDivisionError):
        return ""
    return (
        f"All bounds of {images:,} images take about {roughly(full)}, longer than the training; "
        f"the variational bound alone of {few:,} {roughly(quick)}, by the first command. Start, "
        "compilation and plots take up to a minute more."
    )


def roughly(seconds: float) -> str:
    """Return a rough duration: `40 s`, `12 min`, `2.5 h`."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            number = seconds / size
            return f"{number:.0f} {unit}" if number >= 10 else f"{number:.1f} {unit}"
    return f"{max(math.ceil(seconds), 1)} s"


def _summary(run: pathlib.Path) -> dict[str, Any]:
    try:
        found = json.loads((run / "summary.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
