"""Read gin files and command-line bindings, and record where every value was written.

Replaces `gin.parse_config_files_and_bindings`: the same statements have the same effect on gin's
configuration. gin 0.5 itself does not record where a value came from, looks for missing files in
Python packages, and does not suggest similar names.
"""

import codecs
import importlib.util
import io
import os
import pathlib
import pkgutil
import re
import tokenize
from collections.abc import Sequence
from typing import Any, NamedTuple

from gin import config, config_parser
from gin import utils as gin_errors

from idode_gin import checks
from idode_gin.configs import advice, gin_internals, readers, t5x_names, value_types
from idode_gin.reports import paths

MACRO = "gin.macro"
_BINDINGS_LOCATION = re.compile(r"\n  In bindings string line \d+\n.*(\n *\^)?")


files_read: set[pathlib.Path] = set()
"""Files that the configuration in use was read from, included ones too; resolved."""


class ConfigError(ValueError):
    """A gin file, a binding or a flag is wrong; the message says where and what to write."""


class _UnknownError(ConfigError):
    """A name that no gin file has mentioned."""

    def __init__(self, selector: str, parameter: str) -> None:
        names = (name for name, _ in gin_internals.registry.items() if name[:4] != "gin.")
        self.selector = selector
        self.about_t5x = t5x_names.about_idle(
            t5x_names.without_module(selector)
        ) or t5x_names.about_symbol(selector, parameter)
        near = self.about_t5x or checks.nearest(
            selector, map(gin_internals.registry.minimal_selector, names)
        )
        super().__init__(f"No gin file uses a function or class named {selector!r}. {near}")


class Key(NamedTuple):
    """The name of a binding: a parameter of a function or class, in a scope.

    A macro `M` is the parameter `value` of `gin.macro` in scope `M`.
    """

    scope: str
    selector: str
    parameter: str

    def __str__(self) -> str:
        if self.selector == MACRO:
            return self.scope
        scope = f"{self.scope}/" if self.scope else ""
        return f"{scope}{gin_internals.registry.minimal_selector(self.selector)}.{self.parameter}"


class Binding(NamedTuple):
    """One `NAME = value`; of two with the same key, the one that is read later wins."""

    key: Key
    value: Any
    where: str
    """`file:line`, or the flag."""
    is_part: bool
    """True in a building block: an included file, or a file of `gin_configs/*/` but experiments."""
    named: str
    """The argument on the command line that led here: a file or a flag."""


def load(
    files: Sequence[str],
    bindings: Sequence[str] = (),
    folders: Sequence[str] | None = None,
    before: Sequence[Binding] = (),
) -> list[Binding]:
    """Read `files` in order, then the command-line `bindings`, into gin's configuration.

    Args:
        files: gin files, absolute or relative to one of `folders`. The files that they include may
            also lie beside them.
        bindings: texts like `TRAIN_STEPS = 100`.
        folders: where to look for `files` and included files; the first match wins. None:
            `search_paths()`.
        before: what was read before.

    Returns:
        Every binding in the order it was read, overridden ones too, after those of `before`.

    Raises:
        ConfigError: with the file and line, and the nearest name where one is unknown.
    """
    loader = _Loader(search_paths() if folders is None else folders, before)
    for name in files:
        loader.read_file(name)
    for text in bindings:
        loader.read_command_line(text)
    return loader.bindings


def search_paths(users: Sequence[str] = ()) -> list[str]:
    """Return the folders to look for gin files in: the user's, the current one, the package's.

    The package's is the folder that holds `gin_configs`, in a checkout as in an installed wheel.
    """
    return [*users, "", str(pathlib.Path(__file__).resolve().parents[2])]


def find_file(name: str, search_paths: Sequence[str | pathlib.Path]) -> pathlib.Path:
    """Return the first `search_path/name` that is a file.

    Raises:
        ConfigError: if there is none, with the folders searched and the nearest file name.
    """
    try:
        name = paths.stored(name, "A gin file")
    except ValueError as error:
        raise ConfigError(str(error)) from error
    for folder in search_paths:
        path = _inside(folder, name)
        if path.is_file():
            return path
    for folder in search_paths:
        if (path := _inside(folder, name)).is_dir():
            found = sorted(each.name for each in path.glob("*.gin"))
            raise ConfigError(
                f"{name!r} is a folder; --gin_file and include name a file. "
                f"Gin files in it: {', '.join(found) or 'none'}."
            )
    if paths.in_bucket(name):
        raise ConfigError(f"There is no gin file {name!r}.")
    resolved = (str(pathlib.Path(each).resolve()) for each in search_paths)
    folders = ", ".join(dict.fromkeys(resolved))
    near = t5x_names.about_missing(name) or checks.nearest(
        name, _gin_files_near(name, search_paths)
    )
    raise ConfigError(f"There is no gin file {name!r}. Searched: {folders}. {near}")


def _inside(folder: str | pathlib.Path, name: str) -> pathlib.Path:
    return paths.of(name if paths.in_bucket(name) else paths.of(folder) / name)


