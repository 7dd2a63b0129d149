"""Does a value written in a gin file fit the annotation of the parameter it is bound to?

Knows nothing of gin: references arrive here as `Built` (the result of a call) or `Named` (the
function or class itself). An annotation it cannot read accepts everything.
"""

import collections.abc
import dataclasses
import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

UNKNOWN = Any
_SEQUENCES = (collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)
_MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)


@dataclasses.dataclass(frozen=True)
class Built:
    """Stands for what calling a function or class gives: `@name()` in gin."""

    type: Any
    name: str


@dataclasses.dataclass(frozen=True)
class Named:
    """Stands for a function or class that is passed on uncalled: `@name` in gin."""

    target: Callable[..., Any]
    name: str


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One parameter of a function or class: its annotation, and whether it must be given."""

    annotation: Any
    required: bool


@functools.cache
def parameters(target: Callable[..., Any]) -> Mapping[str, Parameter]:
    """The named parameters of a function or of a class's constructor, with resolved annotations."""
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError):  # builtins without a signature
        return {}
    hints = _hints(target)
    return {
        name: Parameter(hints.get(name, UNKNOWN), each.default is inspect.Parameter.empty)
        for name, each in signature.parameters.items()
        if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
    }


def takes_any_keyword(target: Callable[..., Any]) -> bool:
    """Whether `target` has a `**kwargs` parameter."""
    try:
        kinds = [each.kind for each in inspect.signature(target).parameters.values()]
    except (TypeError, ValueError):
        return True
    return inspect.Parameter.VAR_KEYWORD in kinds


def result_type(target: Callable[..., Any]) -> Any:
    """What calling `target` gives: the class itself, or the function's return annotation."""
    if inspect.isclass(target):
        return target
    return _hints(target).get("return", UNKNOWN)


def fits(value: Any, annotation: Any) -> bool:
    """Whether `value`, a literal, a container of literals, `Built` or `Named`, fits."""
    annotation = _plain(annotation)
    if _is_anything(annotation):
        return True
    if _is_union(annotation):
        return any(fits(value, each) for each in typing.get_args(annotation))
    if isinstance(value, Built):
        return _type_fits(value.type, annotation)
    if annotation is None:
        return value is None
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if isinstance(value, Named):
        return _named_fits(value, annotation, origin, arguments)
    if origin is typing.Literal:
        return any(value == each and type(value) is type(each) for each in arguments)
    if origin is None:
        return not inspect.isclass(annotation) or _literal_fits(value, annotation)
    return _container_fits(value, origin, arguments)


def describe(annotation: Any) -> str:
    """An annotation as its author wrote it: `int`, `str | None`, `AbstractSchedule`."""
    annotation = _plain(annotation)
    if _is_union(annotation):
        return " | ".join(describe(each) for each in typing.get_args(annotation))
    if typing.get_origin(annotation) is typing.Literal:
        return "one of " + ", ".join(repr(each) for each in typing.get_args(annotation))
    if annotation in (None, Ellipsis):
        return "None" if annotation is None else "..."
    if typing.get_origin(annotation) is collections.abc.Callable:
        return "a function"
    if arguments := typing.get_args(annotation):
        inner = ", ".join(describe(each) for each in arguments)
        return f"{_name(typing.get_origin(annotation))}[{inner}]"
    return _name(annotation)


def describe_value(value: Any) -> str:
    """What arrived: the literal with its type, or what the reference gives."""
    if isinstance(value, Built):
        gives = describe(value.type)
        return f"@{value.name}()" if gives == value.name else f"@{value.name}(), which is {gives}"
    if isinstance(value, Named):
        return f"@{value.name}, without ()"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k!r}: {describe_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple) and any(isinstance(each, Built | Named) for each in value):
        return f"{type(value).__name__} of {', '.join(map(describe_value, value))}"
    return f"{value!r} ({type(value).__name__})" if value is not None else "None"


def hint(value: Any, annotation: Any) -> str:
    """A way out for the commonest slips; empty where there is none to offer."""
    wanted = _alternatives(annotation)
    if isinstance(value, float) and int in wanted and value.is_integer():
        return f"Write {int(value)}."
    if isinstance(value, bool) and wanted & {int, float}:
        return f"Write {int(value)} if the number is meant."
    if isinstance(value, str):
        unquoted = _unquoted(value)
        if any(fits(unquoted, each) for each in wanted if inspect.isclass(each)):
            return f"Write {unquoted!r}, without quotes."
    if bool in wanted and value in (0, 1):
        return f"Write {bool(value)}."
    if str in wanted and isinstance(value, int | float):
        return f"Text needs quotes: '{value}'."
    if isinstance(value, Named) and fits(Built(result_type(value.target), value.name), annotation):
        return f"Add () to build it: @{value.name}()."
    if isinstance(value, Built) and _is_callable(annotation):
        return f"Drop the () to pass the function itself: @{value.name}."
    if value is None and any(map(_is_built, wanted)):
        return "It cannot be left out: drop the line to keep what the files bind, or bind another."
    return _sequence_hint(value, annotation)


def _is_built(wanted: Any) -> bool:
    """Whether it is a class of ours, which gin builds."""
    return inspect.isclass(wanted) and wanted.__module__ not in ("builtins", "collections.abc")


