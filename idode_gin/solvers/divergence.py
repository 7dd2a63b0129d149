"""Traces of Jacobians: exact, or Hutchinson's estimate.

Traces are computed in forward mode from the linearization (`jax.linearize`) that also gives the
value, so that one pass through the function serves both.
"""

import abc
import dataclasses
import math
from collections.abc import Callable
from typing import TypeAlias, final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from idode_gin import checks, numerics, types
from idode_gin.solvers import probes as probe_lib

Function: TypeAlias = Callable[[Array], Array]
"""`[B, ...] -> [B, ...]`, example by example, so that the Jacobian is block diagonal."""

Probes: TypeAlias = Float[Array, "probes batch height width channels"]

Traces: TypeAlias = Float[Array, "batch estimates"]
"""Estimates of one number per example; one column if exact."""

# Up to this many vectors are pushed one by one: a batched convolution would cost a third more time
# and memory, above all if the trace is differentiated again.
UNROLLED = 4


def jvp_each(fn: Function, x: Array, vectors: Probes) -> tuple[Array, Array]:
    """Return `fn(x)` and its Jacobian times each of `vectors`, `[n, B, ...]`."""
    value, push = jax.linearize(fn, x)
    if 1 <= vectors.shape[0] <= UNROLLED:
        return value, jnp.stack([push(vector) for vector in vectors])
    return value, jax.vmap(push)(vectors)


