"""Show that a field has an effect: a visible result changes with its value, or the value raises."""

import dataclasses
import functools
import inspect
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import pytest
from jax.interpreters import partial_eval

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


@dataclasses.dataclass(frozen=True)
class Room:
    """An empty folder, which is the current one, and patches that last as long as the test."""

    folder: pathlib.Path
    patch: pytest.MonkeyPatch


@dataclasses.dataclass(frozen=True)
class Refused:
    """A value that raises a ValueError with `words`, where it is given or where it is used."""

    value: Any
    words: str


@dataclasses.dataclass(frozen=True)
class Later:
    """A value that can only be made in the room's folder."""

    make: Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class Case:
    """Fields of a class, or parameters of a function, each with another value than the usual one.

    Args:
        see: returns visible results of an object, or of a function with its arguments: a tree of
            arrays, numbers and text. Never the object's own fields or `repr`: those always differ.
        usual: arguments to start from; one at a time is changed.
        others: another value for each field, or one that is `Refused`.
        before: prepares the room in which the object is made.
        is_slow: run by `make test-full` only.
    """

    see: Callable[[Any, Room], Any]
    usual: Mapping[str, Any]
    others: Mapping[str, Any]
    before: Callable[[Room], None] = lambda room: None
    is_slow: bool = False


def look(case: Case, target: Callable[..., Any], folder: pathlib.Path, **changes: Any) -> Any:
    """Return the visible results with some values changed, in a form that can be compared."""
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        room = Room(folder, patch)
        patch.chdir(folder)
        case.before(room)
        given = {**case.usual, **changes}
        arguments = {k: v.make() if isinstance(v, Later) else v for k, v in given.items()}
        make = target if inspect.isclass(target) else functools.partial(functools.partial, target)
        return _comparable(case.see(make(**arguments), room))


def without_effect(case: Case, target: Callable[..., Any], folder: pathlib.Path) -> list[str]:
    """Return what is wrong with the case; nothing if each of its fields has an effect."""
    first, again = (look(case, target, folder / each) for each in ("first", "again"))
    if first != again:
        return ["What is seen is not the same twice, so that no difference means anything."]
    if not first:
        return ["There is nothing to see."]
    found = []
    for field, value in case.others.items():
        if isinstance(value, Refused):
            try:
                look(case, target, folder / field, **{field: value.value})
                found.append(f"`{field}` = {value.value!r} is not refused.")
            except ValueError as error:
                if value.words not in str(error):
                    found.append(f"`{field}` = {value.value!r} is refused by: {error}")
        elif look(case, target, folder / field, **{field: value}) == first:
            found.append(f"`{field}` = {value!r} changes nothing.")
    return found


def program(function: Callable[..., Any], *arguments: Any) -> str:
    """Return the traced function as text, without operations that its results do not need."""
    traced = jax.make_jaxpr(function)(*arguments)
    jaxpr, _ = partial_eval.dce_jaxpr(traced.jaxpr, [True] * len(traced.jaxpr.outvars))
    constants = [_comparable(each) for each in traced.consts]
    return f"{_ADDRESS.sub('', str(jaxpr))}\n{constants}"


def _comparable(seen: Any) -> list[Any]:
    leaves = jax.tree_util.tree_leaves_with_path(seen)
    return [(jax.tree_util.keystr(path), _plain(leaf)) for path, leaf in leaves]


def _plain(leaf: Any) -> Any:
    if isinstance(leaf, str | bytes):
        return leaf
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    array = np.asarray(leaf)
    assert array.dtype != object, f"{leaf!r} is not something to be compared"
    return array.shape, str(array.dtype), array.tobytes()
