"""The JSON description in a checkpoint: names, shapes, dtypes and checksums of its leaves.

It identifies, leaf by leaf, a checkpoint of another architecture or a damaged one, independently of
the version of the library that wrote the arrays.
"""

import errno
import hashlib
import json
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from idode_gin.reports import fingerprints, paths

ROUNDED = "rounded_to"
"""Fact of a smaller copy of a checkpoint: the dtype that its parameters are rounded to."""
STATE_OF_T5X = "state"
"""Folder in a checkpoint of t5x that holds its train state."""
SAVE_WITH_ORBAX = (
    "Save it once from t5x with use_orbax=True, then convert that checkpoint_<step> "
    "(python -m idode_gin.interop.convert)."
)
"""Way out where a checkpoint of t5x cannot be converted as it is."""
FORMAT = 1
_SHA256 = "sha256"
_PARTS = {"params", "ema", "training"}
_SHOWN = 5
_COUNTERS = ("training/window/", "training/guard/")
"""Leaves that may differ from those of this run and then restart at zero."""


class DamagedError(ValueError):
    """A file of a checkpoint is missing, truncated or altered."""


def describe(
    parts: Mapping[str, Any], sums: Mapping[str, Any], *, step: int, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the JSON description of `parts`.

    Args:
        parts: trees of arrays, by the name of the directory each is saved in.
        sums: `fingerprints.checksums` of each.
        step: step of the training run.
        facts: facts about the run.
    """
    trees = {
        name: {path: [str(leaf.dtype), *leaf.shape] for path, leaf in _named(part).items()}
        for name, part in parts.items()
    }
    checksums = {name: np.asarray(each).tolist() for name, each in sums.items()}
    return sealed(
        {
            "format": FORMAT,
            "step": step,
            "facts": dict(facts),
            "trees": trees,
            "checksums": checksums,
        }
    )


def sealed(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return a description with its own checksum."""
    found = {name: value for name, value in meta.items() if name != _SHA256}
    text = json.dumps(json.loads(json.dumps(found)), sort_keys=True)  # with lists for tuples
    return {**found, _SHA256: hashlib.sha256(text.encode()).hexdigest()}


def read_meta(checkpoint: pathlib.Path) -> dict[str, Any]:
    """Read the description that `describe` made when the checkpoint was written.

    Raises:
        DamagedError: if it or a part of the checkpoint is missing, it was altered, or the
            checkpoint's folder is not named after its step.
        ValueError: if another version of this library wrote it.
    """
    meta = read(checkpoint)
    if checkpoint.name.rpartition("_")[2] != str(meta["step"]):
        raise DamagedError(
            f"{checkpoint} is damaged: a checkpoint's folder is named after its step, and it holds "
            f"step {meta['step']}."
        )
    for part in sorted(_PARTS):
        if not (checkpoint / part).is_dir():
            raise DamagedError(f"{checkpoint} is damaged: its {part} is missing.")
    return meta


_OF_MACHINE = {
    *(errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM),
    *(errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH),
    *(errno.ENETDOWN, errno.ENETUNREACH, errno.EREMOTEIO),
}
_OF_MACHINE_IN_WORDS = re.compile(
    "RESOURCE_EXHAUSTED|PERMISSION_DENIED|DEADLINE_EXCEEDED|[Oo]ut of memory|Cannot allocate memory"
)
"""As XLA and tensorstore say it."""


def is_no_damage(error: BaseException) -> bool:
    """Return True for a failed read that says nothing about the files.

    Memory or file handles have run out, permission is denied, or the disk has not answered.
    """
    in_words = _OF_MACHINE_IN_WORDS.search(str(error)) is not None
    return isinstance(error, MemoryError) or getattr(error, "errno", 0) in _OF_MACHINE or in_words


def kept(checkpoint: pathlib.Path, what: str, reason: str) -> str:
    """Return the message about a part that cannot be read, for a reason outside the checkpoint."""
    return (
        f"Cannot read {what} of {checkpoint} now ({reason}). That is no sign of damage, and the "
        "checkpoint was left as it is. Free memory or correct permissions, and run the same "
        "command again."
    )


def is_of_t5x(checkpoint: pathlib.Path) -> bool:
    """Return True for a checkpoint that upstream t5x wrote, with orbax or without."""
    if (checkpoint / "meta").exists():
        return False
    return (checkpoint / STATE_OF_T5X).is_dir() or _is_without_orbax(checkpoint)


def _is_without_orbax(checkpoint: pathlib.Path) -> bool:
    """Return True for a checkpoint of t5x with a file of msgpack and a folder for each leaf."""
    is_file = (checkpoint / "checkpoint").is_file()
    return is_file and any(each.name.startswith("target.") for each in checkpoint.iterdir())


def must_be_converted(checkpoint: pathlib.Path) -> str:
    """Return the message about a checkpoint of t5x that a program was given."""
    return must_be_saved_again(checkpoint) or (
        f"{checkpoint} is a checkpoint of t5x, which is neither read nor changed here. Convert it: "
        f"python -m idode_gin.interop.convert --source {checkpoint} --output …"
    )


def must_be_saved_again(checkpoint: pathlib.Path) -> str:
    """Return the message about a checkpoint that t5x wrote without orbax; "" for any other."""
    if not _is_without_orbax(checkpoint):
        return ""
    return (
        f"{checkpoint} was written by t5x with use_orbax=False, which is neither read nor changed "
        f"here. {SAVE_WITH_ORBAX}"
    )


def read(checkpoint: pathlib.Path) -> dict[str, Any]:
    """Read a description, whatever the name of the checkpoint's folder.

    Raises:
        DamagedError, ValueError: as `read_meta`.
    """
    if is_of_t5x(checkpoint):
        raise ValueError(must_be_converted(checkpoint))
    path = checkpoint / "meta" / "metadata"
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        is_sealed = _SHA256 in meta  # those written before there was a checksum are not
        if is_sealed and meta[_SHA256] != sealed(meta)[_SHA256]:
            raise ValueError("its checksum does not match")
        version = meta["format"]
        if version == FORMAT:
            _check_form(meta, is_sealed)
        elif isinstance(version, bool) or not isinstance(version, int):
            raise ValueError(f"its format is {version!r}")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, paths.StoreError):  # an outage is no damage
            raise
        if is_no_damage(error):
            raise OSError(kept(checkpoint, "meta/metadata", str(error))) from error
        raise DamagedError(
            f"{checkpoint} is not a complete checkpoint of this library: cannot read "
            f"meta/metadata ({error})."
        ) from error
    if version != FORMAT:
        raise ValueError(
            f"{checkpoint} has format {version}; this version of idode_gin reads format "
            f"{FORMAT}. Read it with the version that wrote it."
        )
    return meta