class AbstractDivergence(abc.ABC):
    """A method to compute or estimate the trace of a Jacobian."""

    @abc.abstractmethod
    def draw(self, keys: types.PRNGKeys, shape: tuple[int, ...]) -> Probes:
        """Draw probes for images of `shape` (H, W, C), one set per key: `[n, B, H, W, C]`.

        They are held fixed along a path, so that the integrand stays smooth.
        """

    @abc.abstractmethod
    def value_and_traces(self, fn: Function, x: Array, probes: Probes) -> tuple[Array, Traces]:
        """Return `fn(x)` and estimates of the trace of each example's Jacobian, to be averaged."""

    @abc.abstractmethod
    def variance_of_mean(self, estimates: Traces, dims: int) -> types.PerExample:
        """Return the variance of the mean of estimates linear in the traces; NaN if unknown."""

    def value_and_trace(
        self, fn: Function, x: Array, probes: Probes
    ) -> tuple[Array, types.PerExample]:
        """Return `fn(x)` and the trace of each example's Jacobian, `[B]`."""
        value, traces = self.value_and_traces(fn, x, probes)
        return value, jnp.mean(traces, axis=1)


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Hutchinson(AbstractDivergence):
    """The unbiased estimate mean_n v_n^T J v_n.

    Args:
        num_probes: n, vectors per image.
        probe: distribution of the vectors.
    Refs: Hutchinson 1990; FFJORD.
    """

    num_probes: int = 1
    probe: probe_lib.AbstractProbe = dataclasses.field(default_factory=probe_lib.Rademacher)

    def __post_init__(self) -> None:
        checks.check_count("num_probes", self.num_probes)

    def draw(self, keys: types.PRNGKeys, shape: tuple[int, ...]) -> Probes:
        """Draw independent probes, `[n, B, H, W, C]`."""
        sample = jax.vmap(lambda key: self.probe.sample(key, (self.num_probes, *shape)))
        return jnp.moveaxis(sample(keys), 1, 0)

    def value_and_traces(self, fn: Function, x: Array, probes: Probes) -> tuple[Array, Traces]:
        """Return `fn(x)` and v_n^T J v_n, a column per probe."""
        return _value_and_quadratics(fn, x, probes)

    def variance_of_mean(self, estimates: Traces, dims: int) -> types.PerExample:
        """Return the sample variance divided by n; NaN for a single probe."""
        return _sample_variance(estimates) / estimates.shape[1]


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Exact(AbstractDivergence):
    """The exact trace, by a Jacobian-vector product for every unit vector; for small images.

    Args:
        chunk: unit vectors per batch of products; trades memory for speed.
    """

    chunk: int = 64

    def __post_init__(self) -> None:
        checks.check_count("chunk", self.chunk)

    def draw(self, keys: types.PRNGKeys, shape: tuple[int, ...]) -> Probes:
        """Return no probes: `[0, B, H, W, C]`."""
        return jnp.zeros((0, keys.shape[0], *shape), numerics.float_dtype())

    def value_and_traces(self, fn: Function, x: Array, probes: Probes) -> tuple[Array, Traces]:
        """Return `fn(x)` and the exact trace; `probes` is not used."""
        value, push = jax.linearize(fn, x)

        def diagonal(index: Array) -> types.PerExample:
            unit = jax.nn.one_hot(index, numerics.num_dims(x), dtype=x.dtype).reshape(x.shape[1:])
            return numerics.sum_pixels(push(jnp.broadcast_to(unit, x.shape)) * unit)

        dims = numerics.num_dims(x)
        diagonals = jax.lax.map(diagonal, jnp.arange(dims), batch_size=min(self.chunk, dims))
        return value, jnp.sum(diagonals, axis=0)[:, None]

    def variance_of_mean(self, estimates: Traces, dims: int) -> types.PerExample:
        """Return zero."""
        return jnp.zeros(estimates.shape[0], estimates.dtype)


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class OrthogonalHutchinson(AbstractDivergence):
    """mean_n v_n^T J v_n with orthogonal probes of length sqrt d, uniformly distributed.

    The variance is (d - n) / (d - 1) times that of n independent probes of length sqrt d, and zero
    for n = d, when the trace is complete. (Antithetic pairs would not help: v and -v give the same
    v^T J v.)

    Args:
        num_probes: n, vectors per image; at most d.
    Refs: Choromanski et al. 2017, structured orthogonal random vectors; the variance is that of
        sampling without replacement.
    """

    num_probes: int = 2

    def __post_init__(self) -> None:
        checks.check_count("num_probes", self.num_probes)

    def draw(self, keys: types.PRNGKeys, shape: tuple[int, ...]) -> Probes:
        """Draw orthogonal probes, `[n, B, H, W, C]`.

        Raises:
            ValueError: if there are fewer dimensions than probes.
        """
        dims = math.prod(shape)
        if self.num_probes > dims:
            raise ValueError(
                f"`num_probes` orthogonal probes need as many dimensions, got "
                f"num_probes={self.num_probes} for images of {dims} values. Use "
                "`divergence.Exact` instead."
            )

        def frame(key: types.PRNGKey) -> Array:
            normal = jax.random.normal(key, (dims, self.num_probes), numerics.float_dtype())
            q, r = jnp.linalg.qr(normal)
            # Without the signs of R's diagonal, the factor Q is not uniformly distributed.
            uniform = q * jnp.sign(jnp.diagonal(r))
            return math.sqrt(dims) * uniform.T.reshape(self.num_probes, *shape)

        return jnp.moveaxis(jax.vmap(frame)(keys), 1, 0)

    def value_and_traces(self, fn: Function, x: Array, probes: Probes) -> tuple[Array, Traces]:
        """Return `fn(x)` and v_n^T J v_n, a column per probe."""
        return _value_and_quadratics(fn, x, probes)

    def variance_of_mean(self, estimates: Traces, dims: int) -> types.PerExample:
        """Return (1 - n / d) times the sample variance over n; NaN for a single probe."""
        share = 1 - estimates.shape[1] / dims
        return share * _sample_variance(estimates) / estimates.shape[1]


def _value_and_quadratics(fn: Function, x: Array, probes: Probes) -> tuple[Array, Traces]:
    value, pushed = jvp_each(fn, x, probes)
    return value, jax.vmap(numerics.sum_pixels)(probes * pushed).T


def _sample_variance(estimates: Traces) -> types.PerExample:
    if estimates.shape[1] < 2:
        return jnp.full(estimates.shape[0], jnp.nan, estimates.dtype)
    return jnp.var(estimates, axis=1, ddof=1)
