"""Train, score and sample our models with upstream t5x, which is an optional companion.

`gin_configs/t5x/` holds the gin files of its programs. t5x is imported when `model` is called, and
nowhere else in this project.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import flax
import jax
import jax.numpy as jnp
import optax
from clu import metrics
from flax.linen import partitioning
from jaxtyping import Array

from idode_gin import numerics, types
from idode_gin.devices import axis_rules, mesh
from idode_gin.evaluation import pixel_keys, scores
from idode_gin.evaluation.summary import VARIATIONAL_BOUND
from idode_gin.likelihood.ode_likelihood import ODELikelihood
from idode_gin.losses.base import AbstractBound
from idode_gin.losses.bound import VariationalBound
from idode_gin.models import DiffusionODE
from idode_gin.samplers.base import AbstractSampler
from idode_gin.training import train_step
from idode_gin.training.optimizers import AdamW

Metrics: TypeAlias = dict[str, metrics.Metric]


def model(**fields: Any) -> Any:
    """Return a `t5x.models.BaseModel` of a diffusion ODE; the fields are those of `Parts`."""
    from t5x import models, optimizers

    parts = Parts(**fields)
    definition = optimizers.OptaxWrapper(with_average(parts.optimizer.build(), parts.update))
    return class_over(models.BaseModel)(parts, definition)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """Everything that the methods of the model use.

    Losses, parameters and their moving average are those of `idode_gin.train`, bit for bit, for
    the same batches and keys. A batch of t5x holds neither the places of its images in the batch
    nor in the split: the row is the one, and a hash of the pixels replaces the other, so scores do
    not depend on the batch. They are those of `Evaluator.noise_by_pixels`.

    Args:
        diffusion_ode: the model.
        optimizer: its learning rate and schedule; t5x's own learning rate is not used.
        feature_converter_cls: `tasks.support.feature_converter.ImageFeatureConverter`.
        ema_rate: decay of the moving average, which is part of the optimizer's state.
        ema_warmup: see `Trainer.ema_warmup`.
        num_microbatches: the same number as t5x's own. t5x adds gradients of microbatches, and we
            average them: the loss is divided by it.
        bound: bound that is reported in training and by `score_batch`.
        likelihood: ODE likelihood that `score_batch` returns instead; None for `bound`.
        likelihood_name: its name in `Evaluator.likelihoods`, which its noise depends on.
        sampler: sampler of `predict_batch`; None cannot sample.
        seed: seed of noise in evaluation, scoring, and sampling without a key.
    """

    diffusion_ode: DiffusionODE
    optimizer: AdamW
    feature_converter_cls: Callable[..., Any]
    ema_rate: float = 0.9999
    ema_warmup: bool = False
    num_microbatches: int = 1
    bound: AbstractBound = VariationalBound()
    likelihood: ODELikelihood | None = None
    likelihood_name: str = "truncated_normal"
    sampler: AbstractSampler | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the settings of the moving average, and that t5x can train the model."""
        _ = self.update
        if self.diffusion_ode.num_classes:
            raise ValueError(
                f"t5x reads no labels, and the model has {self.diffusion_ode.num_classes} classes. "
                "Bind NUM_CLASSES = 0, or train by idode_gin.train."
            )
        if self.diffusion_ode.adaptation is not None:
            raise ValueError(
                f"t5x cannot train a {type(self.diffusion_ode.time).__name__}, whose interior "
                "follows the loss of many steps. Choose another gamma(t), or idode_gin.train."
            )

    @property
    def update(self) -> train_step.UpdateConfig:
        """Return the settings of the moving average."""
        return train_step.UpdateConfig(
            ema_rate=self.ema_rate,
            ema_warmup=self.ema_warmup,
            log_period=1,
            update_period=self.optimizer.accumulation_steps,
        )

    def loss(
        self, params: types.Params, batch: types.Batch, key: types.PRNGKey
    ) -> tuple[Array, Metrics]:
        """Return the training loss over `num_microbatches`, and its terms in bits per dim."""
        size = batch["image"].shape[0]
        placed = {**batch, "position": jnp.arange(size, dtype=jnp.int32)}
        loss, terms = self.diffusion_ode.loss_fn(params, placed, key, size)
        del terms[train_step.GAMMA]
        return loss / self.num_microbatches, _averages(terms)

    def bits_per_dim(self, params: types.Params, batch: types.Batch) -> dict[str, types.PerExample]:
        """Return the bound of every image, and its terms."""
        key = scores.key_of(self.seed, VARIATIONAL_BOUND)
        return self.diffusion_ode.bound_fn(params, pixel_keys.indexed(batch), key, self.bound)

    def log_p(self, params: types.Params, batch: types.Batch) -> types.PerExample:
        """Return a lower bound on log P(x) of every image, nats."""
        if self.likelihood is not None:
            key = scores.key_of(self.seed, self.likelihood_name)
            scored = self.diffusion_ode.likelihood_fn(
                params, pixel_keys.indexed(batch), key, self.likelihood
            )
            return scored.log_p
        bits = self.bits_per_dim(params, batch)["bpd"]
        return -bits / numerics.nats_to_bpd(jnp.ones(()), numerics.num_dims(batch["image"]))

    def samples(
        self, params: types.Params, batch: types.Batch, key: types.PRNGKey | None
    ) -> tuple[types.Pixels, dict[str, Array]]:
        """Return one image for every row of `batch`, with its conditioning, and their facts.

        Raises:
            ValueError: if there is no sampler.
        """
        if self.sampler is None:
            raise ValueError(
                "`predict_batch` needs a sampler, got sampler=None. Add one of gin_configs/"
                "samplers/ and bind `model.sampler = %SAMPLER`."
            )
        key = jax.random.key(self.seed) if key is None else key
        drawn = self.diffusion_ode.sample_fn(params, pixel_keys.indexed(batch), key, self.sampler)
        return drawn.pixels, {"num_evaluations": drawn.num_evaluations, "success": drawn.success}

    def variables(self, key: types.PRNGKey, image_shape: tuple[int, int, int]) -> dict[str, Any]:
        """Return initial `params`, and `params_axes` with the names of their axes."""
        axes = flax.traverse_util.flatten_dict(self.diffusion_ode.logical_axes(image_shape))
        named = {
            (*path[:-1], f"{path[-1]}_axes"): partitioning.AxisMetadata(tuple(names))
            for path, names in axes.items()
        }
        return {
            "params": self.diffusion_ode.init(key, image_shape),
            "params_axes": flax.traverse_util.unflatten_dict(named),
        }


