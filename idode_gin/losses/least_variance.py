"""Train the interior of gamma(t) by the variance of the loss, within the same backward pass."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax

from idode_gin import numerics, types
from idode_gin.losses.base import LossTerms

Sampled: TypeAlias = tuple[types.PerExample, types.PerExample]
"""Gammas of a batch and their sampling densities."""


def terms(
    terms_at: Callable[[types.Params, types.PerExample, types.PerExample, Any], LossTerms],
    params: types.Params,
    by_bound: Sampled,
    by_variance: Sampled,
    others: Any,
    dims: int,
) -> LossTerms:
    """Return `terms_at(params, *by_bound, others)`, with another gradient through `by_variance`.

    With L the terms of an example, in bits per dim:

        d sum(L) / d params, d sum(L) / d by_bound        the gradient of the loss
        d sum(L^2) / d by_variance = 2 L dL / d by_variance

    The mean of L does not depend on the interior of gamma(t), so the gradient of the mean of L^2 is
    that of its variance. Both gradients come from one backward pass of the network.

    Args:
        terms_at: terms of the loss for parameters, gammas and densities, differentiable in these.
        params: parameters of the network.
        by_bound: samples as a function of the ends of gamma(t) alone.
        by_variance: the same numbers as a function of its interior alone.
        others: all other arrays that `terms_at` uses; they get no gradient.
        dims: values of an image.
    Refs: VDM, optimizing the noise schedule for the variance.
    """

    @jax.custom_vjp
    def call(params: Any, by_bound: Sampled, by_variance: Sampled, others: Any) -> LossTerms:
        return terms_at(params, *by_bound, others)

    def forward(params: Any, by_bound: Sampled, by_variance: Sampled, others: Any) -> Any:
        def at(params: Any, gamma: types.PerExample, density: types.PerExample) -> LossTerms:
            return terms_at(params, gamma, density, others)

        found, pullback = jax.vjp(at, params, *by_bound)
        return found, (found, pullback)

    def backward(kept: Any, cotangents: LossTerms) -> Any:
        found, pullback = kept
        of_params, *of_samples = pullback(cotangents)
        scale = 2 * numerics.nats_to_bpd(found.diffusion + found.second_order, dims)
        return of_params, tuple(of_samples), tuple(scale * each for each in of_samples), None

    call.defvjp(forward, backward)
    return call(params, by_bound, by_variance, others)
