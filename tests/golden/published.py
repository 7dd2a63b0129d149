"""Values of the published program that carry its second division by alpha_0."""

import jax.numpy as jnp

from idode_gin.interop import official_evaluation


def level_log_probs(end, y):
    """Return log P(level | y) for every level: `[B, H, W, C, V]`."""
    return end.encoding.level_log_probs(y / end.alpha, end.gamma)


def reconstruction_term(end, x, noise):
    """Return -log P(x | z_0), nats; `losses.base` has the correct one."""
    y = end.encoding.encode(x) + jnp.exp(end.gamma / 2) * noise
    return -official_evaluation.decoder_log_prob(end, x, y)


def decode(end, z):
    """Decode latents at the clean end to levels."""
    return end.encoding.decode(z / end.alpha / end.alpha)