def class_over(base: type) -> type:
    """Return the subclass of t5x's `BaseModel` that calls `Parts`."""

    class ImageModel(base):
        def __init__(self, parts: Parts, optimizer_def: Any) -> None:
            super().__init__(optimizer_def)
            self.parts = parts
            self.FEATURE_CONVERTER_CLS = parts.feature_converter_cls

        def loss_fn(
            self, params: types.Params, batch: types.Batch, dropout_rng: Any
        ) -> tuple[Array, Metrics]:
            if dropout_rng is None:
                return self.eval_fn(params, batch)
            return self.parts.loss(params, batch, dropout_rng)

        def eval_fn(self, params: types.Params, batch: types.Batch) -> tuple[Array, Metrics]:
            terms = self.parts.bits_per_dim(params, batch)
            return jnp.mean(terms["bpd"]), _averages(terms)

        def predict_batch_with_aux(
            self, params: types.Params, batch: types.Batch, rng: Any = None
        ) -> tuple[types.Pixels, dict[str, Array]]:
            return self.parts.samples(params, batch, rng)

        def score_batch(
            self, params: types.Params, batch: types.Batch, return_intermediates: bool = False
        ) -> types.PerExample:
            if return_intermediates:
                raise ValueError("A score has no intermediates: leave return_intermediates out.")
            return self.parts.log_p(params, batch)

        def get_initial_variables(
            self, rng: Any, input_shapes: Mapping[str, Any], input_types: Any = None
        ) -> dict[str, Any]:
            del input_types
            _, height, width, channels = input_shapes["image"]
            return self.parts.variables(rng, (height, width, channels))

    return ImageModel


def with_average(
    transformation: optax.GradientTransformation, update: train_step.UpdateConfig
) -> optax.GradientTransformation:
    """Return the transformation with the moving average of the parameters in its state.

    The state is a pair: that of `transformation`, and an `optax.EmaState`, whose sharding t5x
    knows.
    """

    def init(params: types.Params) -> tuple[Any, optax.EmaState]:
        average = jax.tree.map(jnp.copy, params)
        return transformation.init(params), optax.EmaState(jnp.zeros([], jnp.int32), average)

    def apply(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        inner, average = state
        updates, inner = transformation.update(updates, inner, params)
        count = average.count + 1
        after = optax.apply_updates(params, updates)
        ema = train_step.average(average.ema, after, count, update)
        return updates, (inner, optax.EmaState(count, ema))

    return optax.GradientTransformation(init, apply)


def learning_rate(optimizer: AdamW) -> Callable[[Any], Any]:
    """Return the optimizer's learning rate by step, for t5x to log."""
    return optimizer.learning_rate_at


def logical_axis_rules() -> list[tuple[str, str | None]]:
    """Return rules for t5x's mesh of `data` and `model`: blocks are split over `model`.

    A batch is split over `data`. Axes whose names have no rule are replicated.
    """
    split = {name for name, axis in axis_rules.DEFAULT if axis == mesh.MODEL}
    names = dict.fromkeys(name for name, _ in axis_rules.DEFAULT)
    rules = [(name, mesh.MODEL if name in split else None) for name in names]
    return [("batch", mesh.DATA), *rules]


def _averages(terms: Mapping[str, types.PerExample]) -> Metrics:
    return {name: metrics.Average.from_model_output(each) for name, each in terms.items()}
