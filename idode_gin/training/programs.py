"""The compiled functions of a training run, and where their arguments live."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax

from idode_gin import types
from idode_gin.devices import partitioning
from idode_gin.processes import joining
from idode_gin.training import train_state, train_step
from idode_gin.training.guards import STOP, Guards
from idode_gin.types import TrainState

EvalFn = Callable[[types.Params, types.Batch, types.PRNGKey], dict[str, Any]]
"""`(params, batch, key) -> per-image values [B]`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """Jitted functions of one run, and the shapes, dtypes and shardings of its state.

    `step` donates the state it is given. `logical_axes` names the axes of the parameters.
    """

    init: Callable[[], TrainState]
    step: Callable[[TrainState, types.Batch], tuple[TrainState, train_step.Health]]
    evaluate: Callable[[types.Params, types.Batch], dict[str, Any]]
    abstract_state: TrainState
    logical_axes: Any


def keys(seed: int) -> tuple[types.PRNGKey, types.PRNGKey, types.PRNGKey]:
    """The keys of initial parameters, of training and of evaluation."""
    key_init, key_train, key_eval = jax.random.split(jax.random.key(seed), 3)
    return key_init, key_train, key_eval


def build(
    init_params: Callable[[types.PRNGKey], types.Params],
    loss_fn: train_step.LossFn,
    eval_fn: EvalFn,
    transformation: optax.GradientTransformation,
    *,
    batch: types.Batch,
    seed: int,
    ema_rate: float,
    log_period: int,
    num_microbatches: int,
    update_period: int,
    partitioner: partitioning.PjitPartitioner,
    rules: Guards = STOP,
    gamma_bins: train_step.GammaBins = train_step.NO_BINS,
    logical_axes: Any = None,
) -> Program:
    """Builds the functions; each compiles when it is first called.

    Args:
        init_params: fresh parameters from a key.
        loss_fn: see `train_step.LossFn`.
        eval_fn: per-image values of a batch, keyed by `batch["index"]`.
        transformation: the optimizer.
        batch: a training batch, or its shapes and dtypes.
        seed: of all random numbers: initial parameters, training and evaluation draw from
            independent keys.
        ema_rate: see `train_step.make_train_step`, like the next three.
        log_period: steps per window of metrics.
        num_microbatches: parts of a batch.
        update_period: steps per move of the parameters.
        partitioner: devices.
        rules: see `train_step.make_train_step`.
        gamma_bins: likewise.
        logical_axes: names of the parameters' axes, for the partitioner's rules; None leaves
            parameters whole.
    """
    key_init, key_train, key_eval = keys(seed)
    params = jax.eval_shape(init_params, key_init)
    names = train_step.metric_names(loss_fn, params, batch, key_train)

    def init() -> TrainState:
        return train_state.create(init_params(key_init), transformation, names, gamma_bins.number)

    shapes = jax.eval_shape(init)
    sharding = partitioner.state_sharding(shapes, logical_axes)
    gathered = partitioner.gathered(sharding.params)

    def loss_of_stored(params: types.Params, *others: Any) -> tuple[jax.Array, dict[str, Any]]:
        return loss_fn(gathered(params), *others)

    def evaluate(params: types.Params, batch: types.Batch) -> dict[str, Any]:
        return eval_fn(gathered(params), batch, key_eval)

    step = train_step.make_train_step(
        loss_of_stored,
        transformation,
        key=key_train,
        ema_rate=ema_rate,
        log_period=log_period,
        num_microbatches=num_microbatches,
        update_period=update_period,
        rules=rules,
        gamma_bins=gamma_bins,
    )
    return Program(
        init=jax.jit(init, out_shardings=sharding),
        step=joining.together(
            jax.jit(step, donate_argnums=0, out_shardings=(sharding, partitioner.replicated))
        ),
        evaluate=joining.together(jax.jit(evaluate, out_shardings=partitioner.replicated)),
        abstract_state=partitioning.abstract(shapes, sharding),
        logical_axes=logical_axes,
    )
