"""Images of classes whose best network is known: Gaussian pixels with a mean for each class."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import tiny

from idode_gin import numerics
from idode_gin.feed import data
from idode_gin.networks import base
from idode_gin.parameterizations.velocity import Velocity
from idode_gin.schedules.time import linear
from idode_gin.schedules.variance_preserving import VariancePreserving

MEANS, STD = (-0.2, 0.0, 0.2), 0.3
COUNT = len(MEANS)
NAMES = ("dark", "grey", "light")
GAMMA_MIN, GAMMA_MAX = linear.gamma_min_for_levels(tiny.LEVELS), 5.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassGaussians(base.AbstractNetwork):
    """The optimal network for f ~ N(mean of the class, STD^2), or of one mean: `ignoring`."""

    num_classes: int = COUNT
    conditioning_size: int = 1
    ignoring: float | None = None

    def init(self, key, image_shape):
        return {"unused": jnp.zeros(1)}

    def __call__(self, params, z, time, conditioning, key=None):
        schedule, gamma = VariancePreserving(), GAMMA_MIN + time * (GAMMA_MAX - GAMMA_MIN)
        assert conditioning.shape[1] == self.conditioning_size + self.num_classes
        mean = conditioning[:, self.conditioning_size :] @ jnp.asarray(MEANS, z.dtype)
        if self.ignoring is not None:
            mean = jnp.full_like(mean, self.ignoring)
        alpha, sigma = (
            numerics.expand(each(gamma), z) for each in (schedule.alpha, schedule.sigma)
        )
        mean = numerics.expand(mean, z)
        noise = sigma * (z - alpha * mean) / ((alpha * STD) ** 2 + sigma**2)
        return Velocity().target(schedule, gamma, z, noise)


def model(**changes):
    fields = {"network": ClassGaussians(**changes), "image_shape": tiny.SHAPE}
    return tiny.model(**fields)


def unlabelled(number=60, seed=0):
    """A split of images of all classes in turn, without their labels."""
    mean = np.asarray(MEANS)[labels(number)][:, None, None, None]
    noise = np.random.default_rng(seed).normal(size=(number, *tiny.SHAPE))
    levels = np.round(((mean + STD * noise + 1) * tiny.LEVELS - 1) / 2)
    images = np.clip(levels, 0, tiny.LEVELS - 1).astype(np.uint8)
    return data.ImageSplit(
        images=images, conditioning=np.zeros((number, 1), np.float32), name="c", split="test"
    )


def labels(number=60):
    return np.arange(number) % COUNT


def split(number=60, seed=0):
    named = {"num_classes": COUNT, "class_names": NAMES}
    return dataclasses.replace(unlabelled(number, seed), labels=labels(number), **named)


def exact_log_p(images, ends_in_prior=False):
    """log N(f; mean of the class, STD^2) without constants, `[N, C]`.

    The ODE makes another Gaussian of the prior N(0, sigma^2), which is not quite the latents' own
    at GAMMA_MAX; with `ends_in_prior` it is that one.
    """
    mean, std = np.asarray(MEANS), STD
    if ends_in_prior:
        (alpha, alpha_end), (sigma, sigma_end) = (
            np.asarray(each(jnp.asarray([GAMMA_MIN, GAMMA_MAX])))
            for each in (VariancePreserving().alpha, VariancePreserving().sigma)
        )
        ratio = np.hypot(alpha * STD, sigma) / np.hypot(alpha_end * STD, sigma_end)
        mean, std = mean * (1 - ratio * alpha_end / alpha), ratio * sigma_end / alpha
    f = (2 * np.asarray(images, float) + 1) / tiny.LEVELS - 1
    return -0.5 * (((f.reshape(len(f), -1, 1) - mean) / std) ** 2).sum(axis=1)


def exact_accuracy():
    """Probability that the likeliest of the equally likely classes is the right one."""
    distance = (MEANS[1] - MEANS[0]) * math.sqrt(math.prod(tiny.SHAPE)) / STD
    below = float(jax.scipy.stats.norm.cdf(distance / 2))
    return (2 * below + (2 * below - 1)) / 3  # two classes at the ends, one between
