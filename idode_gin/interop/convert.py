"""Convert a published checkpoint: `python -m idode_gin.interop.convert --source FILE --output DIR`.

Writes `checkpoint_<step>` in the format of this library with parameters, EMA and Adam's moments,
for scoring, sampling or warm starts (CHECKPOINT_PATH, INITIAL_CHECKPOINT_PATH). Exit codes: 0
done, 2 refused.
"""

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

import idode_gin
from idode_gin import checks
from idode_gin.checkpoints import restoring, saving
from idode_gin.devices import backends
from idode_gin.interop import official
from idode_gin.processes import output
from idode_gin.reports import paths
from idode_gin.training import optimizers, train_state


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m idode_gin.interop.convert",
        description="Convert a checkpoint of the published training program to our format.",
    )
    parser.add_argument(
        "--source", required=True, help="ckpt-<n>.flax, or the folder of such files"
    )
    parser.add_argument("--output", required=True, help="new run directory, without checkpoints")
    parser.add_argument("--version", action="version", version=f"idode_gin {idode_gin.__version__}")
    options = parser.parse_args(arguments)
    try:
        places = (paths.local(vars(options)[each], f"--{each}") for each in ("source", "output"))
        backends.start()
        path = convert(*places)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return checks.EXIT_BAD_INPUT
    print(f"Wrote {path}.")
    return checks.EXIT_DONE


def convert(source: str | pathlib.Path, output: str | pathlib.Path) -> pathlib.Path:
    """Convert a published checkpoint and return the path of the result.

    The optimizer state is that of `AdamW` without clipping and accumulation.

    Args:
        source: a `ckpt-<n>.flax` file, or the folder that holds them (the newest is read).
        output: the run directory to create.

    Raises:
        ValueError: if there is no such file, or `output` holds checkpoints.
        OSError: if the output cannot be written.
    """
    if steps := saving.saved_steps(output):
        raise ValueError(
            f"{output} already contains checkpoints (steps {steps}). Use another folder."
        )
    found = official.load_official_checkpoint(source)
    params, ema = (jax.tree.map(jnp.asarray, found[name]) for name in ("params", "ema_params"))
    state = train_state.create(params, optimizers.AdamW().build(), [])
    state = dataclasses.replace(
        state,
        step=jnp.asarray(found["step"], state.step.dtype),
        ema=ema,
        opt_state=_with_moments(state.opt_state, found["opt_state"]),
    )
    facts = {"converted_from": str(source), restoring.ACCUMULATION: "1"}
    with saving.Checkpoints(output, saving.CheckpointConfig(), facts) as saved:
        saved.save(state)
    return saving.find(output)


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
    sys.exit(main())
