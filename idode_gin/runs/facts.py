"""Facts that identify a run or a result: saved beside it, and compared when it is resumed."""

import dataclasses
import functools
import inspect
import json
import re
import sys
import types as types_lib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from idode_gin import numerics, types
from idode_gin.checkpoints import meta
from idode_gin.checkpoints.saving import RestoredParams
from idode_gin.feed import data
from idode_gin.models import DiffusionODE
from idode_gin.processes import agreement
from idode_gin.reports import differences, fingerprints

MEANING = (
    *("model.schedule", "model.time", "model.parameterization", "model.encoding"),
    "model.network",
)
"""Facts that define what trained parameters mean; of the network but those of its `computation`."""

UNRELATED = {
    *("output_dir", "checkpoint_path", "use_ema", "checkpoints", "batch_size", "grid_images"),
    *("png_files", "partitioner", "histogram_split", "pilot", "classification"),
}
"""Settings that no value of an image depends on, or only through the parameters and solvers."""


def described(name: str, value: Any) -> dict[str, str]:
    """Flatten a dataclass into facts such as `model.network.channels`, defaults included.

    An object of a plain class, whose `repr` says nothing, gives its attributes. An optax
    transformation, a named tuple of functions, gives the numbers that these hold as well.
    """
    return _described(name, value, ())


def _described(name: str, value: Any, inside: tuple[Any, ...]) -> dict[str, str]:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        found = {name: type(value).__name__}
        parts = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    else:
        found, parts = {name: shortened(value)}, _attributes(value)
        if isinstance(value, tuple) and hasattr(value, "_fields") and all(map(callable, value)):
            found |= dict(_enclosed(name, value, ()))
    if not any(value is each for each in inside):
        for part, each in parts.items():
            found |= _described(f"{name}.{part}", each, (*inside, value))
    return found


def _attributes(value: Any) -> dict[str, Any]:
    """Return the attributes of an object without a `repr` of its own, those it caches left out."""
    kind = type(value)
    if kind.__repr__ is not object.__repr__ or not hasattr(value, "__dict__"):
        return {}
    is_cached = lambda name: isinstance(getattr(kind, name, None), functools.cached_property)  # noqa: E731
    return {name: each for name, each in vars(value).items() if not is_cached(name)}


def _enclosed(name: str, value: Any, inside: tuple[Any, ...]) -> Iterator[tuple[str, str]]:
    """Yield the numbers and texts that a function, or a container of some, was made with."""
    if any(value is each for each in inside):
        return
    inside = (*inside, value)
    if isinstance(value, types_lib.FunctionType):
        parts: Mapping[Any, Any] = inspect.getclosurevars(value).nonlocals
    elif isinstance(value, functools.partial):
        parts = {**dict(enumerate(value.args)), **value.keywords, "func": value.func}
    elif isinstance(value, types_lib.MethodType):
        parts = vars(value.__self__) if hasattr(value.__self__, "__dict__") else {}
    elif isinstance(value, Mapping):
        parts = value
    elif isinstance(value, tuple | list):
        parts = dict(zip(getattr(value, "_fields", range(len(value))), value, strict=True))
    else:
        yield name, shortened(value)
        return
    for key, each in parts.items():
        yield from _enclosed(f"{name}.{key}", each, inside)


def shortened(value: Any) -> str:
    """Return `repr(value)` without memory addresses, which differ between processes.

    Arrays are shown whole: two that differ anywhere are two facts.
    """
    with np.printoptions(threshold=sys.maxsize, floatmode="unique"):
        return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def image_facts(
    split: data.ImageSplit, eval_split: data.ImageSplit | None = None
) -> dict[str, Any]:
    """Return the facts about the images that determine a training run.

    Together with `Trainer.settings` they are saved in every checkpoint and compared on resume.
    """
    labels_of_eval = {} if eval_split is None else eval_split.label_facts()
    return {
        "dataset": str(split),
        "dataset_sha256": split.fingerprint.sha256,
        "eval_dataset_sha256": None if eval_split is None else eval_split.fingerprint.sha256,
        **split.part_facts(),
        "augmentation": shortened(split.augmentation),
        **split.label_facts(),
        **{f"eval_{name}": each for name, each in labels_of_eval.items()},
    }


def checkpoint_used(restored: RestoredParams, use_ema: bool) -> dict[str, Any]:
    """Return the entries of a summary that name the checkpoint and which of its parameters."""
    return {
        "checkpoint": str(restored.path),
        "step": restored.step,
        "parameters": "ema" if use_ema else "raw",
        **{name: each for name, each in restored.facts.items() if name == meta.ROUNDED},
    }


def digest_name(use_ema: bool) -> str:
    """Return the name under which summaries and facts hold the digest of the parameters."""
    return "ema_sha256" if use_ema else "params_sha256"


def setting_facts(model: DiffusionODE, settings: Any) -> dict[str, Any]:
    """Return the facts that are known before devices, images and parameters are.

    They are the code, the model, and all fields of `settings` but those in `UNRELATED`.
    """
    found: dict[str, Any] = {"code_sha256": agreement.code_sha256()}
    for name, value in {"model": model, **vars(settings)}.items():
        for key, each in value.items() if isinstance(value, dict) else [("", value)]:
            full = f"{name}.{key}".rstrip(".")
            if name not in UNRELATED:
                found |= {full: each} if _is_json(each) else described(full, each)
    return found


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True


def result_facts(
    model: DiffusionODE,
    params: types.Params,
    settings: Any,
    split: data.ImageSplit | None = None,
) -> dict[str, Any]:
    """Return everything that per-image values depend on, to be compared on resume.

    They are `setting_facts`, `params` by a digest, the images, and the arithmetic.
    """
    found = setting_facts(model, settings) | {
        digest_name(settings.use_ema): fingerprints.sha256(params),
        "float": str(numerics.float_dtype()),
        "matmul_precision": str(jax.config.jax_default_matmul_precision),  # type: ignore[attr-defined]
        "coarse_products": numerics.coarse_products(),
        "random_numbers": numerics.random_numbers(),
    }
    if split is not None:
        found["dataset"] = str(split)
        found["dataset_sha256"] = split.fingerprint.sha256
        found["conditioning_sha256"] = fingerprints.sha256(split.conditioning)
        found |= split.label_facts() | split.part_facts()
    return found


def changed_meaning(saved: Mapping[str, Any], model: DiffusionODE) -> list[str]:
    """Return a sentence for each part of `MEANING` that differs from that of a checkpoint."""
    now = described("model", model)
    others = {k: each for k, each in now.items() if not k.startswith("model.network.")}
    return changed(saved, others | described_network(model.network), MEANING)


def described_network(network: Any) -> dict[str, str]:
    """Return the facts about a network that decide what it computes, not how."""
    module = getattr(network, "module", None)  # of the user's, with fields of its own
    free = {*getattr(network, "computation", ()), *getattr(module, "computation", ())}
    found = described("model.network", network)
    return {name: each for name, each in found.items() if name.rpartition(".")[2] not in free}


def changed(
    saved: Mapping[str, Any], current: Mapping[str, Any], prefixes: Sequence[str] = ()
) -> list[str]:
    """Return a sentence for each fact that differs; facts that one side lacks are ignored.

    With `prefixes`, only these facts and their parts: `model.time.gamma_min` of `model.time`.
    """
    names = [
        name
        for name in current.keys() & saved.keys()
        if not prefixes or any(f"{name}.".startswith(f"{each}.") for each in prefixes)
    ]
    return differences.changes(
        {name: saved[name] for name in names}, {name: current[name] for name in names}
    )
