"""Estimated cost of an evaluation, in network evaluations and in the time of its training run.

Imports nothing heavy: the last lines of training use it.
"""

import math
import pathlib
from collections.abc import Mapping
from typing import Any

from idode_gin.reports import files

ODE_EVALUATIONS = 50
"""Network evaluations of a solve whose steps a pilot will choose: mostly 25 to 60."""
ADAPTIVE_EVALUATIONS = 440
"""Network evaluations of an adaptive solve: Dormand-Prince at 1e-5 on the 32x32 patches in
`benchmarks/results/likelihood.md`."""
_ASSUMED = (
    f"{ADAPTIVE_EVALUATIONS} evaluations are assumed for a solve, as measured at 1e-5 on 32x32 "
    "patches. 8x8 digits took 278,\n  a rough network over 1,000 "
    "(benchmarks/results/likelihood.md)."
)
_PILOT_EVALUATIONS = 512
"""Network evaluations of all grids that a pilot tries on one image, with one draw."""
_TRAINING = 3
"""A training step costs about three network evaluations for each image of its batch."""
QUICK_FILE, QUICK_IMAGES = "gin_configs/evaluations/quick.gin", 1000
QUICK, BOUND = 8, 64
"""Evaluations for an image of the variational bound: of `QUICK_FILE`, and by default."""
FULL = BOUND + 3 * 2 * ODE_EVALUATIONS
"""Network evaluations for an image of all default bounds; a derivative counts as another one."""
CLASSIFIED = 1000
"""Largest number of images that are classified by default."""


def in_words(
    times: Mapping[str, int],
    likelihoods: Mapping[str, Any],
    pilot_images: int,
    operations: float,
    checkpoint: pathlib.Path | None,
    facts: Mapping[str, Any],
    *,
    dims: int,
    classified: tuple[str, int] | None = None,
    parity: Any = None,
) -> str:
    """Return the cost of an evaluation as lines of text.

    Args:
        times: network evaluations for an image, of each bound that solves no ODE.
        likelihoods: each an `ODELikelihood`, by name.
        pilot_images: images of each one's pilot; 0 for none.
        operations: floating-point operations of one network evaluation, for an image.
        checkpoint: the one that is scored; None if it does not exist yet.
        facts: of the run that the checkpoint belongs to.
        dims: values of an image.
        classified: the bound that images are classified by, and the number of classes.
        parity: an `AbstractParity`, whose own solves of each likelihood are counted; None for none.
    """
    of_bounds = {**times, **_of_likelihoods(likelihoods, dims, parity)}
    total = sum(of_bounds.values())
    weights = sum(_with_trace(each, dims) for each in likelihoods.values())
    pilots = pilot_images * _PILOT_EVALUATIONS * weights
    listed = ", ".join(f"{name} {count:,}" for name, count in of_bounds.items())
    more = "; an evaluation counts again for each probe of its trace" if likelihoods else ""
    lines = [
        f"Estimated cost of an image: {total:,} network evaluations, "
        f"{total * operations:.2g} FLOPs.\n  {listed}{more}."
    ]
    if adaptive := [name for name, each in likelihoods.items() if _is_adaptive(each)]:
        lines.append(
            f"Adaptive or unknown steps ({', '.join(adaptive)}): an adaptive number depends on the "
            f"image and on the tolerance.\n  {_ASSUMED}"
        )
    classes = 0
    if classified is not None:
        classes = classified[1] * of_bounds[classified[0]]
        lines.append(f"Each image that is classified: {classes:,} more.")
    if pilots:
        lines.append(f"Pilots, once: {pilots:,} network evaluations.")
    if speed := checkpoint and _speed(checkpoint.parent, facts):
        counts = {"for 1,000 images": 1000 * total}
        counts |= {"to classify 1,000": 1000 * classes} if classes else {}
        counts |= {"for the pilots": pilots} if pilots else {}
        needed = [f"{roughly(n * operations / speed)} {what}" for what, n in counts.items()]
        lines.append(f"Time at the speed of training: {', and '.join(needed)}.")
    if total > QUICK and likelihoods:
        lines.append(
            f"For the variational bound alone, of {QUICK_IMAGES:,} images: --gin_file={QUICK_FILE}."
        )
    return "\n".join(lines) + "\n"


def _with_trace(estimator: Any, dims: int) -> int:
    """Return the cost of a network evaluation with its trace, in units of one without."""
    return 1 + int(getattr(estimator.divergence, "num_probes", dims))


def _of_likelihoods(likelihoods: Mapping[str, Any], dims: int, parity: Any) -> dict[str, int]:
    """Return the network evaluations for an image by likelihood, and those that a parity adds."""
    found = {
        name: each.num_repeats * each.num_importance * _of_draw(each, dims)
        for name, each in likelihoods.items()
    }
    if parity is None:
        return found
    more = sum(parity.num_draws(each) * _of_draw(each, dims) for each in likelihoods.values())
    return found | {"parity": more}


def _is_adaptive(estimator: Any) -> bool:
    """Return True if a solver is given that does not declare its number of steps."""
    return estimator.solver is not None and getattr(estimator.solver, "steps", None) is None


def _of_draw(estimator: Any, dims: int) -> int:
    """Return the network evaluations of one solve of an `ODELikelihood` for an image."""
    solver = estimator.solver
    steps, tableau = getattr(solver, "steps", None), getattr(solver, "tableau", None)
    used = getattr(tableau, "without_idle_stages", lambda: tableau)()
    stages = len(getattr(used, "c", (1,)))
    unknown = ADAPTIVE_EVALUATIONS if _is_adaptive(estimator) else ODE_EVALUATIONS
    return int((unknown if steps is None else steps * stages) * _with_trace(estimator, dims))


def _speed(run: pathlib.Path, facts: Mapping[str, Any]) -> float | None:
    """Return the floating-point operations per second of a finished run; None if unknown."""
    found = files.read_json(run / "summary.json") or {}
    try:
        return float(found["flops_per_step"] * found["images_per_second"] / facts["batch_size"])
    except (LookupError, TypeError, ZeroDivisionError):
        return None


def compared_with_training(run: pathlib.Path) -> str:
    """Return a line if an evaluation by default costs more than a run's training did; else "".

    For as many images as the split has that the run evaluated on, at the speed of its training.
    """
    found = files.read_json(run / "summary.json") or {}
    try:
        images, speed = found["eval_data"]["num_images"], found["images_per_second"]
        few, cost = min(images, QUICK_IMAGES), _TRAINING * speed
        classes, some = found["eval_data"].get("num_classes", 0), min(images, CLASSIFIED)
        quick = few * QUICK * (1 + classes) / cost
        full = (images * FULL + some * BOUND * classes) / cost
        if full <= found["seconds"]["train"]:
            return ""
    except (LookupError, TypeError, AttributeError, ZeroDivisionError):
        return ""
    return (
        f"The first command scores {few:,} images under the variational bound, in about "
        f"{roughly(quick)}. The second scores {images:,} under all bounds, in about "
        f"{roughly(full)}, longer than the training. Start, compilation and plots take up to a "
        "minute more."
    )


def roughly(seconds: float) -> str:
    """Return a rough duration: `40 s`, `12 min`, `2.5 h`."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            number = seconds / size
            return f"{number:.0f} {unit}" if number >= 10 else f"{number:.1f} {unit}"
    return f"{max(math.ceil(seconds), 1)} s"
