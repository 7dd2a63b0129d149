"""Short numbers that stand for a whole pytree: is it the same, is it damaged, is it finite."""

import hashlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, UInt32

_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


def paths_and_leaves(tree: Any) -> list[tuple[str, Any]]:
    """Every leaf with its path, such as `down_0/kernel`, sorted by path."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return sorted(((path_name(path), leaf) for path, leaf in flat), key=lambda each: each[0])


def path_name(path: Any) -> str:
    """A leaf's path, as `jax.tree_util.tree_flatten_with_path` gives it, in one word."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def sha256(tree: Any) -> str:
    """SHA-256 over the leaves' bytes (little endian, C order), in the order of their paths.

    Two trees of the same names, shapes and dtypes have the same digest exactly if they are equal
    bit for bit. Copies every leaf to the host.
    """
    digest = hashlib.sha256()
    for _, leaf in paths_and_leaves(tree):
        array = np.ascontiguousarray(leaf)
        digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
    return digest.hexdigest()


def checksums(tree: Any) -> UInt32[np.ndarray, " leaves"]:
    """One 32-bit checksum per leaf, in the order of the paths, computed where the leaves lie.

    The sum, modulo 2^32, of every word of the leaf times an odd number that depends on its place.
    Integer sums do not depend on order, so any mesh gives the same number; a changed word always
    changes it, and damage of any other kind goes unseen once in 2^32.
    """
    return _of_each(_checksum, [leaf for _, leaf in paths_and_leaves(tree)], np.uint32)


def all_finite(tree: Any) -> bool:
    """Whether no leaf holds a NaN or an infinity."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if _is_inexact(leaf)]
    return bool(_of_each(_is_finite, leaves, np.bool_).all())


def _of_each(compute: Callable[[Any], Array], leaves: list[Any], dtype: Any) -> np.ndarray:
    """A value per leaf, one after the other, so that what is compiled is a small program per shape.

    One of all leaves would take XLA minutes. Each is waited for: where leaves are split, a program
    waits for all devices, and the CPU's few threads can all be taken by programs that wait.
    """
    return np.asarray([np.asarray(compute(leaf)) for leaf in leaves], dtype)


@jax.jit
def _checksum(leaf: Any) -> UInt32[Array, ""]:
    array = jnp.asarray(leaf)
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    word = _WORDS.get(array.dtype.itemsize, jnp.uint32)  # eight bytes become two words
    words = jax.lax.bitcast_convert_type(array, word).astype(jnp.uint32).reshape(-1)
    place = jax.lax.iota(jnp.uint32, words.size)
    # Knuth's multiplicative constant spreads the places; the last bit keeps the factor odd.
    return jnp.sum(words * (place * jnp.uint32(2654435761) | jnp.uint32(1)), dtype=jnp.uint32)


@jax.jit
def _is_finite(leaf: Any) -> Bool[Array, ""]:
    # 0 times a finite number is zero, else NaN: sums are twice as fast as `all` on a CPU.
    return jnp.sum(leaf * 0) == 0


def _is_inexact(leaf: Any) -> bool:
    return bool(jnp.issubdtype(jnp.result_type(leaf), jnp.inexact))
