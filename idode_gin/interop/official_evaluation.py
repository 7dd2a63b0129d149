"""Decompose the difference between the published i-DODE evaluation and ours by its causes."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from idode_gin import checks, numerics, types
from idode_gin.dequantizers.base import AbstractDequantizer, CleanEnd
from idode_gin.dequantizers.uniform import Uniform
from idode_gin.dequantizers.variational import Variational
from idode_gin.evaluation import parity
from idode_gin.likelihood.ode_likelihood import ODELikelihood
from idode_gin.models import DiffusionODE

REPEATS = "repeats_averaged"
LOG_K = "log_k_not_subtracted"
DECODER = "decoder_divides_twice"
BITS_OF_BIN = "bits_of_uniform_bin"
BATCHES = "random_batches"
RIGHT, PUBLISHED, UNSCORED = "right", "published", "images_never_scored"
DEVIATION, OF_ALL_ORDERS = f"{BATCHES}_sd", f"{PUBLISHED}_mean_over_orders"
REPEATS_OF_ONE_SAMPLE = 5
"""Number of dequantization draws averaged for the published `num_importance=1`."""
_PUBLISHED_BITS = 7.0


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class OfficialParity(parity.AbstractParity):
    """Computes the published figures from our noise, probes and solver, and explains differences.

        repeats_averaged       one sample (K = 1) is the mean of five draws, more are one draw of K
        log_k_not_subtracted   -log2(K) / d
        decoder_divides_twice  z_0 is divided by alpha_0 once more in log P(x | z_0)
        bits_of_uniform_bin    7 whatever V, where log2(V) - 1 is right; none for 256 levels
        random_batches         the mean over batches of a shuffled stream that does not end with an
                               epoch, so that some images count more often than others, or never

    Each row is the change in bits per dim when this choice is added to those above it; with our
    figure they sum to the published one. Choices that change noise but not the mean are left
    out: with K = 1 one probe for all repeats, new noise whenever an image is repeated, one norm for
    all images of a batch. The stream is of the published kind with the order of `seed`;
    `random_batches_sd` is its standard deviation over orders.

    The published program draws its batches from the whole split. If only some of its images are
    scored, `random_batches` and `published` are unknown, because they need the scores of the
    others. Instead, `published_mean_over_orders` is the sum of the rows above, which estimates the
    mean of the published figure over orders. `random_batches_sd` is that of the whole split,
    estimated from the spread of the images scored, and `images_never_scored` is of the whole split.

    Args:
        num_batches: number of scored batches.
        batch_size: images per batch, over all devices.
        num_skipped: batches skipped before the first scored one.
        seed: seed of the order of the stream.
    """

    num_batches: int = 100
    batch_size: int = 256
    num_skipped: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the sizes."""
        checks.check_count("num_batches", self.num_batches)
        checks.check_count("batch_size", self.batch_size)
        if self.num_skipped < 0:
            raise ValueError(f"`num_skipped` cannot be negative, got {self.num_skipped}.")

    def num_draws(self, estimator: ODELikelihood) -> int:
        """Return five for K = 1, else K: repeats of K > 1 are not averaged."""
        samples = estimator.num_importance
        return REPEATS_OF_ONE_SAMPLE if samples == 1 else samples

    def likelihood_parts(
        self,
        model: DiffusionODE,
        params: types.Params,
        batch: types.Batch,
        key: types.PRNGKey,
        estimator: ODELikelihood,
        bpd: types.PerExample,
    ) -> parity.Parts:
        """See `parity.AbstractParity`."""
        x, end, dequantizer = batch["image"], model.end, estimator.dequantizer
        samples, dims = estimator.num_importance, numerics.num_dims(batch["image"])
        draws = self.num_draws(estimator)
        theirs = dataclasses.replace(estimator, num_repeats=draws // samples)
        likelihood = model.likelihood_fn(params, batch, key, theirs)
        solved = jnp.where(likelihood.success, 0.0, jnp.nan)
        found = likelihood.log_weights.reshape(draws, -1) + solved
        keys, numbers = numerics.fold_in_each(key, batch["index"]), jnp.arange(draws)
        noise = jax.lax.map(lambda each: theirs.draw(each, x.shape[1:], end, keys)[0], numbers)
        twice = found + jax.vmap(lambda each: _second_division(dequantizer, x, each, end))(noise)

        def to_bpd(log_p: jax.Array) -> types.PerExample:
            return numerics.nats_to_bpd(-log_p, dims)

        right = jnp.mean(found, axis=0) if samples == 1 else numerics.log_mean_exp(found)
        kept = published_log_likelihood(found, samples)
        bits = _missing_bits(dequantizer, model.encoding.levels)
        return {
            REPEATS: to_bpd(right) - bpd,
            LOG_K: to_bpd(kept) - to_bpd(right),
            DECODER: to_bpd(published_log_likelihood(twice, samples)) - to_bpd(kept),
            BITS_OF_BIN: jnp.full_like(bpd, bits),
        }

    def bound_parts(
        self, model: DiffusionODE, batch: types.Batch, key: types.PRNGKey
    ) -> parity.Parts:
        """Return the effect of the decoder's second division, with its own noise."""
        x, end = batch["image"], model.end
        keys = numerics.fold_in_each(key, batch["index"])
        noise = numerics.normal_each(keys, x.shape[1:])
        added = -_second_division(Variational(), x, noise, end)
        return {DECODER: numerics.nats_to_bpd(added, numerics.num_dims(x))}

    def legend(self, section: Mapping[str, Mapping[str, float]]) -> str:
        """Return descriptions of the rows, and why some are left out for a part of a split."""
        is_part = any(OF_ALL_ORDERS in each for each in section.values())
        figure = (
            f"figure's mean over orders ({OF_ALL_ORDERS})" if is_part else f"figure ({PUBLISHED})"
        )
        told = (
            f"Figures of the published program: ours ({RIGHT}) plus the effect of each difference, "
            f"added in this order,\nis the published {figure}. {DEVIATION} is the "
            f"standard deviation over orders of the {self.num_batches} batches,\n{UNSCORED} a "
            "number of images."
        )
        left_out = (
            f"\n{BATCHES} and {PUBLISHED} are left out: the published program draws its batches "
            "from the whole split,\nof which NUM_IMAGES scores a part. NUM_IMAGES=None gives them."
        )
        return told + left_out if is_part else told

    def summarize(
        self, scores: Mapping[str, Mapping[str, np.ndarray]], whole: int | None = None
    ) -> dict[str, Any]:
        """Return `right`, the change by each choice, and `published` by bound; bits per dim."""
        return {name: self._explained(each, whole) for name, each in scores.items()}

    def _explained(self, scores: Mapping[str, np.ndarray], whole: int | None) -> dict[str, float]:
        parts = {
            name.removeprefix(parity.PREFIX): np.asarray(each, np.float64)
            for name, each in scores.items()
            if parity.is_prefixed(name)
        }
        published = np.asarray(scores["bpd"], np.float64) + sum(parts.values())
        count = whole or published.size
        order = self.stream(count)
        found = {RIGHT: float(np.mean(scores["bpd"]))}
        found |= {name: float(np.mean(each)) for name, each in parts.items()}
        if whole is None:
            found[BATCHES] = float(np.mean(published[order]) - np.mean(published))
            found[PUBLISHED] = float(np.mean(published[order]))
        else:
            found[OF_ALL_ORDERS] = float(np.mean(published))
        if whole is None or published.size > 1:  # one image of several has no spread
            found[DEVIATION] = self.deviation(published, count)
        return {**found, UNSCORED: float(count - np.unique(order).size)}

    def stream(self, count: int) -> np.ndarray:
        """Return the indices of scored images out of `count`, in order, epoch after epoch."""
        generator = np.random.default_rng(self.seed)
        first, last = self._ends()
        epochs = [generator.permutation(count) for _ in range(-(-last // count))]
        return np.concatenate(epochs)[first:last]

    def deviation(self, values: np.ndarray, count: int) -> float:
        """Return the standard deviation over orders of the mean of the stream; 0 for whole epochs.

        Part of an epoch is drawn without replacement: n of N have a sum of variance
        n (1 - n / N) S^2. N is `count`, and S^2 the variance of all images, or the estimate of it
        by the `values` of some.
        """
        if count < 2:
            return 0.0
        first, last = self._ends()
        edges = np.unique([first, *range((first // count + 1) * count, last, count), last])
        pieces = np.diff(edges)
        variance = np.var(values, ddof=1) * np.sum(pieces * (1 - pieces / count))
        return float(np.sqrt(variance) / (last - first))

    def _ends(self) -> tuple[int, int]:
        first = self.num_skipped * self.batch_size
        return first, first + self.num_batches * self.batch_size


def decoder_log_prob(end: CleanEnd, x: types.Pixels, y: types.Images) -> types.PerExample:
    """Return log P(x | y) for y = z_0 / alpha_0 divided by alpha_0 again, nats per image.

    About 0.02 bits per dim on the straight path, below 1e-5 on the variance-preserving path. The
    corrected value is `end.encoding.log_prob(x, y, end.gamma)`.
    """
    return end.encoding.log_prob(x, y / end.alpha, end.gamma)


def published_log_likelihood(
    log_weights: Float[Array, "draws batch"], num_importance: int
) -> types.PerExample:
    """Return the mean over draws for one sample, else log sum_k w_k without -log K, nats."""
    if num_importance == 1:
        return jnp.mean(log_weights, axis=0)
    return jax.nn.logsumexp(log_weights, axis=0)


def _second_division(
    dequantizer: AbstractDequantizer, x: types.Pixels, noise: types.Images, end: CleanEnd
) -> types.PerExample:
    """Return the change of log P(x | z_0) by the second division, nats; zero without a decoder."""
    if not isinstance(dequantizer, Variational):
        return jnp.zeros(x.shape[0], noise.dtype)
    z = dequantizer.start(x, noise, end)
    twice = decoder_log_prob(end, x, z / end.alpha)
    return twice - dequantizer.log_reconstruction(x, z, end)


def _missing_bits(dequantizer: AbstractDequantizer, levels: int) -> float:
    """Return the published bits of a uniform bin minus the correct ones."""
    if not isinstance(dequantizer, Uniform):
        return 0.0
    return _PUBLISHED_BITS - (math.log2(levels) - 1)
