"""Score every image, by functions that compile once for any number of checkpoints.

A likelihood gives, `[B]` each:

    nats, bpd             the bound on -log P(x): total, and bits per dim
    log_prior, log_det, neg_log_q, log_reconstruction
                          its parts, nats, means over draws; for K = 1 their sum is -nats
    nfe                   network evaluations per solve, mean over draws
    repeats_sd            standard deviation over repeats, bits per dim; NaN for a single repeat
    trace_sd              standard deviation caused by the noise of the probes, bits per dim; NaN
                          where it is unknown
    importance_bias       by how much that noise lowers `bpd` if K > 1, bits per dim
    success               whether every solve reached the end

The variational bound gives `nats`, `bpd`, its terms `reconstruction`, `prior` and `diffusion` (bits
per dim), and `nfe`.
"""

import dataclasses
import math
import numbers
import zlib
from collections.abc import Callable, Mapping
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from idode_gin import checks, numerics, types
from idode_gin.devices.partitioning import PjitPartitioner
from idode_gin.evaluation.parity import AbstractParity, is_prefixed, prefixed
from idode_gin.evaluation.summary import VARIATIONAL_BOUND, Scores
from idode_gin.feed import batches as batch_lib
from idode_gin.feed import data
from idode_gin.likelihood.density import Problem
from idode_gin.likelihood.ode_likelihood import ImageLikelihood, ODELikelihood
from idode_gin.losses.base import AbstractBound
from idode_gin.models import DiffusionODE
from idode_gin.runs import image_loop
from idode_gin.runs import integrand as integrand_lib
from idode_gin.runs.image_loop import Compute
from idode_gin.solvers.adams import Adams
from idode_gin.solvers.base import AbstractSolver

Scored: TypeAlias = ODELikelihood | AbstractBound | None
"""Estimator of a bound; None for the variational bound of the evaluation."""
GRID = 64
"""Grids of Adams methods are padded to a multiple of it, so that they share a program."""


def scorers(
    model: DiffusionODE,
    variational_bound: AbstractBound,
    seed: int,
    partitioner: PjitPartitioner,
    solve_size: int,
    parity: AbstractParity | None = None,
    wrap: Callable[[Compute], Compute] = lambda compute: compute,
) -> Callable[[str, Scored], Compute]:
    """Return a function `(name, bound) -> compiled scores`; None for the variational bound.

    The same name and likelihood give the same function, which does not compile again. Adams methods
    share one for all step counts with the same multiple of `GRID`, because checkpoints may need
    different ones. What is compiled is `wrap` of the scores.
    """
    made: dict[str, Compute] = {}

    def compiled(known: str, compute: Compute) -> Compute:
        if known not in made:
            made[known] = image_loop.compiled(wrap(compute), partitioner, solve_size)
        return made[known]

    def scorer(name: str, estimator: Scored) -> Compute:
        if estimator is None:
            return compiled(name, of_bound(model, variational_bound, seed, parity))
        if isinstance(estimator, AbstractBound):
            return compiled(f"{name} {estimator}", of_bound(model, estimator, seed))
        if not isinstance(estimator.solver, Adams) or parity is not None:
            score = of_likelihood(model, estimator, name, seed, parity)
            return compiled(f"{name} {estimator}", score)
        solver = prepared(model, estimator, estimator.solver)
        score = _on_grid(model, estimator, name, seed)
        blank = dataclasses.replace(estimator, solver=None)
        room = jax.tree.map(np.shape, solver)
        shared = compiled(f"{name} {blank} {room}", score)
        return lambda params, batch: shared({"network": params, "solver": solver}, batch)

    return scorer


