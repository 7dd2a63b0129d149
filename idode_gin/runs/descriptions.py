"""Text about a model, and about what a program would do: for files and dry runs."""

import dataclasses
import math
import pathlib
import textwrap
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from idode_gin import types
from idode_gin.checkpoints import meta, saving
from idode_gin.devices import accounting, flops
from idode_gin.devices.partitioning import PjitPartitioner
from idode_gin.feed import data, loading
from idode_gin.models import DiffusionODE
from idode_gin.reports import paths
from idode_gin.runs import facts as facts_lib
from idode_gin.runs import image_loop, partial_results, run_inputs
from idode_gin.schedules.time.base import AbstractLearnedTime


def describe(model: DiffusionODE, params: types.Params, logical_axes: Any = None) -> str:
    """Return the model's `repr` and a table of its parameters."""
    return f"{model}\n\n{accounting.parameter_table(params, logical_axes)}\n"


def outline(model: DiffusionODE, params: types.Params) -> str:
    """Return the kinds of the model's parts, and the number of its parameters."""
    parts = [getattr(model, each.name) for each in dataclasses.fields(model)]
    kinds = [type(each).__name__ for each in parts if dataclasses.is_dataclass(each)]
    total = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    text = textwrap.fill(f"{type(model).__name__}: {', '.join(kinds)}.", 98, subsequent_indent="  ")
    return f"{text}\nTotal: {total:,} parameters"


def warnings(model: DiffusionODE) -> list[str]:
    """Return a line for each part of the model that has no effect on training."""
    time, sampler = type(model.time).__name__, type(model.time_sampler).__name__
    loss = type(model.loss).__name__
    found = []
    if isinstance(model.time, AbstractLearnedTime) and not model.loss.trains_time:
        found.append(
            f"{time} keeps its initial or restored parameters: the loss {loss} is no bound, and "
            "does not train gamma(t)."
        )
    found += model.network.idle_settings(reverse_mode_only=model.loss.reverse_mode_only)
    if model.time_sampler.uses_gamma_of_t or model.time.is_linear:
        return found
    return [
        *found,
        f"Only the ends of {time} affect training: {sampler} draws gamma by the weight of the "
        "loss, not by gamma(t). To train with gamma(t), write into a gin file: from "
        "idode_gin.time_samplers import uniform, and TIME_SAMPLER = @uniform.Uniform().",
    ]


def shape_for_dry_run(model: DiffusionODE) -> tuple[int, int, int]:
    """Return (height, width, channels) of the images, as declared by the model.

    Raises:
        ValueError: if the model does not declare it: a dry run reads no images.
    """
    if model.image_shape is None:
        raise ValueError(
            "`image_shape` of the model must be given for a dry run, which reads no images; got "
            "None. Bind IMAGE_SHAPE = (height, width, channels)."
        )
    return model.image_shape


@runtime_checkable
class Loop(Protocol):
    """Settings of a program that uses a checkpoint."""

    @property
    def partitioner(self) -> PjitPartitioner:
        """Devices."""

    @property
    def solve_size(self) -> int:
        """Images, or pairs of them, per solve on a device."""

    @property
    def checkpoint_path(self) -> str:
        """A run directory, or a checkpoint in one."""

    @property
    def output_dir(self) -> str:
        """Folder that is written to."""


Cost = Callable[[float, pathlib.Path | None, Mapping[str, Any]], str]
"""Lines on the cost, from the FLOPs of one network evaluation for an image, the checkpoint if there
is one, and the facts of its run."""


def describe_use(
    loop: Loop,
    model: DiffusionODE,
    batch_size: int,
    use: str,
    *,
    dataset: data.DatasetConfig | None = None,
    full: bool = False,
    cost: Cost = lambda *_: "",
) -> str:
    """Describe what a program would do with a checkpoint, without devices, images or parameters.

    `use` completes "Would {use} <checkpoint>"; `batch_size` is over all devices, before it is
    rounded up to whole solves; the files of a `dataset` of the user's own must be at their path, if
    anything is; `full` lists all parameters.

    Raises:
        ValueError: if the model declares no image shape, the checkpoint is that of another model or
            every one is damaged, files of the dataset are missing, or the output folder holds
            values of another computation.
    """
    begun = paths.of(loop.output_dir) / image_loop.FOLDER
    partial_results.check(begun, facts_lib.setting_facts(model, loop), ["model", *vars(loop)])
    partitioner = loop.partitioner.without_devices()
    shape = shape_for_dry_run(model)
    absent = "" if dataset is None else loading.nothing_there(dataset, model.num_classes)
    warning = f"WARNING: {absent}\n" if absent else ""
    params = run_inputs.param_shapes(model, shape, partitioner.replicated)
    batch = run_inputs.blank_batch(model, shape, 1)
    z = jax.ShapeDtypeStruct(batch["image"].shape, np.float32)
    time = jax.ShapeDtypeStruct((1,), np.float32)
    operations = flops.count(
        model.network, model.network_params(params), z, time, batch["conditioning"]
    )
    found: pathlib.Path | None = None
    facts: Mapping[str, Any] = {}
    try:
        found, description = saving.find_described(loop.checkpoint_path)
        plan, facts = f"Would {use} {found}.", description["facts"]
    except meta.DamagedError:
        raise
    except ValueError as error:
        plan = f"Nothing to {use} yet. {error}"
    if found is not None:
        run_inputs.check_meaning(found, facts, model)
    size = accounting.bytes_per_device(params) / accounting.MIB
    head = describe(model, params, model.logical_axes(shape)) if full else outline(model, params)
    return (
        f"{head}\n"
        f"Mesh: {partitioner.shown}.\n"
        f"Images: {shape}; {partitioner.rounded_up(batch_size, loop.solve_size)} at a time.\n"
        f"Parameters on each device (replicated): {size:,.1f} MiB.\n"
        f"FLOPs of one network evaluation, per image: {operations:.4g}.\n"
        f"{cost(operations, found, facts)}"
        f"Output: {loop.output_dir}\n"
        f"{warning}{plan}"
    )
