"""Bits per dim of images in memory, with the error of the solver: an evaluation without files."""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from idode_gin import checks, types
from idode_gin.dequantizers.truncated_normal import TruncatedNormal
from idode_gin.dequantizers.uniform import Uniform
from idode_gin.dequantizers.variational import Variational
from idode_gin.evaluation import pilot_run, scores
from idode_gin.evaluation.summary import VARIATIONAL_BOUND
from idode_gin.feed import data
from idode_gin.likelihood.ode_likelihood import ODELikelihood
from idode_gin.likelihood.pilot import Pilot, Report
from idode_gin.losses.base import AbstractBound
from idode_gin.losses.bound import VariationalBound
from idode_gin.models import DiffusionODE
from idode_gin.reports import progress
from idode_gin.runs import in_memory, means
from idode_gin.runs.in_memory import InMemory
from idode_gin.solvers.adams import Adams
from idode_gin.solvers.base import AbstractSolver

LIKELIHOODS = {"truncated_normal": TruncatedNormal, "uniform": Uniform, "variational": Variational}
"""Dequantizers of the ODE likelihoods, by the name of the bound, as in `gin_configs/bounds.gin`."""
Bound: TypeAlias = str | ODELikelihood | AbstractBound
"""A bound on log P(x), or the name of one."""
_BOUND_TIMES = 64
_REMEDIES = "Give a `solver` with more steps, or raise `tolerance`."


class BitsPerDim(NamedTuple):
    """Bits per dim of N images under one bound."""

    per_image: np.ndarray
    """`[N]`."""
    log_prob: np.ndarray
    """The bound on log P(x), nats, `[N]`."""
    report: Report | None
    """The solver, and its error measured on some of the images; None if it was not measured."""

    @property
    def mean(self) -> float:
        """Mean over images."""
        return float(np.mean(self.per_image))

    @property
    def standard_error(self) -> float | None:
        """Standard error of the mean; None for a single image."""
        return means.standard_error(self.per_image)

    @property
    def solver_error(self) -> float | None:
        """Mean error of an image's figure caused by the solver; None if it was not measured."""
        return None if self.report is None else self.report.error


def score(
    model: DiffusionODE,
    memory: InMemory,
    batch: types.Batch,
    key: types.PRNGKey,
    *,
    bound: Bound,
    tolerance: float | None,
    solver: AbstractSolver | None,
) -> BitsPerDim:
    """Score images; see `trained.TrainedModel.bits_per_dim`."""
    if bound == VARIATIONAL_BOUND:
        bound = VariationalBound(num_times=_BOUND_TIMES, time_sampler=model.bound_sampler)
    if isinstance(bound, AbstractBound):
        if solver is not None:
            raise ValueError(
                f"A variational bound solves no ODE, so it takes no `solver`, got {solver!r}. "
                "Leave it out, or score by an ODE likelihood, such as bound='truncated_normal'."
            )
        return _of_bound(model, memory, batch, key, bound)
    if solver is not None:
        checks.check_kind("solver", solver, AbstractSolver)
    if isinstance(bound, ODELikelihood):
        kind, estimator = type(bound.dequantizer), bound
        # Its noise is keyed by the name, as that of a bound by name.
        name = next((each for each, found in LIKELIHOODS.items() if found is kind), kind.__name__)
    elif bound in LIKELIHOODS:
        name, estimator = bound, ODELikelihood(dequantizer=LIKELIHOODS[bound](), solver=None)
    else:
        near = checks.nearest(str(bound), [*LIKELIHOODS, VARIATIONAL_BOUND])
        raise ValueError(
            f"`bound` must be an ODELikelihood, a bound such as VariationalBound, or the name of "
            f"one, got {bound!r}. {near}"
        )
    if solver is not None:
        estimator = dataclasses.replace(estimator, solver=solver)
    if tolerance is None and estimator.solver is None:
        raise ValueError("Give a `tolerance`, or a `solver` such as Adams(steps=64); got neither.")
    report = None
    with progress.phase(f"scoring by {name}"):  # one, so that no line is late between its parts
        if tolerance is not None:
            of_pilot = tolerance, batch, scores.key_of(key, name)
            estimator, report = _piloted(model, memory, name, estimator, *of_pilot)
        found = _of_likelihood(model, memory, name, estimator, key, batch)
        return _scored(name, found, report, batch["index"])


def _piloted(
    model: DiffusionODE,
    memory: InMemory,
    bound: str,
    estimator: ODELikelihood,
    tolerance: float,
    batch: types.Batch,
    key: types.PRNGKey,
) -> tuple[ODELikelihood, Report]:
    """Return the likelihood with a solver, and the solver's error; see `pilot_run.runner`."""
    pilot = Pilot(tolerance=tolerance)
    places = data.spread(pilot.num_images, len(batch["index"]))
    chosen = {name: jnp.asarray(each[places]) for name, each in batch.items()}
    with progress.phase(f"pilot of {bound}"):
        params = jax.device_get(memory.params)
        how = pilot_run.watched(bound), pilot_run.spread(in_memory.SOLVE_SIZE, estimator)
        found, report = pilot.run(model, params, chosen, key, estimator, *how)
    pilot.check_precision(model, report)
    if not report.is_within:
        logging.warning("%s: %s", bound, pilot_run.in_words(report, _REMEDIES))
    return found, report


def _of_likelihood(
    model: DiffusionODE,
    memory: InMemory,
    name: str,
    estimator: ODELikelihood,
    key: types.PRNGKey,
    batch: types.Batch,
) -> dict[str, np.ndarray]:
    """Score with a program that Adams grids of similar size share, as in an evaluation."""
    solver, shared = estimator.solver, None
    if isinstance(solver, Adams):
        shared = scores.prepared(model, estimator, solver)
        estimator = dataclasses.replace(estimator, solver=None)

    def score(
        given: types.Params, batch: types.Batch, key: types.PRNGKey
    ) -> Mapping[str, jax.Array]:
        here = dataclasses.replace(estimator, solver=given.get("solver", solver))
        return scores.of_likelihood(model, here, name, key)(given["network"], batch)

    more = {} if shared is None else {"solver": shared}
    room = jax.tree.map(np.shape, shared)
    method = dataclasses.replace(estimator, solver=None), None if more else solver, str(room)
    return memory.run(f"scoring {name}", method, score, batch, key, **more)


def _of_bound(
    model: DiffusionODE,
    memory: InMemory,
    batch: types.Batch,
    key: types.PRNGKey,
    bound: AbstractBound,
) -> BitsPerDim:
    def score(
        given: types.Params, batch: types.Batch, key: types.PRNGKey
    ) -> Mapping[str, jax.Array]:
        return scores.of_bound(model, bound, key)(given["network"], batch)

    found = memory.run(f"scoring {VARIATIONAL_BOUND}", (bound,), score, batch, key)
    return _scored(VARIATIONAL_BOUND, found, None, batch["index"])


def _scored(
    name: str, found: Mapping[str, np.ndarray], report: Report | None, places: np.ndarray
) -> BitsPerDim:
    values = {key: np.asarray(each, np.float64) for key, each in found.items()}
    scores.check_scores(name, values, places)
    return BitsPerDim(per_image=values["bpd"], log_prob=-values["nats"], report=report)
