"""Convert checkpoints: `python -m idode_gin.interop.convert --source FILE --output DIR`.

Reads a published checkpoint of i-DODE or VDM, or one of upstream t5x, and writes
`checkpoint_<step>` in the format of this library with parameters, EMA and the optimizer's state,
for scoring, sampling or warm starts (CHECKPOINT_PATH, INITIAL_CHECKPOINT_PATH). With `--to=t5x` or
`--to=published` it reads ours and writes theirs, and with `--dtype=bfloat16` it writes a smaller
copy. Exit codes: 0 done, 2 refused.
"""

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

import idode_gin
from idode_gin import checks
from idode_gin.checkpoints import files, orbax_logging, plain_trees, restoring, saving
from idode_gin.checkpoints import meta as checkpoint_meta
from idode_gin.devices import backends
from idode_gin.interop import official, rounding, t5x_checkpoints, to_published
from idode_gin.processes import output
from idode_gin.reports import paths
from idode_gin.runs import facts as facts_lib
from idode_gin.training import optimizers
from idode_gin.types import TrainState

FORMATS = OURS, T5X, T5X_EMA, PUBLISHED = "idode_gin", "t5x", "t5x-ema", "published"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m idode_gin.interop.convert",
        description="Convert a checkpoint that is published, or of t5x, to our format; or back.",
    )
    parser.add_argument(
        "--source",
        required=True,
        help="ckpt-<n>.flax, or the folder of such files; or a checkpoint_<step> or run directory",
    )
    parser.add_argument("--output", required=True, help="new run directory, without checkpoints")
    parser.add_argument(
        "--to",
        choices=FORMATS,
        default=OURS,
        help="format to write; t5x-ema holds the moving average alone, for t5x.eval and t5x.infer; "
        "published is a ckpt-<n>.flax of i-DODE's program",
    )
    parser.add_argument(
        "--dtype",
        choices=rounding.DTYPES,
        help="round the parameters to it, for a smaller copy that a run cannot resume from; to "
        "idode_gin, the moving average too, and the optimizer's state is left out",
    )
    parser.add_argument("--version", action="version", version=f"idode_gin {idode_gin.__version__}")
    options = parser.parse_args(arguments)
    try:
        source, target = (
            paths.local(vars(options)[each], f"--{each}") for each in ("source", "output")
        )
        backends.start()
        path = convert(source, target, options.to, options.dtype)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return checks.EXIT_BAD_INPUT
    print(f"Wrote {path}.")
    return checks.EXIT_DONE


def convert(
    source: str | pathlib.Path,
    output: str | pathlib.Path,
    to: str = OURS,
    dtype: str | None = None,
) -> pathlib.Path:
    """Convert a checkpoint and return the path of the result.

    The optimizer state of a published one is that of `AdamW` without clipping and accumulation.

    Args:
        source: a `ckpt-<n>.flax` file, or the folder that holds them (the newest is read); a
            checkpoint of t5x or ours, or the folder that holds them.
        output: the run directory to create.
        to: format to write: 'idode_gin', 't5x', 't5x-ema' or 'published'.
        dtype: dtype to round the parameters to; None keeps every bit.

    Raises:
        ValueError: if there is no such file or format, or `output` holds checkpoints.
        OSError: if the output cannot be written.
    """
    if to not in FORMATS:
        raise ValueError(f"`to` must be a format, got {to!r}. {checks.nearest(to, FORMATS)}")
    if steps := saving.saved_steps(output):
        raise ValueError(
            f"{output} already contains checkpoints (steps {steps}). Use another folder."
        )
    if to == PUBLISHED:
        if dtype is not None:
            raise ValueError(
                "--dtype is for our format and t5x's; the published program has float32."
            )
        return to_published.save(source, output)
    if to != OURS:
        return t5x_checkpoints.save(source, output, ema_as_params=to == T5X_EMA, dtype=dtype)
    state, facts = _loaded(source, dtype)
    facts = {**facts, "converted_from": str(source)}
    if dtype is not None:
        params, ema = (rounding.rounded(each, dtype) for each in (state.params, state.ema))
        state = rounding.state_of(int(state.step), params, ema)
        facts[checkpoint_meta.ROUNDED] = dtype
    try:
        with saving.Checkpoints(output, saving.CheckpointConfig(), facts) as saved:
            saved.save(state)
    except OSError as error:  # in words of a run, which has a MODEL_DIR
        reason = orbax_logging.reason(error.__cause__ or error)
        raise OSError(plain_trees.not_written(output, reason)) from error
    return saving.find(output)


def _loaded(source: str | pathlib.Path, dtype: str | None) -> tuple[TrainState, dict[str, Any]]:
    """Return the state that a checkpoint holds, and facts about it."""
    if t5x_checkpoints.holds(source):
        state = t5x_checkpoints.load(source)
        return state, dict(t5x_checkpoints.facts(state))
    if files.holds(source):
        if dtype is None:
            raise ValueError(
                f"{source} holds checkpoints of this library already. Copy its folder, choose "
                "--to=t5x, or --dtype=bfloat16 for a smaller copy."
            )
        return rounding.load(source)
    found = official.load_official_checkpoint(source)
    params, ema = (jax.tree.map(jnp.asarray, found[name]) for name in ("params", "ema_params"))
    opt_state = _with_moments(optimizers.AdamW().build().init(params), found["opt_state"])
    state = dataclasses.replace(rounding.state_of(found["step"], params, ema), opt_state=opt_state)
    return state, {restoring.ACCUMULATION: "1", **facts_lib.described_network(found["network"])}


def _with_moments(opt_state: optax.OptState, adam: dict) -> optax.OptState:
    """Replace Adam's moments and all counters of an optimizer state by published ones."""

    def replaced(node: object) -> object:
        if isinstance(node, optax.ScaleByAdamState):
            mu, nu = (jax.tree.map(jnp.asarray, adam[name]) for name in ("mu", "nu"))
            return node._replace(count=jnp.full_like(node.count, adam["count"]), mu=mu, nu=nu)
        if isinstance(node, optax.ScaleByScheduleState):
            return node._replace(count=jnp.full_like(node.count, adam["count"]))
        return node

    kinds = (optax.ScaleByAdamState, optax.ScaleByScheduleState)
    return jax.tree.map(replaced, opt_state, is_leaf=lambda node: isinstance(node, kinds))


if __name__ == "__main__":
    output.make_safe()
    sys.exit(output.exit_code(main))
