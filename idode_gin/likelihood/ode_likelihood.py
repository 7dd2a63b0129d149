"""Bounds on an image's log-likelihood from the log-density of the ODE."""

import dataclasses
from typing import NamedTuple, TypeAlias, final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from idode_gin import checks, numerics, ode, types
from idode_gin.dequantizers.base import AbstractDequantizer, CleanEnd
from idode_gin.integration_variables.base import AbstractIntegrationVariable
from idode_gin.integration_variables.exponential import Exponential
from idode_gin.likelihood.density import Density, log_density
from idode_gin.solvers.base import AbstractSolver
from idode_gin.solvers.divergence import AbstractDivergence, Hutchinson, Probes

Weights: TypeAlias = Float[Array, "repeats draws batch"]
"""One number per repeat, importance sample and image."""


class ImageLikelihood(NamedTuple):
    """A lower bound on log P(x), per image."""

    log_p: types.PerExample
    """The bound, nats, mean over repeats."""
    repeats: Float[Array, "repeats batch"]
    """The bound of each repeat, nats."""
    log_prior: types.PerExample
    """Log-density under the prior at the end of the ODE, nats. This and the next three are means
    over all draws; with K = 1 they add up to the bound."""
    log_det: types.PerExample
    """Contribution of the ODE, nats."""
    neg_log_q: types.PerExample
    """Contribution of dequantization, nats."""
    log_reconstruction: types.PerExample
    """Contribution of the decoder, nats."""
    trace_sd: types.PerExample
    """Standard deviation of the bound due to random probes, nats; NaN if unknown."""
    importance_bias: types.PerExample
    """Expected increase of an importance-weighted bound from trace noise, nats; NaN if unknown,
    zero for K = 1. See `importance_bias`."""
    num_evaluations: Float[Array, " batch"]
    """Network evaluations per solve, mean over draws."""
    success: Bool[Array, " batch"]
    """True if every solve reached the end."""

    def bits_per_dim(self, dims: int) -> types.PerExample:
        """Return -log P(x) / (d log 2)."""
        return numerics.nats_to_bpd(-self.log_p, dims)


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class ODELikelihood:
    """log P(x) >= E_q[log 1/K sum_k p(z_k) P(x | z_k) / q(z_k | x)], averaged over repeats.

    With K = 1 the entropy of q is used in closed form, which has the same mean and less variance.
    Every draw is keyed by image and number, so that a result does not depend on the batch.

    Args:
        dequantizer: q, and the start of the ODE.
        solver: solver of the ODE. None leaves the choice to a pilot (see `pilot.Pilot`); such a
            likelihood cannot be called yet.
        variable: variable that the ODE is integrated in.
        divergence: method for the trace; each draw has its own probes.
        num_importance: K, importance samples inside the logarithm; more make the bound tighter.
        num_repeats: independent bounds to average; more make its estimate less noisy.
        lanes: images integrated at the same time, for any batch size; None for the whole batch.

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
        checks.check_count("num_importance", self.num_importance)
        checks.check_count("num_repeats", self.num_repeats)
        checks.check_lanes(self.lanes)

    def __call__(
        self,
        field: ode.Field,
        end: CleanEnd,
        gamma_max: float,
        x: types.Pixels,
        keys: types.PRNGKeys,
    ) -> ImageLikelihood:
        """Return the bound for integer images `x`, with noise from each image's key.

        Raises:
            ValueError: if `solver` is None.
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
        """Draw dequantization noise and probes number `number` from each image's key."""
        keys = jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
        keys_noise, keys_probes = numerics.split_each(keys, 2)
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
        """Return log p(z) + log P(x | z) - log q(z | x) of one draw, nats, and details of p(z).

        With K = 1, -log q is replaced by its mean.

        Raises:
            ValueError: if `solver` is None.
        """
        if self.solver is None:
            raise ValueError(
                "`solver` is None, which leaves the choice to a pilot that has not run. Set "
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


def bound_sd(log_weights: Weights, trace_sd: Weights) -> types.PerExample:
    """Return the standard deviation of the mean over repeats of log 1/K sum_k w_k, nats.

    To first order, independent noise of standard deviation s_k in log w_k moves the logarithm by
    s_k times the share of w_k in the sum.
    """
    shares = jax.nn.softmax(log_weights, axis=1)
    variance = jnp.sum((shares * trace_sd) ** 2, axis=1)
    return jnp.sqrt(jnp.sum(variance, axis=0)) / log_weights.shape[0]


def importance_bias(log_weights: Weights, trace_sd: Weights) -> Float[Array, "repeats batch"]:
    """Return the expected increase of log 1/K sum_k w_k from noise in each log w_k, nats.

        1/2 sum_k s_k^2 (r_k - r_k^2)        r_k = w_k / sum_j w_j

    to second order, for noise of standard deviation s_k: the exponential of a noisy logarithm is
    too large on average. It is zero for K = 1, and half the variance if no draw dominates. The
    noisy weights themselves are used; unless s is much smaller than one, use more probes or the
    exact trace.
    """
    if log_weights.shape[1] == 1:
        return jnp.zeros_like(log_weights[:, 0])
    shares = jax.nn.softmax(log_weights, axis=1)
    return jnp.sum(trace_sd**2 * (shares - shares**2), axis=1) / 2
