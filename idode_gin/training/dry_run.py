"""A description of a training run from shapes alone: nothing is computed, read or written."""

import math

import jax

from idode_gin import numerics
from idode_gin.devices import accounting, flops
from idode_gin.devices import mesh as mesh_lib
from idode_gin.devices.partitioning import PjitPartitioner
from idode_gin.models import DiffusionODE
from idode_gin.runs import descriptions, run_inputs
from idode_gin.training.programs import Program


def describe(
    model: DiffusionODE,
    program: Program,
    partitioner: PjitPartitioner,
    batch_size: int,
    num_microbatches: int,
) -> str:
    """Return parameters, mesh, memory of a device and FLOPs of a step, as text.

    Traces the update and the evaluation.

    Raises:
        ValueError: if shapes do not fit together.
    """
    shape, state = descriptions.shape_for_dry_run(model), program.abstract_state
    batch = run_inputs.blank_batch(model, shape, batch_size)
    step = jax.make_jaxpr(program.step)(state, batch)
    jax.eval_shape(program.evaluate, state.params, batch)
    part = batch_size // partitioner.batch_parts // num_microbatches
    kept = accounting.kept_bytes(
        lambda params, batch, key: model.loss_fn(params, batch, key, batch_size)[0],
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
    return (
        f"{descriptions.describe(model, state.params, model.logical_axes(shape))}\n"
        f"Mesh: {partitioner.shown}.\n"
        f"Batch: {batch_size} images of {shape}, {part} on a device at a time.\n"
        f"On each device:\n{accounting.memory_table(memory)}\n"
        f"{caveat if is_split else ''}"
        f"FLOPs of a step, over all devices: {flops.of_jaxpr(step.jaxpr):.4g}.\n"
    )
