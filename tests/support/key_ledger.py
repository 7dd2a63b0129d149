"""Record every random key that a computation draws numbers from.

    ledger = Ledger()
    jax.jit(fn)(jax.random.key(0, impl=ledger.impl))
    ledger.keys()

The numbers are those of jax's default generator. Keys are recorded when the program runs, under
`jit`, `vmap` and loops alike.
"""

import collections

import jax
import jax.extend
import numpy as np

Key = tuple[int, ...]


class Ledger:
    """Keys that numbers were drawn from, and keys that were split or folded."""

    def __init__(self):
        threefry = jax.extend.random.threefry_prng_impl
        self._drawn: list[Key] = []
        self._parents: set[Key] = set()

        def random_bits(key, bit_width, shape):
            jax.debug.callback(self._record_draw, key)
            return threefry.random_bits(key, bit_width, shape)

        def split(key, shape):
            jax.debug.callback(self._record_parent, key)
            return threefry.split(key, shape)

        def fold_in(key, data):
            jax.debug.callback(self._record_parent, key)
            return threefry.fold_in(key, data)

        self.impl = jax.extend.random.define_prng_impl(
            key_shape=threefry.key_shape,
            seed=threefry.seed,
            split=split,
            random_bits=random_bits,
            fold_in=fold_in,
            name=f"ledger{id(self)}",
            tag="ledger",
        )

    def _record_draw(self, key):
        self._drawn.append(as_key(key))

    def _record_parent(self, key):
        self._parents.add(as_key(key))

    def keys(self) -> set[Key]:
        """Return all keys that numbers were drawn from.

        Raises:
            AssertionError: if two draws share a key, or one is of a key from which others come.
        """
        jax.effects_barrier()
        counts = collections.Counter(self._drawn)
        shared = {key: count for key, count in counts.items() if count > 1}
        assert not shared, f"{len(shared)} of {len(counts)} keys are drawn from more than once"
        assert not counts.keys() & self._parents, "numbers are drawn from a key that is also split"
        return set(counts)

    def clear(self):
        """Forget all keys."""
        jax.effects_barrier()
        self._drawn.clear()
        self._parents.clear()


def as_key(data) -> Key:
    """Return the words of one key."""
    return tuple(int(word) for word in np.asarray(data).reshape(-1))


def words(keys) -> list[Key]:
    """Return the words of each of an array of keys."""
    return [as_key(each) for each in np.asarray(jax.random.key_data(keys)).reshape(-1, 2)]
