"""The compiled functions of a training run, and the shapes and shardings of its state."""

import dataclasses
from collections.abc import Callable
from typing import Any, final

import jax
import optax

from idode_gin import types
from idode_gin.devices import mesh, partitioning
from idode_gin.models import DiffusionODE
from idode_gin.processes import joining
from idode_gin.training import train_state, train_step
from idode_gin.types import TrainState


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """Jitted functions of one run, and the shapes, dtypes and shardings of its state.

    `step` donates the state it is called with. `init_optimizer` returns a new state of the
    optimizer for given parameters.
    """

    init: Callable[[], TrainState]
    init_optimizer: Callable[[types.Params], Any]
    step: Callable[[TrainState, types.Batch], tuple[TrainState, train_step.Health]]
    evaluate: Callable[[types.Params, types.Batch], dict[str, Any]]
    abstract_state: TrainState


def keys(seed: int) -> tuple[types.PRNGKey, types.PRNGKey, types.PRNGKey]:
    """Return the keys of initial parameters, of training and of evaluation."""
    key_init, key_train, key_eval = jax.random.split(jax.random.key(seed), 3)
    return key_init, key_train, key_eval


def build(
    *,
    model: DiffusionODE,
    image_shape: tuple[int, int, int],
    batch: types.Batch,
    transformation: optax.GradientTransformation,
    update: train_step.UpdateConfig,
    seed: int,
    partitioner: partitioning.PjitPartitioner,
) -> Program:
    """Build the functions; each compiles when it is first called.

    `image_shape` is (height, width, channels); of `batch`, shapes and dtypes suffice. Initial
    parameters, training and evaluation draw from three independent keys of `seed`.

    Raises:
        ValueError: if the network's fused kernels cannot run on the mesh.
    """
    _check_fused(model, partitioner)
    key_init, key_train, key_eval = keys(seed)

    def init_params(key: types.PRNGKey) -> types.Params:
        return model.init(key, image_shape)

    params = jax.eval_shape(init_params, key_init)
    names = train_step.metric_names(model.loss_fn, params, batch, key_train)

    def begin(params: types.Params) -> TrainState:
        bins, adaptation = update.gamma_bins.number, update.adaptation
        adapted_bins = 0 if adaptation is None else adaptation.bins
        return train_state.create(params, transformation, names, bins, adapted_bins)

    def init() -> TrainState:
        return begin(init_params(key_init))

    shapes = jax.eval_shape(begin, params)
    sharding = partitioner.state_sharding(shapes, model.logical_axes(image_shape))
    loss_fn = partitioner.on_gathered(model.loss_fn, sharding.params)
    eval_fn = partitioner.on_gathered(model.eval_fn, sharding.params)

    def evaluate(params: types.Params, batch: types.Batch) -> dict[str, Any]:
        return eval_fn(params, batch, key_eval)

    step = train_step.make_train_step(loss_fn, transformation, key_train, update)
    outputs = (sharding, partitioner.replicated)
    return Program(
        init=jax.jit(init, out_shardings=sharding),
        init_optimizer=transformation.init,
        step=joining.together(jax.jit(step, donate_argnums=0, out_shardings=outputs)),
        evaluate=joining.together(jax.jit(evaluate, out_shardings=partitioner.replicated)),
        abstract_state=partitioning.abstract(shapes, sharding),
    )


def _check_fused(model: DiffusionODE, partitioner: partitioning.PjitPartitioner) -> None:
    parts = partitioner.mesh.shape[mesh.MODEL]
    if parts > 1 and model.network.needs_whole_channels:
        raise ValueError(
            "`UNet.fused` needs all channels of an image on one device, got a mesh whose axis "
            f"'{mesh.MODEL}' has size {parts}. Set it to 1 (num_partitions=1), or fused=False."
        )
