"""The interface of an integration variable, and the ODE in any of them."""

import abc
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from idode_gin import numerics, ode, types
from idode_gin.solvers.base import WeightFn
from idode_gin.solvers.divergence import AbstractDivergence, Probes


class Coefficients(NamedTuple):
    """The ODE at time s: dy/ds = linear y + output F(scale y, gamma). Shapes as s."""

    gamma: Array
    scale: Array
    """m, in z = m y."""
    linear: Array
    output: Array


class AbstractIntegrationVariable(abc.ABC):
    """A monotone time s(gamma) and a state y = z / m(gamma).

    All variables describe the same path of an image. They differ in how smooth the solution is, and
    so in the number of steps that a solver needs.
    """

    @abc.abstractmethod
    def time(self, field: ode.Field, gamma: types.Gamma) -> types.Gamma:
        """Return s."""

    @abc.abstractmethod
    def log_scale(self, field: ode.Field, gamma: types.Gamma) -> types.Gamma:
        """Return log m."""

    @abc.abstractmethod
    def coefficients(self, field: ode.Field, time: types.Gamma) -> Coefficients:
        """Return the ODE at time s."""

    def weight_fn(self, field: ode.Field) -> WeightFn:
        """Return a factor of dy/ds that depends on s alone and is worth integrating exactly."""
        return None


class Span(NamedTuple):
    """The ends of an integration: times, and scales of the state."""

    time_start: float
    time_end: float
    scale_start: float
    """m, in z = m y."""
    scale_end: float


def span(
    variable: AbstractIntegrationVariable, field: ode.Field, gamma_start: float, gamma_end: float
) -> Span:
    """Return the span between two gammas as numbers, static when a program is traced."""
    with jax.ensure_compile_time_eval():
        ends = jnp.asarray([gamma_start, gamma_end], numerics.float_dtype())
        # In NumPy before they are taken apart, which compiles programs of one operation.
        times = np.asarray(variable.time(field, ends)).tolist()
        scales = np.asarray(jnp.exp(variable.log_scale(field, ends))).tolist()
        return Span(*times, *scales)


def rate(
    variable: AbstractIntegrationVariable, field: ode.Field, time: types.PerExample, y: types.Images
) -> types.Images:
    """Return dy/ds."""
    at = variable.coefficients(field, time)
    return _rate(at, y, field.output(numerics.expand(at.scale, y) * y, at.gamma))


def rate_and_divergences(
    variable: AbstractIntegrationVariable,
    field: ode.Field,
    time: types.PerExample,
    y: types.Images,
    divergence: AbstractDivergence,
    probes: Probes,
) -> tuple[types.Images, Array]:
    """Return dy/ds and `[B, n]` estimates of its divergence.

    Only the trace of the network's Jacobian is estimated; the other terms are exact.

    divergence = d linear + output m tr dF/dz
    """
    at = variable.coefficients(field, time)
    z = numerics.expand(at.scale, y) * y
    output, traces = divergence.value_and_traces(lambda z: field.output(z, at.gamma), z, probes)
    linear = numerics.num_dims(y) * at.linear
    return _rate(at, y, output), linear[:, None] + (at.output * at.scale)[:, None] * traces


def _rate(at: Coefficients, y: types.Images, output: types.Images) -> types.Images:
    return numerics.expand(at.linear, y) * y + numerics.expand(at.output, y) * output
