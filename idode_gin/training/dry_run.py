"""A description of a training run from shapes alone: nothing is computed, read or written."""

import dataclasses
import functools
import math
from typing import Any

import jax

from idode_gin import numerics, types
from idode_gin.devices import accounting, flops
from idode_gin.devices import mesh as mesh_lib
from idode_gin.devices.partitioning import PjitPartitioner
from idode_gin.feed import data, loading
from idode_gin.models import DiffusionODE
from idode_gin.networks.base import AbstractNetwork, Conditioning
from idode_gin.runs import descriptions, run_inputs
from idode_gin.training.early_stopping import EarlyStopping
from idode_gin.training.programs import Program


def describe(
    model: DiffusionODE,
    traced: DiffusionODE,
    program: Program,
    partitioner: PjitPartitioner,
    batch_size: int,
    num_microbatches: int,
    *,
    full: bool = False,
) -> str:
    """Return parameters, mesh, memory of a device and FLOPs of a step, as text.

    Traces the update and the evaluation. `traced` is the model that `program` was built for, see
    `traced_once`; `full` lists all parameters.

    Raises:
        ValueError: if shapes do not fit together.
    """
    shape, state = descriptions.shape_for_dry_run(model), program.abstract_state
    batch = run_inputs.blank_batch(model, shape, batch_size)
    # Without shardings, which would make it another trace of the network than `build` made.
    plain = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)
    step = jax.make_jaxpr(program.step)(plain, batch)
    jax.eval_shape(program.evaluate, plain.params, batch)
    part = batch_size // partitioner.batch_parts // num_microbatches
    kept = accounting.kept_bytes(
        lambda params, batch, key: traced.loss_fn(params, batch, key, batch_size)[0],
        state.params,
        run_inputs.blank_batch(model, shape, part),
        jax.random.key(0),
    )
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state.params)
    memory = accounting.state_bytes(state, partitioner.as_used(shardings))
    is_split = partitioner.mesh.shape[mesh_lib.MODEL] > 1
    memory[f"activations, {'at most' if is_split else 'estimated'}"] = kept
    per_level = part * math.prod(shape) * numerics.float_dtype().itemsize
    memory["levels of the decoder"] = per_level * model.encoding.levels_at_once
    caveat = "Activations are not divided by `model`, which splits some of them.\n"
    head = descriptions.outline(model, state.params)
    if full:
        head = descriptions.describe(model, state.params, model.logical_axes(shape))
    return (
        f"{head}\n"
        f"Mesh: {partitioner.shown}.\n"
        f"Batch: {batch_size} images of {shape}, {part} on a device at a time.\n"
        f"On each device:\n{accounting.memory_table(memory)}\n"
        f"{caveat if is_split else ''}"
        f"FLOPs of a step, over all devices: {flops.of_jaxpr(step.jaxpr):.4g}.\n"
    )


def goal(
    train: data.DatasetConfig,
    held_out: data.DatasetConfig | None,
    *,
    num_classes: int,
    steps: int,
    early_stopping: EarlyStopping | None,
    eval_period: int | None,
    save_period: int | None,
    directory: str,
) -> str:
    """Return the data, steps and run directory as text.

    Raises:
        ValueError: if the images are the user's own, and not all that is read is at their path. A
            path where there is nothing yet is a warning.
    """
    given = filter(None, (train, held_out))
    absent = dict.fromkeys(loading.nothing_there(each, num_classes) for each in given)
    warnings = "".join(f"WARNING: {each}\n" for each in absent if each)
    evaluated = "no evaluation"
    if held_out is not None:
        often = "at the end" if eval_period is None else f"every {eval_period:,} steps"
        evaluated = f"{held_out.mixture_or_task_name} / {held_out.split} evaluated {often}"
    until = ""
    if early_stopping is not None:
        until = f" or until {early_stopping.patience} evaluations have not improved,"
    saved = "at the end" if save_period is None else f"every {save_period:,}"
    return (
        f"Data: {train.mixture_or_task_name} / {train.split}; {evaluated}.\n"
        f"Steps: {steps:,},{until} saved {saved}.\n"
        f"Output: {directory}\n"
        f"{warnings}"
    )


def traced_once(model: DiffusionODE) -> DiffusionODE:
    """Return the model with a network that equal calls trace only once."""
    own = model.network
    once = _TracedOnce(own, own.conditioning_size, own.num_classes, own.needs_whole_channels)
    return dataclasses.replace(model, network=once)


@dataclasses.dataclass(frozen=True)
class _TracedOnce(AbstractNetwork):
    network: AbstractNetwork
    conditioning_size: int
    num_classes: int
    needs_whole_channels: bool

    def idle_settings(self, *, reverse_mode_only: bool) -> list[str]:
        return self.network.idle_settings(reverse_mode_only=reverse_mode_only)

    @functools.cached_property
    def _traced(self) -> Any:
        return jax.jit(self.network.__call__)

    @functools.cached_property
    def _traced_in_reverse_mode(self) -> Any:
        return jax.jit(self.network.in_reverse_mode())

    def in_reverse_mode(self) -> Any:
        return self._traced_in_reverse_mode

    def init(self, key: types.PRNGKey, image_shape: tuple[int, int, int]) -> types.Params:
        return self.network.init(key, image_shape)

    def logical_axes(self, image_shape: tuple[int, int, int]) -> Any:
        return self.network.logical_axes(image_shape)

    def __call__(
        self,
        params: types.Params,
        z: types.Images,
        time: types.PerExample,
        conditioning: Conditioning,
        key: types.PRNGKeys | None = None,
    ) -> types.Images:
        output: types.Images = self._traced(params, z, time, conditioning, key)
        return output
