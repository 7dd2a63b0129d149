"""Bounds on an image's log-likelihood from the log-density of the ODE."""

import dataclasses
from typing import Any, NamedTuple, TypeAlias, final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from idode_gin import checks, numerics, ode, types
from idode_gin.dequantizers.base import AbstractDequantizer, CleanEnd
from idode_gin.integration_variables.base import AbstractIntegrationVariable
from idode_gin.integration_variables.exponential import Exponential
from idode_gin.likelihood.density import Density, log_density
from idode_gin.solvers.base import AbstractSolver
from idode_gin.solvers.divergence import AbstractDivergence, Hutchinson, Probes, Traces

Weights: TypeAlias = Float[Array, "repeats draws batch"]
"""One number per repeat, importance sample and image."""


class ImageLikelihood(NamedTuple):
    """A lower bound on log P(x), per image."""

    log_p: types.PerExample
    """The bound, nats, mean over repeats."""
    repeats: Float[Array, "repeats batch"]
    """The bound of each repeat, nats."""
    log_weights: Weights
    """Result of `ODELikelihood.log_weight` for each draw, nats."""
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
    """Expected increase of the bound from random probes, nats; NaN if unknown, zero for K = 1. See
    `trace_noise`."""
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

    The K draws of a repeat share their probes, so that the noise of the trace is nearly the same in
    all of them and moves the logarithm up or down. Independent noise would raise it on average,
    because the sample with the luckiest noise counts most. Noise that is shared does not fall with
    K, but with probes and repeats.

    Args:
        dequantizer: q, and the start of the ODE.
        solver: solver of the ODE. None leaves the choice to a pilot (see `pilot.Pilot`); such a
            likelihood cannot be called yet.
        variable: variable that the ODE is integrated in.
        divergence: method for the trace.
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

        shape, dims = x.shape[1:], numerics.num_dims(x)
        samples = jnp.arange(self.num_importance)

        def draw(number: Array, probes: Probes) -> tuple[Array, Density, Array, Array]:
            noise = self._noise(number, shape, end, keys)
            weight, density = self.log_weight(field, end, gamma_max, x, noise, probes)
            z = self.dequantizer.start(x, noise, end)
            reconstruction = self.dequantizer.log_reconstruction(x, z, end)
            rest = weight - density.log_p - reconstruction
            return weight, density._replace(latent=jnp.zeros(())), reconstruction, rest

        def repeat(number: Array) -> Any:
            first = number * self.num_importance
            probes = self._probes(first, shape, keys)
            return jax.lax.map(lambda each: draw(first + each, probes), samples)

        found = jax.lax.map(repeat, jnp.arange(self.num_repeats))
        weights, densities, reconstruction, neg_log_q = found
        sd, bias = trace_noise(weights, densities.log_dets, self.divergence, dims)
        repeats = jax.vmap(numerics.log_mean_exp)(weights)
        draws = (0, 1)
        return ImageLikelihood(
            log_p=jnp.mean(repeats, axis=0),
            repeats=repeats,
            log_weights=weights,
            log_prior=jnp.mean(densities.log_prior, axis=draws),
            log_det=jnp.mean(densities.log_det, axis=draws),
            neg_log_q=jnp.mean(neg_log_q, axis=draws),
            log_reconstruction=jnp.mean(reconstruction, axis=draws),
            trace_sd=sd,
            importance_bias=bias,
            num_evaluations=jnp.mean(densities.num_evaluations, axis=draws, dtype=repeats.dtype),
            success=jnp.all(densities.success, axis=draws),
        )

    def draw(
        self, number: int | Array, shape: tuple[int, ...], end: CleanEnd, keys: types.PRNGKeys
    ) -> tuple[types.Images, Probes]:
        """Draw dequantization noise `[B, H, W, C]` and probes of draw `number` of each image."""
        first = number - number % self.num_importance
        return self._noise(number, shape, end, keys), self._probes(first, shape, keys)

    def _noise(
        self, number: int | Array, shape: tuple[int, ...], end: CleanEnd, keys: types.PRNGKeys
    ) -> types.Images:
        return self.dequantizer.draw(_keys_of_draw(keys, number)[0], shape, end)

    def _probes(self, first: int | Array, shape: tuple[int, ...], keys: types.PRNGKeys) -> Probes:
        """Draw the probes of the repeat whose first draw has this number."""
        return self.divergence.draw(_keys_of_draw(keys, first)[1], shape)

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


def trace_noise(
    log_weights: Weights,
    log_dets: Float[Array, "repeats draws batch estimates"],
    divergence: AbstractDivergence,
    dims: int,
) -> tuple[types.PerExample, types.PerExample]:
    """Return what probes do to the mean over repeats of log 1/K sum_k w_k: its noise and bias.

        standard deviation   sd(sum_k r_k e_k)               r_k = w_k / sum_j w_j
        increase on average  1/2 (sum_k r_k var(e_k) - var(sum_k r_k e_k))

    in nats, per image, to second order in the noise e_k of log w_k, which the K draws of a repeat
    have from the same probes; rough unless what they do not share is much smaller than one. Both
    are NaN with one probe, but the increase is zero for K = 1.

    Args:
        log_weights: log w_k of each draw, nats.
        log_dets: the part of log w_k by each probe, nats.
        divergence: the method that made them.
        dims: values of an image.
    """

    def variance(estimates: Traces) -> types.PerExample:
        return divergence.variance_of_mean(estimates, dims)

    shares = jax.nn.softmax(log_weights, axis=1)
    together = jax.vmap(variance)(jnp.sum(shares[..., None] * log_dets, axis=1))
    sd = jnp.sqrt(jnp.sum(together, axis=0)) / log_weights.shape[0]
    if log_weights.shape[1] == 1:
        return sd, jnp.zeros_like(sd)
    apart = jnp.sum(shares * jax.vmap(jax.vmap(variance))(log_dets), axis=1)
    return sd, jnp.mean(apart - together, axis=0) / 2


def _keys_of_draw(
    keys: types.PRNGKeys, number: int | Array
) -> tuple[types.PRNGKeys, types.PRNGKeys]:
    """Return the keys of a draw's noise and probes, one of each per image."""
    keys = jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
    keys_noise, keys_probes = numerics.split_each(keys, 2)
    return keys_noise, keys_probes
