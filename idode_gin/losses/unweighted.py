"""The squared error of the network's output, without the weight of the likelihood."""

import dataclasses
from typing import ClassVar, final

import jax

from idode_gin import types
from idode_gin.losses import base
from idode_gin.losses.first_order import FirstOrder
from idode_gin.ode import Field


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Unweighted(base.AbstractLoss):
    """The gradient of 1/2 |F* - F|^2 at gammas of density p, whose mean is

        integral of w(gamma) 1/2 |eps - eps_hat|^2 d gamma        w = p / a^2

    Predicting noise at uniform times is DDPM's simple loss; predicting the velocity on the straight
    path is flow matching's. The value is that of `FirstOrder`, so that a run reports its bound. The
    loss is no bound, and trains no parameters of gamma(t).

    Refs: DDPM, simplified training objective; flow matching, conditional objective.
    """

    trains_time: ClassVar[bool] = False
    reverse_mode_only: ClassVar[bool] = True

    def draw(self, keys: types.PRNGKeys, shape: tuple[int, ...]) -> base.LossDraws:
        """Draw noise; no probes."""
        return FirstOrder().draw(keys, shape)

    def __call__(
        self,
        field: Field,
        f: types.Images,
        gamma: types.PerExample,
        density: types.PerExample,
        draws: base.LossDraws,
    ) -> base.LossTerms:
        """Return the diffusion term, nats, with the gradient of the unweighted loss."""
        terms = FirstOrder()(field, f, gamma, density, draws)
        scale = density / field.parameterization.weight(field.schedule, gamma)
        unweighted = terms.diffusion * jax.lax.stop_gradient(scale)
        value = jax.lax.stop_gradient(terms.diffusion - unweighted)
        return terms._replace(diffusion=value + unweighted)
