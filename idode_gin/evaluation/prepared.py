"""Parts of an evaluation that its checkpoints share, and of one checkpoint."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from idode_gin import types
from idode_gin.evaluation import pilot_run, scores
from idode_gin.evaluation.summary import Scores
from idode_gin.feed import data
from idode_gin.models import DiffusionODE
from idode_gin.runs import image_loop


class Functions(NamedTuple):
    """Functions of the parameters, for one gamma(t)."""

    pilot: pilot_run.Run | None
    scorer: Callable[[str, scores.Scored], image_loop.Compute]
    classifier: Callable[[str, scores.Scored], image_loop.Compute] | None
    integrand: Callable[[types.Params], tuple[np.ndarray, np.ndarray, int]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """Inputs shared by all checkpoints of an evaluation.

    `histogram` is bits per dim of the histogram baseline, `[N]`. `functions` compile once for all
    checkpoints; where gamma(t) is learned, `make` returns new ones for the model of each.
    """

    model: DiffusionODE
    split: data.ImageSplit
    batch_size: int
    config_sha256: str | None
    settings: Mapping[str, Any]
    histogram: np.ndarray | None
    make: Callable[[DiffusionODE], Functions]
    functions: Functions

    def functions_at(self, params: types.Params) -> Functions:
        """Return the functions for the gamma(t) of these parameters."""
        here = self.model.at(params)
        return self.functions if here is self.model else self.make(here)


class Computed(NamedTuple):
    """Scores by bound, likelihoods with their solvers, the classification, and what kept them."""

    scores: dict[str, Scores]
    chosen: dict[str, pilot_run.Chosen]
    classified: dict[str, Any]
    classes: dict[str, np.ndarray]
    loop: image_loop.ImageLoop
