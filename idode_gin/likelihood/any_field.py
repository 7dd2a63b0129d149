"""The log-density of anyone's data under anyone's field, in one call."""

import inspect
import math
from collections.abc import Callable
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
    """log p(x) of data under a model of yours: nats, `[B]`. No checkpoint, no configuration.

        def noise_hat(z, gamma):  # [B, *shape], [B] -> [B, *shape]
            return network.apply(params, z, gamma)

        log_p = log_prob(noise_hat, x, jax.random.key(0), gamma_min=-10.0, gamma_max=6.0)

    The ODE runs from gamma_min to gamma_max: give the range that the field was trained on. The
    defaults are that of image networks of 256 levels, and either end has a part in the figure.

    - At gamma_min, log p(x) = log p(z) + d log alpha with z = alpha x: the density of the data with
      noise of deviation e^{gamma_min / 2} added, taken at x.
    - At gamma_max z is taken to be N(0, sigma^2 I), which it never quite is. Of a field that is
      right, single figures are off by up to about e^{-gamma_max} |x|^2 / 2 nats (0.0034 |x|^2 at 5,
      3e-6 |x|^2 at 12), and their mean is lower by no more than the mean of that. So go further
      out with a field that is right everywhere, such as one in closed form.

    It can be differentiated by x and by what `field` holds: in forward mode with every solver, in
    reverse mode on grids (`Adams`, `FixedGrid`); `DormandPrince` raises ValueError there. What
    `DormandPrince` does not bring to the other end in its `max_steps` is NaN.

    Args:
        field: `(z, gamma, *args) -> output`, example by example; gamma = log(sigma^2 / alpha^2).
        x: data, real numbers `[B, *shape]` of any shape.
        key: of the probes; one example's do not depend on the others.
        args: what else the field takes of each example, leaves `[B, ...]`.
        schedule: the path that the model was trained on: `VariancePreserving()`, or
            `StraightPath()` for flow matching.
        parameterization: what the output is: `Noise()`, `Data()`, `Score()`, or `Velocity()` per
            unit of the path's length. So flow matching's eps - x at t = sigma is
            `lambda z, gamma: v(z, jax.nn.sigmoid(gamma / 2)) / sqrt(2)`, on `StraightPath()`.
        gamma_min: the clean end, nats.
        gamma_max: the noise end, nats, where the prior is N(0, sigma^2 I).
        solver: of the ODE. 64 steps of Adams are 65 evaluations and nobody knows their error: score
            some x with twice as many, or with `DormandPrince()`, to see it.
        variable: what it is integrated in.
        divergence: how the trace is taken: one random probe, whose noise is in the figure;
            `divergence.Exact()` has none, for few dimensions.
        lanes: examples worked on side by side; None for all.

    Raises:
        TypeError: if an argument is of another kind.
        ValueError: if gamma_max is not above gamma_min, there are no data, or the output of the
            field or what is in `args` has another shape.
    Refs: VDM, the prior loss.
    """
    _check_instances(
        schedule=(schedule, AbstractSchedule, "VariancePreserving()"),
        parameterization=(parameterization, AbstractParameterization, "Noise()"),
        solver=(solver, AbstractSolver, "Adams(steps=64)"),
        variable=(variable, AbstractIntegrationVariable, "Exponential()"),
        divergence=(divergence, AbstractDivergence, "Hutchinson()"),
    )
    gamma_min, gamma_max = _checked_range(gamma_min, gamma_max)
    _check_key(key)
    if lanes is not None:
        checks.check_integer("lanes", lanes, at_least=1)
    x = _checked_data(x)
    count, shape = x.shape[0], x.shape[1:]
    _check_args(args, count)
    _check_takes(field, args)
    as_images = (math.prod(shape), 1, 1)

    def network(z: Array, gamma: Array, *args: Any) -> Array:
        output = field(z.reshape(-1, *shape), gamma, *args)
        if getattr(output, "shape", None) != (z.shape[0], *shape):
            raise ValueError(
                f"`field` must give one value for each of its input, which is {[count, *shape]}, "
                f"got {_described(output)}."
            )
        return output.reshape(z.shape).astype(z.dtype)

    bound = ode.Field(
        schedule=schedule, parameterization=parameterization, network=network, args=args
    )
    alpha = schedule.alpha(jnp.asarray(gamma_min, x.dtype))
    keys = numerics.fold_in_each(key, jnp.arange(count))
    found = log_density(
        bound,
        alpha * x.reshape(count, *as_images),
        gamma_min,
        gamma_max,
        solver,
        divergence,
        divergence.draw(keys, as_images),
        variable,
        lanes,
    )
    log_p = found.log_p + math.prod(shape) * jnp.log(alpha)
    return jnp.where(found.success, log_p, jnp.nan)


