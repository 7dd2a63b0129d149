"""Compare values written in a gin file with the annotations of the parameters they are bound to.

References arrive here as `Built` (the result of a call) or `Named` (the function or class itself).
beartype compares single values. Three rules are added to it, because it checks one random item of a
container only, takes True for a number, and takes text for a sequence.
"""

import ast
import collections.abc
import contextlib
import dataclasses
import functools
import inspect
import operator
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from idode_gin.reports import paths

UNKNOWN = Any
_SEQUENCES = (collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)


@dataclasses.dataclass(frozen=True)
class Built:
    """The result of calling a function or class: `@name()` in gin."""

    type: Any
    name: str


@dataclasses.dataclass(frozen=True)
class Named:
    """A function or class that is passed on uncalled: `@name` in gin."""

    target: Callable[..., Any]
    name: str


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One parameter of a function or class: its annotation, and whether it must be given.

    `read_path` checks a value that is annotated as `paths.LocalPath` or `paths.StoredPath`, which
    `annotation` shows as `str`; None for other parameters.
    """

    annotation: Any
    required: bool
    read_path: Callable[[str, str], str] | None = None


@functools.cache
def parameters(target: Callable[..., Any]) -> Mapping[str, Parameter]:
    """Return the named parameters of a function or of a class's constructor.

    Annotations are resolved; one that is missing or cannot be resolved is `UNKNOWN`. A builtin
    without a signature has no parameters.
    """
    signature = _signature(target)
    return {
        name: Parameter(
            _plain(_known(each.annotation)),
            each.default is each.empty,
            paths.reader(each.annotation),
        )
        for name, each in (signature.parameters.items() if signature else ())
        if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
    }


def takes_any_keyword(target: Callable[..., Any]) -> bool:
    """Return True if `target` has a `**kwargs` parameter, or no signature."""
    signature = _signature(target)
    return signature is None or any(
        each.kind == each.VAR_KEYWORD for each in signature.parameters.values()
    )


def result_type(target: Callable[..., Any]) -> Any:
    """Return the type of `target(...)`: the class itself, or a function's return annotation."""
    if inspect.isclass(target):
        return target
    signature = _signature(target)
    return UNKNOWN if signature is None else _known(signature.return_annotation)