def _check_text(path: pathlib.Path, name: str) -> None:
    """Raise ConfigError unless a file is UTF-8 text; a byte order mark is accepted."""
    content = path.read_bytes()
    reason = ""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in content:
        reason = "it is UTF-16, or no text"
    else:
        try:
            content.decode("utf-8")
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            reason = f"byte {content[error.start]:#04x} of line {line} is none"
    if reason:
        raise ConfigError(f"{name!r} must be text in UTF-8: {reason}. Save it as UTF-8.")


def _gin_files_near(name: str, search_paths: Sequence[str | pathlib.Path]) -> set[str]:
    found = {each.name for each in readers.gin_files(search_paths)}
    for folder in map(pathlib.Path, search_paths):
        found |= {os.path.relpath(each, folder) for each in (folder / name).parent.glob("*.gin")}
    return found


class _Loader:
    """The bindings read so far, and the chain of files being read."""

    def __init__(self, search_paths: Sequence[str], before: Sequence[Binding]) -> None:
        self.bindings: list[Binding] = list(before)
        self._search_paths = search_paths
        self._open: dict[pathlib.Path, str] = {}  # resolved path: the name it was included by
        self._folders: list[pathlib.Path] = []  # of the same files

    def read_file(self, name: str) -> None:
        beside = self._folders[-1:]  # of the file that includes it
        path = find_file(name, [*self._search_paths, *beside])
        if not any(_inside(each, name).is_file() for each in self._search_paths):
            name = str(path)
        if path.resolve() in self._open:
            raise ConfigError(f"{name!r} includes itself.")
        _check_text(path, name)
        self._open[path.resolve()] = name
        files_read.add(path.resolve())
        self._folders.append(path.parent)
        lines = io.StringIO(path.read_text(encoding="utf-8-sig"))
        lines.name = str(path)  # for the locations of errors
        try:
            self._read(lines, name)
        except SyntaxError as error:
            if path.suffix == ".gin" or error.filename not in (None, str(path)):
                raise
            reason = f"{name!r} is no gin file, whose names end in .gin: {error.msg}"
            raise ConfigError(f"{reason} [line {error.lineno}]") from error
        self._open.popitem()
        self._folders.pop()

    def read_command_line(self, text: str) -> None:
        name, _, value = map(str.strip, text.partition("="))
        flag = f"--gin.{name}={value}"
        try:
            self._read(text, flag)
        except (SyntaxError, ConfigError) as error:
            raise ConfigError(f"{flag}: {self._advice(error, name, value)}") from error

    def _advice(self, error: Exception, name: str, value: str) -> str:
        if isinstance(error, SyntaxError):
            return advice.about_value(name, value, error.msg, self._current(name))
        if isinstance(error, _UnknownError) and not error.about_t5x:
            selector = error.selector
            is_reference = re.search(rf"@([\w/]+/)?{re.escape(selector)}\b", value)
            if is_reference and (modules := readers.modules_that_define(selector)):
                meant = advice.beside(modules, self._current(name))
                return advice.lines_for_a_file(name, value, selector, meant)
            if lines := advice.lines_of_library(name, value):
                return lines
            if files := readers.builders(selector, readers.gin_files(self._search_paths)):
                return readers.none_uses(selector, files)
        return _BINDINGS_LOCATION.sub("", str(error))

    def _current(self, name: str) -> Any:
        """Return the value that a macro or parameter has so far, None if there is none."""
        values = {str(each.key): each.value for each in self.bindings}
        for _ in values:  # more steps would be a ring
            value = values.get(name)
            if not str(value).startswith("%"):
                return value
            name = str(value)[1:]
        return None

    def _read(self, source: Any, name: str) -> None:
        with gin_internals.file_scope() as context:
            try:
                for statement in config_parser.ConfigParser(source, _Delegate(context)):
                    with gin_errors.try_with_location(statement.location):
                        self._execute(statement, context, name)
            except tokenize.TokenError as error:
                raise SyntaxError(f"{name}: {error.args[0]}") from error
            gin_internals.imports.update(context.imports)

    def _execute(self, statement: Any, context: Any, name: str) -> None:
        if isinstance(statement, config_parser.BindingStatement):
            line = "" if name.startswith("--") else f":{statement.location.line_num}"
            key = _key(statement, context)
            with gin_internals.file_scope():  # where whole names are known
                config.bind_parameter(tuple(key), statement.value)
            is_part = len(self._open) > 1 or re.search(r"gin_configs/(?!experiments/)", name)
            named = next(iter(self._open.values()), name)
            binding = Binding(key, statement.value, f"{name}{line}", bool(is_part), named)
            self.bindings.append(binding)
        elif isinstance(statement, config_parser.BlockDeclaration):
            _selector(statement.selector, context)
        elif isinstance(statement, config_parser.ImportStatement):
            _import(self._with_program(statement), context)
        elif isinstance(statement, config_parser.IncludeStatement):
            self.read_file(statement.filename)

    def _with_program(self, statement: Any) -> Any:
        """Replace t5x's `import __main__ as …` by the import of our program, if it means one."""
        if statement.module != "__main__" or not self._open:
            return statement
        alias, path = statement.bound_name(), next(reversed(self._open))
        program = t5x_names.program(alias, path.read_text(encoding="utf-8-sig"))
        return statement._replace(module=program, alias=alias) if program else statement


