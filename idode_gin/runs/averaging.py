"""The share of initial parameters in their moving average, and a warning if it is large."""

import math
from collections.abc import Mapping
from typing import Any

from idode_gin.checkpoints import restoring

NEGLIGIBLE = 0.05
"""Share of initial parameters below which nothing is reported."""


def initial_share(rate: float, updates: int, *, warms_up: bool = False) -> float:
    """Return the weight of the initial parameters in the average after `updates` updates.

        prod_n rate_n,   rate_n = rate, or min(rate, (1 + n) / (10 + n)) with a warm-up

    The product of the first m fractions is m! 9! / (m + 9)!.
    """
    rising = 0
    if warms_up:
        rising = min(updates, max(0, math.ceil((10 * rate - 1) / (1 - rate))))
    return rate ** (updates - rising) / math.comb(rising + 9, 9)


def warning(facts: Mapping[str, Any], step: int) -> str | None:
    """Return a sentence if the average at `step` still holds a large share of what it began with.

    `facts` are those of a run (`Trainer.settings`); None if they do not tell the rate.
    """
    rate = facts.get("ema_rate")
    if not isinstance(rate, int | float):
        return None
    every = str(facts.get(restoring.ACCUMULATION))
    updates = step // (int(every) if every.isdecimal() and int(every) else 1)
    share = initial_share(rate, updates, warms_up=facts.get("ema_warmup") is True)
    if share < NEGLIGIBLE:
        return None
    return (
        f"{100 * share:.4g} % of the EMA parameters at step {step} are still initial parameters, "
        f"after {updates} updates with ema_rate = {rate:g}: bits per dim and samples are not those "
        "of the trained parameters. Use the last ones (use_ema = False of Evaluator, Sampler …), "
        "train longer, or train again with a smaller EMA_RATE or with EMA_WARMUP = True."
    )
