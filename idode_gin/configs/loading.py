"""Reads gin files and command-line bindings, and remembers where every value was written.

A replacement for `gin.parse_config_files_and_bindings`: the same statements with the same effect
on gin's configuration. It exists because gin 0.5 keeps no record of where a value came from,
looks for missing files in Python packages, and names no near misses.
"""

import importlib.util
import os
import pathlib
import pkgutil
import re
import tokenize
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from gin import config, config_parser
from gin import utils as gin_errors

from idode_gin import checks
from idode_gin.configs import readers, value_types

MACRO = "gin.macro"
_BINDINGS_LOCATION = re.compile(r"\n  In bindings string line \d+\n.*(\n *\^)?")


class ConfigError(ValueError):
    """A gin file, a binding or a flag is wrong; the message says where and what to write."""


class _NotImportedError(ConfigError):
    """A reference to a class or function of idode_gin that no gin file has imported."""

    def __init__(self, selector: str, modules: Sequence[str]) -> None:
        super().__init__(f"No gin file uses a function or class named {selector!r}.")
        self.selector, self.modules = selector, modules


class _UnknownError(ConfigError):
    """A name that no gin file has mentioned."""

    def __init__(self, selector: str) -> None:
        near = checks.nearest(selector, registered_names())
        super().__init__(f"No gin file uses a function or class named {selector!r}. {near}")
        self.selector = selector


class Key(NamedTuple):
    """What is bound: a parameter of a configurable, in a scope. A macro is its scope's name."""

    scope: str
    selector: str
    parameter: str

    def __str__(self) -> str:
        if self.selector == MACRO:
            return self.scope
        scope = f"{self.scope}/" if self.scope else ""
        return f"{scope}{config._REGISTRY.minimal_selector(self.selector)}.{self.parameter}"


class Binding(NamedTuple):
    """One `NAME = value`, in the order they were read; a later one with the same key wins."""

    key: Key
    value: Any
    where: str
    is_part: bool
    """Written in a building block: in an included file, or in a shipped one but an experiment."""
    named: str
    """What stands on the command line: the file, or that which includes it, or the flag."""


def load(
    files: Sequence[str], bindings: Sequence[str] = (), search_paths: Sequence[str] = ("",)
) -> list[Binding]:
    """Reads `files` in order, then the command-line `bindings`, into gin's configuration.

    Args:
        files: gin files, absolute or relative to a search path.
        bindings: texts like `TRAIN_STEPS = 100`.
        search_paths: folders that hold gin files and what they include, first match wins.

    Returns:
        Every binding that was read, the overridden ones too.

    Raises:
        ConfigError: naming the file and line, and the nearest name where one is unknown.
    """
    loader = _Loader(search_paths)
    for name in files:
        loader.read_file(name)
    for text in bindings:
        loader.read_command_line(text)
    return loader.bindings


def find_file(name: str, search_paths: Sequence[str]) -> pathlib.Path:
    """The first `search_path/name` that is a file.

    Raises:
        ConfigError: if there is none, with the folders searched and the nearest file names.
    """
    for folder in search_paths:
        path = pathlib.Path(folder) / name
        if path.is_file():
            return path
    resolved = (str(pathlib.Path(each).resolve()) for each in search_paths)
    folders = ", ".join(dict.fromkeys(resolved))
    near = checks.nearest(name, set(_gin_files_near(name, search_paths)))
    raise ConfigError(f"There is no gin file {name!r}. Searched: {folders}. {near}")


def modules_that_define(selector: str) -> list[str]:
    """Modules of idode_gin that define what `selector` ends in; imports none of them.

    Args:
        selector: a class or function, maybe after the module's name: `FixedGrid` or
            `fixed_grid.FixedGrid`.
    """
    module, _, name = selector.rpartition(".")
    package = pathlib.Path(__file__).parents[1]
    definition = re.compile(rf"^(?:class|def) {re.escape(name)}\b", re.MULTILINE)
    found = [
        ".".join(path.relative_to(package.parent).with_suffix("").parts)
        for path in sorted(package.rglob("*.py"))
        if definition.search(path.read_text(encoding="utf-8"))
    ]
    return [each for each in found if each.endswith(f".{module}")] or found


