"""Everything that the project uses of gin's private names.

gin 0.5 has no public way to list what is bound and registered, or to execute the statements of a
file one by one. A test checks `NAMES` and prints gin's version if one is missing.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from gin import config

NAMES = (
    "_CONFIG",
    "_CONSTANTS",
    "_IMPORTS",
    "_REGISTRY",
    "_inverse_lookup",
    "_parse_scope",
    "ParseContext._enable_dynamic_registration",
)


def bindings() -> dict[tuple[str, str], dict[str, Any]]:
    """Return gin's own table of bindings, to read or to delete from.

    Keys are (scope, selector), and values map parameters to what is bound. The selector is the
    whole name of a function or class; a macro `M` is the parameter `value` of `gin.macro` in scope
    `M`.
    """
    return config._CONFIG


def registered(selector: str) -> Callable[..., Any]:
    """Return the function or class that is registered under its whole name."""
    return config._REGISTRY[selector].wrapped


def is_registered_by_python(selector: str) -> bool:
    """Return True for what a decorator made configurable, rather than a gin file."""
    return config._REGISTRY[selector].import_source is None


def selector_of(target: Callable[..., Any]) -> str | None:
    """Return the whole name that a function or class is registered under."""
    found = config._inverse_lookup(target)
    return found and found.selector


def selectors() -> list[str]:
    """Return the whole names of everything registered."""
    return [selector for selector, _ in config._REGISTRY.items()]


def matching(partial_selector: str) -> list[str]:
    """Return the whole names that end in `partial_selector`."""
    return config._REGISTRY.matching_selectors(partial_selector)


def short_name(selector: str) -> str:
    """Return the shortest unambiguous end of a whole name."""
    return config._REGISTRY.minimal_selector(selector)


def constant(reference: Any) -> Any:
    """Return the value of a reference to a constant, such as `%gin.REQUIRED`."""
    return config._CONSTANTS.get("/".join(reference.scopes))


@contextlib.contextmanager
def file_scope() -> Iterator[Any]:
    """Open the scope that a file's imports hold in; gin records them when it closes.

    Yields a context with gin's methods `process_import(statement)` and
    `get_configurable(selector)`.
    """
    with config._parse_scope() as context:
        yield context
        config._IMPORTS.update(context.imports)


def imported(context: Any) -> dict[str, Any] | None:
    """Return what a file imports, by name; None where whole or short names are used instead."""
    return context._symbol_table if context._dynamic_registration else None
