"""The interface of the uniform quantiles of a batch of times."""

import abc

from jaxtyping import Array, Integer

from idode_gin import types


class AbstractQuantiles(abc.ABC):
    """Uniform numbers in [0, 1), one per example, a pure function of key and position.

    Each number is uniform; subclasses define their joint distribution.
    """

    @abc.abstractmethod
    def draw(
        self, key: types.PRNGKey, position: Integer[Array, " batch"], global_batch_size: int
    ) -> types.PerExample:
        """Return the quantiles of the examples at `position` of a global batch, `[B]`.

        Args:
            key: key of the whole global batch, the same on every device and process.
            position: positions in the global batch, 0 … global_batch_size - 1.
            global_batch_size: size over all devices, processes and microbatches.
        """
