"""What a run starts from: checked images, parameters, shapes, and the facts that identify it."""

import dataclasses
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from idode_gin import numerics, types
from idode_gin.checkpoints import meta as checkpoint_meta
from idode_gin.checkpoints import saving
from idode_gin.devices import accounting, flops
from idode_gin.devices.partitioning import PjitPartitioner
from idode_gin.feed import data, loading
from idode_gin.models import DiffusionODE
from idode_gin.processes import agreement
from idode_gin.reports import fingerprints


def describe(model: DiffusionODE, params: types.Params, logical_axes: Any = None) -> str:
    """The model and a table of its parameters, of which shapes and shardings suffice."""
    return f"{model}\n\n{accounting.parameter_table(params, logical_axes)}\n"


def shape_for_dry_run(model: DiffusionODE) -> tuple[int, int, int]:
    """(height, width, channels) of the images, as declared.

    Raises:
        ValueError: if nothing declares it: a dry run reads no images to find out.
    """
    if model.image_shape is None:
        raise ValueError(
            "`image_shape` of the model must be given for a dry run, which reads no images; got "
            "None. Bind IMAGE_SHAPE = (height, width, channels)."
        )
    return model.image_shape


def param_shapes(
    model: DiffusionODE,
    image_shape: tuple[int, int, int],
    sharding: jax.sharding.Sharding | None = None,
) -> types.Params:
    """Shapes and dtypes of the model's parameters, each with `sharding`."""
    shapes = jax.eval_shape(lambda key: model.init(key, image_shape), jax.random.key(0))
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes
    )


def describe_use(model: DiffusionODE, partitioner: PjitPartitioner, path: str, use: str) -> str:
    """What a program would do with a checkpoint that it only reads; nothing is read.

    Args:
        model: what was trained.
        partitioner: devices that need not be there.
        path: of the checkpoint.
        use: what would be done, as in "Would {use} <checkpoint>".
    """
    shape = shape_for_dry_run(model)
    params = param_shapes(model, shape, partitioner.replicated)
    batch = blank_batch(model, shape, 1)
    z = jax.ShapeDtypeStruct(batch["image"].shape, np.float32)
    time = jax.ShapeDtypeStruct((1,), np.float32)
    operations = flops.count(model.network, params, z, time, batch["conditioning"])
    try:
        plan = f"Would {use} {saving.find(path)}."
    except ValueError as error:
        plan = f"Nothing to {use} yet. {error}"
    size = accounting.bytes_per_device(params) / accounting.MIB
    return (
        f"{describe(model, params, model.logical_axes(shape))}\n"
        f"Mesh: {partitioner.shown}.\n"
        f"Parameters on each device, all of them on every one: {size:,.1f} MiB.\n"
        f"FLOPs of one network evaluation, per image: {operations:.4g}.\n"
        f"{plan}"
    )


def load(dataset: data.DatasetConfig, model: DiffusionODE) -> data.ImageSplit:
    """The split, checked against the model; the same one on every process.

    Raises:
        ValueError: if its pixels are none of the model's levels, its conditioning has another
            size than the network's, or the processes loaded different images.
    """
    split = loading.load_split(dataset)
    data.check_images(split, model.encoding.levels)
    given, expected = split.conditioning.shape[1], getattr(model.network, "conditioning_size", None)
    if expected is not None and given != expected:
        raise ValueError(
            f"{split} has {given} conditioning numbers per image, the network takes {expected}. "
            f"Set UNet.conditioning_size = {given}, and bind data.DatasetConfig.augmentation, if "
            "any, without a scope: for training and evaluation alike."
        )
    order = {"seed": dataset.seed, "batch_size": dataset.batch_size}
    agreement.check(f"the data, {split}", lambda: {**split.facts(), **order})
    return split


