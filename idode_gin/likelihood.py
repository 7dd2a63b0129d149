"""The ODE's log-density, and the bounds on an image's bits per dim that stand on it."""

import dataclasses
import math
from typing import Any, NamedTuple, TypeAlias, final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from idode_gin import checks, numerics, ode, types
from idode_gin.dequantizers.base import AbstractDequantizer, CleanEnd
from idode_gin.integration_variables.base import AbstractIntegrationVariable, rate_and_divergences
from idode_gin.integration_variables.exponential import Exponential
from idode_gin.integration_variables.gamma import Gamma
from idode_gin.solvers.base import AbstractSolver, Solution
from idode_gin.solvers.base import Density as KnownFactor
from idode_gin.solvers.divergence import AbstractDivergence, Hutchinson, Probes

_GAMMA = Gamma()

Weights: TypeAlias = Float[Array, "repeats draws batch"]
"""One number for each importance sample of each repeat and image."""


class Density(NamedTuple):
    """The log-density of latents under the ODE, per image."""

    log_p: types.PerExample
    """log p(z), nats."""
    latent: types.Images
    """Where the ODE took z: the latent at the noise end."""
    log_prior: types.PerExample
    """The prior's log-density of `latent`, nats."""
    log_det: types.PerExample
    """log p(z) - log_prior, nats."""
    trace_sd: types.PerExample
    """Standard deviation of log p(z) over the probes' randomness, nats; NaN with one probe."""
    num_evaluations: Integer[Array, " batch"]
    """Network evaluations; each carries its trace along."""
    success: Bool[Array, " batch"]
    """Whether the solver arrived."""


def log_density(
    field: ode.Field,
    z: types.Images,
    gamma_start: float,
    gamma_end: float,
    solver: AbstractSolver,
    divergence: AbstractDivergence,
    probes: Probes,
    variable: AbstractIntegrationVariable = _GAMMA,
    lanes: int | None = None,
) -> Density:
    """log p(z) of latents at `gamma_start`, from the prior N(0, sigma^2 I) at `gamma_end`.

        log p(z) = log N(z_end; 0, sigma_end^2 I) + integral of the drift's divergence

    The integral is taken of y = z / m in the time of `variable`, and d log(m_end / m_start) is
    added. The log-density per dim is part of the solver's state, so its tolerances are nats per
    dim; each probe has one of its own.

    Args:
        field: the ODE.
        z: `[B, H, W, C]`.
        gamma_start: where z lies, nats.
        gamma_end: the noise end, nats.
        solver: of the ODE.
        divergence: how the trace is taken.
        probes: what `divergence.draw` gives, `[n, B, H, W, C]`.
        variable: what the ODE is integrated in.
        lanes: images worked on side by side; None for all.
    Refs: FFJORD, instantaneous change of variables.
    """
    dims = numerics.num_dims(z)
    problem = Problem.of(field, gamma_start, gamma_end, variable, divergence, dims)
    solution = solver.solve(
        problem.rate,
        problem.start(z, probes),
        problem.time_start,
        problem.time_end,
        problem.args(probes),
        lanes=lanes,
        densities=problem.densities,
    )
    return problem.density_of(solution)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """The log-density as an initial-value problem, in some integration variable."""

    field: ode.Field
    variable: AbstractIntegrationVariable
    divergence: AbstractDivergence
    dims: int
    time_start: float
    time_end: float
    scale_start: float
    """m at the start."""
    scale_end: float
    sigma_end: float

    @classmethod
    def of(
        cls,
        field: ode.Field,
        gamma_start: float,
        gamma_end: float,
        variable: AbstractIntegrationVariable,
        divergence: AbstractDivergence,
        dims: int,
    ) -> "Problem":
        """The problem of images of `dims` values between two gammas."""
        with jax.ensure_compile_time_eval():
            ends = jnp.asarray([gamma_start, gamma_end], numerics.float_dtype())
            time_start, time_end = map(float, variable.time(field, ends))
            scale_start, scale_end = map(float, jnp.exp(variable.log_scale(field, ends)))
            sigma_end = float(field.schedule.sigma(ends)[1])
        return cls(
            field=field,
            variable=variable,
            divergence=divergence,
            dims=dims,
            time_start=time_start,
            time_end=time_end,
            scale_start=scale_start,
            scale_end=scale_end,
            sigma_end=sigma_end,
        )

    @property
    def densities(self) -> tuple[KnownFactor, ...]:
        """Known factors of the slopes of the state's leaves."""
        return (self.variable.density(self.field), None)

    def start(self, z: types.Images, probes: Probes) -> tuple[Array, Array]:
        """The state at the start: y, and the log-density per dim by every probe (or exactly)."""
        estimates = max(probes.shape[0], 1)
        return z / self.scale_start, jnp.zeros((z.shape[0], estimates), z.dtype)

    def args(self, probes: Probes) -> tuple[Any, ...]:
        """Of `rate`, an example a row."""
        return self.field.args, jnp.moveaxis(probes, 0, 1)

    def rate(
        self, time: types.PerExample, state: tuple[Array, Array], args: Any, probes: Array
    ) -> tuple[Array, Array]:
        """The state's slope."""
        slope, traces = rate_and_divergences(
            self.variable,
            self.field.with_args(args),
            time,
            state[0],
            self.divergence,
            jnp.moveaxis(probes, 1, 0),
        )
        return slope, traces / self.dims

    def density_of(self, solution: Solution) -> Density:
        """What a solution says."""
        y, log_dets_per_dim = solution.state
        estimates = self.dims * log_dets_per_dim
        scales = self.dims * (math.log(self.scale_end) - math.log(self.scale_start))
        log_det = jnp.mean(estimates, axis=1) + scales
        latent = y * self.scale_end
        log_prior = _log_normal(latent, self.sigma_end)
        return Density(
            log_p=log_prior + log_det,
            latent=latent,
            log_prior=log_prior,
            log_det=log_det,
            trace_sd=jnp.sqrt(self.divergence.variance_of_mean(estimates, self.dims)),
            num_evaluations=solution.num_evaluations,
            success=solution.success,
        )