def _check_form(meta: Mapping[str, Any], is_sealed: bool) -> None:
    """Raise ValueError, TypeError or KeyError unless a description has the form of `describe`."""

    def check(name: str, value: Any, is_right: Callable[[Any], bool]) -> None:
        if not is_right(value):
            raise ValueError(f"its {name} is {str(value)[:40]!r}")

    names = {"format", "step", "facts", "trees", "checksums"}
    if not is_sealed and meta.keys() != names:
        raise ValueError(f"it holds {sorted(meta)}")
    check("step", meta["step"], _is_count)
    check("facts", meta["facts"], lambda value: isinstance(value, dict))
    trees, sums = meta["trees"], meta["checksums"]
    for name, value in (("trees", trees), ("checksums", sums)):
        check(name, value, lambda value: isinstance(value, dict) and value.keys() == _PARTS)
    for part, tree in trees.items():
        check(f"tree of {part}", tree, lambda value: isinstance(value, dict))
        for path, entry in tree.items():
            check(f"{part}/{path}", entry, lambda value: isinstance(value, list))
            jnp.dtype(entry[0])
            check(f"{part}/{path}", entry, lambda value: all(map(_is_count, value[1:])))
        found = sums[part]
        check(
            f"checksums of {part}",
            found,
            lambda value: isinstance(value, list) and all(map(_is_count, value)),
        )
        if len(found) != len(tree):
            raise ValueError(f"it has {len(found)} checksums of {len(tree)} leaves of {part}")


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def saved_leaves(
    checkpoint: pathlib.Path, meta: Mapping[str, Any], part: str
) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    """Return dtype and shape of every leaf of a part, by name.

    Raises:
        ValueError: if a leaf is float64 and JAX is in its 32-bit mode.
    """
    found = {}
    for name, (type_name, *shape) in meta["trees"][part].items():
        dtype = jnp.dtype(type_name)
        if jax.dtypes.canonicalize_dtype(dtype) != dtype:
            raise ValueError(
                f"{checkpoint} holds {dtype} numbers and JAX is in its 32-bit mode. Set "
                "JAX_ENABLE_X64=1 to read it."
            )
        found[name] = (dtype, tuple(shape))
    return found


