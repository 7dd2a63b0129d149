"""A model of your own, with the methods of a trained one: `idode_gin.wrap` and `wrap_flow`.

flow = idode_gin.wrap_flow(v, (32, 32, 3), data_at=1, inputs=(-1.0, 1.0))
scored = flow.bits_per_dim(images, bound="uniform")  # integers [N, H, W, C]
print(scored.mean, "±", scored.standard_error, "solver:", scored.solver_error)
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, final

import jax
import numpy as np
from jaxtyping import Array

from idode_gin import checks, numerics, types
from idode_gin.devices.partitioning import PjitPartitioner
from idode_gin.encoding import Encoding
from idode_gin.likelihood import any_field
from idode_gin.losses.first_order import FirstOrder
from idode_gin.models import DiffusionODE
from idode_gin.networks.base import AbstractNetwork, Conditioning
from idode_gin.parameterizations.base import AbstractParameterization
from idode_gin.parameterizations.noise import Noise
from idode_gin.parameterizations.velocity import Velocity
from idode_gin.schedules.base import AbstractSchedule
from idode_gin.schedules.straight_path import StraightPath
from idode_gin.schedules.time.linear import Linear, gamma_min_for_levels
from idode_gin.schedules.variance_preserving import VariancePreserving
from idode_gin.time_samplers.uniform import Uniform
from idode_gin.trained import TrainedModel

_VARIANCE_PRESERVING, _NOISE = VariancePreserving(), Noise()
_PARAMS = "function"


def wrap(
    function: Callable[..., Array],
    image_shape: tuple[int, int, int],
    *,
    params: Any = None,
    levels: int = 256,
    inputs: tuple[float, float] | None = None,
    num_classes: int = 0,
    schedule: AbstractSchedule = _VARIANCE_PRESERVING,
    parameterization: AbstractParameterization = _NOISE,
    gamma_min: float | None = None,
    gamma_max: float = 5.0,
) -> TrainedModel:
    """Return any JAX function as a model of images, on all devices of this process.

    Args:
        function: `(z, gamma) -> output`, image by image: z `[B, H, W, C]`, gamma `[B]`, with
            gamma = log(sigma^2 / alpha^2), output of z's shape.
        image_shape: (height, width, channels).
        params: if given, they are the first argument: `(params, z, gamma)`. Arrays that the
            function holds itself are compiled into every program: later calls do not see others.
        levels: V of integer images, 0 … V-1.
        inputs: values of the levels 0 and V-1 in the data that the function was trained on:
            (-1.0, 1.0) for x / 127.5 - 1. None is the scale of this project, 2 (x + 1/2) / V - 1.
        num_classes: C; if given, the last argument is the image's class, `[B, C]`, 1 for its own.
        schedule: path that the function was trained on.
        parameterization: meaning of the output.
        gamma_min: clean end, nats, at the scale of this project; None is -2 log(3 V).
        gamma_max: noise end, nats, likewise.

    Raises:
        TypeError: if an argument has another type.
        ValueError: if one is out of range; when images are scored, if the output has another shape.
    """
    any_field.check_instances(
        schedule=(schedule, AbstractSchedule, "VariancePreserving()"),
        parameterization=(parameterization, AbstractParameterization, "Noise()"),
    )
    _check_params(params)
    any_field.check_takes("function", function, _arguments("gamma", params, num_classes))
    encoding = Encoding(levels=levels)
    encoding.check(image_shape)
    checks.check_integer("num_classes", num_classes, at_least=0)
    low, high = any_field.checked_range(
        gamma_min_for_levels(levels) if gamma_min is None else gamma_min, gamma_max
    )
    time = Linear(gamma_min=low, gamma_max=high)
    scale, shift = _scale(inputs, levels)
    network = _Function(
        function=function,
        has_params=params is not None,
        num_classes=num_classes,
        time=time,
        schedule=schedule,
        parameterization=parameterization,
        scale=scale,
        shift=shift,
    )
    partitioner = PjitPartitioner()
    return TrainedModel(
        model=DiffusionODE(
            network=network,
            schedule=schedule,
            time=time,
            parameterization=parameterization,
            time_sampler=Uniform(),
            loss=FirstOrder(),
            encoding=encoding,
            image_shape=image_shape,
        ),
        params=jax.device_put({_PARAMS: params}, partitioner.replicated),
        partitioner=partitioner,
    )


def wrap_flow(
    velocity: Callable[..., Array],
    image_shape: tuple[int, int, int],
    *,
    data_at: int,
    params: Any = None,
    num_classes: int = 0,
    gamma_max: float = 12.0,
    **options: Any,
) -> TrainedModel:
    """Return a flow-matching model as a model of images.

    With `data_at=0`, z_t = (1 - t) x + t eps, and the velocity is eps - x; with `data_at=1`,
    z_t = t x + (1 - t) eps, and the velocity is x - eps. In both it is dz / dt.

    Args:
        velocity: `(z, t) -> dz / dt`, z `[B, H, W, C]`, t `[B]` from 0 to 1.
        image_shape: (height, width, channels).
        data_at: the t of data, 0 or 1.
        params: if given, they are the first argument of `velocity`, see `wrap`.
        num_classes: if given, the image's class is the last argument, likewise.
        gamma_max: noise end, nats. A flow is trained on all t, so it can be near noise: at 12, t is
            0.0025 from it.
        options: `levels`, `inputs` and `gamma_min` of `wrap`.

    Raises:
        TypeError: if an argument has another type.
        ValueError: as `wrap`, and if `data_at` is neither 0 nor 1.
    """
    if data_at not in (0, 1):
        raise ValueError(
            "`data_at` must be the time of data, 0 (z_t = (1 - t) x + t eps) or 1 "
            f"(z_t = t x + (1 - t) eps), got {data_at!r}."
        )
    any_field.check_takes("velocity", velocity, _arguments("t", params, num_classes))
    sign, place = 1 - 2 * data_at, 1 if params is None else 2

    def per_length(*arguments: Any) -> Array:
        """Return the velocity from data to noise; the path has length sqrt 2."""
        t = jax.nn.sigmoid(sign * arguments[place] / 2)  # sigmoid(gamma / 2) is the noise's share
        found = velocity(*arguments[:place], t, *arguments[place + 1 :])
        # What is no array is refused by `_Function`.
        return sign * found / math.sqrt(2) if hasattr(found, "shape") else found

    return wrap(
        per_length,
        image_shape,
        params=params,
        num_classes=num_classes,
        schedule=StraightPath(),
        parameterization=Velocity(),
        gamma_max=gamma_max,
        **options,
    )


def _check_params(params: Any) -> None:
    """Raise TypeError unless all leaves are arrays or numbers."""
    for leaf in jax.tree.leaves(params):
        if not isinstance(leaf, jax.Array | np.ndarray | np.generic | int | float):
            raise TypeError(
                f"`params` must hold arrays alone, got {leaf!r}. Split off what is no array (in "
                "Equinox by `eqx.partition(model, eqx.is_array)`), and join it in the function."
            )


def _arguments(time: str, params: Any, num_classes: int) -> list[str]:
    before = [] if params is None else ["params"]
    return [*before, "z", time, *(["classes"] if num_classes else [])]


def _scale(inputs: tuple[float, float] | None, levels: int) -> tuple[float, float]:
    """Return s and m such that the function's data is s f + m; 1 and 0 for its own scale."""
    if inputs is None:
        return 1.0, 0.0
    first, last = map(float, inputs)
    if not (math.isfinite(first) and math.isfinite(last) and first < last):
        raise ValueError(
            "`inputs` must be the values of the lowest and the highest level in the training data, "
            f"such as (-1.0, 1.0), got {inputs}."
        )
    return (last - first) / (2 * (levels - 1) / levels), (first + last) / 2


