"""Inputs of a run: images checked against the model, parameters, and the shapes of both."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from idode_gin import types
from idode_gin.checkpoints import meta, saving
from idode_gin.devices.partitioning import PjitPartitioner
from idode_gin.feed import data, labels, loading
from idode_gin.models import DiffusionODE
from idode_gin.processes import agreement
from idode_gin.reports import differences, progress
from idode_gin.runs import averaging, facts


def load(dataset: data.DatasetConfig, model: DiffusionODE) -> data.ImageSplit:
    """Load a split and check it against the model; every process must load the same one.

    Labels are read if the model is conditioned on classes, and not otherwise.

    Raises:
        ValueError: if pixel values exceed the model's levels, the network expects another number
            of conditioning values, labels are missing or outside the model's classes, or the
            processes loaded different images.
    """
    with progress.phase(f"reading {dataset.mixture_or_task_name} / {dataset.split}"):
        split = loading.load_split(dataset)
        if count := model.num_classes:
            found, names = loading.load_labels(dataset, count), loading.class_names(dataset)
            split = dataclasses.replace(split, labels=found, num_classes=count, class_names=names)
        data.check_images(split, model.encoding.levels)
        images = split.facts()
    given, expected = split.conditioning.shape[1], model.conditioning_size - model.num_classes
    if given != expected:
        raise ValueError(
            f"{split} has {given} conditioning numbers per image, the network takes {expected}. "
            f"Set its conditioning_size = {given} (a network without this field takes 1), and bind "
            "data.DatasetConfig.augmentation, if any, without a scope: for training and evaluation "
            "alike."
        )
    order = {"seed": dataset.seed, "batch_size": dataset.batch_size}
    agreement.check(f"the data, {split}", lambda: {**images, **order})
    return split


def labels_for(
    model: DiffusionODE,
    index: np.ndarray,
    label: int | Sequence[int] | np.ndarray | None,
    names: Sequence[str] = (),
) -> np.ndarray | None:
    """Return the class of each sample `index`, int32 `[n]`; None for a model without classes.

    `label` is one class, or one for each; None takes all classes in turn, by the index. `names` are
    the classes', for messages.

    Raises:
        ValueError: for a label that is no class, or given to a model without classes.
    """
    count = model.num_classes
    if label is None:
        return labels.check(index % count, count, len(index)) if count else None
    if not count:
        raise ValueError(
            f"`label` must be None for a model that is not conditioned on classes, got {label}. "
            "Train with NUM_CLASSES, see gin_configs/experiments/digits_by_class.gin."
        )
    given = np.asarray(label)
    if given.ndim == 0:
        given = np.broadcast_to(given, len(index))
    return labels.check(given, count, len(index), names=names)


def load_params(
    model: DiffusionODE,
    image_shape: tuple[int, int, int],
    path: str,
    use_ema: bool,
    sharding: jax.sharding.Sharding | None = None,
) -> saving.RestoredParams:
    """Restore the parameters of the checkpoint at `path`, or of a run's newest undamaged one.

    Logs a warning if an average still holds a large share of initial parameters, or they are
    rounded.

    `sharding` None replicates them over all devices.

    Raises:
        ValueError: if there is no checkpoint, or it was trained with another network, schedule,
            time, parameterization or encoding, so that its parameters mean something else.
    """
    with progress.phase(f"restoring the parameters in {path}"):
        abstract = param_shapes(model, image_shape, sharding)
        restored = saving.restore_params(path, abstract, ema=use_ema)
    check_meaning(restored.path, restored.facts, model)
    if use_ema and (warning := averaging.warning(restored.facts, restored.step)):
        logging.warning("%s: %s", restored.path, warning)
    if dtype := restored.facts.get(meta.ROUNDED):
        logging.warning(
            "%s is a copy with parameters rounded to %s: figures differ from those of the "
            "original.",
            restored.path,
            dtype,
        )
    agreement.check("the checkpoint", lambda: {"path": str(restored.path), "step": restored.step})
    return restored


def check_meaning(path: pathlib.Path, trained: Mapping[str, Any], model: DiffusionODE) -> None:
    """Raise ValueError if the facts of a checkpoint are those of another model.

    A converted checkpoint does not know its parameterization: a warning says so.
    """
    if changes := facts.changed_meaning(trained, model):
        raise ValueError(
            f"{path} was trained as another model: {differences.listed(changes)}. Name the "
            "network, the objective and the task it was trained with."
        )
    if "model.parameterization" not in trained:
        logging.warning(
            "%s was converted and does not say which objective it was trained with; it is taken to "
            "be %s.",
            path,
            " on ".join(facts.shortened(x) for x in (model.parameterization, model.schedule)),
        )


def load_both(
    model: DiffusionODE,
    dataset: data.DatasetConfig,
    path: str,
    use_ema: bool,
    partitioner: PjitPartitioner,
) -> tuple[data.ImageSplit, saving.RestoredParams]:
    """Load a split and the parameters for it; a missing checkpoint is found before images are read.

    Raises:
        ValueError: see `load` and `load_params`.
    """
    saving.find(path)
    split = load(dataset, model)
    restored = load_params(model, split.image_shape, path, use_ema, partitioner.replicated)
    warn_of_classes(split, restored)
    return split, restored


def warn_of_classes(split: data.ImageSplit, restored: saving.RestoredParams) -> None:
    """Log a warning if the classes of a split have other names than those trained with."""
    trained, found = restored.facts.get("class_names"), list(split.class_names)
    if trained and found and trained != found:
        count = split.num_classes
        logging.warning(
            "%s has the classes %s, but %s was trained with %s: compare what the numbers mean.",
            split,
            labels.listed(count, found),
            restored.path,
            labels.listed(count, trained),
        )


def param_shapes(
    model: DiffusionODE,
    image_shape: tuple[int, int, int],
    sharding: jax.sharding.Sharding | None = None,
) -> types.Params:
    """Return shapes and dtypes of the model's parameters, each with `sharding`."""
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), image_shape))
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes
    )


def blank_batch(model: DiffusionODE, image_shape: tuple[int, ...], size: int) -> types.Batch:
    """Return shapes and dtypes of a training batch of `size` images; reads no images."""
    dtype = np.uint8 if model.encoding.levels <= 256 else np.int32
    return {
        "image": jax.ShapeDtypeStruct((size, *image_shape), dtype),
        "conditioning": jax.ShapeDtypeStruct((size, model.conditioning_size), np.float32),
        "position": jax.ShapeDtypeStruct((size,), np.int32),
        "index": jax.ShapeDtypeStruct((size,), np.int32),
        "mask": jax.ShapeDtypeStruct((size,), np.float32),
    }
