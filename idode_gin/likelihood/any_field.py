"""The log-density of data under any probability-flow field, in one call.

    def noise_hat(z, gamma):  # [B, *shape], [B] -> [B, *shape]
        return network.apply(params, z, gamma)

    log_p = log_prob(noise_hat, x, jax.random.key(0), gamma_min=-10.0, gamma_max=6.0)

The ODE runs from `gamma_min` to `gamma_max`, the range that the field was trained on. The defaults
suit image networks for 256 levels. Both ends affect the result:

- At `gamma_min`, log p(x) = log p(z) + d log alpha with z = alpha x: the density, at x, of the data
  with added noise of standard deviation e^{gamma_min / 2}.
- At `gamma_max` z is assumed to be N(0, sigma^2 I). For an exact field and centred data, the error
  of one example is up to about e^{-gamma_max} |x|^2 / 2 nats (0.0034 |x|^2 at 5, 3e-6 |x|^2 at 12);
  data of mean m cost about e^{-gamma_max / 2} |m| more. The mean over examples is too low by at
  most the mean of e^{-gamma_max} |x|^2 / 2. A field in closed form can be integrated further.

The result can be differentiated with respect to x and to what `field` holds: in forward mode with
every solver, in reverse mode with grids (`Adams`, `FixedGrid`), which keep the state of each step
and compute the field again. A field with side effects (`jax.experimental.io_callback`) has no
gradient in reverse mode. Call `log_prob` inside `jax.jit`: outside, every call compiles.

Refs: VDM, the prior loss.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from idode_gin import checks, numerics, ode, types
from idode_gin.integration_variables.base import AbstractIntegrationVariable
from idode_gin.integration_variables.exponential import Exponential
from idode_gin.likelihood.density import log_density
from idode_gin.parameterizations.base import AbstractParameterization
from idode_gin.parameterizations.noise import Noise
from idode_gin.schedules.base import AbstractSchedule
from idode_gin.schedules.variance_preserving import VariancePreserving
from idode_gin.solvers.adams import Adams
from idode_gin.solvers.base import AbstractSolver
from idode_gin.solvers.divergence import AbstractDivergence, Hutchinson

_EXPONENTIAL = Exponential()
_VARIANCE_PRESERVING, _NOISE = VariancePreserving(), Noise()
_ADAMS, _HUTCHINSON = Adams(steps=64), Hutchinson()


def log_prob(
    field: Callable[..., Array],
    x: Float[Array, "batch *shape"],
    key: types.PRNGKey,
    *,
    args: tuple[Any, ...] = (),
    schedule: AbstractSchedule = _VARIANCE_PRESERVING,
    parameterization: AbstractParameterization = _NOISE,
    gamma_min: float = -13.3,
    gamma_max: float = 5.0,
    solver: AbstractSolver = _ADAMS,
    variable: AbstractIntegrationVariable = _EXPONENTIAL,
    divergence: AbstractDivergence = _HUTCHINSON,
    lanes: int | None = None,
) -> Float[Array, " batch"]:
    """Return log p(x) of data under a field, nats, `[B]`; NaN where a solve did not finish.

    Args:
        field: `(z, gamma, *args) -> output`, example by example; gamma = log(sigma^2 / alpha^2).
        x: data, real numbers `[B, *shape]` of any shape.
        key: key of the probes; those of an example do not depend on the others.
        args: further arguments of the field, per example, leaves `[B, ...]`.
        schedule: path that the model was trained on: `VariancePreserving()`, or `StraightPath()`
            for flow matching.
        parameterization: meaning of the output: `Noise()`, `Data()`, `Score()`, or `Velocity()` per
            unit of path length: flow matching's eps - x at t = sigma is
            `lambda z, gamma: v(z, jax.nn.sigmoid(gamma / 2)) / sqrt(2)`, on `StraightPath()`.
        gamma_min: clean end, nats.
        gamma_max: noise end, nats, where the prior is N(0, sigma^2 I).
        solver: solver of the ODE. Its error is not measured: compare with twice the steps, or with
            `DormandPrince()`.
        variable: variable that the ODE is integrated in.
        divergence: method for the trace: by default one random probe, whose noise is in the result;
            `divergence.Exact()` for few dimensions.
        lanes: examples integrated at the same time; None for all.

    Raises:
        TypeError: if an argument has another type.
        ValueError: if gamma_max is not above gamma_min, x is empty, or the output of the field or
            an entry of `args` has another shape.
    """
    check_instances(
        schedule=(schedule, AbstractSchedule, "VariancePreserving()"),
        parameterization=(parameterization, AbstractParameterization, "Noise()"),
        solver=(solver, AbstractSolver, "Adams(steps=64)"),
        variable=(variable, AbstractIntegrationVariable, "Exponential()"),
        divergence=(divergence, AbstractDivergence, "Hutchinson()"),
    )
    gamma_min, gamma_max = checked_range(gamma_min, gamma_max)
    check_key(key)
    if lanes is not None:
        checks.check_integer("lanes", lanes, at_least=1)
    x = _checked_data(x)
    _check_args(args, x.shape[0])
    check_takes("field", field, ["z", "gamma", *(f"args[{i}]" for i in range(len(args)))])
    network = _on_images(field, x.shape)
    bound = ode.Field(
        schedule=schedule, parameterization=parameterization, network=network, args=args
    )
    count, dims = x.shape[0], math.prod(x.shape[1:])
    alpha = schedule.alpha(jnp.asarray(gamma_min, x.dtype))
    keys = numerics.fold_in_each(key, jnp.arange(count))
    found = log_density(
        bound,
        alpha * x.reshape(count, dims, 1, 1),
        gamma_min,
        gamma_max,
        solver,
        divergence,
        divergence.draw(keys, (dims, 1, 1)),
        variable,
        lanes,
    )
    return jnp.where(found.success, found.log_p + dims * jnp.log(alpha), jnp.nan)


def _on_images(field: Callable[..., Array], shape: tuple[int, ...]) -> types.NetworkFn:
    """Return `field`, for data of `shape`, as a function of images `[B, values, 1, 1]`."""

    def network(z: Array, gamma: Array, *args: Any) -> Array:
        output = field(z.reshape(-1, *shape[1:]), gamma, *args)
        expected = (z.shape[0], *shape[1:])
        if getattr(output, "shape", None) != expected:
            raise ValueError(
                f"`field` must return one value for each input value, of shape {list(expected)}, "
                f"got {_described(output)}."
            )
        return output.reshape(z.shape).astype(z.dtype)

    return network


def _described(value: Any) -> str:
    """Describe an array by dtype and shape, anything else by its type."""
    shape = getattr(value, "shape", None)
    return type(value).__name__ if shape is None else f"{value.dtype} {list(shape)}"


def check_instances(**given: tuple[object, type, str]) -> None:
    """Raise TypeError for a value that is not an instance of its class."""
    for name, (value, kind, example) in given.items():
        if isinstance(value, kind):
            continue
        got = repr(value)
        if isinstance(value, type):
            got = f"the class {value.__name__} instead of an instance"
            example = f"{value.__name__}(…)" if issubclass(value, kind) else example
        folder = kind.__module__.removesuffix(".base")
        raise TypeError(f"`{name}` must be one of {folder}, such as {example}, got {got}.")


def checked_range(gamma_min: Any, gamma_max: Any) -> tuple[float, float]:
    """Return both as floats.

    Raises:
        TypeError: if they are not static numbers.
        ValueError: unless they are finite and gamma_max is larger.
    """
    for name, value in (("gamma_min", gamma_min), ("gamma_max", gamma_max)):
        if isinstance(value, jax.core.Tracer | str) or np.ndim(value):
            raise TypeError(
                f"`{name}` must be a single static number, got {name}={value!r}. In jax.jit, make "
                "it a static argument."
            )
    low, high = float(gamma_min), float(gamma_max)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(
            "`gamma_max`, the noise end, must be above `gamma_min`, the clean end, and both finite "
            f"(gamma = log(sigma^2 / alpha^2)), got gamma_min={low} and gamma_max={high}. Give the "
            "range that the field was trained on, such as gamma_min=-13.3, gamma_max=5.0."
        )
    return low, high


def check_key(key: Any) -> None:
    """Raise TypeError unless `key` is a single random key."""
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
    typed = dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)
    if not (typed and shape == ()) and not (dtype == np.uint32 and shape == (2,)):
        raise TypeError(
            "`key` must be one random key, such as jax.random.key(0), from which keys of examples "
            f"are derived, got {_described(key)}."
        )


def _checked_data(x: Any) -> Array:
    """Return x in JAX's float type: float32 unless `jax_enable_x64` is set.

    Raises:
        TypeError: if x does not hold real numbers.
        ValueError: if x is empty or has no batch axis.
    """
    dtype = getattr(x, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"`x` must be an array of real numbers, such as float32, got {_described(x)}. Scale "
            "pixels to the range of the training data, for example x.astype(jnp.float32) / 127.5 - "
            "1. For the probability of integer pixels use ode_likelihood.ODELikelihood."
        )
    if np.ndim(x) < 1:
        raise ValueError("`x` must have a batch axis, `[B, *shape]`, got a single number: x[None].")
    if 0 in x.shape:
        raise ValueError(f"`x` must hold numbers, `[B, *shape]`, got an empty {list(x.shape)}.")
    return jnp.asarray(x, numerics.float_dtype())


def check_takes(name: str, function: Any, arguments: Sequence[str]) -> None:
    """Raise TypeError unless `function` takes the arguments, by position."""
    expected = f"({', '.join(arguments)})"
    if not callable(function):
        raise TypeError(f"`{name}` must be a function of {expected}, got {function!r}.")
    try:
        signature = inspect.signature(function)
    except ValueError:  # compiled callables may lack a signature
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise TypeError(
            f"`{name}` must take {expected}, got a function of {signature}: {error}."
        ) from error


def _check_args(args: Any, count: int) -> None:
    """Raise TypeError or ValueError unless `args` is a tuple with a row for each example."""
    if not isinstance(args, tuple):
        raise TypeError(f"`args` must be a tuple, such as args=(labels,), got {_described(args)}.")
    for leaf in jax.tree.leaves(args):
        if np.shape(leaf)[:1] != (count,):
            raise ValueError(
                f"`args` must have a row for each of the {count} examples, got an entry of shape "
                f"{list(np.shape(leaf))}. Bind what all examples share, such as parameters, in the "
                "function: lambda z, gamma: field(params, z, gamma)."
            )
