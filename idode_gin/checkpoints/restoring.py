"""Restore the state of a run: resume its own checkpoint, or warm-start from another by rules."""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from absl import logging

from idode_gin import types
from idode_gin.checkpoints import meta as checkpoint_meta
from idode_gin.checkpoints import reading, stacked_leaves, warm_start
from idode_gin.checkpoints.config import RestoreCheckpointConfig
from idode_gin.reports import fingerprints
from idode_gin.types import TrainState

ACCUMULATION = "optimizer.accumulation_steps"
"""Fact of a run: number of steps that gradients are accumulated over."""
_OPTIMIZER, _OPT_STATE = "optimizer/", "training/opt_state/"


class Fresh(NamedTuple):
    """Functions that make what is not restored; without `optimizer`, `state` makes its state."""

    state: Callable[[], TrainState]
    optimizer: Callable[[types.Params], Any] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Restored:
    """A restored state.

    Args:
        state: state to continue from.
        path: checkpoint it was restored from.
        facts: facts of the run that wrote the checkpoint.
        report: action for each leaf, if not all are restored unchanged.
    """

    state: TrainState
    path: pathlib.Path
    facts: dict[str, Any]
    report: str | None = None


def parts(state: TrainState) -> dict[str, Any]:
    """Return the parts that a checkpoint saves."""
    training = {
        "step": state.step,
        "opt_state": state.opt_state,
        "window": state.window,
        "guard": state.guard,
    }
    return {"params": state.params, "ema": state.ema, "training": training}


def resume(
    checkpoint: pathlib.Path, abstract: TrainState, fresh: Fresh, facts: Mapping[str, Any]
) -> Restored:
    """Restore the state of a run from its own checkpoint, bit for bit.

    If the number of steps that gradients are accumulated over has changed, the optimizer's moments
    are kept and the accumulated gradients are dropped.

    Raises:
        DamagedError: if the checkpoint is damaged.
        ValueError: if it belongs to another architecture.
    """
    meta = checkpoint_meta.read_meta(checkpoint)
    check_resume(checkpoint, meta, abstract, facts)
    found = start(checkpoint, abstract, RestoreCheckpointConfig(), fresh, facts)
    return found if _is_switched(meta, abstract, facts) else dataclasses.replace(found, report=None)


def check_resume(
    checkpoint: pathlib.Path,
    meta: Mapping[str, Any],
    abstract: TrainState,
    facts: Mapping[str, Any],
) -> None:
    """Raise ValueError if the checkpoint is rounded, or of another architecture or optimizer."""
    if dtype := meta["facts"].get(checkpoint_meta.ROUNDED):
        raise ValueError(
            f"A run resumes from what it saved, and {checkpoint} is a copy with parameters rounded "
            f"to {dtype}. Start another run from it: in a new MODEL_DIR, INITIAL_CHECKPOINT_PATH = "
            f"'{checkpoint}' and RestoreCheckpointConfig.optimizer = 'reset'."
        )
    wanted = parts(abstract)
    if _is_switched(meta, abstract, facts):
        del wanted["training"]
    checkpoint_meta.check_same_leaves(checkpoint, meta, wanted)


def plan(
    checkpoint: pathlib.Path,
    meta: Mapping[str, Any],
    abstract: TrainState,
    config: RestoreCheckpointConfig,
    facts: Mapping[str, Any],
) -> warm_start.Plan:
    """Return the action of `start` for every leaf.

    Raises:
        ValueError: if a leaf is covered by no rule, or a rule covers no leaf.
    """
    wanted = _shapes(abstract)
    saved = _saved_shapes(meta)
    saved = stacked_leaves.as_if_saved(saved, stacked_leaves.made(saved, wanted))
    found = warm_start.plan(
        saved,
        wanted,
        config.defaults,
        warm_start.parse(config.rules),
        warm_start.counterparts(saved, wanted, _is_switched(meta, abstract, facts)),
    )
    found.check(str(checkpoint))
    return found