def _sequence_hint(value: Any, annotation: Any) -> str:
    if isinstance(value, list) and fits(tuple(value), annotation):
        return f"Write {tuple(value)!r}."
    if isinstance(value, tuple) and fits(list(value), annotation):
        return f"Write {list(value)!r}."
    if isinstance(value, int | float | str) and fits((value,), annotation):
        return f"Write ({value!r},), with its comma."
    return ""


def _unquoted(text: str) -> Any:
    named = {"true": True, "false": False, "none": None}
    if text.lower() in named:
        return named[text.lower()]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    """Annotations of a function, or of a class's constructor, by name; unreadable ones left out."""
    if inspect.isclass(target) and not dataclasses.is_dataclass(target):
        target = target.__init__  # type: ignore[misc]
    target = inspect.unwrap(target)
    try:
        return typing.get_type_hints(target)
    except (NameError, TypeError, AttributeError):
        raw = getattr(target, "__annotations__", {})
        return {name: each for name, each in raw.items() if not isinstance(each, str)}


def _plain(annotation: Any) -> Any:
    """Strips `Annotated`, `Final`, `InitVar` and `NewType`, and spells NoneType as None."""
    if annotation is type(None):
        return None
    if typing.get_origin(annotation) in (typing.Annotated, typing.Final, typing.ClassVar):
        return _plain(typing.get_args(annotation)[0])
    if isinstance(annotation, dataclasses.InitVar):
        return _plain(annotation.type)
    if isinstance(annotation, typing.NewType):
        return _plain(annotation.__supertype__)
    return annotation


def _is_anything(annotation: Any) -> bool:
    # Any is a class from Python 3.11 on, one that no instance or subclass check accepts.
    return annotation in (Any, object) or isinstance(annotation, str | typing.TypeVar)


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def _alternatives(annotation: Any) -> set[Any]:
    annotation = _plain(annotation)
    members = typing.get_args(annotation) if _is_union(annotation) else (annotation,)
    return {_plain(each) for each in members if isinstance(_plain(each), typing.Hashable)}


def _name(annotation: Any) -> str:
    return getattr(annotation, "__name__", None) or str(annotation).replace("typing.", "")


def _is_callable(annotation: Any) -> bool:
    found = {typing.get_origin(each) or each for each in _alternatives(annotation)}
    return collections.abc.Callable in found


def _literal_fits(value: Any, wanted: type) -> bool:
    if wanted is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if wanted is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if wanted in (collections.abc.Callable, type):
        return False
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return _scalar_fits(value, wanted)
    return _container_fits(value, wanted, ())


def _scalar_fits(value: Any, wanted: type) -> bool:
    try:
        if isinstance(value, wanted):
            return True
    except TypeError:  # a protocol, or a type that refuses instance checks
        return True
    # jaxtyping's array types and numpy scalars: whatever the function makes of a plain number.
    foreign = wanted.__module__.split(".")[0] in ("jaxtyping", "jax", "jaxlib", "numpy")
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return (foreign and is_number) or getattr(wanted, "_is_protocol", False)


def _container_fits(value: Any, origin: Any, arguments: tuple[Any, ...]) -> bool:
    if origin is tuple:
        return isinstance(value, tuple) and _items_fit(value, arguments)
    if origin is list or origin in _SEQUENCES:
        right = isinstance(value, list if origin is list else list | tuple)
        return right and all(fits(each, arguments[0]) for each in value if arguments)
    if origin in _MAPPINGS:
        if not isinstance(value, dict):
            return False
        key, item = arguments or (UNKNOWN, UNKNOWN)
        return all(fits(k, key) and fits(v, item) for k, v in value.items())
    if origin in (collections.abc.Callable, type):
        return False
    return not inspect.isclass(origin) or isinstance(value, origin)


def _items_fit(value: tuple[Any, ...], arguments: tuple[Any, ...]) -> bool:
    if not arguments:
        return True
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return all(fits(each, arguments[0]) for each in value)
    return len(value) == len(arguments) and all(map(fits, value, arguments))


def _named_fits(value: Named, annotation: Any, origin: Any, arguments: tuple[Any, ...]) -> bool:
    if origin is collections.abc.Callable or annotation is collections.abc.Callable:
        return True
    if origin is type and inspect.isclass(value.target):
        return not arguments or _type_fits(value.target, arguments[0])
    if annotation is type:
        return inspect.isclass(value.target)
    if not inspect.isclass(annotation):
        return origin is None
    return getattr(annotation, "_is_protocol", False)


def _type_fits(produced: Any, annotation: Any) -> bool:
    """Whether something annotated `produced` can be what `annotation` asks for."""
    produced, annotation = _plain(produced), _plain(annotation)
    if _is_anything(produced) or _is_anything(annotation):
        return True
    if _is_union(produced):
        return any(_type_fits(each, annotation) for each in typing.get_args(produced))
    if _is_union(annotation):
        return any(_type_fits(produced, each) for each in typing.get_args(annotation))
    if produced is None or annotation is None:
        return produced is annotation
    made = typing.get_origin(produced) or produced
    wanted = typing.get_origin(annotation) or annotation
    if made is typing.Literal:
        return any(fits(each, annotation) for each in typing.get_args(produced))
    if not (inspect.isclass(made) and inspect.isclass(wanted)):
        return True
    if wanted is float and made is int:
        return True
    try:
        return issubclass(made, wanted)
    except TypeError:  # protocols with data members
        return True
