"""Checkpoints of upstream t5x, from and to ours; t5x itself is not needed.

    t5x: checkpoint_<step>/state                    ours
    target/<leaf>                                   params/<leaf>
    state/step                                      training/step
    state/param_states/0/<path>                     training/opt_state/<path>
    state/param_states/1/ema/<leaf>                 ema/<leaf>

The pair of states is that of `t5x.with_average`. Of a model without it, all of `param_states` is
the optimizer's, and the moving average starts at the parameters. Leaves keep every bit. A resumed
run of t5x saves its counters as float32; they become integers again.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from idode_gin import types
from idode_gin.checkpoints import files, plain_trees, restoring
from idode_gin.checkpoints import meta as checkpoint_meta
from idode_gin.interop import our_checkpoints, rounding
from idode_gin.reports import fingerprints

_LARGEST_STEP = 2**31 - 1
_SHOWN = 5
_COUNTERS = ("count", "mini_step", "gradient_step")


def holds(path: str | pathlib.Path) -> bool:
    """Return True if `path` is a checkpoint of t5x, or a folder whose newest one is."""
    path = pathlib.Path(path)
    steps = files.saved_steps(path)
    checkpoint = files.checkpoint_path(path, steps[-1]) if steps else path
    return checkpoint_meta.is_of_t5x(checkpoint)


def load(path: str | pathlib.Path) -> types.TrainState:
    """Return the state that a checkpoint of t5x holds; the metrics window starts at zero.

    Args:
        path: a `checkpoint_<step>` of t5x, or the folder that holds them (the newest is read).

    Raises:
        ValueError: if it cannot be read, or its leaves do not fit each other; with their names.
    """
    checkpoint = files.find(path)
    if problem := checkpoint_meta.must_be_saved_again(checkpoint):
        raise ValueError(problem)
    tree = plain_trees.read(checkpoint / checkpoint_meta.STATE_OF_T5X)
    params, state = (_mapping(tree, name, checkpoint) for name in ("target", "state"))
    step = _step(state.get("step"), checkpoint)
    if checkpoint.name.rpartition("_")[2] != str(step):
        raise ValueError(f"{checkpoint} must hold the step of its name, got {step}.")
    opt_state, ema = state.get("param_states", {}), params
    if _is_pair(opt_state):
        opt_state, ema = opt_state["0"], _mapping(opt_state["1"], "ema", checkpoint)
    _check_same(params, ema, checkpoint)
    _check_mirrors(params, opt_state, checkpoint)
    _check_numbers({"target": params, "ema": ema}, checkpoint, floats=True)
    _check_numbers({"param_states": opt_state}, checkpoint)
    opt_state = jax.tree_util.tree_map_with_path(_with_integer, opt_state)
    _check_counters(opt_state, checkpoint)
    params, ema, opt_state = jax.tree.map(jnp.asarray, (params, ema, opt_state))
    return dataclasses.replace(rounding.state_of(step, params, ema), opt_state=opt_state)


def facts(state: types.TrainState) -> dict[str, str]:
    """Return the steps that gradients are accumulated over, and the dtype of rounded parameters."""
    names = {name.rpartition("/")[2] for name, _ in fingerprints.paths_and_leaves(state.opt_state)}
    found = {} if "mini_step" in names else {restoring.ACCUMULATION: "1"}
    dtypes = {str(each.dtype) for each in jax.tree.leaves(state.params) if each.dtype.itemsize < 4}
    return found | ({checkpoint_meta.ROUNDED: ", ".join(sorted(dtypes))} if dtypes else {})


def save(
    source: str | pathlib.Path,
    output: str | pathlib.Path,
    *,
    ema_as_params: bool = False,
    dtype: str | None = None,
) -> pathlib.Path:
    """Write a checkpoint of ours as t5x's, and return its path.

    Args:
        source: a run directory (its newest intact checkpoint) or a `checkpoint_<step>` in one.
        output: folder for `checkpoint_<step>`.
        ema_as_params: write the moving average in place of the parameters, which is what t5x then
            scores and samples from; without the optimizer's state, so it cannot be trained on.
        dtype: dtype of the parameters, as by t5x's `save_dtype`; None keeps every bit.

    Raises:
        ValueError: if the source holds no checkpoint of ours, or it is damaged.
        OSError: if the output cannot be written.
    """
    wanted = ("ema",) if ema_as_params else ("params", "ema", "training")
    meta, parts = our_checkpoints.read(source, wanted)
    step = int(meta["step"])
    state: dict[str, Any] = {"step": np.asarray(step, np.int32)}
    if not ema_as_params:
        average = {"count": state["step"], "ema": parts["ema"]}
        state["param_states"] = {"0": parts["training"].get("opt_state", {}), "1": average}
    target = parts["ema" if ema_as_params else "params"]
    written = {"target": rounding.rounded(target, dtype) if dtype else target, "state": state}
    return plain_trees.write(pathlib.Path(output), step, checkpoint_meta.STATE_OF_T5X, written)


def _is_pair(states: Any) -> bool:
    pair = states if isinstance(states, Mapping) else {}
    average = pair.get("1")
    return set(pair) == {"0", "1"} and isinstance(average, Mapping) and "ema" in average


def _mapping(tree: Any, name: str, checkpoint: pathlib.Path) -> Mapping[str, Any]:
    found = tree.get(name) if isinstance(tree, Mapping) else None
    if not isinstance(found, Mapping) or not found:
        raise ValueError(
            f"{checkpoint} is no checkpoint of t5x: its state has no {name!r}. "
            f"{checkpoint_meta.SAVE_WITH_ORBAX}"
        )
    return found


def _step(value: Any, checkpoint: pathlib.Path) -> int:
    number = _integer(value)
    if number.shape != () or number.dtype.kind not in "iu" or not 0 <= number <= _LARGEST_STEP:
        raise ValueError(f"{checkpoint} must hold its step as an integer [], got {value!r}.")
    return int(number)


def _integer(value: Any) -> np.ndarray:
    """Return a counter as integers if its numbers are whole, else as it is."""
    number = np.asarray(value)
    is_whole = False
    if number.dtype.kind == "f":
        with np.errstate(invalid="ignore"):  # damaged files may hold signaling NaNs
            is_whole = ((number == np.trunc(number)) & (np.abs(number) <= _LARGEST_STEP)).all()
    return number.astype(np.int32) if is_whole else number


def _with_integer(path: Any, leaf: Any) -> Any:
    is_counter = fingerprints.path_name(path[-1:]) in _COUNTERS
    return _integer(leaf) if is_counter else leaf


def _check_counters(opt_state: Any, checkpoint: pathlib.Path) -> None:
    counters = {
        name: np.asarray(leaf)
        for name, leaf in _named(opt_state)
        if name.rpartition("/")[2] in _COUNTERS
    }
    wrong = [
        name
        for name, number in counters.items()
        if number.dtype.kind not in "iu" or not ((number >= 0) & (number <= _LARGEST_STEP)).all()
    ]
    if wrong:
        raise ValueError(
            f"{checkpoint} must hold whole numbers from 0 to {_LARGEST_STEP} as counters. These "
            f"are not: {_shown(wrong)}."
        )


def _check_same(params: Any, ema: Any, checkpoint: pathlib.Path) -> None:
    here, there = ({name: np.shape(leaf) for name, leaf in _named(each)} for each in (params, ema))
    wrong = sorted(name for name in here | there if here.get(name) != there.get(name))
    if wrong:
        raise ValueError(
            f"{checkpoint} must have one average of each parameter, of its shape. These differ: "
            f"{_shown(wrong)}."
        )


def _check_mirrors(params: Any, opt_state: Any, checkpoint: pathlib.Path) -> None:
    """Check that what the optimizer keeps for one parameter it keeps for all, in their shapes."""
    shapes = {name: np.shape(leaf) for name, leaf in _named(params)}
    found = {name: np.shape(leaf) for name, leaf in _named(opt_state)}
    roots = set()
    for name in found:
        parts = name.split("/")
        ends = ("/".join(parts[start:]) for start in range(len(parts)))
        if (mirrored := next((end for end in ends if end in shapes), None)) is not None:
            roots.add(name.removesuffix(mirrored))
    wanted = {root + name: shape for root in roots for name, shape in shapes.items()}
    here = {name: shape for name, shape in found.items() if name.startswith(tuple(roots))}
    wrong = sorted(name for name in wanted | here if wanted.get(name) != here.get(name))
    if wrong:
        raise ValueError(
            f"{checkpoint} must hold the optimizer's state of each parameter, in its shape. These "
            f"differ: {_shown(wrong)}."
        )


def _check_numbers(
    trees: Mapping[str, Any], checkpoint: pathlib.Path, *, floats: bool = False
) -> None:
    wrong = []
    for name, leaf in _named(trees):
        array = np.asarray(leaf)
        is_float = jnp.issubdtype(array.dtype, jnp.floating)
        is_kept = array.dtype.kind in "iub" and not floats
        if is_float:
            is_kept = jax.dtypes.canonicalize_dtype(array.dtype) == array.dtype
        with np.errstate(invalid="ignore"):  # damaged files may hold signaling NaNs
            if not is_kept or not np.isfinite(array.astype(np.float64)).all():
                wrong.append(name)
    if wrong:
        kind = "floating-point numbers" if floats else "numbers"
        raise ValueError(
            f"{checkpoint} must hold finite {kind} of at most 32 bits. These are not: "
            f"{_shown(wrong)}."
        )


def _named(tree: Any) -> list[tuple[str, Any]]:
    return fingerprints.paths_and_leaves(tree)


def _shown(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"