def fits(value: Any, annotation: Any) -> bool:
    """Return True if a parameter annotated `annotation` may be given `value`.

    An int fits where a float is expected. An annotation that cannot be read accepts everything, and
    so does a function whose return annotation is unknown.

    Args:
        value: a literal, `Built`, `Named`, or a container of these.
        annotation: resolved, as in `Parameter`.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is UNKNOWN or isinstance(annotation, str | typing.TypeVar):
        return True
    if _is_union(annotation):
        return any(fits(value, each) for each in arguments)
    if isinstance(value, Built):
        return _type_fits(value.type, annotation)
    if isinstance(value, Named):
        value = value.target
    if isinstance(value, bool) and annotation in (int, float):
        return False
    if isinstance(value, str) and (origin or annotation) in _SEQUENCES:
        return False
    if isinstance(value, dict | list | tuple) and arguments and inspect.isclass(origin):
        return isinstance(value, origin) and _items_fit(value, origin, arguments)
    return _is_number_for_array(value, annotation) or _is_bearable(value, annotation)


def describe(annotation: Any) -> str:
    """Return an annotation as its author wrote it: `int`, `str | None`, `AbstractSchedule`."""
    arguments = typing.get_args(annotation)
    if _is_union(annotation):
        return " | ".join(map(describe, arguments))
    if typing.get_origin(annotation) is typing.Literal:
        return "one of " + ", ".join(map(repr, arguments))
    if typing.get_origin(annotation) is collections.abc.Callable:
        return "a function"
    if annotation in (None, type(None)):
        return "None"
    if inspect.isclass(annotation) and not arguments:
        return annotation.__name__
    return re.sub(r"\b([a-zA-Z_]\w*\.)+", "", repr(annotation))  # without names of modules


def describe_value(value: Any) -> str:
    """Return a literal with its type, or the name of a reference and what it builds."""
    if isinstance(value, Built):
        type_name = describe(value.type)
        builds = "" if type_name == value.name else f", which is {type_name}"
        return f"@{value.name}(){builds}"
    if isinstance(value, Named):
        return f"@{value.name}, without ()"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k!r}: {describe_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple) and any(isinstance(each, Built | Named) for each in value):
        return f"{type(value).__name__} of {', '.join(map(describe_value, value))}"
    return f"{value!r} ({type(value).__name__})" if value is not None else "None"


def hint(value: Any, annotation: Any) -> str:
    """Return a way out for the most frequent mistakes; empty if there is none to offer."""
    for other, advice in _alternatives(value):
        if fits(other, annotation):
            return advice
    types_wanted = typing.get_args(annotation) if _is_union(annotation) else (annotation,)
    classes = [
        each
        for each in types_wanted
        if inspect.isclass(each) and each.__module__ not in ("builtins", "collections.abc")
    ]
    if classes and value is None:
        return "It cannot be left out: drop the line to keep what the files bind, or bind another."
    ours = [each for each in classes if each.__module__.startswith("idode_gin.")]
    if ours and isinstance(value, int | float | str):
        module = ours[0].__module__
        place = module.rpartition(".")[0] if ours[0].__name__.startswith("Abstract") else module
        return f"Write a reference that builds one, @MODULE.NAME(), such as one of {place}."
    return ""


def _alternatives(value: Any) -> Iterator[tuple[Any, str]]:
    """Yield values that may have been meant instead of `value`, each with how to write it."""
    if isinstance(value, float) and value.is_integer():
        yield int(value), f"Write {int(value)}."
    if isinstance(value, bool):
        yield int(value), f"Write {int(value)} if the number is meant."
    if isinstance(value, str):
        unquoted = _unquoted(value)
        yield unquoted, f"Write {unquoted!r}, without quotes."
    if isinstance(value, int | float):
        if value in (0, 1):
            yield bool(value), f"Write {bool(value)}."
        yield str(value), f"Text needs quotes: '{value}'."
    if isinstance(value, Named):
        built = Built(result_type(value.target), value.name)
        yield built, f"Add () to build it: @{value.name}()."
    if isinstance(value, Built):
        function = Named(lambda: None, value.name)
        yield function, f"Drop the () to pass the function itself: @{value.name}."
    if isinstance(value, list | tuple):
        other = tuple(value) if isinstance(value, list) else list(value)
        yield other, f"Write {other!r}."
    if isinstance(value, tuple) and len(value) == 2:
        yield (*value, 1), f"Write {(*value, 1)!r} for grey images: the last is the channels."
    if isinstance(value, int | float | str):
        named = {"NAME": value}
        yield named, f"Write {named!r}, with the name of what the value is for."
        yield (value,), f"Write ({value!r},), with its comma."


def _unquoted(text: str) -> Any:
    is_named = text.lower() in ("true", "false", "none")
    with contextlib.suppress(ValueError, SyntaxError, TypeError):
        return ast.literal_eval(text.capitalize() if is_named else text)
    return text


def _signature(target: Callable[..., Any]) -> inspect.Signature | None:
    """Return the signature, annotations resolved if all of them can be; None for some builtins."""
    for resolve in (True, False):
        with contextlib.suppress(NameError, TypeError, AttributeError, ValueError):
            return inspect.signature(target, eval_str=resolve)
    return None


def _known(annotation: Any) -> Any:
    is_missing = annotation is inspect.Signature.empty or isinstance(annotation, str)
    return UNKNOWN if is_missing else annotation


def _plain(annotation: Any) -> Any:
    """Return an annotation without the marks of `Annotated`, in a union too."""
    if typing.get_origin(annotation) is typing.Annotated:
        return typing.get_args(annotation)[0]
    if _is_union(annotation) and paths.reader(annotation):
        return functools.reduce(operator.or_, map(_plain, typing.get_args(annotation)))
    return annotation


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def _items_fit(value: Any, origin: type, arguments: tuple[Any, ...]) -> bool:
    if isinstance(value, dict):
        return all(fits(k, arguments[0]) and fits(v, arguments[-1]) for k, v in value.items())
    if origin is tuple and arguments[-1] is not Ellipsis:
        return len(value) == len(arguments) and all(map(fits, value, arguments))
    return all(fits(each, arguments[0]) for each in value)


def _type_fits(made: Any, annotation: Any) -> bool:
    """Return True if a value of type `made` may fit; of containers the items are not compared."""
    origin = typing.get_origin(made)
    if made is UNKNOWN or isinstance(made, str | typing.TypeVar):
        return True
    if _is_union(made):
        return any(_type_fits(each, annotation) for each in typing.get_args(made))
    if origin is typing.Literal:
        return any(fits(each, annotation) for each in typing.get_args(made))
    made, wanted = origin or made, typing.get_origin(annotation) or annotation
    if wanted is typing.Literal or (made, wanted) == (int, float):
        return True
    from beartype import door, roar

    try:
        return door.is_subhint(made, wanted)
    except (roar.BeartypeException, TypeError):
        return True


def _is_number_for_array(value: Any, annotation: Any) -> bool:
    """Return True for a plain number where an array is expected: the function converts it."""
    is_array = getattr(annotation, "__module__", None) in ("jax", "jaxtyping", "numpy")
    return is_array and isinstance(value, int | float) and not isinstance(value, bool)


def _is_bearable(value: Any, annotation: Any) -> bool:
    import beartype  # takes 0.1 s, which --help does not need
    from beartype import door, roar

    accepts_int_as_float = beartype.BeartypeConf(is_pep484_tower=True)
    try:
        return door.is_bearable(value, annotation, conf=accepts_int_as_float)
    except (roar.BeartypeException, TypeError):
        return True