def integrand(
    model: DiffusionODE, split: data.ImageSplit, seed: int, solve_size: int
) -> Callable[[types.Params], tuple[np.ndarray, np.ndarray, int]]:
    """Return a function of the parameters: gammas, the bound's integrand at them, number of images.

    The integrand is the mean over images spread evenly over the split, in bits per dim per nat of
    gamma.
    """
    size = min(solve_size, split.num_images)
    count = max(size, min(integrand_lib.IMAGES, split.num_images) // size * size)
    index = data.spread(count, split.num_images)
    compute = integrand_lib.of_batches(model)

    def values(params: types.Params) -> tuple[np.ndarray, np.ndarray, int]:
        batches = batch_lib.eval_batches(split, size, index=index)
        return *compute(params, batches, jax.random.key(seed)), len(index)

    return values


def score_split(
    name: str,
    scorer: Compute,
    params: types.Params,
    split: data.ImageSplit,
    loop: image_loop.ImageLoop,
) -> Scores:
    """Return the scores of all images in the order of the split, float64 `[N]` each.

    Raises:
        checks.NonFiniteError: see `check_scores`.
    """
    found = loop.run(name, scorer, params, loop.batches_of(split))
    scores = {key: np.asarray(each, np.float64) for key, each in found.items()}
    check_scores(name, scores, split.place_of(np.arange(split.num_images)))
    return scores


def check_scores(name: str, scores: Scores, places: np.ndarray) -> None:
    """Raise NonFiniteError unless every image has a finite score and every solve succeeded.

    So must those of another program's evaluation. `places` are those of the images in the split,
    `[N]`.
    """
    figures = [each for key, each in scores.items() if key == "bpd" or is_prefixed(key)]
    unsolved = scores.get("success", np.ones(1)) == 0
    failed = ~np.isfinite(figures).all(axis=0) | unsolved
    if not failed.any():
        return
    cause, remedy = "", ""
    if unsolved.any():
        cause = ", or an adaptive solver reached its `max_steps`"
        remedy = ", or raise `max_steps` or the tolerances"
    raise checks.NonFiniteError(
        f"{name}: {np.sum(failed)} of {failed.size} images have no finite bits per dim, the first "
        f"at place {places[failed.argmax()]}. The network gave NaN or infinity"
        f"{cause}. Evaluate an earlier checkpoint{remedy}."
    )


def of_bound(
    model: DiffusionODE,
    bound: AbstractBound,
    seed: int | types.PRNGKey,
    parity: AbstractParity | None = None,
) -> Compute:
    """Return the scores of a variational bound, not compiled; all have the same noise."""

    def score(params: types.Params, batch: types.Batch) -> Mapping[str, jax.Array]:
        key = key_of(seed, VARIATIONAL_BOUND)
        parts = model.bound_fn(params, batch, key, bound)
        dims = numerics.num_dims(batch["image"])
        others = {} if parity is None else prefixed(parity.bound_parts(model, batch, key))
        return {
            **parts,
            **others,
            "nats": parts["bpd"] * (dims * math.log(2.0)),
            "nfe": jnp.full(batch["index"].shape, bound.num_evaluations()),
        }

    return score


def of_likelihood(
    model: DiffusionODE,
    estimator: ODELikelihood,
    name: str,
    seed: int | types.PRNGKey,
    parity: AbstractParity | None = None,
) -> Compute:
    """Return the scores of a likelihood, not compiled."""

    def score(params: types.Params, batch: types.Batch) -> Mapping[str, jax.Array]:
        key = key_of(seed, name)
        found: ImageLikelihood = model.likelihood_fn(params, batch, key, estimator)
        dims = numerics.num_dims(batch["image"])
        others = {}
        if parity is not None:
            bpd = found.bits_per_dim(dims)
            others = prefixed(parity.likelihood_parts(model, params, batch, key, estimator, bpd))
        return {
            **others,
            "nats": -found.log_p,
            "bpd": found.bits_per_dim(dims),
            "log_prior": found.log_prior,
            "log_det": found.log_det,
            "neg_log_q": found.neg_log_q,
            "log_reconstruction": found.log_reconstruction,
            "nfe": found.num_evaluations,
            "repeats_sd": numerics.nats_to_bpd(_spread(found.repeats), dims),
            "trace_sd": numerics.nats_to_bpd(found.trace_sd, dims),
            "importance_bias": numerics.nats_to_bpd(found.importance_bias, dims),
            "success": found.success,
        }

    return score


def prepared(model: DiffusionODE, estimator: ODELikelihood, grid: Adams) -> AbstractSolver:
    """Return the grid with room for the next multiple of `GRID` steps."""
    problem = Problem.of(
        model.field({}, jnp.zeros((1, 0))),  # only schedule and parameterization are used
        estimator.dequantizer.gamma_start(model.end),
        model.gamma_max,
        estimator.variable,
        estimator.divergence,
        dims=1,
    )
    return problem.prepared(grid, -(-grid.steps // GRID) * GRID)


def _on_grid(model: DiffusionODE, estimator: ODELikelihood, name: str, seed: int) -> Compute:
    """Return `of_likelihood` of parameters (`network`) that come with their `solver`."""

    def score(given: types.Params, batch: types.Batch) -> Mapping[str, jax.Array]:
        here = dataclasses.replace(estimator, solver=given["solver"])
        return of_likelihood(model, here, name, seed, None)(given["network"], batch)

    return score


def _spread(repeats: Float[Array, "repeats batch"]) -> types.PerExample:
    """Return the standard deviation over repeats; NaN for a single one."""
    if repeats.shape[0] == 1:
        return jnp.full_like(repeats[0], jnp.nan)
    return jnp.std(repeats, axis=0, ddof=1)


def key_of(seed: int | np.integer | types.PRNGKey, name: str) -> types.PRNGKey:
    """Return a random key for the bound `name`, so that adding a bound does not change others."""
    key = jax.random.key(int(seed)) if isinstance(seed, numbers.Integral) else seed
    return jax.random.fold_in(key, zlib.crc32(name.encode()))
