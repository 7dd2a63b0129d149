"""Everything that the project uses of gin's private names.

gin 0.5 has no public way to list what is bound and registered, to execute the statements of a file
one by one, or to save and restore its state. A test prints gin's version if one of these names is
missing.
"""

import contextlib
import functools
import pprint
import threading
from collections.abc import Callable, Iterator
from typing import Any

from gin import config, selector_map

bindings: dict[tuple[str, str], dict[str, Any]] = config._CONFIG
"""(scope, selector) -> parameter -> value, in use. The selector is the whole name of a function or
class; a macro `M` is the parameter `value` of `gin.macro` in scope `M`."""

constants: selector_map.SelectorMap = config._CONSTANTS
"""Name -> value of a constant, such as `gin.REQUIRED`."""

imports: set[Any] = config._IMPORTS
"""The import statements of all files, which gin repeats in config.gin."""

registry: selector_map.SelectorMap = config._REGISTRY
"""Selector -> gin's record of a function or class. The record has `selector`, `wrapped` (the
function or class) and `import_source` (None if Python code registered it)."""

operative: dict[tuple[str, str], dict[str, Any]] = config._OPERATIVE_CONFIG
"""Bindings and defaults of every function and class called so far, keyed as `bindings`."""

lookup = config._inverse_lookup
"""Function or class -> its record; None if it is not registered."""

file_scope = config._parse_scope
"""Context manager in which the imports of one file hold. It yields an object with gin's methods
`process_import(statement)` and `get_configurable(selector)`, and the attribute `imports`."""


def imported(context: Any) -> dict[str, Any] | None:
    """Return the modules that a file imports, by name; None without dynamic registration."""
    return context._symbol_table if context._dynamic_registration else None


def given_text() -> str:
    """Return the file that binds what is bound; dicts keep their order, unlike in gin's own.

    Order has a meaning where a setting says so: of rules, the first that matches applies.
    """
    return _in_order(config.config_str)


def used_text() -> str:
    """Return the file that binds what is used, with defaults; dicts keep their order."""
    return _in_order(config.operative_config_str)


def _in_order(text: Callable[[], str]) -> str:
    with _LOCK:
        printer = config.pprint
        config.pprint = _InOrder
        try:
            return text()
        finally:
            config.pprint = printer


class _InOrder:
    """gin's `pprint`, which sorts the keys of dicts, without the sorting."""

    pformat = staticmethod(functools.partial(pprint.pformat, sort_dicts=False))


_STATE: tuple[dict[Any, Any] | set[Any], ...] = (
    bindings,
    imports,
    config._INVERSE_REGISTRY,
    operative,
    config._RENAMED_SELECTORS,
    config._SINGLETONS,
)
_LOCK = threading.RLock()


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """A context with a configuration of its own, empty at first; the caller's is restored after it.

    One thread at a time is in such a context. What a decorator registers in it, as a module is
    imported, stays registered; what a gin file registers does not.
    """
    raised = None
    with _LOCK:
        with config.unlock_config(), config.config_scope(None):
            saved = [each.copy() for each in _STATE]
            names = [dict(each.items()) for each in (registry, constants)]
            config.clear_config()
            try:
                yield
            except BaseException as error:  # `unlock_config` locks again only if nothing is raised
                raised = error
            finally:
                _restore(saved, names)
        if raised is not None:
            raise raised


def _restore(saved: list[Any], names: list[dict[str, Any]]) -> None:
    decorated = {
        name: each
        for name, each in registry.items()
        if each.import_source is None and name not in names[0]
    }
    for state, content in zip(_STATE, saved, strict=True):
        state.clear()
        state.update(content)
    for selectors, content in zip(
        (registry, constants), (names[0] | decorated, names[1]), strict=True
    ):
        selectors.clear()
        for name, each in content.items():
            selectors[name] = each
    config._INVERSE_REGISTRY.update({each.wrapped: each for each in decorated.values()})
