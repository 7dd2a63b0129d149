"""Hashes, checksums and finiteness of pytrees."""

import hashlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, UInt32

_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}
_SCATTER = 2654435761
"""Knuth's multiplicative constant scatters the places; a last bit of one makes a factor odd."""


def paths_and_leaves(tree: Any) -> list[tuple[str, Any]]:
    """Return every leaf with its path, such as `down_0/kernel`, sorted by path."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return sorted(((path_name(path), leaf) for path, leaf in flat), key=lambda each: each[0])


def path_name(path: Any) -> str:
    """Format a path from `jax.tree_util.tree_flatten_with_path`, such as `down_0/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def sha256(tree: Any) -> str:
    """Return the SHA-256 of the leaves' bytes (little endian, C order), ordered by path.

    Two trees of the same names, shapes and dtypes have the same digest if and only if they are
    equal bit for bit. Copies every leaf to the host.
    """
    digest = hashlib.sha256()
    for _, leaf in paths_and_leaves(tree):
        array = np.ascontiguousarray(leaf)
        digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
    return digest.hexdigest()


def checksums(tree: Any) -> UInt32[np.ndarray, " leaves"]:
    """Return one 32-bit checksum per leaf, ordered by path, computed where the leaf is.

    The sum, modulo 2^32, of every word of the leaf times an odd number that depends on its place.
    Integer sums do not depend on order, so every mesh gives the same number. One changed word
    always changes it; other damage is missed with probability 2^-32.
    """
    leaves = [leaf for _, leaf in paths_and_leaves(tree)]
    return _of_each(_checksum, _checksum_on_host, leaves, np.uint32)


def all_finite(tree: Any) -> bool:
    """Return True if no leaf holds a NaN or an infinity."""
    leaves = jax.tree.leaves(tree)
    inexact = [each for each in leaves if jnp.issubdtype(jnp.result_type(each), jnp.inexact)]
    return bool(_of_each(_is_finite, _is_finite_on_host, inexact, np.bool_).all())


def _of_each(
    compute: Callable[[Any], Array],
    on_host: Callable[[np.ndarray], Any],
    leaves: list[Any],
    dtype: Any,
) -> np.ndarray:
    """Compute a value per leaf, one by one, so that only a small program per shape is compiled.

    For leaves in the host's memory nothing is compiled: `on_host` computes the value in NumPy.

    XLA would take minutes to compile one program for all leaves. Each result is awaited: with
    sharded leaves, a program waits for all devices, and waiting programs could otherwise occupy
    all threads of a CPU.
    """
    values = [
        on_host(np.asarray(leaf)) if _is_on_host(leaf) else np.asarray(compute(leaf))
        for leaf in leaves
    ]
    return np.asarray(values, dtype)


def _is_on_host(leaf: Any) -> bool:
    """Return True for a NumPy array, or an array on CPU devices of this process alone."""
    if not isinstance(leaf, jax.Array):
        return True
    return leaf.is_fully_addressable and {each.platform for each in leaf.devices()} == {"cpu"}


def _checksum_on_host(array: np.ndarray) -> np.uint32:
    word = np.dtype(f"u{min(array.dtype.itemsize, 4)}")
    words = np.ascontiguousarray(array).reshape(-1).view(word).astype(np.uint32)
    factors = np.arange(words.size, dtype=np.uint32) * np.uint32(_SCATTER) | np.uint32(1)
    return np.sum(words * factors, dtype=np.uint32)


@jax.jit
def _checksum(leaf: Any) -> UInt32[Array, ""]:
    array = jnp.asarray(leaf)
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    word = _WORDS.get(array.dtype.itemsize, jnp.uint32)  # eight bytes become two words
    words = jax.lax.bitcast_convert_type(array, word).astype(jnp.uint32).reshape(-1)
    place = jax.lax.iota(jnp.uint32, words.size)
    return jnp.sum(words * (place * jnp.uint32(_SCATTER) | jnp.uint32(1)), dtype=jnp.uint32)


def _is_finite_on_host(array: np.ndarray) -> np.bool_:
    return np.isfinite(array).all()


@jax.jit
def _is_finite(leaf: Any) -> Bool[Array, ""]:
    # 0 times a finite number is zero, else NaN: sums are twice as fast as `all` on a CPU.
    return jnp.sum(leaf * 0) == 0
