"""The contract of a parity: what another program's evaluation makes of the same images.

An old figure and ours differ for reasons that can be named. A parity gives what the other program
would have reported from our noise and our solver, and how much of the difference each of its
choices makes, so that figures are explained and not only replaced.
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
"""Before the name of every part, among the scores of a bound."""

Parts = dict[str, jax.Array]
"""Bits per dim of every image by name, `[B]` each."""


class AbstractParity(abc.ABC):
    """Another program's evaluation, told by the differences to ours."""

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
        """What each choice of the other program adds to `bpd`, our figure of each image.

        Args:
            model: that is scored.
            params: of its network.
            batch: images.
            key: of our figure: the same noise and probes are drawn.
            estimator: of our figure.
            bpd: our figure, `[B]`.
        """

    @abc.abstractmethod
    def bound_parts(self, model: DiffusionODE, batch: types.Batch, key: types.PRNGKey) -> Parts:
        """What each choice of the other program adds to a variational bound of each image."""

    @property
    @abc.abstractmethod
    def legend(self) -> str:
        """What the rows of `table` are, in words."""

    @abc.abstractmethod
    def summarize(self, scores: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, Any]:
        """By bound: our mean over images, what each choice adds to it, and the other's figure.

        Args:
            scores: of each bound, `bpd` and the parts named as above behind `PREFIX`, `[N]`.
        """


def prefixed(parts: Parts) -> Parts:
    """The parts as they are called among the scores of a bound."""
    return {f"{PREFIX}{name}": each for name, each in parts.items()}


def table(section: Mapping[str, Mapping[str, float]], legend: str) -> str:
    """What `summarize` gave as text: a column for each bound, a line for each choice.

    In the order of the bound that has most of them: others lack lines in its middle.

    Args:
        section: what it gave.
        legend: above the table.
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
