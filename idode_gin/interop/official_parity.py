"""Functions that reproduce what the published i-DODE programs compute differently.

`official_evaluation` uses them to report published figures beside the corrected ones.

    decoder      z_0 / alpha_0 is divided by alpha_0 a second time
                 (about 0.02 bits per dim on the straight path, below 1e-5 on the
                 variance-preserving path)
    importance   log K is not subtracted: K samples report log2(K) / d bits per dim too low
    one sample   the mean of five log-likelihoods is reported
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from idode_gin import types
from idode_gin.dequantizers.base import CleanEnd

REPEATS_OF_ONE_SAMPLE = 5
"""Number of dequantization draws averaged for the published `num_importance=1`."""


def decoder_log_prob(end: CleanEnd, x: types.Pixels, y: types.Images) -> types.PerExample:
    """Return log P(x | y) for y = z_0 / alpha_0 divided by alpha_0 again, nats per image.

    The corrected value is `end.encoding.log_prob(x, y, end.gamma)`.
    """
    return end.encoding.log_prob(x, y / end.alpha, end.gamma)


def level_log_probs(end: CleanEnd, y: types.Images) -> Array:
    """Return log P(level | y) for every level, with the second division: `[B, H, W, C, V]`."""
    return end.encoding.level_log_probs(y / end.alpha, end.gamma)


def reconstruction_term(end: CleanEnd, x: types.Pixels, noise: types.Images) -> types.PerExample:
    """Return -log P(x | z_0) as published, nats; `losses.base` has the correct one."""
    y = end.encoding.encode(x) + jnp.exp(end.gamma / 2) * noise
    return -decoder_log_prob(end, x, y)


def decode(end: CleanEnd, z: types.Images) -> types.Pixels:
    """Decode latents at the clean end to levels, with the second division."""
    return end.encoding.decode(z / end.alpha / end.alpha)


def importance_log_likelihood(log_weights: Float[Array, "draws batch"]) -> types.PerExample:
    """Return log sum_k w_k as published, without -log K, nats per image.

    The published single-sample figure is the mean of five `log_weights` instead:
    see `one_sample_log_likelihood`.
    """
    return jax.nn.logsumexp(log_weights, axis=0)


def one_sample_log_likelihood(log_weights: Float[Array, "repeats batch"]) -> types.PerExample:
    """Return the mean over repeats that the published `num_importance=1` reports, nats."""
    return jnp.mean(log_weights, axis=0)
