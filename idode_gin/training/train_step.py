"""One update of the parameters, as one compiled program."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias, final

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from idode_gin import checks, types
from idode_gin.schedules.time.base import INTERIOR, PARAMS, Adaptation
from idode_gin.training import guards, train_state
from idode_gin.training.guards import STOP, Guards, Health
from idode_gin.types import TrainState

Metrics: TypeAlias = dict[str, Float[Array, "..."]]
LossFn: TypeAlias = Callable[..., tuple[Float[Array, ""], Metrics]]
"""`(params, batch, key, global_batch_size) -> (mean loss, metrics [B])`."""

GRAD_NORM = "grad_norm"
GAMMA, FRACTION, INTEGRAND = "gamma", "gamma_fraction", "integrand"
"""Metrics that are not averaged: they select bins, and are squared in them."""


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class GammaBins:
    """Equal bins of gamma, in which the loss is logged beside its mean.

    Args:
        number: number of bins; 0 for none.
        low: lower end of the first bin, nats; smaller gammas count to the first bin.
        high: upper end of the last bin, nats; larger gammas count to the last bin.

    Raises:
        ValueError: if `number` is not an integer, or is negative.
    """

    number: int = 0
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        checks.check_integer("gamma_bins", self.number, at_least=0)

    def sums(self, gamma: types.PerExample, loss: types.PerExample) -> Metrics:
        """Return, by bin `[number]`, sum of losses and number of images, over the batch size."""
        names = (train_state.LOSS_BY_GAMMA, train_state.GAMMA_SHARE)
        return dict(zip(names, self.both_sums(gamma, loss), strict=True))

    def both_sums(
        self, gamma: types.PerExample, loss: types.PerExample
    ) -> tuple[Float[Array, " bins"], Float[Array, " bins"]]:
        """Return the two values of `sums`."""
        place = (gamma - self.low) * (self.number / (self.high - self.low))
        place = jnp.clip(jnp.floor(place).astype(jnp.int32), 0, self.number - 1)
        inside = place[:, None] == jnp.arange(self.number)
        # Not a product: 0 * NaN would spread one bad image over every bin.
        losses = jnp.where(inside, loss[:, None], 0.0)
        return jnp.mean(losses, axis=0), jnp.mean(inside, axis=0, dtype=losses.dtype)


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class UpdateConfig:
    """Settings of one update, beside the loss and the optimizer.

    Args:
        ema_rate: decay of the moving average of the parameters, in [0, 1).
        ema_warmup: let the decay rise from 0.1 to `ema_rate`, so that the average forgets the
            initial parameters early.
        log_period: steps after which the window of metrics starts again.
        num_microbatches: equal parts that a batch is processed in, to save memory; gradients are
            averaged. Random numbers follow the position, so the result is that of one batch.
        update_period: steps between two changes of the parameters, where the optimizer
            accumulates gradients. As published, their moving average changes as often.
        rules: rules for bad steps. A skipped step changes only `step`, the count of skipped steps
            and the memory of the rules.
        gamma_bins: bins of the loss by gamma.
        adaptation: rule that sets the interior of gamma(t), if it has one. The moving average
            follows it in the steps after.

    Raises:
        ValueError: if a number is out of range.
    """

    ema_rate: float
    log_period: int
    ema_warmup: bool = False
    num_microbatches: int = 1
    update_period: int = 1
    rules: Guards = STOP
    gamma_bins: GammaBins = GammaBins()
    adaptation: Adaptation | None = None

    def __post_init__(self) -> None:
        for name in ("log_period", "num_microbatches", "update_period"):
            checks.check_count(name, getattr(self, name))
        if not 0 <= self.ema_rate < 1:
            raise ValueError(f"`ema_rate` must be in [0, 1), got ema_rate={self.ema_rate}.")


def make_train_step(
    loss_fn: LossFn,
    transformation: optax.GradientTransformation,
    key: types.PRNGKey,
    config: UpdateConfig,
) -> Callable[[TrainState, types.Batch], tuple[TrainState, Health]]:
    """Return the update, to be jitted with the state donated.

        key_step = fold_in(key, step)
        ema <- rate * ema + (1 - rate) * params      whenever the parameters have changed
        rate = ema_rate, or with a warm-up min(ema_rate, (1 + n) / (10 + n)) after n changes

    `loss_fn` draws by `batch["position"]`; `key` is that of the whole run. Tracing raises
    ValueError if the batch does not divide into microbatches.
    """

    def train_step(state: TrainState, batch: types.Batch) -> tuple[TrainState, Health]:
        key_step = jax.random.fold_in(key, state.step)
        loss, metrics, grads = _loss_and_grads(loss_fn, state.params, batch, key_step, config)
        grad_norm = optax.global_norm(grads)
        skip, guard, verdict = guards.judge(config.rules, state.guard, loss, grad_norm)
        updates, opt_state = transformation.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = average(state.ema, params, state.step + 1 - guards.num_bad(guard), config)
        added = {train_state.COUNT: jnp.ones(()), GRAD_NORM: grad_norm, **metrics}
        if config.rules.can_skip:
            before = (state.params, state.ema, state.opt_state, jax.tree.map(jnp.zeros_like, added))
            after = (params, ema, opt_state, added)
            params, ema, opt_state, added = jax.tree.map(
                lambda old, new: jnp.where(skip, old, new), before, after
            )
        added[train_state.SKIPPED] = skip.astype(jnp.float32)
        window = _summed(state, added, config)
        if config.adaptation is not None:
            is_due = ~skip & ((state.step + 1) % config.adaptation.period == 0)
            params = _adapted(config.adaptation, params, window, is_due)
        param_norm = optax.global_norm(params)
        health = {"loss": loss, "grad_norm": grad_norm, "param_norm": param_norm, **verdict}
        after_step = TrainState(
            step=state.step + 1,
            params=params,
            ema=ema,
            opt_state=opt_state,
            window=window,
            guard=guard,
        )
        return after_step, health

    return train_step


def average(ema: Any, params: Any, updates_made: Array, config: UpdateConfig) -> Any:
    """Return the moving average after one more update, see `make_train_step`."""
    # In this form an average equal to the parameters does not change, bit for bit.
    rate = _ema_rate(config, updates_made // config.update_period)
    weight = jnp.where(updates_made % config.update_period == 0, 1 - rate, 0.0)
    return jax.tree.map(lambda e, p: e + weight * (p - e), ema, params)


def _summed(state: TrainState, added: Metrics, config: UpdateConfig) -> Metrics:
    """Return the sums of the window with those of this step."""

    is_fresh = dict.fromkeys(added, state.step % config.log_period == 0)
    if config.adaptation is not None:
        is_due = state.step % config.adaptation.period == 0
        is_fresh |= dict.fromkeys((train_state.SQUARES, train_state.SAMPLES), is_due)
    return {
        name: jnp.where(is_fresh[name], 0.0, state.window[name]) + each
        for name, each in added.items()
    }


def _adapted(
    adaptation: Adaptation, params: types.Params, window: Metrics, is_due: Array
) -> types.Params:
    """Return the parameters, with the interior of gamma(t) recomputed if that is due."""
    old = params[PARAMS][INTERIOR]
    new = adaptation.adapted(old, window[train_state.SQUARES], window[train_state.SAMPLES])
    interior = jax.tree.map(lambda before, after: jnp.where(is_due, after, before), old, new)
    return {**params, PARAMS: {**params[PARAMS], INTERIOR: interior}}


def _ema_rate(config: UpdateConfig, changes: Array) -> float | Array:
    """Return the decay at the latest of this many changes of the parameters."""
    if not config.ema_warmup:
        return config.ema_rate
    before = (changes - 1).astype(float)
    return jnp.minimum(config.ema_rate, (1 + before) / (10 + before))


def metric_names(
    loss_fn: LossFn, params: types.Params, batch: types.Batch, key: types.PRNGKey
) -> list[str]:
    """Return the names of what the update sums in `TrainState.window`, from shapes alone."""
    size = batch["image"].shape[0]
    _, metrics = jax.eval_shape(lambda p, b, k: loss_fn(p, b, k, size), params, batch, key)
    return sorted({*metrics, GRAD_NORM} - {GAMMA, FRACTION, INTEGRAND})


def _loss_and_grads(
    loss_fn: LossFn,
    params: types.Params,
    batch: types.Batch,
    key: types.PRNGKey,
    config: UpdateConfig,
) -> tuple[Float[Array, ""], Metrics, types.Params]:
    """Return means over the batch of the loss, the metrics and the gradient."""
    size, parts, bins = batch["image"].shape[0], config.num_microbatches, config.gamma_bins

    def one_part(part: types.Batch) -> tuple[Float[Array, ""], Metrics, types.Params]:
        (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, part, key, size)
        others = (GAMMA, FRACTION, INTEGRAND)
        means = {name: jnp.mean(each) for name, each in metrics.items() if name not in others}
        if bins.number:
            means |= bins.sums(metrics[GAMMA], metrics["loss"])
        if config.adaptation is not None:
            of_fraction = GammaBins(number=config.adaptation.bins)
            means[train_state.SQUARES], means[train_state.SAMPLES] = of_fraction.both_sums(
                metrics[FRACTION], metrics[INTEGRAND] ** 2
            )
        return loss, means, grads

    if parts == 1:
        return one_part(batch)
    checks.check_multiple("batch_size", size, "num_microbatches", parts)

    def add_part(sums: Any, part: types.Batch) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, one_part(part)), None

    # Every parts-th row, not a contiguous run: each device then holds rows of every part, and a
    # batch sharded over devices is not moved between them.
    split = jax.tree.map(
        lambda each: jnp.swapaxes(each.reshape(size // parts, parts, *each.shape[1:]), 0, 1), batch
    )
    shapes = jax.eval_shape(one_part, jax.tree.map(lambda each: each[0], split))
    zeros = jax.tree.map(lambda each: jnp.zeros(each.shape, each.dtype), shapes)
    # On a CPU the gradient of a convolution inside a loop is some twenty times slower.
    unroll = jax.default_backend() == "cpu"
    sums, _ = jax.lax.scan(add_part, zeros, split, unroll=unroll)
    return jax.tree.map(lambda each: each / parts, sums)