def registered_names() -> set[str]:
    """The shortest unambiguous name of everything that gin files have mentioned so far."""
    names = (selector for selector, _ in config._REGISTRY.items())
    return {config._REGISTRY.minimal_selector(each) for each in names if each[:4] != "gin."}


def _gin_files_near(name: str, search_paths: Sequence[str]) -> Iterator[str]:
    for folder in map(pathlib.Path, search_paths):
        same_folder = (folder / name).parent.glob("*.gin")
        in_package = (folder / "gin_configs").glob("*/*.gin")
        for path in (*same_folder, *in_package):
            yield os.path.relpath(path, folder)


class _Loader:
    """The bindings read so far, and the chain of files being read."""

    def __init__(self, search_paths: Sequence[str]) -> None:
        self.bindings: list[Binding] = []
        self._search_paths = search_paths
        self._open: dict[pathlib.Path, str] = {}  # with the names they were asked for by

    def read_file(self, name: str) -> None:
        path = find_file(name, self._search_paths)
        if path.resolve() in self._open:
            raise ConfigError(f"{name!r} includes itself.")
        self._open[path.resolve()] = name
        with open(path, encoding="utf-8") as lines:
            self._read(lines, name)
        self._open.popitem()

    def read_command_line(self, text: str) -> None:
        name, _, value = text.partition("=")
        flag = f"--gin.{name.strip()}={value.strip()}"
        try:
            self._read(text, flag)
        except SyntaxError as error:
            advice = _advice(name.strip(), value.strip(), error.msg)
            raise ConfigError(f"{flag}: {advice}") from error
        except _NotImportedError as error:
            lines = _lines_for_a_file(name.strip(), value.strip(), error)
            raise ConfigError(f"{flag}: {error}{lines}") from error
        except _UnknownError as error:
            if not (files := readers.builders(error.selector, self._search_paths)):
                raise ConfigError(f"{flag}: {_BINDINGS_LOCATION.sub('', str(error))}") from error
            said = readers.none_uses(error.selector, files)
            raise ConfigError(f"{flag}: {said}") from error
        except ConfigError as error:
            raise ConfigError(f"{flag}: {_BINDINGS_LOCATION.sub('', str(error))}") from error

    def _read(self, source: Any, name: str) -> None:
        with config._parse_scope() as context:
            try:
                for statement in config_parser.ConfigParser(source, _Delegate()):
                    with gin_errors.try_with_location(statement.location):
                        self._execute(statement, context, name)
            except tokenize.TokenError as error:
                raise SyntaxError(f"{name}: {error.args[0]}") from error
            config._IMPORTS.update(context.imports)

    def _execute(self, statement: Any, context: Any, name: str) -> None:
        if isinstance(statement, config_parser.BindingStatement):
            line = "" if name.startswith("--") else f":{statement.location.line_num}"
            key = _key(statement)
            selector = statement.selector if statement.arg_name else MACRO
            config.bind_parameter((key.scope, selector, key.parameter), statement.value)
            is_part = len(self._open) > 1 or re.search(r"gin_configs/(?!experiments/)", name)
            named = next(iter(self._open.values()), name)
            binding = Binding(key, statement.value, f"{name}{line}", bool(is_part), named)
            self.bindings.append(binding)
        elif isinstance(statement, config_parser.BlockDeclaration):
            _configurable(statement.selector)
        elif isinstance(statement, config_parser.ImportStatement):
            _import(statement, context)
        elif isinstance(statement, config_parser.IncludeStatement):
            self.read_file(statement.filename)


class _Delegate(config.ParserDelegate):
    """Makes references, naming the nearest configurable where one is unknown."""

    def configurable_reference(self, scoped_selector: str, evaluate: bool) -> Any:
        selector = scoped_selector.rsplit("/", 1)[-1]
        try:
            _configurable(selector)
        except ConfigError as error:
            is_command_line = not config._parse_context()._dynamic_registration
            if is_command_line and (modules := modules_that_define(selector)):
                raise _NotImportedError(selector, modules) from error
            raise
        return super().configurable_reference(scoped_selector, evaluate)


