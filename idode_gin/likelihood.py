"""The ODE's log-density, and the bounds on an image's bits per dim that stand on it."""

import dataclasses
import math
from typing import NamedTuple, final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from idode_gin import checks, numerics, ode, types
from idode_gin.dequantizers.base import AbstractDequantizer, CleanEnd
from idode_gin.solvers.adaptive import DormandPrince
from idode_gin.solvers.base import AbstractSolver
from idode_gin.solvers.divergence import AbstractDivergence, Hutchinson, Probes


class Density(NamedTuple):
    """The log-density of latents under the ODE, per image."""

    log_p: types.PerExample
    """log p(z), nats."""
    latent: types.Images
    """Where the ODE took z: the latent at the noise end."""
    log_det: types.PerExample
    """log p(z) minus the prior's log-density of `latent`, nats."""
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
) -> Density:
    """log p(z) of latents at `gamma_start`, from the prior N(0, sigma^2 I) at `gamma_end`.

        log p(z) = log N(z_end; 0, sigma_end^2 I) + integral of the drift's divergence

    The log-density per dim is part of the solver's state, so its tolerances are nats per dim.
    Refs: FFJORD, instantaneous change of variables.
    """
    dims = numerics.num_dims(z)

    def rate(gamma: types.PerExample, state: tuple[Array, Array]) -> tuple[Array, Array]:
        drift, trace = field.drift_and_divergence(state[0], gamma, divergence, probes)
        return drift, trace / dims

    start = (z, jnp.zeros(z.shape[0], z.dtype))
    solution = solver.solve(rate, start, gamma_start, gamma_end)
    latent, log_det_per_dim = solution.state
    log_det = dims * log_det_per_dim
    sigma = field.schedule.sigma(jnp.asarray(gamma_end, z.dtype))
    return Density(
        log_p=_log_normal(latent, sigma) + log_det,
        latent=latent,
        log_det=log_det,
        num_evaluations=solution.num_evaluations,
        success=solution.success,
    )


class ImageLikelihood(NamedTuple):
    """A lower bound on log P(x), per image."""

    log_p: types.PerExample
    """The bound, nats; mean over repeats."""
    repeats: Float[Array, "repeats batch"]
    """The bound of each repeat, nats."""
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
        solver: of the ODE.
        divergence: how the trace is taken; each draw has its own probes.
        num_importance: K, importance samples inside the logarithm; more make the bound tighter.
        num_repeats: independent bounds to average; more make its estimate less noisy.
    Refs: i-DODE, dequantization and importance-weighted likelihood (there without -log K).
    """

    dequantizer: AbstractDequantizer
    solver: AbstractSolver = dataclasses.field(default_factory=DormandPrince)
    divergence: AbstractDivergence = dataclasses.field(default_factory=Hutchinson)
    num_importance: int = 1
    num_repeats: int = 1

    def __post_init__(self) -> None:
        """Checks the counts."""
        checks.check_positive("num_importance", self.num_importance)
        checks.check_positive("num_repeats", self.num_repeats)

    def __call__(
        self,
        field: ode.Field,
        end: CleanEnd,
        gamma_max: float,
        x: types.Pixels,
        keys: types.PRNGKeys,
    ) -> ImageLikelihood:
        """The bound for integer images `x`, with the noise of each image's own key."""
        shape = x.shape[1:]

        def draw(number: Array) -> tuple[Array, Density]:
            keys_here = jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
            keys_noise, keys_probes = numerics.split_each(keys_here, 2)
            noise = self.dequantizer.draw(keys_noise, shape, end)
            probes = self.divergence.draw(keys_probes, shape)
            return self.log_weight(field, end, gamma_max, x, noise, probes)

        count = self.num_repeats * self.num_importance
        log_weights, densities = jax.lax.map(draw, jnp.arange(count))
        log_weights = log_weights.reshape(self.num_repeats, self.num_importance, -1)
        repeats = jax.vmap(numerics.log_mean_exp)(log_weights)
        return ImageLikelihood(
            log_p=jnp.mean(repeats, axis=0),
            repeats=repeats,
            num_evaluations=jnp.mean(densities.num_evaluations, axis=0, dtype=repeats.dtype),
            success=jnp.all(densities.success, axis=0),
        )

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
        """
        z = self.dequantizer.start(x, noise, end)
        density = log_density(
            field,
            z,
            self.dequantizer.gamma_start(end),
            gamma_max,
            self.solver,
            self.divergence,
            probes,
        )
        if self.num_importance == 1:
            neg_log_q = self.dequantizer.entropy(numerics.num_dims(z), end)
        else:
            neg_log_q = self.dequantizer.neg_log_q(noise, end)
        return density.log_p + self.dequantizer.log_reconstruction(x, z, end) + neg_log_q, density


def _log_normal(latent: types.Images, sigma: Array) -> types.PerExample:
    """log N(latent; 0, sigma^2 I), nats."""
    log_scale = 0.5 * math.log(2 * math.pi) + jnp.log(sigma)
    squares = numerics.sum_pixels((latent / sigma) ** 2)
    return -0.5 * squares - numerics.num_dims(latent) * log_scale