def start(
    checkpoint: pathlib.Path,
    abstract: TrainState,
    config: RestoreCheckpointConfig,
    fresh: Fresh,
    facts: Mapping[str, Any],
) -> Restored:
    """Warm-start: return the state of a new run from a checkpoint, as configured.

    Raises:
        DamagedError: if the checkpoint is damaged.
        ValueError: if a leaf is covered by no rule, or a rule covers no leaf.
    """
    meta = checkpoint_meta.read_meta(checkpoint)
    chosen = plan(checkpoint, meta, abstract, config, facts)
    leaves = _read(checkpoint, meta, abstract, chosen)
    given: set[str] = set()

    def taken(part: str, tree: Any, new: Callable[[], Any]) -> Any:
        found = dict(fingerprints.paths_and_leaves(new())) if chosen.resets(part) else {}
        for name, source in chosen.sources(part).items():
            # Copied the second time: the update donates buffers, each of them only once.
            leaf = jnp.copy(leaves[source]) if source in given else leaves[source]
            found[name.partition("/")[2]] = leaf
            given.add(source)
        return _padded(tree, found)

    params = taken("params", abstract.params, lambda: fresh.state().params)
    ema = taken("ema", abstract.ema, lambda: jax.tree.map(jnp.copy, params))
    opt_state = taken(
        "optimizer", abstract.opt_state, lambda: _new_optimizer(fresh, abstract, params)
    )
    step = int(meta["step"]) if config.step == warm_start.RESTORE else 0
    is_continued = step == meta["step"]
    every = facts.get(ACCUMULATION)
    follows = not is_continued or chosen.resets("optimizer") or _is_switched(meta, abstract, facts)
    if every is not None and follows:
        opt_state = _schedules_at(opt_state, step // int(every))
    goes_on = is_continued and chosen.keeps_optimizer
    state = TrainState(
        step=reading.like(abstract.step, {"": step}),
        params=params,
        ema=ema,
        opt_state=opt_state,
        window=_counters("window", abstract.window, leaves, goes_on, checkpoint),
        guard=_counters("guard", abstract.guard, leaves, goes_on, checkpoint),
    )
    report = f"{chosen.summary()}\n  step {step}\n\n{chosen.report()}\n"
    return Restored(state=state, path=checkpoint, facts=meta["facts"], report=report)


def _read(
    checkpoint: pathlib.Path,
    meta: Mapping[str, Any],
    abstract: TrainState,
    chosen: warm_start.Plan,
) -> reading.Leaves:
    """Read the leaves that are taken, by name, with the sharding of the leaf each becomes.

    Leaves that others are stacked from, or cut from, are replicated until then.
    """
    lies = _named(reading.shardings(parts(abstract)), full=True)
    saved, wanted = _saved_shapes(meta), _shapes(abstract)
    made = stacked_leaves.made(saved, wanted)
    placed: dict[str, dict[str, jax.sharding.Sharding]] = {}
    if chosen.keeps_optimizer:  # the counters too, if the optimizer has no state
        placed["training"] = {}
    for name, fate in chosen.fates.items():
        if fate.source is None:
            continue
        sources = made[fate.source].sources if fate.source in made else (fate.source,)
        part, _, path = re.sub(f"^{_OPTIMIZER}", _OPT_STATE, sources[0]).partition("/")
        here = placed.setdefault(part, {})
        if sources == (fate.source,) and saved[fate.source] == wanted[name] and name in lies:
            here[path] = lies[name]
    leaves: reading.Leaves = {}
    for part, where in placed.items():
        found = reading.read_leaves(checkpoint, meta, part, where)
        leaves |= {f"{part}/{path}": leaf for path, leaf in found.items()}
    named = _named(leaves, full=True)
    needed = {fate.source for fate in chosen.fates.values()}
    return named | {name: each.of(named) for name, each in made.items() if name in needed}


def _padded(abstract: Any, leaves: Mapping[str, jax.Array]) -> Any:
    """Return a tree like `abstract`; smaller leaves are padded with zeros at the end."""
    shapes = {name: leaf.shape for name, leaf in fingerprints.paths_and_leaves(abstract)}
    whole = {
        name: leaf
        if leaf.shape == shapes[name]
        else jnp.pad(leaf, [(0, b - a) for a, b in zip(leaf.shape, shapes[name], strict=True)])
        for name, leaf in leaves.items()
    }
    return reading.like(abstract, whole)


def _new_optimizer(fresh: Fresh, abstract: TrainState, params: types.Params) -> Any:
    if fresh.optimizer is None:
        return fresh.state().opt_state
    lies = jax.tree.map(lambda leaf: getattr(leaf, "sharding", None), abstract.opt_state)
    return jax.jit(fresh.optimizer, out_shardings=lies)(params)


def _schedules_at(opt_state: Any, updates: int) -> Any:
    """Set the learning-rate schedules of an optimizer to `updates` updates after their start."""

    def is_schedule(node: Any) -> bool:
        return isinstance(node, optax.ScaleByScheduleState)

    def moved(node: Any) -> Any:
        if not is_schedule(node):
            return node
        count = jnp.full_like(node.count, updates)
        return node._replace(count=jax.device_put(count, node.count.sharding))

    return jax.tree.map(moved, opt_state, is_leaf=is_schedule)


def _counters(
    part: str,
    abstract: Mapping[str, Any],
    leaves: Mapping[str, jax.Array],
    goes_on: bool,
    checkpoint: pathlib.Path,
) -> dict[str, jax.Array]:
    """Return the saved metrics window or guard state if it `goes_on` and fits, else zeros."""
    prefix = f"training/{part}/"
    saved = {name[len(prefix) :]: leaf for name, leaf in leaves.items() if name.startswith(prefix)}
    shapes = {name: leaf.shape for name, leaf in abstract.items()}
    fits = {name: leaf.shape for name, leaf in saved.items()} == shapes
    if goes_on and not fits:
        logging.warning("%s keeps another %s than this run; it restarts at zero.", checkpoint, part)
    if not (goes_on and fits):
        saved = {name: jnp.zeros(shape) for name, shape in shapes.items()}
    return reading.like(abstract, saved)


def _is_switched(meta: Mapping[str, Any], abstract: TrainState, facts: Mapping[str, Any]) -> bool:
    """Return True if gradients are accumulated over another number of steps than before."""
    before, now = meta["facts"].get(ACCUMULATION), facts.get(ACCUMULATION)
    if before is not None and now is not None:
        return before != now
    return bool(warm_start.counterparts(_saved_shapes(meta), _shapes(abstract)))


def _saved_shapes(meta: Mapping[str, Any]) -> dict[str, warm_start.Shape]:
    leaves = {
        f"{part}/{path}": tuple(entry[1:])
        for part, tree in meta["trees"].items()
        for path, entry in tree.items()
    }
    return _named(leaves)


def _shapes(abstract: TrainState) -> dict[str, warm_start.Shape]:
    leaves = fingerprints.paths_and_leaves(parts(abstract))
    return _named({name: tuple(leaf.shape) for name, leaf in leaves})


def _named(leaves: Mapping[str, Any], *, full: bool = False) -> dict[str, Any]:
    """Rename leaves to the names used in rules; step, window and guard have none."""
    named = {re.sub(f"^{_OPT_STATE}", _OPTIMIZER, name): leaf for name, leaf in leaves.items()}
    return {name: leaf for name, leaf in named.items() if full or not name.startswith("training/")}
