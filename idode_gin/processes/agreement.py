"""Check that all processes of a run have the same configuration, code and data.

Differences would not stop a run: each process would compute its part of another run. The facts are
compared over jax's key-value store, which also works where the devices differ.
"""

import functools
import hashlib
import itertools
import json
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import idode_gin
from idode_gin import checks
from idode_gin.processes import joining
from idode_gin.reports import paths

_SHOWN = 5
_LENGTH = 200
_LOOKS, _PAUSE = 50, 0.2
"""A file must be visible on another machine after so many looks and seconds between them."""
_SETTINGS = (
    *("platforms", "enable_x64", "default_matmul_precision"),
    *("default_prng_impl", "threefry_partitionable"),
)
_COUNT = itertools.count()


def check(what: str, facts: Callable[[], Mapping[str, Any]]) -> None:
    """Raise on every process unless all have the same facts. All of them must call this.

    Args:
        what: the facts describe, for the message.
        facts: returns them by name; not called in a single process.

    Raises:
        checks.DisagreementError: with the first differences from process 0.
    """
    if joining.client() is None:
        return
    found = _compare({name: _text(value) for name, value in facts().items()})
    if found:
        more = f"\n  … and {len(found) - _SHOWN} more" if found[_SHOWN:] else ""
        shown = "".join(f"\n  {each}" for each in found[:_SHOWN])
        raise checks.DisagreementError(
            f"The processes do not agree on {what}:{shown}{more}\n"
            "Start all of them with the same files, command line and installation."
        )


def check_shared(file: pathlib.Path, macro: str) -> None:
    """Raise on every process unless all of them see `file` as process 0 has written it.

    Raises:
        checks.DisagreementError: naming `macro`, the directory that they do not share.
    """
    if joining.client() is None:
        return
    for _ in range(_LOOKS):
        found = _compare({str(file): _file_digest(file)})
        if not found:
            return
        time.sleep(_PAUSE)  # a network file system may show old content for a while
    raise checks.DisagreementError(
        f"{macro} must be a directory that all processes share, but process 0 wrote a file "
        f"there, and {found[0]}. Bind one on a shared file system."
    )


def _compare(facts: dict[str, str]) -> list[str]:
    """Return the differences between all processes, which process 0 looks for."""
    store, key = joining.client(), f"idode_gin/agreement/{next(_COUNT)}"
    if joining.index() > 0:
        store.key_value_set(f"{key}/{joining.index()}", json.dumps(facts))
        return json.loads(joining.wait_for(store, f"{key}/differences"))
    others = range(1, joining.count())
    theirs = {each: json.loads(joining.wait_for(store, f"{key}/{each}")) for each in others}
    found = differences(facts, theirs)
    store.key_value_set(f"{key}/differences", json.dumps(found))
    return found


def differences(first: Mapping[str, str], others: Mapping[int, Mapping[str, str]]) -> list[str]:
    """Return sentences on the facts of other processes, by index, that differ from process 0's."""
    found: dict[tuple[str, str | None], list[str]] = {}
    for index, facts in sorted(others.items()):
        for name in sorted(first.keys() | facts.keys()):
            if first.get(name) != facts.get(name):
                found.setdefault((name, facts.get(name)), []).append(str(index))
    sentences = []
    for (name, value), indices in found.items():
        shown = ", ".join(indices[:_SHOWN]) + (", …" if indices[_SHOWN:] else "")
        several = f"{len(indices)} processes ({shown}) have"
        who = several if len(indices) > 1 else f"process {shown} has"
        if value is None:
            sentences.append(f"{who} no {name}, process 0 has {name} = {first[name]}")
        else:
            sentences.append(f"{who} {name} = {value}, process 0 has {first.get(name, 'none')}")
    return sentences


def of_code() -> dict[str, Any]:
    """Return the code that runs: versions, jax's settings that change numbers, all modules."""
    import jax
    import jaxlib

    settings = [f"jax_{name}" for name in _SETTINGS]
    return {
        "idode_gin": idode_gin.__version__,
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "numpy": np.__version__,
        **{name: str(getattr(jax.config, name, None)) for name in settings},
        **modules(),
    }


@functools.cache
def modules() -> dict[str, str]:
    """Return the SHA-256, shortened, of every module of this package and of the tasks, by path."""
    root = pathlib.Path(idode_gin.__file__).parent
    files = sorted([*root.rglob("*.py"), *(root.parent / "tasks").rglob("*.py")])
    return {file.relative_to(root.parent).as_posix(): _digest(file.read_bytes()) for file in files}


def code_sha256() -> str:
    """Return the SHA-256 of this package's modules and their names."""
    ours = {name: each for name, each in modules().items() if not name.startswith("tasks/")}
    return hashlib.sha256(json.dumps(ours).encode()).hexdigest()


def _file_digest(file: pathlib.Path) -> str:
    try:
        return _digest(file.read_bytes())
    except paths.StoreError:
        raise
    except OSError as error:
        return f"nothing: {error.strerror or error}"


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= _LENGTH else f"{text[:_LENGTH]} … ({_digest(text.encode())})"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