def load_params(
    model: DiffusionODE,
    image_shape: tuple[int, int, int],
    path: str,
    use_ema: bool,
    sharding: jax.sharding.Sharding | None = None,
) -> saving.RestoredParams:
    """Parameters for images of this shape, of one checkpoint or of a run's newest whole one.

    Args:
        model: what they are for.
        image_shape: (height, width, channels).
        path: of the checkpoint, or a run directory.
        use_ema: their moving average, or else the last ones.
        sharding: of each; None replicates them over all devices.

    Raises:
        ValueError: if there is none, or what its network's output means is not what `model` takes
            it to mean: another path, parameterization, range of gamma, or number of levels.
    """
    abstract = param_shapes(model, image_shape, sharding)
    restored = saving.restore_params(path, abstract, ema=use_ema)
    if other := changed(restored.facts, described("model", model), MEANING):
        raise ValueError(
            f"{restored.path} was trained with another meaning of the network's output: "
            f"{'; '.join(other)}. Name the objective and the task it was trained with."
        )
    agreement.check("the checkpoint", lambda: {"path": str(restored.path), "step": restored.step})
    return restored


def check_same_shape(train: data.ImageSplit, other: data.ImageSplit | None) -> None:
    """Raises ValueError unless the images of both splits have one shape."""
    if other is not None and train.image_shape != other.image_shape:
        raise ValueError(
            f"Images for training and evaluation must have one shape, but {train} has "
            f"{train.image_shape} and {other} has {other.image_shape}."
        )


def blank_batch(model: DiffusionODE, image_shape: tuple[int, ...], size: int) -> types.Batch:
    """Shapes and dtypes of a training batch of `size` images, where none was read."""
    width = getattr(model.network, "conditioning_size", 1)
    dtype = np.uint8 if model.encoding.levels <= 256 else np.int32
    return {
        "image": jax.ShapeDtypeStruct((size, *image_shape), dtype),
        "conditioning": jax.ShapeDtypeStruct((size, width), np.float32),
        "position": jax.ShapeDtypeStruct((size,), np.int32),
        "index": jax.ShapeDtypeStruct((size,), np.int32),
        "mask": jax.ShapeDtypeStruct((size,), np.float32),
    }


def image_facts(
    split: data.ImageSplit, eval_split: data.ImageSplit | None = None
) -> dict[str, Any]:
    """Of the images, what decides the course of a run.

    Beside `Trainer.settings`, this is kept in its checkpoints and compared when it is resumed.
    """
    return {
        "dataset": str(split),
        "dataset_sha256": split.fingerprint.sha256,
        "eval_dataset_sha256": None if eval_split is None else eval_split.fingerprint.sha256,
        "augmentation": shortened(split.augmentation),
    }


def digest_name(use_ema: bool) -> str:
    """What the digest of the parameters in use is called, in training's summary as elsewhere."""
    return "ema_sha256" if use_ema else "params_sha256"


def result_facts(
    model: DiffusionODE, params: types.Params, use_ema: bool, **others: Any
) -> dict[str, Any]:
    """What decides values of images: kept beside those computed, compared when it is gone on.

    Args:
        model: that computes them.
        params: its parameters, of which the digest is taken.
        use_ema: whether they are the averaged ones, which names the digest.
        others: JSON-able facts, and dataclasses to be described.
    """
    found: dict[str, Any] = {
        "code_sha256": agreement.code_sha256(),
        digest_name(use_ema): fingerprints.sha256(params),
        "float": str(numerics.float_dtype()),
        "matmul_precision": str(jax.config.jax_default_matmul_precision),  # type: ignore[attr-defined]
        "coarse_products": numerics.coarse_products(),
    }
    for name, value in {"model": model, **others}.items():
        found |= described(name, value) if dataclasses.is_dataclass(value) else {name: value}
    return found


