"""Classification by likelihood: the class under which a conditional model finds an image likeliest.

    p(y | x) is proportional to p(x | y) p(y)       y_hat = argmax_y  log p(x | y) + log p(y)

with the bound on log p(x | y) in place of it. All classes of an image are scored with the same
noise and the same probes, those of the image's own score, so that they are compared in pairs.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np

from idode_gin import checks, types
from idode_gin.evaluation import scores
from idode_gin.evaluation.summary import CLASSIFICATION, VARIATIONAL_BOUND
from idode_gin.feed import data
from idode_gin.runs import image_loop, means
from idode_gin.runs.image_loop import Compute


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification:
    """Settings of classification: its bound and images. A model without labels ignores it.

    Args:
        by: name of a bound that is evaluated: `variational_bound` or a likelihood's.
        num_images: images to classify, spread evenly over the split; None for all. Each costs its
            score once for every class.
        prior: p(y) of each class, in their order; None for equal ones.

    Raises:
        ValueError: if a number is out of range, or the prior is no distribution.
    """

    by: str = VARIATIONAL_BOUND
    num_images: int | None = None
    prior: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Check the arguments."""
        if self.num_images is not None:
            checks.check_count("num_images", self.num_images)
        if self.prior is None:
            return
        object.__setattr__(self, "prior", tuple(self.prior))
        if min(self.prior, default=0) < 0 or not math.isclose(sum(self.prior), 1, abs_tol=1e-6):
            raise ValueError(
                f"`prior` must be probabilities that sum to 1, got {self.prior}. None makes all "
                "classes equally likely."
            )

    def check(self, bounds: Iterable[str]) -> None:
        """Raise ValueError unless `by` is one of the bounds."""
        if self.by not in bounds:
            raise ValueError(
                f"`by` must be the name of a bound that is evaluated, got {self.by!r}. "
                f"{checks.nearest(self.by, bounds)}"
            )

    def check_prior(self, num_classes: int) -> None:
        """Raise ValueError unless the prior, if there is one, has as many classes."""
        if self.prior is not None and len(self.prior) != num_classes:
            raise ValueError(
                f"`prior` must have a probability for each of {num_classes} classes, got "
                f"{len(self.prior)}."
            )

    def images(self, split: data.ImageSplit) -> np.ndarray:
        """Return places in the split of the images to classify, rising, integers `[M]`."""
        return data.spread(self.num_images or split.num_images, split.num_images)

    def posterior(self, log_p: np.ndarray) -> np.ndarray:
        """Return log p(y) + log p(x | y), of which the largest is the class: `[M, C] -> [M, C]`."""
        if self.prior is None:
            return log_p
        with np.errstate(divide="ignore"):  # a class of probability 0 is never chosen
            return log_p + np.log(self.prior)


def of_all_classes(compute: Compute, num_classes: int) -> Compute:
    """Return `nats` and `success` of a bound's scores for each class instead of one, `[B, C]`."""

    def computed(params: types.Params, batch: types.Batch) -> Mapping[str, jax.Array]:
        others = batch["conditioning"][:, :-num_classes]

        def of_class(label: jax.Array) -> dict[str, jax.Array]:
            row = jax.nn.one_hot(label, num_classes, dtype=others.dtype)
            rows = jnp.broadcast_to(row, (others.shape[0], num_classes))
            conditioning = jnp.concatenate([others, rows], axis=1)
            found = compute(params, {**batch, "conditioning": conditioning})
            return {
                "nats": found["nats"],
                "success": found.get("success", jnp.ones(others.shape[0], bool)),
            }

        found = jax.lax.map(of_class, jnp.arange(num_classes))
        return {name: each.T for name, each in found.items()}

    return computed


def classify(
    setting: Classification,
    scorer: Compute,
    params: types.Params,
    split: data.ImageSplit,
    loop: image_loop.ImageLoop,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Classify images; return the entry of the summary, and values `[N]` for the rows.

    `label` is the image's own class; `predicted` is -1 for images that were not classified.

    Raises:
        checks.NonFiniteError: if a score of any class is not finite.
    """
    assert split.labels is not None
    places, name = setting.images(split), f"{CLASSIFICATION} by {setting.by}"
    found = loop.run(name, scorer, params, loop.batches_of(split), places)
    nats = np.asarray(found["nats"], np.float64)
    sums = {"bpd": nats.sum(axis=1), "success": np.all(found["success"], axis=1)}
    scores.check_scores(name, sums, split.place_of(places))
    predicted = np.full(split.num_images, -1)
    predicted[places] = setting.posterior(-nats).argmax(axis=1)
    is_right = (predicted == split.labels)[places].astype(np.float64)
    summary = {
        "by": setting.by,
        "accuracy": float(np.mean(is_right)),
        "stderr": means.standard_error(is_right),
        "num_images": len(places),
        "num_classes": split.num_classes,
        "prior": setting.prior and list(setting.prior),
    }
    return summary, {"label": split.labels, "predicted": predicted}