class _Delegate(config.ParserDelegate):
    """Makes references; an unknown one is an error with the nearest name."""

    def __init__(self, context: Any) -> None:
        super().__init__()
        self._context = context

    def configurable_reference(self, scoped_selector: str, evaluate: bool) -> Any:
        scopes, slash, written = scoped_selector.rpartition("/")
        _selector(written, self._context)
        if gin_internals.imported(self._context) is None:
            written = _spelled_here(written)
        return super().configurable_reference(f"{scopes}{slash}{written}", evaluate)


def _key(statement: config_parser.BindingStatement, context: Any) -> Key:
    scope, written, parameter = statement.scope, statement.selector, statement.arg_name
    if not parameter:
        return Key(f"{scope}/{written}" if scope else written, MACRO, "value")
    selector = _selector(written, context, parameter)
    target = gin_internals.registry[selector].wrapped
    known = value_types.parameters(target)
    if parameter not in known and not value_types.takes_any_keyword(target):
        owner = selector.rpartition(".")[2]
        if synonym := _synonym(owner, parameter):
            return Key(scope, *synonym)
        near = t5x_names.about_parameter(owner, parameter) or checks.nearest(parameter, known)
        raise ConfigError(f"{written!r} has no parameter {parameter!r}. {near}")
    return Key(scope, selector, parameter)


def _synonym(owner: str, parameter: str) -> tuple[str, str] | None:
    """Return the class and parameter of ours that a parameter of t5x sets, if files mention it."""
    ours, _, name = t5x_names.SYNONYMS.get(f"{owner}.{parameter}", "").partition(".")
    found = gin_internals.registry.matching_selectors(ours) if ours else []
    return (found[0], name) if found else None


def _selector(written: str, context: Any, parameter: str = "") -> str:
    """Return the whole name of the function or class that `written` means here.

    In files that is what the file imports; on the command line, whatever the files have mentioned.
    `parameter` is the one that is bound, which the error may be about.

    Raises:
        ConfigError: if there is none, with the nearest name.
    """
    imports = gin_internals.imported(context)
    if imports is not None:
        first, *rest = written.split(".")
        about_t5x = t5x_names.about_symbol(written, parameter)
        if first not in imports:
            near = about_t5x or checks.nearest(first, set(imports) - {"gin"})
            raise ConfigError(f"{first!r} in {written!r} is not imported in this file. {near}")
        is_ours = getattr(imports[first], "__name__", "").startswith("idode_gin.")
        _check_attributes(imports[first], first, rest, about_t5x if is_ours else "")
        return context.get_configurable(written).selector
    matches = gin_internals.registry.matching_selectors(_spelled_here(written))
    if len(matches) > 1:
        names = " or ".join(sorted(map(gin_internals.registry.minimal_selector, matches)))
        raise ConfigError(f"{written!r} means more than one thing. Write {names}.")
    if not matches:
        raise _UnknownError(written, parameter)
    return matches[0]


def _spelled_here(written: str) -> str:
    """Return our name for a class of t5x that we have too, unless the files know `written`."""
    is_known = gin_internals.registry.matching_selectors(written)
    return written if is_known else t5x_names.without_module(written)


def _check_attributes(value: Any, name: str, attributes: Sequence[str], about_t5x: str) -> None:
    for attribute in attributes:
        if not hasattr(value, attribute):
            public = [each for each in dir(value) if not each.startswith("_")]
            near = about_t5x or checks.nearest(attribute, public)
            raise ConfigError(f"{name!r} has no {attribute!r}. {near}")
        value, name = getattr(value, attribute), attribute
    if not callable(value):
        raise ConfigError(f"{name!r} is a {type(value).__name__}, not a function or class.")


def _import(statement: config_parser.ImportStatement, context: Any) -> None:
    if about_t5x := t5x_names.about_module(statement.module):
        raise ConfigError(f"idode_gin does not use {statement.module!r}. {about_t5x}")
    try:
        context.process_import(statement)
    except ModuleNotFoundError as error:
        package, _, missing = statement.module.rpartition(".")
        if about_t5x := t5x_names.about_missing(statement.module):
            raise ConfigError(f"Cannot import {statement.module!r}. {about_t5x}") from error
        if error.name != statement.module:
            raise ConfigError(f"Cannot import {statement.module!r}: {error}.") from error
        if statement.is_from and "is not a package" in str(error):
            parent, _, module = package.rpartition(".")
            written = f"from {parent} import {module}" if parent else f"import {module}"
            raise ConfigError(
                f"Gin files import modules, not single names from them. Write `{written}`, and "
                f"then `{module}.{missing}`."
            ) from error
        near = checks.nearest(missing, _modules_of(package)) if package else "Is it on PYTHONPATH?"
        raise ConfigError(f"There is no module {statement.module!r}. {near}") from error
    except ImportError as error:
        raise ConfigError(f"Cannot import {statement.module!r}: {error}.") from error


def _modules_of(package: str) -> list[str]:
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    return [each.name for each in pkgutil.iter_modules(folders)] if folders else []