class ImageLikelihood(NamedTuple):
    """A lower bound on log P(x), per image."""

    log_p: types.PerExample
    """The bound, nats; mean over repeats."""
    repeats: Float[Array, "repeats batch"]
    """The bound of each repeat, nats."""
    log_prior: types.PerExample
    """The prior's log-density where the ODE ended, nats; this and the next three are means over
    all draws, and with K = 1 add up to the bound."""
    log_det: types.PerExample
    """What the ODE adds to it."""
    neg_log_q: types.PerExample
    """What dequantization adds."""
    log_reconstruction: types.PerExample
    """What the decoder adds."""
    trace_sd: types.PerExample
    """Standard deviation of the bound over the probes' randomness, nats; NaN where unknown."""
    importance_bias: types.PerExample
    """Nats by which trace noise raises an importance-weighted bound, in expectation; NaN where
    unknown, zero for K = 1. See `importance_bias`."""
    num_evaluations: Float[Array, " batch"]
    """Network evaluations per solve, mean over draws."""
    success: Bool[Array, " batch"]
    """Whether every solve arrived."""

    def bits_per_dim(self, dims: int) -> types.PerExample:
        """-log P(x) / (d log 2)."""
        return numerics.nats_to_bpd(-self.log_p, dims)


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class ODELikelihood:
    """log P(x) >= E_q[log 1/K sum_k p(z_k) P(x | z_k) / q(z_k | x)], averaged over repeats.

    With K = 1 the entropy of q is taken in closed form: the same mean with less variance. Every
    draw is keyed by image and number, so that a figure does not depend on the batch around it.

    Args:
        dequantizer: q, and where the ODE starts.
        solver: of the ODE. None leaves the choice to a pilot (see `pilot.Pilot`): until it has
            chosen, there is nothing to call.
        variable: what the ODE is integrated in.
        divergence: how the trace is taken; each draw has its own probes.
        num_importance: K, importance samples inside the logarithm; more make the bound tighter.
        num_repeats: independent bounds to average; more make its estimate less noisy.
        lanes: images that are solved side by side, whatever the batch; None for all of it.
    Refs: i-DODE, dequantization and importance-weighted likelihood (there without -log K).
    """

    dequantizer: AbstractDequantizer
    solver: AbstractSolver | None = None
    variable: AbstractIntegrationVariable = dataclasses.field(default_factory=Exponential)
    divergence: AbstractDivergence = dataclasses.field(default_factory=Hutchinson)
    num_importance: int = 1
    num_repeats: int = 1
    lanes: int | None = None

    def __post_init__(self) -> None:
        """Checks the counts."""
        checks.check_positive("num_importance", self.num_importance)
        checks.check_positive("num_repeats", self.num_repeats)
        if self.lanes is not None:
            checks.check_positive("lanes", self.lanes)

    def __call__(
        self,
        field: ode.Field,
        end: CleanEnd,
        gamma_max: float,
        x: types.Pixels,
        keys: types.PRNGKeys,
    ) -> ImageLikelihood:
        """The bound for integer images `x`, with the noise of each image's own key.

        Raises:
            ValueError: if no solver was chosen.
        """

        def draw(number: Array) -> tuple[Array, Density, Array, Array]:
            noise, probes = self.draw(number, x.shape[1:], end, keys)
            weight, density = self.log_weight(field, end, gamma_max, x, noise, probes)
            z = self.dequantizer.start(x, noise, end)
            reconstruction = self.dequantizer.log_reconstruction(x, z, end)
            rest = weight - density.log_p - reconstruction
            return weight, density._replace(latent=jnp.zeros(())), reconstruction, rest

        count = self.num_repeats * self.num_importance
        weights, densities, reconstruction, neg_log_q = jax.lax.map(draw, jnp.arange(count))
        weights = weights.reshape(self.num_repeats, self.num_importance, -1)
        trace_sd = densities.trace_sd.reshape(weights.shape)
        repeats = jax.vmap(numerics.log_mean_exp)(weights)
        return ImageLikelihood(
            log_p=jnp.mean(repeats, axis=0),
            repeats=repeats,
            log_prior=jnp.mean(densities.log_prior, axis=0),
            log_det=jnp.mean(densities.log_det, axis=0),
            neg_log_q=jnp.mean(neg_log_q, axis=0),
            log_reconstruction=jnp.mean(reconstruction, axis=0),
            trace_sd=bound_sd(weights, trace_sd),
            importance_bias=jnp.mean(importance_bias(weights, trace_sd), axis=0),
            num_evaluations=jnp.mean(densities.num_evaluations, axis=0, dtype=repeats.dtype),
            success=jnp.all(densities.success, axis=0),
        )

    def draw(
        self, number: int | Array, shape: tuple[int, ...], end: CleanEnd, keys: types.PRNGKeys
    ) -> tuple[types.Images, Probes]:
        """Dequantization noise and probes of draw `number`, with each image's own key."""
        keys_noise, keys_probes = draw_keys(keys, number)
        noise = self.dequantizer.draw(keys_noise, shape, end)
        return noise, self.divergence.draw(keys_probes, shape)

    def log_weight(
        self,
        field: ode.Field,
        end: CleanEnd,
        gamma_max: float,
        x: types.Pixels,
        noise: types.Images,
        probes: Probes,
    ) -> tuple[types.PerExample, Density]:
        """log p(z) + log P(x | z) - log q(z | x) of one given draw, nats; and p(z) in detail.

        Where K = 1, -log q is replaced by its mean.

        Raises:
            ValueError: if no solver was chosen.
        """
        if self.solver is None:
            raise ValueError(
                "`solver` is None: it is left to a pilot, which has not chosen yet. Give "
                "`ODELikelihood.solver`, or evaluate with `Evaluator.pilot`."
            )
        z = self.dequantizer.start(x, noise, end)
        density = log_density(
            field,
            z,
            self.dequantizer.gamma_start(end),
            gamma_max,
            self.solver,
            self.divergence,
            probes,
            self.variable,
            self.lanes,
        )
        if self.num_importance == 1:
            neg_log_q = self.dequantizer.entropy(numerics.num_dims(z), end)
        else:
            neg_log_q = self.dequantizer.neg_log_q(noise, end)
        return density.log_p + self.dequantizer.log_reconstruction(x, z, end) + neg_log_q, density


