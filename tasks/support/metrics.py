"""Bits per dim as a metric of a seqio task."""

from collections.abc import Iterable, Mapping
from typing import Any, final

import numpy as np
import seqio


@final
class BitsPerDim(seqio.metrics.CollectingMetric):
    """Mean bits per dim of a task, from the log-likelihood of each of its images, in nats.

        bits_per_dim   = mean of  -log_p / (H W C log 2)
        standard_error = std(bits_per_dim) / sqrt(N)
        num_images     = N

    The scores are those that a `score_fn` of `seqio.Evaluator` returns. No targets are needed, and
    loggers write these three numbers alone: no images, no scores.

    Raises:
        ValueError: unless every image of the dataset has exactly one finite score.
    """

    model_output_type = seqio.metrics.ModelOutputType.SCORE

    def actual_compute(
        self,
        task_dataset_as_numpy: Iterable[Mapping[str, np.ndarray]],
        task_output_features: Mapping[str, Any],
        target_field_name: str = "targets",
        cached_targets: list[str] | None = None,
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """Return the three numbers, and nothing else for the loggers to write."""
        log_p = self._scores()
        size, num_images = _measure(task_dataset_as_numpy)
        if len(log_p) != num_images:
            raise ValueError(
                f"Bits per dim need one score for every image, got {len(log_p)} scores for "
                f"{num_images} images. A partial batch may have been dropped or padded."
            )
        bits = -log_p / (size * np.log(2))
        error = bits.std(ddof=1) / np.sqrt(num_images) if num_images > 1 else np.nan
        metrics = {
            "bits_per_dim": float(bits.mean()),
            "standard_error": float(error),
            "num_images": num_images,
        }
        return metrics, {"targets": []}

    def _scores(self) -> np.ndarray:
        """Return log-likelihoods `[N]` in nats, without the padding of batches."""
        values = {key: _whole(value) for key, value in self.values.items()}
        scores, mask = np.asarray(values["model_output"], np.float64), values["mask"]
        if scores.shape != mask.shape:
            raise ValueError(
                "Scores must be one log-likelihood in nats per image, [N], got "
                f"{list(scores.shape)} for {len(mask)} images. Sum over the pixels first."
            )
        index = values["indices_2d"][mask == 1]
        if len(np.unique(index, axis=0)) != len(index):
            raise ValueError(
                f"{len(index)} scores are of {len(np.unique(index, axis=0))} images: some were "
                "scored twice. Mask the padding of the last batch."
            )
        if not np.isfinite(scores[mask == 1]).all():
            bad = int(np.flatnonzero(~np.isfinite(scores) & (mask == 1))[0])
            raise ValueError(f"Log-likelihoods must be finite, got {scores[bad]} for score {bad}.")
        return scores[mask == 1]


def _whole(value: Any) -> np.ndarray:
    """Return one array; merging metrics leaves a tuple of them."""
    return np.concatenate(value) if isinstance(value, tuple) else np.asarray(value)


def _measure(examples: Iterable[Mapping[str, np.ndarray]]) -> tuple[int, int]:
    """Return the number of values per image, and of images."""
    size = num_images = 0
    for example in examples:
        size, num_images = int(np.size(example["image"])), num_images + 1
    if not num_images:
        raise ValueError("Bits per dim need images, got an empty dataset.")
    return size, num_images