def _described(value: Any) -> str:
    """Shape and kind of an array, type of anything else."""
    shape = getattr(value, "shape", None)
    return type(value).__name__ if shape is None else f"{value.dtype} {list(shape)}"


def _check_instances(**given: tuple[object, type, str]) -> None:
    """Raises TypeError unless each is an instance of its class, of which there is an example."""
    for name, (value, kind, example) in given.items():
        if isinstance(value, kind):
            continue
        got = repr(value)
        if isinstance(value, type):
            got = f"the class {value.__name__} itself"
            example = f"{value.__name__}(…)" if issubclass(value, kind) else example
        folder = kind.__module__.removesuffix(".base")
        raise TypeError(f"`{name}` must be one of {folder}, such as {example}, got {got}.")


def _checked_range(gamma_min: Any, gamma_max: Any) -> tuple[float, float]:
    """Both as numbers.

    Raises:
        TypeError: if they are none that is known when the program is traced.
        ValueError: unless they are finite and the second is larger.
    """
    for name, value in (("gamma_min", gamma_min), ("gamma_max", gamma_max)):
        if isinstance(value, jax.core.Tracer | str) or np.ndim(value):
            raise TypeError(
                f"`{name}` must be a single number that is known when a program is traced, got "
                f"{name}={value!r}. In jax.jit, make it a static argument."
            )
    low, high = float(gamma_min), float(gamma_max)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(
            "`gamma_max`, the noise end, must be above `gamma_min`, the clean end, and both finite "
            f"(gamma = log(sigma^2 / alpha^2)), got gamma_min={low} and gamma_max={high}. Give the "
            "range that the field was trained on, such as gamma_min=-13.3, gamma_max=5.0."
        )
    return low, high


def _check_key(key: Any) -> None:
    """Raises TypeError unless it is a single random key."""
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
    typed = dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)
    if not (typed and shape == ()) and not (dtype == np.uint32 and shape == (2,)):
        raise TypeError(
            "`key` must be one random key, such as jax.random.key(0), from which every example's "
            f"own is made, got {_described(key)}."
        )


def _checked_data(x: Any) -> Array:
    """In the width in which JAX computes: float64 of NumPy is float32 without `jax_enable_x64`.

    Raises:
        TypeError: if these are not real numbers.
        ValueError: if there is no batch axis.
    """
    dtype = getattr(x, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"`x` must be an array of real numbers, such as float32, got {_described(x)}. Scale "
            "pixels to the range of the training data, x.astype(jnp.float32) / 127.5 - 1 say; the "
            "probability of integer ones is what likelihood.ODELikelihood gives."
        )
    if np.ndim(x) < 1:
        raise ValueError("`x` must have a batch axis, `[B, *shape]`, got a single number: x[None].")
    if 0 in x.shape:
        raise ValueError(f"`x` must hold numbers, `[B, *shape]`, got an empty {list(x.shape)}.")
    return jnp.asarray(x, numerics.float_dtype())


def _check_takes(field: Any, args: tuple[Any, ...]) -> None:
    """Raises TypeError unless `field` is a function of z, gamma and `args`."""
    if not callable(field):
        raise TypeError(f"`field` must be a function of (z, gamma), got {field!r}.")
    try:
        signature = inspect.signature(field)
    except ValueError:  # of some that are compiled nobody knows
        return
    try:
        signature.bind(None, None, *args)
    except TypeError as error:
        more = f" and {len(args)} more, `args`" if args else ""
        raise TypeError(
            f"`field` must take (z, gamma){more}, got a function of {signature}: {error}."
        ) from error


def _check_args(args: Any, count: int) -> None:
    """Raises unless the leaves of a tuple have a row for each example."""
    if not isinstance(args, tuple):
        raise TypeError(f"`args` must be a tuple, such as args=(labels,), got {_described(args)}.")
    for leaf in jax.tree.leaves(args):
        if np.shape(leaf)[:1] != (count,):
            raise ValueError(
                f"`args` must have a row for each of the {count} examples, got an entry of shape "
                f"{list(np.shape(leaf))}. What is the same for all, parameters say, belongs into "
                "the function: lambda z, gamma: field(params, z, gamma)."
            )