def check_sums(
    checkpoint: pathlib.Path, meta: Mapping[str, Any], part: str, sums: Any, tree: Any
) -> None:
    """Raise DamagedError if the checksums of leaves as read differ from those saved."""
    saved = dict(zip(meta["trees"][part], meta["checksums"][part], strict=True))
    found = dict(zip(_named(tree), np.asarray(sums).tolist(), strict=True))
    altered = [name for name in sorted(saved | found) if saved.get(name) != found.get(name)]
    if altered:
        others = f", nor those of {len(altered) - 1} other leaves" if altered[1:] else ""
        raise DamagedError(
            f"{checkpoint} is damaged: the checksum of {part}/{altered[0]} does not match{others}."
        )


def check_same_leaves(
    checkpoint: pathlib.Path, meta: Mapping[str, Any], wanted: Mapping[str, Any]
) -> None:
    """Check that names and shapes of leaves match, but for the metrics window and guard state.

    Args:
        checkpoint: its directory.
        meta: description from `read_meta`.
        wanted: trees of shapes and dtypes, by the name of the part.

    Raises:
        ValueError: if they differ; lists the first leaves that do.
    """
    problems = []
    for name, abstract in wanted.items():
        saved = {path: tuple(entry[1:]) for path, entry in meta["trees"][name].items()}
        ours = {path: tuple(leaf.shape) for path, leaf in _named(abstract).items()}
        for path in sorted(saved.keys() | ours.keys()):
            if f"{name}/{path}".startswith(_COUNTERS):
                continue
            if path not in saved:
                problems.append(f"{name}/{path}: missing from the checkpoint")
            elif path not in ours:
                problems.append(f"{name}/{path}: in the checkpoint, unknown to this run")
            elif saved[path] != ours[path]:
                problems.append(
                    f"{name}/{path}: shape {list(saved[path])} in the checkpoint, "
                    f"{list(ours[path])} here"
                )
    if not problems:
        return
    if all(each.startswith("training/") for each in problems):
        way_out = (
            "The parameters match; the optimizer or the metrics differ. Use the optimizer of the "
            "checkpoint or, in a new MODEL_DIR, RestoreCheckpointConfig.optimizer = 'reset'."
        )
    else:
        way_out = (
            "Use the network of the checkpoint, or another MODEL_DIR or path. A run in a new "
            "MODEL_DIR may start from this checkpoint (INITIAL_CHECKPOINT_PATH): equal blocks may "
            "then be stacked (UNet.scan) or not, and rules cover other differences."
        )
    more = f"\n  … and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    shown = "".join(f"\n  {each}" for each in problems[:_SHOWN])
    raise ValueError(
        f"{checkpoint} does not fit: {len(problems)} leaves differ.{shown}{more}\n{way_out}"
    )


def _named(tree: Any) -> dict[str, Any]:
    return dict(fingerprints.paths_and_leaves(tree))
