"""Score the images of a pilot on grids of any number of steps."""

import contextlib
import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from idode_gin import numerics, ode, types
from idode_gin.dequantizers.base import CleanEnd
from idode_gin.likelihood.density import Problem
from idode_gin.likelihood.ode_likelihood import ImageLikelihood, ODELikelihood
from idode_gin.networks.base import AbstractNetwork
from idode_gin.schedules.time.base import AbstractTime
from idode_gin.solvers import adams, base, spacings
from idode_gin.solvers.divergence import Probes

ORDER = 4
"""Derivative of the slopes in the error of a step of `Adams` with its default history."""
_DIFFERENCE = [(-1) ** number * math.comb(ORDER, number) for number in range(ORDER + 1)]
_EQUAL = spacings.Equal()
Watch = Callable[[str], contextlib.AbstractContextManager[Any]]
"""Returns a context around the computation that its argument describes, to report it."""
PerImage = Callable[[Any, types.Batch], Array]
"""`(given, batch) -> values [B, ...]`, a row for each image."""
Spread = Callable[[PerImage], PerImage]
"""Returns the same function, computed on several devices."""


def undivided(fn: PerImage) -> PerImage:
    """Return the function as it is, for one device."""
    return fn


def unwatched(what: str) -> contextlib.AbstractContextManager[Any]:
    """Report nothing."""
    return contextlib.nullcontext()


