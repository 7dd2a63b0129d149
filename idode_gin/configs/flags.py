"""The flags of all programs, and the text of --help."""

import ast
import difflib
import pathlib
import re
import shlex
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import absl.logging  # noqa: F401  defines --verbosity and the other flags of logging
from absl import flags

from idode_gin.configs.loading import ConfigError
from idode_gin.reports import paths

_BOOL, _INTEGER, _STRING = flags.DEFINE_bool, flags.DEFINE_integer, flags.DEFINE_string
_LIST, _REPEATED = flags.DEFINE_list, flags.DEFINE_multi_string


class _DryRunParser(flags.ArgumentParser[bool | str]):
    """Parses --dry_run, --dry_run=full and the values of a boolean flag."""

    def parse(self, argument: Any) -> bool | str:
        """Return whether to describe the run only, or "full"."""
        if argument == "full":
            return "full"
        try:
            return bool(flags.BooleanParser().parse(argument))
        except ValueError as error:
            raise ValueError("write --dry_run or --dry_run=full") from error


def _dry_run(name: str, default: bool, text: str, flag_values: flags.FlagValues) -> None:
    flag = flags.Flag(_DryRunParser(), None, name, default, text, boolean=True)
    flags.DEFINE_flag(flag, flag_values)


_FLAGS: dict[str, tuple[Callable[..., Any], Any, str]] = {
    "gin_file": (_REPEATED, [], "A gin file; repeatable, later files win."),
    "gin_bindings": (_REPEATED, [], "The same as --gin.NAME=VALUE."),
    "gin_search_paths": (_LIST, [], "Folders to search first for gin files."),
    "tfds_data_dir": (_STRING, None, "Data directory of TensorFlow Datasets."),
    "seqio_additional_cache_dirs": (_LIST, [], "Folders with tasks cached by seqio."),
    "dry_run": (
        _dry_run,
        False,
        "Check the run and describe it on one screen; write nothing. --dry_run=full also prints\n"
        "every binding and every parameter.",
    ),
    "debug": (_BOOL, False, "Print the traceback of every error."),
    "multiprocess_gpu": (_BOOL, False, "This is one of several processes, on any device."),
    "coordinator_address": (_STRING, None, "host:port of process 0."),
    "process_count": (_INTEGER, None, "Number of processes."),
    "process_index": (_INTEGER, None, "Index of this process, from 0."),
    "initialization_timeout": (_INTEGER, 300, "Seconds to wait for the other processes."),
    "local_device_ids": (_LIST, None, "Numbers of this process's GPUs, or all."),
    "version": (_BOOL, False, "Print the version."),
    "help": (_BOOL, False, "Print this text."),
}
_SWITCHES = (_BOOL, _dry_run)
_PATHS = ("gin_file", "gin_search_paths", "tfds_data_dir", "seqio_additional_cache_dirs")
_STORED = ("gin_file", "tfds_data_dir")
_GIN_HELP = (
    "Bind a macro or parameter after all files. Text needs Python's quotes inside the shell's."
)


def parse(arguments: Sequence[str]) -> flags.FlagValues:
    """Return the flags of a program.

    Raises:
        ConfigError: for an unknown flag (with the nearest name), a value that cannot be parsed, or
            an argument that is no flag.
    """
    # Own flag values, not absl's global ones: programs can run more than once in a process.
    options = flags.FlagValues()
    for name, (define, default, text) in _FLAGS.items():
        short = {"short_name": "h"} if name == "help" else {}
        define(name, default, text, flag_values=options, **short)
    try:
        given = map(_rewrite_gin_flag, arguments, [*arguments[1:], ""])
        rest = options(["", *given], known_only=True)
        rest = flags.FLAGS(rest)  # absl's own, such as --verbosity
    except flags.UnrecognizedFlagError as error:
        known = [f"--{name}" for name in (*options, *flags.FLAGS)]
        close = difflib.get_close_matches(f"--{error.flagname}", known, n=1, cutoff=0.6)
        near = f"Did you mean {close[0]}?" if close else "--help lists all flags."
        if _is_macro(macro := error.flagname.upper()):
            near = (
                f"It is a macro of gin: --gin.{macro}=VALUE, where text has quotes of its own: "
                f"--gin.{macro}=\"'…'\""
            )
        raise ConfigError(f"Unknown flag --{error.flagname}. {near}") from error
    except flags.Error as error:
        raise ConfigError(str(error)) from error
    if len(rest) > 1:
        raise ConfigError(f"{rest[1]!r} is no flag. Write --name=value.")
    for name in _PATHS:
        options[name].value = _checked(options[name].value, name)
    return options


def _is_macro(name: str) -> bool:
    """Return True if a gin file of this project binds the macro."""
    files = (pathlib.Path(__file__).parents[2] / "gin_configs").rglob("*.gin")
    defined = re.compile(rf"^{re.escape(name)} *=", re.MULTILINE)
    return any(defined.search(each.read_text("utf-8")) for each in files)


def _checked(given: Any, name: str) -> Any:
    """Return the path or paths that a flag gives, with the home folder in place of `~`."""
    read = paths.stored if name in _STORED else paths.local
    try:
        if isinstance(given, list):
            return [read(each, f"--{name}") for each in given]
        return given and read(given, f"--{name}")
    except ValueError as error:
        raise ConfigError(str(error)) from error


def usage(about: str) -> str:
    """Return the text of --help: the program's docstring and the flags."""
    texts = {"gin.NAME=VALUE": _GIN_HELP, **{name: text for name, (*_, text) in _FLAGS.items()}}
    lines = (f"  --{name}\n{textwrap.indent(text, ' ' * 6)}" for name, text in texts.items())
    return "\n".join([about.strip(), "", "Flags:", *lines])


def completions() -> list[str]:
    """Return the flags as a shell completes them: with "=" where a value follows."""
    return [
        "--gin.",
        *(f"--{name}{'=' * (kind[0] not in _SWITCHES)}" for name, kind in _FLAGS.items()),
    ]


def _rewrite_gin_flag(argument: str, following: str) -> str:
    """Rewrite --gin.NAME=VALUE to --gin_bindings=NAME=VALUE."""
    found = re.fullmatch(r"--?gin\.(.*)", argument, re.DOTALL)
    if not found:
        return argument
    if "=" not in found[1]:
        value = "VALUE" if not following or following.startswith("-") else _quoted(following)
        raise ConfigError(
            f"{argument} has no value. Write {argument}={value}, with an equals sign."
        )
    return f"--gin_bindings={found[1]}"


def _quoted(value: str) -> str:
    """Return a value that the shell has read as one writes it there, text in quotes of its own."""
    if not value.startswith(("@", "%")):
        try:
            ast.literal_eval(value)
        except (SyntaxError, ValueError):
            value = repr(value)
    if re.fullmatch(r"[\w@%+=:,./-]+", value):
        return value
    return shlex.quote(value) if re.search(r'["$`\\!]', value) else f'"{value}"'
