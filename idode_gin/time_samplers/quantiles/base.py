"""The contract of the uniform numbers behind a batch of times."""

import abc

from jaxtyping import Array, Integer

from idode_gin import types


class AbstractQuantiles(abc.ABC):
    """Uniform numbers in [0, 1), one per example, a pure function of key and place.

    Each is uniform by itself; how they depend on each other is the subclass's choice.
    """

    @abc.abstractmethod
    def draw(
        self, key: types.PRNGKey, position: Integer[Array, " batch"], global_batch_size: int
    ) -> types.PerExample:
        """Quantiles of the examples at `position` of a global batch; `[B]`.

        Args:
            key: the key of the whole global batch (the same on every device and process).
            position: places in the global batch, 0 … global_batch_size - 1.
            global_batch_size: over all devices, processes and microbatches.
        """
