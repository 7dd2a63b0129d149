"""Everything that the project uses of gin's private names.

gin 0.5 has no public way to list what is bound and registered, or to execute the statements of a
file one by one. A test prints gin's version if one of these names is missing.
"""

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

lookup = config._inverse_lookup
"""Function or class -> its record; None if it is not registered."""

file_scope = config._parse_scope
"""Context manager in which the imports of one file hold. It yields an object with gin's methods
`process_import(statement)` and `get_configurable(selector)`, and the attribute `imports`."""


def imported(context: Any) -> dict[str, Any] | None:
    """Return the modules that a file imports, by name; None without dynamic registration."""
    return context._symbol_table if context._dynamic_registration else None
