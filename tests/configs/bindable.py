"""What a gin file can bind: the programs' functions, and everything in their parameters."""

import dataclasses
import functools
import importlib
import inspect
import pathlib
import pkgutil
import re
import typing
from collections.abc import Callable, Iterator
from typing import Any

import idode_gin
from idode_gin import encode as encode_program
from idode_gin import eval as eval_program
from idode_gin import interpolate as interpolate_program
from idode_gin import sample as sample_program
from idode_gin import train as train_program
from idode_gin.configs import value_types

ROOT = pathlib.Path(__file__).parents[2]
PACKAGE = idode_gin.__name__
PROGRAMS = (
    train_program.train,
    eval_program.evaluate,
    sample_program.sample,
    encode_program.encode,
    interpolate_program.interpolate,
)
_IMPORT = re.compile(r"^from ([\w.]+) import (\w+)(?: as (\w+))?$", re.MULTILINE)
_NAME = re.compile(r"\b(\w+)\.(\w+)\b")


def fields(target: Callable[..., Any]) -> list[str]:
    """Return the parameters that gin can bind."""
    return list(value_types.parameters(target))


@functools.cache
def targets() -> list[Callable[..., Any]]:
    """Return all functions and final classes of this repository that a program may be built of.

    Each annotation of the programs' functions is followed to its classes, an abstract class to its
    subclasses, and each of these to its fields. Everything that gin files name is added.
    """
    for module in pkgutil.walk_packages(idode_gin.__path__, PACKAGE + "."):
        importlib.import_module(module.name)
    found: dict[Callable[..., Any], None] = {}
    waiting = [*PROGRAMS, *_named_in_gin_files()]
    while waiting:
        target = waiting.pop()
        if target in found:
            continue
        found[target] = None
        for parameter in value_types.parameters(target).values():
            for each in _classes(parameter.annotation):
                waiting += _fulfilling(each)
    return sorted(found, key=name)


def name(target: Callable[..., Any]) -> str:
    """Return a name such as `solvers.adaptive.DormandPrince`."""
    return f"{target.__module__}.{target.__qualname__}".removeprefix(PACKAGE + ".")


def _named_in_gin_files() -> Iterator[Callable[..., Any]]:
    for path in (ROOT / "gin_configs").rglob("*.gin"):
        if path.parent.name == "t5x":  # of programs that are not ours
            continue
        text = path.read_text()
        modules = {
            alias or last: f"{package}.{last}" for package, last, alias in _IMPORT.findall(text)
        }
        for module, attribute in _NAME.findall(text):
            if modules.get(module, "").startswith(PACKAGE):
                found = getattr(importlib.import_module(modules[module]), attribute, None)
                if callable(found) and found.__module__.startswith(PACKAGE):
                    yield found


def _classes(annotation: Any) -> Iterator[type]:
    """Yield every class of this repository in an annotation, at any depth."""
    if inspect.isclass(annotation) and annotation.__module__.startswith(PACKAGE):
        yield annotation
    inner = annotation if isinstance(annotation, list) else typing.get_args(annotation)
    for each in inner:
        yield from _classes(each)


def _fulfilling(contract: type) -> list[type]:
    """Return the final classes among `contract` and its subclasses, except those of gin."""
    found = [contract] if dataclasses.is_dataclass(contract) else []
    for child in contract.__subclasses__():
        module = importlib.import_module(child.__module__)
        is_private = child.__name__.startswith("_")  # made by other code alone
        is_ours = child.__module__.startswith(PACKAGE) and not is_private
        if is_ours and vars(module).get(child.__name__) is child:
            found += _fulfilling(child)
    return found
