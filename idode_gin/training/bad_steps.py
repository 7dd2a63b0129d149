"""The step that stopped a run: its file, and an examination of its batch."""

import dataclasses
import os
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from idode_gin import types
from idode_gin.processes import joining
from idode_gin.reports import files, fingerprints
from idode_gin.training.train_step import LossFn

_SHOWN = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class BadStep:
    """One step of a run, with everything needed to repeat it from a checkpoint.

    Args:
        step: number of updates before it.
        seed: seed of the run.
        batch: global batch, from `batches.train_batch`.
        health: numbers that the guards judged it by: see `guards.Health`.
    """

    step: int
    seed: int
    batch: dict[str, np.ndarray]
    health: dict[str, float]

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write one npz file: `step`, `seed`, `batch/<name>` and `health/<name>`."""
        arrays: dict[str, Any] = {"step": self.step, "seed": self.seed}
        arrays |= {f"batch/{name}": each for name, each in self.batch.items()}
        arrays |= {f"health/{name}": each for name, each in self.health.items()}
        files.write_npz_atomically(path, {name: np.asarray(each) for name, each in arrays.items()})


def read(path: str | os.PathLike[str]) -> BadStep:
    """Read a file that `BadStep.write` wrote.

    Raises:
        ValueError: if there is no such file, or it holds anything else.
    """
    path = pathlib.Path(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return BadStep(
            step=int(arrays.pop("step")),
            seed=int(arrays.pop("seed")),
            batch=_part(arrays, "batch/"),
            health={name: float(each) for name, each in _part(arrays, "health/").items()},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"A replay reads the bad_step_<step>.npz that a stopped run wrote to MODEL_DIR/train, "
            f"but {path} is not one ({error})."
        ) from error


def examine(
    loss_fn: LossFn,
    params: types.Params,
    batch: types.Batch,
    key: types.PRNGKey,
    parts: int,
    everywhere: jax.sharding.Sharding,
) -> tuple[bool, str]:
    """Compute loss and gradient of a batch and report where they are not finite.

    All processes must call it; all return the same.

    Args:
        loss_fn: see `train_step.LossFn`.
        params: parameters before the step.
        batch: batch of the step.
        key: random key of the step.
        parts: number of microbatches.
        everywhere: sharding that replicates over all devices.

    Returns:
        Whether loss and gradient are finite, and a report.
    """
    size = batch["image"].shape[0]

    def look(params: types.Params, batch: types.Batch, start: jax.Array) -> Any:
        part = {  # every parts-th image from `start` on, as in training
            name: each.reshape(size // parts, parts, *each.shape[1:])[:, start]
            for name, each in batch.items()
        }
        (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, part, key, size)
        largest = jax.tree.map(lambda each: jnp.max(jnp.abs(each)), grads)
        return loss, {"index": part["index"], **metrics}, largest

    jitted = joining.together(jax.jit(look, out_shardings=everywhere))
    found = [jax.device_get(jitted(params, batch, np.int32(start))) for start in range(parts)]
    loss = float(np.mean([each[0] for each in found]))
    values = {name: np.concatenate([each[1][name] for each in found]) for name in found[0][1]}
    index = values.pop("index")
    lines = [f"loss {loss}, mean over the batch"]
    for name, each in sorted(values.items()):
        if not np.isfinite(each).all():
            bad = index[~np.isfinite(each)].tolist()
            lines.append(f"{name} is not finite for {len(bad)} of {size} images: {_some(bad)}")
    worst = jax.tree.map(lambda *each: np.max(each), *[each[2] for each in found])
    leaves = dict(fingerprints.paths_and_leaves(worst))
    bad_leaves = [name for name, each in leaves.items() if not np.isfinite(each)]
    lines.append(f"gradient is not finite in {len(bad_leaves)} of {len(leaves)} leaves")
    lines[-1] += f": {_some(bad_leaves)}" if bad_leaves else ""
    name = max(leaves, key=lambda name: np.nan_to_num(leaves[name], nan=-1, posinf=-1))
    lines.append(f"largest finite entry of the gradient: {leaves[name]:.3g} in {name}")
    is_finite = not bad_leaves and bool(np.isfinite(loss))
    return is_finite, "\n".join(f"  {line}" for line in lines)


def _part(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {k.removeprefix(prefix): each for k, each in arrays.items() if k.startswith(prefix)}


def _some(names: list[Any]) -> str:
    more = ", …" if len(names) > _SHOWN else ""
    return ", ".join(map(str, names[:_SHOWN])) + more