def draw_keys(keys: types.PRNGKeys, number: int | Array) -> tuple[types.PRNGKeys, types.PRNGKeys]:
    """Of draw `number` of each image: keys of its dequantization noise, and of its probes."""
    keys_here = jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
    keys_noise, keys_probes = numerics.split_each(keys_here, 2)
    return keys_noise, keys_probes


def bound_sd(log_weights: Weights, trace_sd: Weights) -> types.PerExample:
    """Standard deviation of the mean over repeats of log 1/K sum_k w_k, to first order; nats.

    Independent noise of standard deviation s_k in each log w_k moves the logarithm by the share
    of w_k in the sum times as much.
    """
    shares = jax.nn.softmax(log_weights, axis=1)
    variance = jnp.sum((shares * trace_sd) ** 2, axis=1)
    return jnp.sqrt(jnp.sum(variance, axis=0)) / log_weights.shape[0]


def importance_bias(log_weights: Weights, trace_sd: Weights) -> Float[Array, "repeats batch"]:
    """Expected rise of log 1/K sum_k w_k from noise of deviation s_k in each log w_k; nats.

        1/2 sum_k s_k^2 (r_k - r_k^2)        r_k = w_k / sum_j w_j

    to second order: the exponential of a noisy logarithm is too large in the mean. Zero for K = 1,
    and half the variance where no draw dominates. It is an estimate with the noisy weights; where
    s is not small against one, take more probes, or the exact trace.
    """
    if log_weights.shape[1] == 1:
        return jnp.zeros_like(log_weights[:, 0])
    shares = jax.nn.softmax(log_weights, axis=1)
    return jnp.sum(trace_sd**2 * (shares - shares**2), axis=1) / 2


def _log_normal(latent: types.Images, sigma: float) -> types.PerExample:
    """log N(latent; 0, sigma^2 I), nats."""
    log_scale = 0.5 * math.log(2 * math.pi) + math.log(sigma)
    squares = numerics.sum_pixels((latent / sigma) ** 2)
    return -0.5 * squares - numerics.num_dims(latent) * log_scale