@final
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Function(AbstractNetwork):
    """A function of data s f + m as a network of data f.

    The function's latent of the same image and noise is z' = alpha' (s f + m) + sigma' eps. It is
    a multiple of z plus a constant where sigma' / alpha' = s sigma / alpha, which gives its gamma:

        gamma' = gamma + 2 log s        z' = (alpha' s / alpha) z + alpha' m

    The noise that it predicts there is that of z.
    """

    function: Callable[..., Array]
    has_params: bool
    num_classes: int
    time: Linear
    schedule: AbstractSchedule
    parameterization: AbstractParameterization
    scale: float
    shift: float
    conditioning_size: int = 0

    def init(self, key: types.PRNGKey, image_shape: tuple[int, int, int]) -> types.Params:
        """Raise ValueError: the function's parameters are not made here."""
        raise ValueError("A wrapped function has the parameters that it was given.")

    def __call__(
        self,
        params: types.Params,
        z: types.Images,
        time: types.PerExample,
        conditioning: Conditioning,
        key: types.PRNGKeys | None = None,
    ) -> types.Images:
        """Return the output that the function gives for its own latent; `key` is not used."""
        gamma = self.time.gamma(time)
        if (self.scale, self.shift) == (1.0, 0.0):
            return self._output(params, z, gamma, conditioning)
        own_gamma = gamma + 2 * math.log(self.scale)
        own_alpha = self.schedule.alpha(own_gamma)
        rate = own_alpha * self.scale / self.schedule.alpha(gamma)
        own_z = numerics.expand(rate, z) * z + numerics.expand(own_alpha * self.shift, z)
        output = self._output(params, own_z, own_gamma, conditioning)
        noise = self.parameterization.noise_hat(self.schedule, own_gamma, own_z, output)
        return self.parameterization.target(self.schedule, gamma, z, noise)

    def _output(
        self, params: types.Params, z: types.Images, gamma: types.PerExample, classes: Array
    ) -> types.Images:
        before = (params[_PARAMS],) if self.has_params else ()
        after = (classes,) if self.num_classes else ()
        output = self.function(*before, z, gamma, *after)
        if getattr(output, "shape", None) != z.shape:
            raise ValueError(
                f"The function must return one number for each of z, {list(z.shape)}, got "
                f"{getattr(output, 'shape', type(output).__name__)}."
            )
        numerics.warn_if_coarse(output.dtype)
        return output.astype(z.dtype)