def trained_on(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Of a checkpoint's facts, the images it was trained on: `dataset` and `dataset_sha256`."""
    return {name: saved.get(name) for name in ("dataset", "dataset_sha256")}


MEANING = ("model.schedule", "model.time", "model.parameterization", "model.encoding")
"""Facts without which a network's output is only numbers."""


def described(name: str, value: Any) -> dict[str, str]:
    """A dataclass as flat facts, `model.network.channels` and the like, defaults included."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return {name: shortened(value)}
    found = {name: type(value).__name__}
    for field in dataclasses.fields(value):
        found |= described(f"{name}.{field.name}", getattr(value, field.name))
    return found


def changed(
    saved: Mapping[str, Any], facts: Mapping[str, Any], names: Sequence[str] = ("",)
) -> list[str]:
    """In words, every fact under one of `names` that was another one when `saved` was written."""
    return [
        f"{name} was {saved[name]} when the checkpoint was saved and is {value} now"
        for name, value in facts.items()
        if saved.get(name, value) != value and any(_is_under(name, each) for each in names)
    ]


def _is_under(name: str, parent: str) -> bool:
    """Whether a fact is `parent` or a part of it; all are of ""."""
    return not parent or name == parent or name.startswith(f"{parent}.")


def check_begun(directory: str | pathlib.Path, model: DiffusionODE) -> None:
    """Early, from descriptions alone: a run directory must hold no run of another model.

    Raises:
        ValueError: if its newest checkpoint has another network, or another meaning of its output.
    """
    if (newest := _newest(directory)) is None:
        return
    path, meta = newest
    _check_meaning(pathlib.Path(directory), meta["facts"], described("model", model))
    if model.image_shape is not None:
        params = param_shapes(model, model.image_shape)
        checkpoint_meta.check_same_leaves(path, meta, {"params": params})


def _newest(directory: str | pathlib.Path) -> tuple[pathlib.Path, dict[str, Any]] | None:
    """The newest checkpoint and its description; None if there is none, or it is damaged."""
    steps = saving.saved_steps(directory)
    if not steps:
        return None
    path = saving.checkpoint_path(directory, steps[-1])
    try:
        return path, checkpoint_meta.read_meta(path)
    except checkpoint_meta.DamagedError:
        return None  # restoring tells, and looks at the one before it


def changed_since(directory: str | pathlib.Path, facts: Mapping[str, Any]) -> list[str]:
    """A sentence for each of `facts` that was another in the newest checkpoint of a directory."""
    newest = _newest(directory)
    return [] if newest is None else _warnings(newest[1]["facts"], facts)


def check_resumed(directory: pathlib.Path, saved: Mapping[str, Any], facts: dict[str, Any]) -> None:
    """Warns of every fact that changed since `directory` was last trained in.

    Raises:
        ValueError: if one of them is what the network's output means.
    """
    _check_meaning(directory, saved, facts)
    for each in _warnings(saved, facts):
        logging.warning("%s", each)


def _warnings(saved: Mapping[str, Any], facts: Mapping[str, Any]) -> list[str]:
    return [
        f"{each}. Training goes on, but no single configuration gives this run any more; to start "
        "anew, choose another MODEL_DIR."
        for each in changed(saved, facts)
    ]


def warn_of_meaning(path: pathlib.Path, saved: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Warns where a run starts from parameters that were trained to mean something else."""
    if meanings := changed(saved, facts, MEANING):
        logging.warning(
            "%s was trained with another meaning of the network's output: %s. Training starts from "
            "its parameters all the same, and has to learn the new one first.",
            path,
            "; ".join(meanings),
        )


def _check_meaning(
    directory: pathlib.Path, saved: Mapping[str, Any], facts: Mapping[str, Any]
) -> None:
    if meanings := changed(saved, facts, MEANING):
        raise ValueError(
            f"{directory} holds a run of another model: {'; '.join(meanings)}. Its parameters mean "
            "nothing here. Choose another MODEL_DIR, or the objective and task it was begun with."
        )


def shortened(value: Any) -> str:
    """`repr` without the addresses of functions, which differ from process to process."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