def _key(statement: config_parser.BindingStatement) -> Key:
    scope, selector, parameter = statement.scope, statement.selector, statement.arg_name
    if not parameter:
        return Key(f"{scope}/{selector}" if scope else selector, MACRO, "value")
    configurable = _configurable(selector)
    known = value_types.parameters(configurable.wrapped)
    if parameter not in known and not value_types.takes_any_keyword(configurable.wrapped):
        near = checks.nearest(parameter, known)
        raise ConfigError(f"{selector!r} has no parameter {parameter!r}. {near}")
    return Key(scope, configurable.selector, parameter)


def _configurable(selector: str) -> Any:
    """What a file or binding means by `selector`; ConfigError, with the nearest name, if nothing.

    Files see what they import themselves; the command line, whatever the files have mentioned.
    """
    context = config._parse_context()
    first, *rest = selector.split(".")
    if context._dynamic_registration:
        if first not in context._symbol_table:
            near = checks.nearest(first, set(context._symbol_table) - {"gin"})
            raise ConfigError(f"{first!r} in {selector!r} is not imported in this file. {near}")
        _check_attributes(context._symbol_table[first], first, rest)
        return context.get_configurable(selector)
    matches = config._REGISTRY.matching_selectors(selector)
    if len(matches) > 1:
        names = " or ".join(sorted(config._REGISTRY.minimal_selector(each) for each in matches))
        raise ConfigError(f"{selector!r} means more than one thing. Write {names}.")
    if not matches:
        raise _UnknownError(selector)
    return config._REGISTRY[matches[0]]


def _check_attributes(value: Any, name: str, attributes: Sequence[str]) -> None:
    for attribute in attributes:
        if not hasattr(value, attribute):
            public = [each for each in dir(value) if not each.startswith("_")]
            raise ConfigError(f"{name!r} has no {attribute!r}. {checks.nearest(attribute, public)}")
        value, name = getattr(value, attribute), attribute
    if not callable(value):
        raise ConfigError(f"{name!r} is a {type(value).__name__}, not a function or class.")


def _import(statement: config_parser.ImportStatement, context: Any) -> None:
    try:
        context.process_import(statement)
    except ModuleNotFoundError as error:
        package, _, missing = statement.module.rpartition(".")
        if error.name != statement.module:
            raise ConfigError(f"Cannot import {statement.module!r}: {error}.") from error
        if statement.is_from and "is not a package" in str(error):
            parent, _, module = package.rpartition(".")
            written = f"from {parent} import {module}" if parent else f"import {module}"
            raise ConfigError(
                "Gin files import modules, not what is in them: write "
                f"`{written}` and then `{module}.{missing}`."
            ) from error
        near = checks.nearest(missing, _modules_of(package)) if package else "Is it on PYTHONPATH?"
        raise ConfigError(f"There is no module {statement.module!r}. {near}") from error


def _modules_of(package: str) -> list[str]:
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    return [each.name for each in pkgutil.iter_modules(folders)] if folders else []


def _lines_for_a_file(name: str, value: str, error: _NotImportedError) -> str:
    """What to write into a gin file, which can import, instead of on the command line."""
    package, _, module = error.modules[0].rpartition(".")
    reference = f"{module}.{error.selector.rpartition('.')[2]}"
    others = f" (or: {', '.join(error.modules[1:])})" if error.modules[1:] else ""
    return (
        " The command line cannot import it; a gin file with these lines, given by one more "
        f"--gin_file, can{others}:\n"
        "  from __gin__ import dynamic_registration\n"
        f"  from {package} import {module}\n"
        f"  {name} = {value.replace(error.selector, reference)}"
    )


def _advice(name: str, value: str, message: str) -> str:
    """What to write where a command-line binding cannot be parsed."""
    if (
        not config_parser.MODULE_RE.match(name.replace("/", "."))
        or not value
        or value[0] in "@%[({"
    ):
        return f"{message} Write --gin.NAME=VALUE, or --gin.scope/function.parameter=VALUE"
    if value.lower() in ("true", "false", "none"):
        return f"{value!r} is no Python literal. Write --gin.{name}={value.capitalize()}"
    quoted = value.strip("'\"")
    return (
        f"{value!r} is no Python literal. Text needs quotes of its own inside the shell's: "
        f"--gin.{name}=\"'{quoted}'\""
    )
