"""Error-bounded second-order maximum likelihood, for fine-tuning."""

import dataclasses
from typing import ClassVar, final

import jax
import jax.numpy as jnp

from idode_gin import checks, numerics, ode, types
from idode_gin.losses import base
from idode_gin.solvers import divergence, probes


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class SecondOrder(base.AbstractLoss):
    """The first-order loss plus strength * weight * r^2 / d, with the trace residual

        r = [sigma (a T + b d) - d + a^2 sg|F* - F|^2] / a

    T is Hutchinson's estimate of tr dF/dz, weight the first-order weight 1/2 a^2 / p, and sg stops
    the gradient. At the optimal network the expectation of r given z is zero.

    The trace is computed in forward mode inside the reverse-mode gradient, from the linearization
    that also gives the value.

    The loss leaves the parameters of gamma(t) as they are.

    Args:
        strength: lambda, published 0.1.
        num_probes: probes averaged in T, published 1.
        probe: distribution of the probes.
    Refs: i-DODE, error-bounded second-order flow matching.
    """

    trains_time: ClassVar[bool] = False

    strength: float = 0.1
    num_probes: int = 1
    probe: probes.AbstractProbe = dataclasses.field(default_factory=probes.Rademacher)

    def __post_init__(self) -> None:
        checks.check_positive("strength", self.strength)
        checks.check_count("num_probes", self.num_probes)

    def draw(self, keys: types.PRNGKeys, shape: tuple[int, ...]) -> base.LossDraws:
        """Draw noise and probes."""
        keys_noise, keys_probes = numerics.split_each(keys, 2)
        noise = numerics.normal_each(keys_noise, shape)
        return base.LossDraws(noise=noise, probes=self._trace.draw(keys_probes, shape))

    def __call__(
        self,
        field: ode.Field,
        f: types.Images,
        gamma: types.PerExample,
        density: types.PerExample,
        draws: base.LossDraws,
    ) -> base.LossTerms:
        """Return both terms, nats."""
        dims = numerics.num_dims(f)
        z = ode.noised(field.schedule, f, gamma, draws.noise)
        target = field.parameterization.target(field.schedule, gamma, z, draws.noise)
        output, trace = self._trace.value_and_trace(
            lambda z: field.output(z, gamma), z, draws.probes
        )
        error = numerics.sum_pixels((target - output) ** 2)
        a = field.parameterization.noise_scale(field.schedule, gamma)
        b = field.parameterization.latent_scale(field.schedule, gamma)
        sigma = field.schedule.sigma(gamma)
        excess = sigma * (a * trace + b * dims) - dims + a**2 * jax.lax.stop_gradient(error)
        weight = a**2 / (2 * density)
        return base.LossTerms(
            diffusion=weight * error,
            second_order=self.strength * weight * jnp.square(excess / a) / dims,
        )

    @property
    def _trace(self) -> divergence.Hutchinson:
        return divergence.Hutchinson(num_probes=self.num_probes, probe=self.probe)
