"""First-order maximum likelihood: the diffusion term of the bound."""

import dataclasses
from typing import ClassVar, final

import jax.numpy as jnp

from idode_gin import numerics, ode, types
from idode_gin.losses import base


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class FirstOrder(base.AbstractLoss):
    """1/2 a(gamma)^2 / p(gamma) |F* - F|^2: unbiased for the bound's diffusion term.

    Equal to 1/2 |eps - eps_hat|^2 / p(gamma) for every parameterization.
    Refs: i-DODE, likelihood weighting; VDM, continuous-time loss.
    """

    reverse_mode_only: ClassVar[bool] = True

    def draw(self, keys: types.PRNGKeys, shape: tuple[int, ...]) -> base.LossDraws:
        """Draw noise; no probes."""
        noise = numerics.normal_each(keys, shape)
        return base.LossDraws(noise=noise, probes=jnp.zeros((0, *noise.shape), noise.dtype))

    def __call__(
        self,
        field: ode.Field,
        f: types.Images,
        gamma: types.PerExample,
        density: types.PerExample,
        draws: base.LossDraws,
    ) -> base.LossTerms:
        """Return the diffusion term, nats."""
        z = ode.noised(field.schedule, f, gamma, draws.noise)
        target = field.parameterization.target(field.schedule, gamma, z, draws.noise)
        weight = field.parameterization.weight(field.schedule, gamma) / (2 * density)
        diffusion = weight * numerics.sum_pixels((target - field.output(z, gamma)) ** 2)
        return base.LossTerms(diffusion=diffusion, second_order=jnp.zeros_like(diffusion))
