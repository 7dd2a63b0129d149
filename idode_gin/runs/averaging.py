"""The share of a moving average that a run began with, and a warning if it is large."""

import math
from collections.abc import Mapping
from typing import Any

from idode_gin.checkpoints import restoring, steps_left

NEGLIGIBLE = 0.05
"""Share of the average at the start below which nothing is reported."""


def initial_share(rate: float, updates: int, first: int = 0, *, warms_up: bool = False) -> float:
    """Return the weight that the average after `first` updates has in that after `updates`.

        prod_n rate_n,   rate_n = rate, or min(rate, (1 + n) / (10 + n)) with a warm-up

    over n from `first`. The product of the first m fractions is m! 9! / (m + 9)!.
    """
    rising = max(0, math.ceil((10 * rate - 1) / (1 - rate))) if warms_up else 0
    begin, end = min(first, rising), min(updates, rising)
    fractions = math.comb(begin + 9, 9) / math.comb(end + 9, 9)
    return rate ** (updates - first - (end - begin)) * fractions


def warning(facts: Mapping[str, Any], step: int) -> str | None:
    """Return a sentence if the average at `step` still holds a large share of what it began with.

    `facts` are those of a run (`Trainer.settings`); None if they do not hold the rate.
    """
    rate = facts.get("ema_rate")
    if not isinstance(rate, int | float):
        return None
    accumulation = str(facts.get(restoring.ACCUMULATION))
    every = int(accumulation) if accumulation.isdecimal() and int(accumulation) else 1
    first, updates = int(facts.get(steps_left.FIRST_STEP) or 0) // every, step // every
    share = initial_share(rate, updates, first, warms_up=facts.get("ema_warmup") is True)
    if share < NEGLIGIBLE:
        return None
    return (
        f"{100 * share:.4g} % of the EMA parameters at step {step} are still those that the run "
        f"began with, after {updates - first} updates with ema_rate = {rate:g}: bits per dim and "
        "samples are not those of the trained parameters. Use the last ones (use_ema = False of "
        "Evaluator, Sampler …), train longer, or train again with a smaller EMA_RATE"
        + ("." if first else " or with EMA_WARMUP = True.")
    )
