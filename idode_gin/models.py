"""The model: `DiffusionODE` combines all parts of the maths."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from idode_gin import numerics, ode, types
from idode_gin.dequantizers.base import CleanEnd
from idode_gin.encoding import Encoding
from idode_gin.likelihood.ode_likelihood import ImageLikelihood, ODELikelihood
from idode_gin.losses import base as losses
from idode_gin.losses import bound, least_variance
from idode_gin.networks.base import AbstractNetwork
from idode_gin.parameterizations.base import AbstractParameterization
from idode_gin.samplers import latents
from idode_gin.samplers.base import AbstractDeterministicSampler, AbstractSampler, Samples
from idode_gin.samplers.ode import Encoded, ODESampler
from idode_gin.schedules.base import AbstractSchedule
from idode_gin.schedules.time.base import (
    ENDS,
    INTERIOR,
    PARAMS,
    AbstractTime,
    Adaptation,
    without_gradient,
)
from idode_gin.time_samplers.base import AbstractTimeSampler
from idode_gin.time_samplers.uniform_in_gamma import for_bound

_KEY_OF_TIME = 0x7153
"""Folded into the key of initial parameters for those of gamma(t)."""


class Draws(NamedTuple):
    """All random arrays of one training step, which can be drawn or given."""

    u: types.PerExample
    """Quantiles of time."""
    loss: losses.LossDraws
    reconstruction: types.Images
    """Noise of the reconstruction term, which trains only the ends of gamma(t), if anything."""
    dropout: types.PRNGKeys | None
    """One key per example, or None for no dropout."""


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionODE:
    """A diffusion ODE: network, path, meaning of the network's output, and training objective.

    Every method is a pure function of its arguments; parameters are passed in.

    Args:
        network: `(params, z, time, conditioning, key) -> F`.
        schedule: alpha and sigma as functions of gamma.
        time: gamma(t) and its two ends. Its parameters, if any, are the entry `time_schedule` of
            the model's.
        parameterization: meaning of F.
        time_sampler: distribution of gamma in training.
        loss: training objective.
        encoding: pixel levels and their bins.
        image_shape: (height, width, channels) of the images; None accepts any shape, but cannot
            sample.
    """

    network: AbstractNetwork
    schedule: AbstractSchedule
    time: AbstractTime
    parameterization: AbstractParameterization
    time_sampler: AbstractTimeSampler
    loss: losses.AbstractLoss
    encoding: Encoding
    image_shape: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        """Check the shape, and that the interior of gamma(t) is used if it has parameters."""
        if self.image_shape is not None:
            self.encoding.check(tuple(self.image_shape))
        if self.time.learns_interior and not self.time_sampler.samples_t:
            raise ValueError(
                f"{type(self.time).__name__} learns the sampling density of gamma, but the time "
                f"sampler {type(self.time_sampler).__name__} does not sample from it. Set "
                "`time_sampler` to a Uniform of idode_gin.time_samplers.uniform, or choose a "
                "gamma(t) without an interior of its own."
            )

    @property
    def num_classes(self) -> int:
        """C, the classes that the network is conditioned on; 0 if it takes no labels."""
        return self.network.num_classes

    @property
    def conditioning_size(self) -> int:
        """Numbers per image in a batch's `conditioning`: those of images, then one per class."""
        return self.network.conditioning_size + self.num_classes

    @property
    def bound_sampler(self) -> AbstractTimeSampler:
        """The time sampler for estimates of the bound, see `uniform_in_gamma.for_bound`."""
        return for_bound(self.time_sampler, self.time)

    @property
    def adaptation(self) -> Adaptation | None:
        """The rule by which training sets the interior of gamma(t); None if the loss leaves it."""
        return self.time.adaptation if self.loss.trains_time else None

    @property
    def end(self) -> CleanEnd:
        """Clean end of the path."""
        return CleanEnd(
            schedule=self.schedule, encoding=self.encoding, gamma_min=self.time.gamma_min
        )

    @property
    def gamma_max(self) -> float:
        """gamma at the noise end as a number, which a solver needs."""
        return numerics.number(self.time.gamma_max, "gamma_max")

    def init(self, key: types.PRNGKey, image_shape: tuple[int, int, int]) -> types.Params:
        """Initialize parameters for images of (height, width, channels).

        Raises:
            ValueError: if the model is for images of another shape.
        """
        self.encoding.check(image_shape)
        if self.image_shape is not None and tuple(image_shape) != tuple(self.image_shape):
            height, _, channels = image_shape
            remedy = (
                "Set `image_shape` to the dataset's, or choose the dataset that the model is for."
                if channels <= 4 or height > 4
                else "They look like (channels, height, width): numpy.moveaxis(images, 1, -1) "
                "makes channels the last axis."
            )
            raise ValueError(
                f"The images are {image_shape}, but the model is for `image_shape` "
                f"{tuple(self.image_shape)} (height, width, channels). {remedy}"
            )
        params = self.network.init(key, image_shape)
        if not isinstance(params, Mapping):
            raise ValueError(
                f"`network.init` must return a dict of arrays, got {type(params).__name__}."
            )
        if PARAMS in params:
            raise ValueError(
                f"`{PARAMS}` is the entry for parameters of gamma(t), but the network has one of "
                "that name. Rename the network's."
            )
        of_time = self.time.init(jax.random.fold_in(key, _KEY_OF_TIME))
        return {**params, PARAMS: of_time} if of_time else params

    def logical_axes(self, image_shape: tuple[int, int, int]) -> Any:
        """Return names of the parameters' axes, see `AbstractNetwork.logical_axes`."""
        axes = self.network.logical_axes(image_shape)
        of_time = jax.eval_shape(self.time.init, jax.random.key(0))
        nameless = jax.tree.map(lambda leaf: PartitionSpec(*[None] * leaf.ndim), of_time)
        return {**axes, PARAMS: nameless} if of_time else axes

    def at(self, params: types.Params) -> "DiffusionODE":
        """Return this model with the gamma(t) of these parameters; itself if it has none.

        Solvers need the ends as numbers, so evaluation and sampling call this before they compile.
        The model that is returned takes the same parameters, and ignores those of gamma(t).
        """
        time = self.time.bind(params.get(PARAMS, {}))
        return self if time is self.time else dataclasses.replace(self, time=time)

    @staticmethod
    def network_params(params: types.Params) -> types.Params:
        """Return the parameters of the network alone."""
        if PARAMS not in params:
            return params
        return {name: each for name, each in params.items() if name != PARAMS}

    def field(
        self,
        params: types.Params,
        conditioning: Float[Array, "batch bits"],
        dropout: types.PRNGKeys | None = None,
        reverse_mode_only: bool = False,
    ) -> ode.Field:
        """Return the field of the network with parameters, conditioning and dropout keys bound.

        With `reverse_mode_only` it may have no forward-mode derivative.
        """
        params = self.network_params(params)
        function = self.network.in_reverse_mode() if reverse_mode_only else self.network

        def network(z: types.Images, gamma: types.PerExample, conditioning: Array) -> types.Images:
            return function(params, z, self.time.rescale(gamma), conditioning, dropout)

        return ode.Field(
            schedule=self.schedule,
            parameterization=self.parameterization,
            network=network,
            args=(conditioning,),
        )

    def loss_fn(
        self,
        params: types.Params,
        batch: types.Batch,
        key: types.PRNGKey,
        global_batch_size: int | None = None,
    ) -> tuple[Float[Array, ""], dict[str, types.PerExample]]:
        """Return the mean training loss, its parts per example, both in bits per dim, and `gamma`.

        Args:
            params: network parameters.
            batch: `image` integers, `conditioning`, and `position` in the global batch, which keys
                the random numbers of each example.
            key: key of this step, the same for every slice of the global batch.
            global_batch_size: size over all slices; the size of `batch` if None.
        """
        position = batch["position"]
        size = global_batch_size or position.shape[0]
        return self.objective(
            params, batch, self.draw(key, position, batch["image"].shape[1:], size)
        )

    def draw(
        self, key: types.PRNGKey, position: Array, shape: tuple[int, ...], global_batch_size: int
    ) -> Draws:
        """Draw all random arrays of one training step for examples at `position`."""
        key_time, key_examples = jax.random.split(key)
        keys = numerics.fold_in_each(key_examples, position)
        keys_loss, keys_reconstruction, keys_dropout = numerics.split_each(keys, 3)
        return Draws(
            u=self.time_sampler.quantiles.draw(key_time, position, global_batch_size),
            loss=self.loss.draw(keys_loss, shape),
            reconstruction=numerics.normal_each(keys_reconstruction, shape),
            dropout=keys_dropout,
        )

    def objective(
        self, params: types.Params, batch: types.Batch, draws: Draws
    ) -> tuple[Float[Array, ""], dict[str, types.PerExample]]:
        """Return the training loss for given random arrays, see `loss_fn`.

        Its gradient trains the network and the ends of gamma(t) by the loss itself, and the
        interior by the variance of the loss: see `least_variance`. Where the interior is adapted
        instead, each example also has `integrand`, the loss in bits per dim per nat of gamma, and
        `gamma_fraction`, the place of gamma in its range. No gradient reaches gamma(t) from a loss
        that does not train it.
        """
        if PARAMS in params and not self.loss.trains_time:
            params = {**params, PARAMS: jax.lax.stop_gradient(params[PARAMS])}
        x, here = batch["image"], self.at(params)
        f, dims = self.encoding.encode(x), numerics.num_dims(x)
        others = (f, batch["conditioning"], draws.loss, draws.dropout)

        if self.time.is_trained_by_variance and self.loss.trains_time:
            sampled = self._sampled(params, draws.u, INTERIOR)
            by_variance = self._sampled(params, draws.u, ENDS)
            terms = least_variance.terms(self._terms, params, sampled, by_variance, others, dims)
        else:
            sampled = self._sampled(params, draws.u)
            terms = self._terms(params, *sampled, others)
        field = self.field(params, batch["conditioning"])
        bound_terms = losses.BoundTerms(
            reconstruction=losses.reconstruction_term(here.end, x, draws.reconstruction),
            prior=losses.prior_term(field, here.time, f),
            diffusion=terms.diffusion,
        )
        parts = _bound_parts(bound_terms, dims)
        parts["second_order"] = numerics.nats_to_bpd(terms.second_order, dims)
        parts["loss"] = parts["bpd"] + parts["second_order"]
        parts["gamma"], density = sampled
        if self.adaptation is not None:
            span = here.time.gamma_max - here.time.gamma_min
            parts["gamma_fraction"] = (parts["gamma"] - here.time.gamma_min) / span
            parts["integrand"] = parts["diffusion"] * density  # a bound has no second-order term
        return jnp.mean(parts["loss"]), parts

    def bound_fn(
        self,
        params: types.Params,
        batch: types.Batch,
        key: types.PRNGKey,
        estimator: losses.AbstractBound,
    ) -> dict[str, types.PerExample]:
        """Return a variational bound of every image and its three terms, bits per dim.

        Random numbers are keyed by the image's `index`.
        """
        keys = numerics.fold_in_each(key, batch["index"])
        field, here = self.field(params, batch["conditioning"]), self.at(params)
        terms = estimator(field, here.end, here.time, batch["image"], keys)
        return _bound_parts(terms, numerics.num_dims(batch["image"]))

    def eval_fn(
        self, params: types.Params, batch: types.Batch, key: types.PRNGKey
    ) -> dict[str, types.PerExample]:
        """Return `bound_fn` with 8 gammas per image, which is monitored during training."""
        estimator = bound.VariationalBound(num_times=8, time_sampler=self.bound_sampler)
        return self.bound_fn(params, batch, key, estimator)

    def likelihood_fn(
        self,
        params: types.Params,
        batch: types.Batch,
        key: types.PRNGKey,
        estimator: ODELikelihood,
    ) -> ImageLikelihood:
        """Return the ODE's likelihood of every image, keyed by its `index`."""
        keys = numerics.fold_in_each(key, batch["index"])
        field, here = self.field(params, batch["conditioning"]), self.at(params)
        return estimator(field, here.end, here.gamma_max, batch["image"], keys)

    def sample_fn(
        self,
        params: types.Params,
        batch: types.Batch,
        key: types.PRNGKey,
        sampler: AbstractSampler,
    ) -> Samples:
        """Sample one image per `index` of `batch`, which also holds `conditioning`.

        Raises:
            ValueError: if the model has no `image_shape`.
        """
        if self.image_shape is None:
            raise ValueError("Sampling needs `DiffusionODE.image_shape`, got None. Set it.")
        keys = numerics.fold_in_each(key, batch["index"])
        field, here = self.field(params, batch["conditioning"]), self.at(params)
        return sampler(field, here.end, here.gamma_max, self.image_shape, keys)

    def encode_fn(
        self, params: types.Params, batch: types.Batch, key: types.PRNGKey, sampler: ODESampler
    ) -> Encoded:
        """Encode every image to its latent, keyed by its `index`."""
        field, end, gamma_max, x, keys = self._to_encode(params, batch, key)
        return sampler.to_noise(field, end, gamma_max, latents.start(end, x, keys))

    def round_trip_fn(
        self, params: types.Params, batch: types.Batch, key: types.PRNGKey, sampler: ODESampler
    ) -> latents.RoundTrip:
        """Encode every image, as `encode_fn` does, and decode it."""
        return latents.round_trip(*self._to_encode(params, batch, key), sampler)

    def _to_encode(
        self, params: types.Params, batch: types.Batch, key: types.PRNGKey
    ) -> tuple[ode.Field, CleanEnd, float, types.Pixels, types.PRNGKeys]:
        keys = numerics.fold_in_each(key, batch["index"])
        field, here = self.field(params, batch["conditioning"]), self.at(params)
        return field, here.end, here.gamma_max, batch["image"], keys

    def decode_fn(
        self, params: types.Params, batch: types.Batch, sampler: AbstractDeterministicSampler
    ) -> Samples:
        """Decode `noise` of `batch`, which also holds `conditioning`."""
        field, here = self.field(params, batch["conditioning"]), self.at(params)
        return sampler.from_noise(field, here.end, here.gamma_max, batch["noise"])

    def integrand(
        self, params: types.Params, batch: types.Batch, key: types.PRNGKey, gammas: Array
    ) -> Float[Array, " gammas"]:
        """Return the batch mean of 1/2 |eps - eps_hat|^2 at each of `gammas`, bits per dim per nat.

        Its integral over [gamma_min, gamma_max] is the diffusion term of the bound.
        """
        keys = numerics.fold_in_each(key, batch["index"])
        f = self.encoding.encode(batch["image"])
        field = self.field(params, batch["conditioning"])
        noise = numerics.normal_each(keys, f.shape[1:])

        def at(gamma: Array) -> Array:
            each = jnp.broadcast_to(gamma, f.shape[:1]).astype(f.dtype)
            nats = bound.integrand(field, f, each, noise)
            return jnp.mean(numerics.nats_to_bpd(nats, numerics.num_dims(f)))

        return jax.lax.map(at, gammas)

    def _sampled(
        self, params: types.Params, u: types.PerExample, without: str | None = None
    ) -> tuple[types.PerExample, types.PerExample]:
        """Return gammas and densities, without a gradient through one part of gamma(t)."""
        if without is not None:
            params = {**params, PARAMS: without_gradient(params[PARAMS], without)}
        return self.time_sampler.gamma_and_density(u, self.at(params).time, self._weight)

    def _terms(
        self, params: types.Params, gamma: types.PerExample, density: types.PerExample, others: Any
    ) -> losses.LossTerms:
        """Return the terms of the loss at gammas; `others` are the images and random arrays."""
        f, conditioning, drawn, dropout = others
        field = self.field(params, conditioning, dropout, self.loss.reverse_mode_only)
        return self.loss(field, f, gamma, density, drawn)

    def _weight(self, gamma: types.Gamma) -> types.Gamma:
        return self.parameterization.weight(self.schedule, gamma)


def _bound_parts(terms: losses.BoundTerms, dims: int) -> dict[str, types.PerExample]:
    parts = {**terms._asdict(), "bpd": terms.total}
    return {name: numerics.nats_to_bpd(nats, dims) for name, nats in parts.items()}
