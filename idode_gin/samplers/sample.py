"""One call that samples from any field: images, and their log-density if asked for."""

from idode_gin import ode, types
from idode_gin.dequantizers.base import CleanEnd
from idode_gin.encoding import Encoding
from idode_gin.samplers.base import AbstractSampler, Samples
from idode_gin.samplers.ode import ODESampler
from idode_gin.solvers.divergence import AbstractDivergence, Hutchinson


def sample(
    field: ode.Field,
    keys: types.PRNGKeys,
    image_shape: tuple[int, ...],
    gamma_min: float,
    gamma_max: float,
    *,
    sampler: AbstractSampler | None = None,
    return_log_prob: bool = False,
    divergence: AbstractDivergence | None = None,
    levels: int = 256,
) -> Samples:
    """One image per key, a function of its own key; `log_p` is None unless asked for.

    Args:
        field: network, path, and what the network's output means.
        keys: one per image, `[B]`.
        image_shape: (height, width, channels).
        gamma_min: of the clean end, nats.
        gamma_max: of the noise end, where z is taken to be sigma N(0, I); nats.
        sampler: how noise becomes an image; the ODE with adaptive steps if not given.
        return_log_prob: give log p(z) of each latent as well, in nats, from the same solve. It is
            what `likelihood.log_density` finds for `latent`, up to both solvers' errors and the
            trace's noise.
        divergence: how the trace for that is taken; one Hutchinson probe if not given.
        levels: V, of the pixels that latents are decoded to.

    Raises:
        ValueError: for an image shape that is none, or a density of a sampler that has none.
    """
    encoding = Encoding(levels=levels)
    encoding.check(image_shape)
    end = CleanEnd(schedule=field.schedule, encoding=encoding, gamma_min=gamma_min)
    chosen = ODESampler() if sampler is None else sampler
    if return_log_prob:
        chosen = chosen.with_log_prob(Hutchinson() if divergence is None else divergence)
    return chosen(field, end, gamma_max, image_shape, keys)
