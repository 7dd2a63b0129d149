"""Functions of NumPy arrays, such as a model in PyTorch, as functions of jax."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import numpy.typing as npt
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array

from idode_gin import numerics

STEPS = (0.1, 0.03, 0.01, 0.003, 0.001, 3e-4, 1e-4)
"""Steps of finite differences: the best one is short for a function with fast sines."""


def on_host(
    function: Callable[..., np.ndarray], derivative: Callable[..., np.ndarray]
) -> Callable[..., Array]:
    """Return a function of jax that calls `function`, and `derivative` for its derivative by z.

    It works in `jax.jit` and in forward mode, which is what likelihoods need: not under `jax.grad`.
    Each call waits for the host. Derivatives by the other arguments are refused.

    Args:
        function: `(z, t) -> output` of NumPy arrays, z `[B, ...]`, t `[B]`, output like z. The
            arguments after t, such as classes, are arrays as well.
        derivative: `(z, t, dz) -> d output`, the derivative at z along dz. With more arguments dz
            is still the last: `(z, t, classes, dz)`.

    Raises:
        jax.errors.JaxRuntimeError: where it is called, if a result has not the shape of z.
    """

    @jax.custom_jvp
    def called(z: Array, t: Array, *more: Array) -> Array:
        return _call(function, "function", z, z, t, *more)

    def rule(primals: Any, tangents: Any) -> tuple[Array, Array]:
        (z, *rest), (dz, *others) = primals, tangents
        if not all(isinstance(each, SymbolicZero) for each in others):
            raise ValueError("A function on the host has no derivative by t or by classes.")
        if isinstance(dz, SymbolicZero):
            dz = jax.numpy.zeros_like(z)
        return called(z, *rest), _call(derivative, "derivative", z, z, *rest, dz)

    called.defjvp(rule, symbolic_zeros=True)
    return called


def derivative_error(
    function: Callable[..., np.ndarray],
    derivative: Callable[..., np.ndarray],
    z: npt.ArrayLike,
    t: npt.ArrayLike,
    others: Sequence[npt.ArrayLike] = (),
    seed: int = 0,
) -> float:
    """Return how far `derivative` is from finite differences of `function`, relative to them.

    The derivative is taken along a random direction, and the closest of a few steps counts. In
    float32 a right derivative gives less than 0.01, a forgotten one 1.

    Args:
        function: as in `on_host`.
        derivative: as in `on_host`.
        z: `[B, ...]`, such as values of a standard normal distribution.
        t: `[B]`, times between data and noise.
        others: the arguments after t, such as classes.
        seed: of the direction.
    """
    z, t, *others = (_as_in_jax(each) for each in (z, t, *others))
    direction = np.random.default_rng(seed).standard_normal(z.shape).astype(z.dtype)
    given = derivative(z, t, *others, direction)

    def error(step: float) -> float:
        ends = (function(z + sign * step * direction, t, *others) for sign in (1, -1))
        slope = np.subtract(*(np.asarray(end, np.float64) for end in ends)) / (2 * step)
        return float(np.linalg.norm(given - slope) / np.linalg.norm(slope))

    return min(map(error, STEPS))


def _as_in_jax(values: npt.ArrayLike) -> np.ndarray:
    found = np.asarray(values)
    return found.astype(np.float32) if np.issubdtype(found.dtype, np.floating) else found


def _call(function: Callable[..., np.ndarray], name: str, like: Array, *arguments: Array) -> Array:
    warn_if_coarse = functools.cache(numerics.warn_if_coarse)  # not at every step

    def on_arrays(*arrays: Any) -> np.ndarray:
        found = np.asarray(function(*map(np.asarray, arrays)))
        if found.shape != like.shape:
            raise ValueError(
                f"`{name}` must return an array of the shape of z, {list(like.shape)}, got "
                f"{list(found.shape)}."
            )
        warn_if_coarse(found.dtype)
        return found.astype(like.dtype)

    shape = jax.ShapeDtypeStruct(like.shape, like.dtype)
    return jax.pure_callback(on_arrays, shape, *arguments, vmap_method="sequential")
