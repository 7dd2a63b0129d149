"""Whether all processes of a run hold the same: configuration, code, data.

What differs between them would not stop a run: each would compute its part of another one. So they
compare before they begin, hashes first, and text only where hashes differ.
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
from idode_gin.processes import joining

_SHOWN = 5
_LENGTH = 200
_PATIENCE = 10.0
"""Seconds that a file may take to be seen from another machine."""
_SETTINGS = ("platforms", "enable_x64", "default_matmul_precision", "default_prng_impl")
_COUNT = itertools.count()


def check(what: str, facts: Callable[[], Mapping[str, Any]]) -> None:
    """Raises on every process unless all hold the same facts. Must be called by all of them.

    A single process does not even look at its own.

    Args:
        what: the facts belong to, for the message.
        facts: gives them by name.

    Raises:
        ValueError: with the first differences from process 0.
    """
    client = joining.client()
    if client is None:
        return
    ours = {name: _text(value) for name, value in facts().items()}
    found = _compared(client, f"idode_gin/agreement/{next(_COUNT)}", ours)
    if not found:
        return
    more = f"\n  … and {len(found) - _SHOWN} more" if found[_SHOWN:] else ""
    shown = "".join(f"\n  {each}" for each in found[:_SHOWN])
    raise ValueError(
        f"The processes do not agree on {what}:{shown}{more}\n"
        "Start all of them with the same files, command line and installation."
    )


def check_shared(file: pathlib.Path, macro: str) -> None:
    """Raises on every process unless all of them see `file` as process 0 has written it.

    Raises:
        ValueError: naming `macro`, the directory that they do not share.
    """
    client = joining.client()
    if client is None:
        return
    key = f"idode_gin/agreement/{next(_COUNT)}"
    if joining.index() == 0:
        client.key_value_set(f"{key}/seen", _seen(file))
    expected, deadline = joining.wait_for(client, f"{key}/seen"), time.monotonic() + _PATIENCE
    while _seen(file) != expected and time.monotonic() < deadline:
        time.sleep(_PATIENCE / 50)  # a network file system may show what was there before
    found = _compared(client, key, {str(file): _seen(file)})
    if found:
        raise ValueError(
            f"{macro} must be a directory that all processes share, but of what process 0 wrote "
            f"there, {found[0]}. Bind one on a shared file system."
        )


def _compared(client: Any, key: str, ours: dict[str, str]) -> list[str]:
    """The differences between all processes: process 0 looks for them and tells the others.

    Over jax's key-value store rather than its devices: it works where devices differ as well.
    """
    index, count = joining.index(), joining.count()
    text = json.dumps(ours, sort_keys=True)
    if index > 0:
        client.key_value_set(f"{key}/hash/{index}", hashlib.sha256(text.encode()).hexdigest())
        differing = json.loads(joining.wait_for(client, f"{key}/differing"))
        if not differing:
            return []
        if index in differing:
            client.key_value_set(f"{key}/facts/{index}", text)
        return json.loads(joining.wait_for(client, f"{key}/found"))
    hashes = [joining.wait_for(client, f"{key}/hash/{each}") for each in range(1, count)]
    expected = hashlib.sha256(text.encode()).hexdigest()
    differing = [each for each, theirs in enumerate(hashes, start=1) if theirs != expected]
    client.key_value_set(f"{key}/differing", json.dumps(differing))
    if not differing:
        return []
    theirs = {each: joining.wait_for(client, f"{key}/facts/{each}") for each in differing}
    found = differences(ours, {each: json.loads(facts) for each, facts in theirs.items()})
    client.key_value_set(f"{key}/found", json.dumps(found))
    return found


def differences(first: Mapping[str, str], others: Mapping[int, Mapping[str, str]]) -> list[str]:
    """In words, what other processes, by index, hold otherwise than process 0 does."""
    found: dict[tuple[str, str | None], list[str]] = {}
    for index, facts in sorted(others.items()):
        for name in sorted(first.keys() | facts.keys()):
            if first.get(name) != facts.get(name):
                found.setdefault((name, facts.get(name)), []).append(str(index))
    sentences = []
    for (name, value), indices in found.items():
        who = f"process {indices[0]} has" if len(indices) == 1 else _several(indices)
        named, zero = name in first, first.get(name)
        theirs = f"no {name}" if value is None else f"{name} = {value}"
        sentences.append(
            f"{who} {theirs}, process 0 has "
            + ("none" if not named else f"{zero}" if value is not None else f"{name} = {zero}")
        )
    return sentences


def of_code() -> dict[str, Any]:
    """The code that runs here: versions, settings of jax that change numbers, and every module."""
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
    """SHA-256, shortened, of every module of this package and of the tasks beside it, by path."""
    root = pathlib.Path(idode_gin.__file__).parent
    files = sorted([*root.rglob("*.py"), *(root.parent / "tasks").rglob("*.py")])
    return {file.relative_to(root.parent).as_posix(): _digest(file.read_bytes()) for file in files}


def code_sha256() -> str:
    """SHA-256 of this package's modules, names and all."""
    ours = {name: each for name, each in modules().items() if not name.startswith("tasks/")}
    return hashlib.sha256(json.dumps(ours).encode()).hexdigest()


def _several(indices: list[str]) -> str:
    shown = ", ".join(indices[:_SHOWN]) + (", …" if indices[_SHOWN:] else "")
    return f"{len(indices)} processes ({shown}) have"


def _seen(file: pathlib.Path) -> str:
    try:
        return _digest(file.read_bytes())
    except OSError as error:
        return f"nothing: {error.strerror}"


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= _LENGTH else f"{text[:_LENGTH]} … ({_digest(text.encode())})"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