@runtime_checkable
class Model(Protocol):
    """The parts of a model that a pilot uses; a dataclass such as `models.DiffusionODE`."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def network(self) -> AbstractNetwork:
        """Network, which can be replaced by one of full precision."""

    @property
    def time(self) -> AbstractTime:
        """Range of gamma."""

    @property
    def end(self) -> CleanEnd:
        """Clean end of the path."""

    def field(self, params: types.Params, conditioning: Array) -> ode.Field:
        """Return the probability-flow field under `params`."""

    def likelihood_fn(
        self,
        params: types.Params,
        batch: types.Batch,
        key: types.PRNGKey,
        estimator: ODELikelihood,
    ) -> ImageLikelihood:
        """Return the likelihood of every image of `batch`."""


def coarse_arithmetic(model: Model) -> str | None:
    """Describe arithmetic coarser than float32; None if there is none."""
    dtype = model.network.coarse_dtype
    return numerics.coarse_products() if dtype is None else f"a network of {dtype}"


class Grids:
    """Scores the images on grids of any number of steps with one compiled program."""

    def __init__(
        self,
        model: Model,
        batch: types.Batch,
        key: types.PRNGKey,
        estimator: ODELikelihood,
        max_steps: int,
        matmul_precision: str | None = None,
        watch: Watch = unwatched,
        spread: Spread = undivided,
    ) -> None:
        self._model, self._key = model, key
        self._batch = jax.tree.map(jnp.asarray, batch)
        self._estimator = dataclasses.replace(estimator, num_importance=1, num_repeats=1)
        self._max_steps, self._matmul_precision = max_steps, matmul_precision
        self._watch, self._spread = watch, spread
        self._compiled = jax.jit(spread(self._score))
        self._compiled_by_solver = jax.jit(spread(self._score_by_solver))

    def in_full_precision(self, estimator: ODELikelihood) -> "Grids | None":
        """Return grids in float32 throughout, for `by_solver`; None if these already are."""
        if coarse_arithmetic(self._model) is None:
            return None
        network = self._model.network.in_full_precision()
        model = dataclasses.replace(self._model, network=network)
        steps, how = self._max_steps, (self._watch, self._spread)
        return Grids(model, self._batch, self._key, estimator, steps, "highest", *how)

    @property
    def rounding(self) -> float:
        """One unit in the last place of a log-density, bits per dim.

        The log-determinant is about log(sigma_1 / sigma_0) nats per dim, half the span of gamma.
        """
        end = self._model.end
        gamma_max = numerics.number(self._model.time.gamma_max, "gamma_max")
        span = gamma_max - self._estimator.dequantizer.gamma_start(end)
        return float(jnp.finfo(numerics.float_dtype()).eps * span / (2 * math.log(2)))

    def __call__(
        self, params: types.Params, steps: int, spacing: spacings.AbstractSpacing = _EQUAL
    ) -> np.ndarray:
        """Return bits per dim on a grid, `[B]`."""
        problem = self._problem(params, self._batch)
        solver = problem.prepared(adams.Adams(steps=steps, spacing=spacing), self._max_steps)
        with self._watch(f"grid of {steps} steps"):
            return np.asarray(self._compiled((params, solver), self._batch), np.float64)

    def by_solver(self, params: types.Params) -> np.ndarray:
        """Return bits per dim with the estimator's own solver, `[B]`."""
        precision, solver = self._matmul_precision, type(self._estimator.solver).__name__
        what = solver if precision is None else f"{solver} in float32"
        matmul = jax.default_matmul_precision(precision) if precision else contextlib.nullcontext()
        with self._watch(what), matmul:
            return np.asarray(self._compiled_by_solver(params, self._batch), np.float64)

    def defects(self, params: types.Params, steps: int) -> Float[np.ndarray, "times images"]:
        """Return the local errors of equal steps at `steps + 1` times, for each image.

            trace^(k) - mean over pixels of eps_hat m rho q^(k) / sigma        q = slope / rho

        up to a factor, with derivatives of order k = `ORDER` by finite differences. The first term
        is the error of the integral of the trace. The second is the effect of the state's error,
        which moves the latent by m times the error and log p by the score -eps_hat / sigma times
        that, per dim.
        """

        def along(params: types.Params, batch: types.Batch) -> Array:
            problem, z, probes = self._start(params, batch)
            args, grid = problem.args(probes), adams.Adams(steps=steps, history=ORDER + 1)
            tables = grid.tables(problem.time_start, problem.time_end, problem.weight_fns)
            ends = jnp.asarray(tables.ends)

            def step(carry: adams.Carry, number: Array) -> tuple[adams.Carry, Array]:
                carry = adams.advance(problem.rate, number, carry, tables, args)
                times = ends[number - jnp.arange(ORDER + 1)]
                return carry, _defect(problem, carry, times)

            start = adams.begin(problem.start(z, probes), tables)
            _, found = jax.lax.scan(step, start, jnp.arange(steps + 1))
            return found[ORDER:].T  # earlier steps have too few slopes

        with self._watch(f"errors of {steps} steps"):
            found = np.asarray(jax.jit(self._spread(along))(params, self._batch), np.float64)
        return np.pad(found.T, ((ORDER // 2, ORDER // 2), (0, 0)), mode="edge")

    def _problem(self, params: types.Params, batch: types.Batch) -> Problem:
        model, estimator = self._model, self._estimator
        return Problem.of(
            model.field(params, batch["conditioning"]),
            estimator.dequantizer.gamma_start(model.end),
            numerics.number(model.time.gamma_max, "gamma_max"),
            estimator.variable,
            estimator.divergence,
            numerics.num_dims(batch["image"]),
        )

    def _start(
        self, params: types.Params, batch: types.Batch
    ) -> tuple[Problem, types.Images, Probes]:
        """Return the problem, the latents at its start, and the probes."""
        x, end, estimator = batch["image"], self._model.end, self._estimator
        keys = numerics.fold_in_each(self._key, batch["index"])
        noise, probes = estimator.draw(0, x.shape[1:], end, keys)
        return self._problem(params, batch), estimator.dequantizer.start(x, noise, end), probes

    def _score_by_solver(self, params: types.Params, batch: types.Batch) -> types.PerExample:
        found = self._model.likelihood_fn(params, batch, self._key, self._estimator)
        return found.bits_per_dim(numerics.num_dims(batch["image"]))

    def _score(
        self, given: tuple[types.Params, base.AbstractSolver], batch: types.Batch
    ) -> types.PerExample:
        params, solver = given
        problem, z, probes = self._start(params, batch)
        solution = problem.solve(solver, z, probes, None)
        end, dims, dequantizer = self._model.end, numerics.num_dims(z), self._estimator.dequantizer
        log_p = problem.density_of(solution).log_p + dequantizer.entropy(dims, end)
        log_p = log_p + dequantizer.log_reconstruction(batch["image"], z, end)
        return numerics.nats_to_bpd(-log_p, dims)


def _defect(problem: Problem, carry: adams.Carry, times: Array) -> types.PerExample:
    """Return the local error of `Grids.defects` from the newest `ORDER + 1` slopes."""
    (y, _), (slopes, traces) = carry.state, carry.slopes
    field, weights = problem.field, jnp.asarray(_DIFFERENCE, times.dtype)
    weight_fn = problem.weight_fns[0]
    rho = jnp.ones_like(times) if weight_fn is None else weight_fn(times)
    at = problem.variable.coefficients(field, jnp.broadcast_to(times[0], y.shape[:1]))
    linear, output = numerics.expand(at.linear, y), numerics.expand(at.output, y)
    latent = numerics.expand(at.scale, y) * y
    noise_hat = field.parameterization.noise_hat(
        field.schedule, at.gamma, latent, (slopes[0] - linear * y) / output
    )
    moved = numerics.sum_pixels(noise_hat * base.combined(weights / rho, slopes)) / problem.dims
    moved = moved * rho[0] * at.scale / field.schedule.sigma(at.gamma)
    return jnp.mean(base.combined(weights, traces), axis=1) - moved
