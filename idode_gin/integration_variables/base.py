"""The contract of an integration variable, and the ODE in any of them."""

import abc
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from idode_gin import numerics, ode, types
from idode_gin.solvers.base import Density
from idode_gin.solvers.divergence import AbstractDivergence, Probes


class Coefficients(NamedTuple):
    """The ODE at some time s: dy/ds = linear y + output F(scale y, gamma). Shapes as s."""

    gamma: Array
    scale: Array
    """m, in z = m y."""
    linear: Array
    output: Array


class AbstractIntegrationVariable(abc.ABC):
    """A time s(gamma), monotone, and a state y = z / m(gamma).

    The path of an image is the same in all of them; how smooth it is, and so how many steps it
    takes, is not.
    """

    @abc.abstractmethod
    def time(self, field: ode.Field, gamma: types.Gamma) -> types.Gamma:
        """s."""

    @abc.abstractmethod
    def log_scale(self, field: ode.Field, gamma: types.Gamma) -> types.Gamma:
        """log m."""

    @abc.abstractmethod
    def coefficients(self, field: ode.Field, time: types.Gamma) -> Coefficients:
        """The ODE at time s."""

    def density(self, field: ode.Field) -> Density:
        """A factor of dy/ds that depends on s alone, if there is one worth integrating exactly."""
        return None


class Span(NamedTuple):
    """The two ends of a way in some integration variable: times, and scales of the state."""

    time_start: float
    time_end: float
    scale_start: float
    """m, in z = m y."""
    scale_end: float


def span(
    variable: AbstractIntegrationVariable, field: ode.Field, gamma_start: float, gamma_end: float
) -> Span:
    """Of the way between two gammas, as numbers that are known when a program is traced."""
    with jax.ensure_compile_time_eval():
        ends = jnp.asarray([gamma_start, gamma_end], numerics.float_dtype())
        times = map(float, variable.time(field, ends))
        scales = map(float, jnp.exp(variable.log_scale(field, ends)))
        return Span(*times, *scales)


def rate(
    variable: AbstractIntegrationVariable, field: ode.Field, time: types.PerExample, y: types.Images
) -> types.Images:
    """dy/ds."""
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
    """dy/ds and estimates of its divergence, `[B, n]`; only the network's trace is estimated.

    divergence = d linear + output m tr dF/dz
    """
    at = variable.coefficients(field, time)
    z = numerics.expand(at.scale, y) * y
    output, traces = divergence.value_and_traces(lambda z: field.output(z, at.gamma), z, probes)
    linear = numerics.num_dims(y) * at.linear
    return _rate(at, y, output), linear[:, None] + (at.output * at.scale)[:, None] * traces


def _rate(at: Coefficients, y: types.Images, output: types.Images) -> types.Images:
    return numerics.expand(at.linear, y) * y + numerics.expand(at.output, y) * output
