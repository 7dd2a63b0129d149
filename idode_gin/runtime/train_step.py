"""One update of the parameters, as one compiled program."""

import collections
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from idode_gin import checks, types
from idode_gin.runtime import train_state
from idode_gin.runtime.train_state import TrainState

Metrics: TypeAlias = dict[str, Float[Array, "..."]]
LossFn: TypeAlias = Callable[..., tuple[Float[Array, ""], Metrics]]
"""`(params, batch, key, global_batch_size) -> (mean loss, metrics [B])`."""

Health: TypeAlias = dict[str, Float[Array, ""]]
"""`loss`, `grad_norm` (before clipping) and `param_norm` (after the update) of one step."""

GRAD_NORM = "grad_norm"


def make_train_step(
    loss_fn: LossFn,
    transformation: optax.GradientTransformation,
    *,
    key: types.PRNGKey,
    ema_rate: float,
    log_period: int,
    num_microbatches: int = 1,
    update_period: int = 1,
) -> Callable[[TrainState, types.Batch], tuple[TrainState, Health]]:
    """The update, to be jitted with the state donated.

        key_step = fold_in(key, step)
        ema <- ema_rate * ema + (1 - ema_rate) * params      whenever the parameters have moved

    Args:
        loss_fn: mean loss and metrics of a batch, keyed by `batch["position"]`.
        transformation: the optimizer.
        key: of the whole run.
        ema_rate: in [0, 1).
        log_period: steps after which the window of metrics starts anew.
        num_microbatches: equal parts the batch is worked through in, to save memory; gradients
            are averaged. Randomness follows the position, so the result is that of one batch.
        update_period: the parameters move every so many steps, because `transformation`
            accumulates gradients. As published, their moving average then moves no more often.

    Raises:
        ValueError: if a number is out of range; on tracing, if the batch does not divide.
    """
    checks.check_positive("log_period", log_period)
    checks.check_positive("num_microbatches", num_microbatches)
    checks.check_positive("update_period", update_period)
    if not 0 <= ema_rate < 1:
        raise ValueError(f"`ema_rate` must be in [0, 1), got ema_rate={ema_rate}.")

    def train_step(state: TrainState, batch: types.Batch) -> tuple[TrainState, Health]:
        key_step = jax.random.fold_in(key, state.step)
        loss, metrics, grads = _loss_and_grads(
            loss_fn, state.params, batch, key_step, num_microbatches
        )
        updates, opt_state = transformation.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # In this form an average that has arrived stays where it is, bit for bit.
        weight = jnp.where((state.step + 1) % update_period == 0, 1 - ema_rate, 0.0)
        ema = jax.tree.map(lambda e, p: e + weight * (p - e), state.ema, params)
        grad_norm = optax.global_norm(grads)
        fresh = state.step % log_period == 0
        added = {train_state.COUNT: 1.0, GRAD_NORM: grad_norm, **metrics}
        window = {
            name: jnp.where(fresh, 0.0, state.window[name]) + each for name, each in added.items()
        }
        health = {
            "loss": loss,
            "grad_norm": grad_norm,
            "param_norm": optax.global_norm(params),
        }
        after = TrainState(
            step=state.step + 1, params=params, ema=ema, opt_state=opt_state, window=window
        )
        return after, health

    return train_step


def metric_names(
    loss_fn: LossFn, params: types.Params, batch: types.Batch, key: types.PRNGKey
) -> list[str]:
    """Names of what the update sums in `TrainState.window`; nothing is computed."""
    size = batch["image"].shape[0]
    _, metrics = jax.eval_shape(lambda p, b, k: loss_fn(p, b, k, size), params, batch, key)
    return sorted({*metrics, GRAD_NORM})


def _loss_and_grads(
    loss_fn: LossFn, params: types.Params, batch: types.Batch, key: types.PRNGKey, parts: int
) -> tuple[Float[Array, ""], Metrics, types.Params]:
    """Means over the batch of the loss, the metrics and the gradient."""
    size = batch["image"].shape[0]

    def one_part(part: types.Batch) -> tuple[Float[Array, ""], Metrics, types.Params]:
        (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, part, key, size)
        return loss, {name: jnp.mean(each) for name, each in metrics.items()}, grads

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
    first = jax.tree.map(lambda each: each[0], split)
    zeros = jax.tree.map(
        lambda each: jnp.zeros(each.shape, each.dtype), jax.eval_shape(one_part, first)
    )
    # On a CPU the gradient of a convolution inside a loop is some twenty times slower.
    unroll = jax.default_backend() == "cpu"
    sums, _ = jax.lax.scan(add_part, zeros, split, unroll=unroll)
    return jax.tree.map(lambda each: each / parts, sums)


class FiniteWatch:
    """Looks at the loss of a few steps ago, so that the device is never waited for.

    `step` and `loss` are those of the last step seen to be finished; 0 and NaN before there is one.

    Args:
        look_ahead: steps that may be in flight unseen.
    """

    def __init__(self, look_ahead: int = 2) -> None:
        self._look_ahead = look_ahead
        self._pending: collections.deque[tuple[int, Health]] = collections.deque()
        self.step, self.loss = 0, float("nan")

    def push(self, step: int, health: Health) -> None:
        """Adds a step just sent to the device; `step` counts the updates including it.

        Raises:
            checks.NonFiniteError: if an earlier step came out NaN or infinite.
        """
        self._pending.append((step, health))
        while len(self._pending) > self._look_ahead:
            self._check(*self._pending.popleft())

    def drain(self) -> None:
        """Waits for every step in flight. Raises like `push`."""
        while self._pending:
            self._check(*self._pending.popleft())

    def _check(self, step: int, health: Health) -> None:
        values = {name: float(each) for name, each in jax.device_get(health).items()}
        self.step, self.loss = step, values["loss"]
        if not np.all(np.isfinite(list(values.values()))):
            raise checks.NonFiniteError(
                f"Step {step} is not finite: loss {values['loss']}, norm of the gradient "
                f"{values['grad_norm']}, norm of the parameters {values['param_norm']}."
            )
