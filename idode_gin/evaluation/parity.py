"""The contract of a parity: the figures of another program's evaluation, on the same images.

A parity computes what the other program would report with our noise and our solver, and how much
each of its choices contributes to the difference between its figures and ours.
"""

import abc
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from idode_gin import types
from idode_gin.likelihood.ode_likelihood import ODELikelihood
from idode_gin.models import DiffusionODE

PREFIX = "parity/"
"""Prefix of the name of every part among the scores of a bound."""

Parts = dict[str, jax.Array]
"""Bits per dim of every image by name, `[B]` each."""


class AbstractParity(abc.ABC):
    """Another program's evaluation, described by its differences from ours."""

    @abc.abstractmethod
    def num_draws(self, estimator: ODELikelihood) -> int:
        """Return how many solves of an image `likelihood_parts` makes."""

    @abc.abstractmethod
    def likelihood_parts(
        self,
        model: DiffusionODE,
        params: types.Params,
        batch: types.Batch,
        key: types.PRNGKey,
        estimator: ODELikelihood,
        bpd: types.PerExample,
    ) -> Parts:
        """Return what each choice of the other program adds to `bpd`, by name, `[B]` each.

        Args:
            model: to score.
            params: of its network.
            batch: images.
            key: of our figure, so that the same noise and probes are drawn.
            estimator: of our figure.
            bpd: our figure, `[B]`.
        """

    @abc.abstractmethod
    def bound_parts(self, model: DiffusionODE, batch: types.Batch, key: types.PRNGKey) -> Parts:
        """Return what each choice of the other program adds to the variational bound, `[B]`."""

    @abc.abstractmethod
    def legend(self, section: Mapping[str, Mapping[str, float]]) -> str:
        """Return an explanation of the rows of a result of `summarize`."""

    @abc.abstractmethod
    def summarize(
        self, scores: Mapping[str, Mapping[str, np.ndarray]], whole: int | None = None
    ) -> dict[str, Any]:
        """Return, by bound, our mean over images, what each choice adds, and the other's figure.

        Args:
            scores: by bound, `bpd` and the parts above, with `PREFIX` before their names; `[N]`.
            whole: number of images of the whole split, if these are only some of them. What
                depends on the scores of the others is left out.
        """


def prefixed(parts: Parts) -> Parts:
    """Add `PREFIX` to the names of the parts."""
    return {f"{PREFIX}{name}": each for name, each in parts.items()}


def is_prefixed(name: str) -> bool:
    """Return True for a name that `prefixed` gives."""
    return name.startswith(PREFIX)


def table(section: Mapping[str, Mapping[str, float]], legend: str) -> str:
    """Return the result of `AbstractParity.summarize` as text: bounds as columns, parts as lines.

    Lines are in the order of the bound with the most parts; other bounds lack some of them.
    """
    columns = sorted(section.values(), key=len, reverse=True)
    rows = list(dict.fromkeys(row for column in columns for row in column))
    width = max(map(len, rows)) + 2
    lines = [legend, f"{'bits per dim':<{width}}" + "".join(f"{bound:>20}" for bound in section)]
    for row in rows:
        cells = [column.get(row) for column in section.values()]
        shown = (f"{'-' if each is None else f'{each:.5f}':>20}" for each in cells)
        lines.append(f"{row:<{width}}{''.join(shown)}")
    return "\n".join(lines)
