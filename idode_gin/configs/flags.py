"""The flags of all programs, and the text of --help."""

import difflib
import re
import textwrap
from collections.abc import Sequence
from typing import Any

import absl.logging  # noqa: F401  defines --verbosity and the other flags of logging
from absl import flags

from idode_gin.configs.loading import ConfigError

_ABSL_NOTE = ";\n    repeat this option"  # absl appends it to the help of repeatable flags


def parse(arguments: Sequence[str]) -> flags.FlagValues:
    """Return the flags of a program.

    Raises:
        ConfigError: for an unknown flag (with the nearest name), a value that cannot be parsed, or
            an argument that is no flag.
    """
    options = _define()
    try:
        following = [*arguments[1:], ""]
        given = map(_rewrite_gin_flag, arguments, following)
        rest = options(["", *given], known_only=True)
        rest = flags.FLAGS(rest)  # absl's own, such as --verbosity
    except flags.UnrecognizedFlagError as error:
        known = [f"--{name}" for name in (*options, *flags.FLAGS)]
        close = difflib.get_close_matches(f"--{error.flagname}", known, n=1, cutoff=0.6)
        near = f"Did you mean {close[0]}?" if close else "--help lists all flags."
        raise ConfigError(f"Unknown flag --{error.flagname}. {near}") from error
    except flags.Error as error:
        raise ConfigError(str(error)) from error
    if len(rest) > 1:
        raise ConfigError(f"{rest[1]!r} is no flag. Write --name=value.")
    return options


def usage(about: str) -> str:
    """Return the text of --help: the program's docstring and the flags."""
    options = _define()
    texts = {
        "gin.NAME=VALUE": "Bind a macro or a parameter, after all files are read. Text needs "
        "Python's quotes inside the shell's."
    }
    texts |= {name: options[name].help.partition(_ABSL_NOTE)[0] for name in options if name != "h"}
    lines = [about.strip(), "", "Flags:"]
    for name, text in texts.items():
        indent = " " * 6
        lines += [
            f"  --{name}",
            textwrap.fill(text, 90, initial_indent=indent, subsequent_indent=indent),
        ]
    return "\n".join(lines)


def _define() -> flags.FlagValues:
    # Own flag values, not absl's global ones: programs can run more than once in a process.
    options = flags.FlagValues()
    here: dict[str, Any] = {"flag_values": options}
    flags.DEFINE_multi_string("gin_file", [], "A gin file; repeatable, later files win.", **here)
    flags.DEFINE_multi_string("gin_bindings", [], "The same as --gin.NAME=VALUE.", **here)
    flags.DEFINE_list("gin_search_paths", [], "Folders to search first for gin files.", **here)
    flags.DEFINE_string("tfds_data_dir", None, "Data directory of TensorFlow Datasets.", **here)
    flags.DEFINE_list(
        "seqio_additional_cache_dirs", [], "Folders with tasks cached by seqio.", **here
    )
    flags.DEFINE_bool("dry_run", False, "Check and describe the run; write nothing.", **here)
    flags.DEFINE_bool("debug", False, "Print tracebacks of all errors.", **here)
    flags.DEFINE_bool(
        "multiprocess_gpu", False, "This is one of several processes, on any device.", **here
    )
    flags.DEFINE_string("coordinator_address", None, "host:port of process 0.", **here)
    flags.DEFINE_integer("process_count", None, "Number of processes.", **here)
    flags.DEFINE_integer("process_index", None, "Index of this process, from 0.", **here)
    flags.DEFINE_integer(
        "initialization_timeout", 300, "Seconds to wait for the other processes.", **here
    )
    flags.DEFINE_list("local_device_ids", None, "Numbers of this process's GPUs, or all.", **here)
    flags.DEFINE_bool("help", False, "Print this text.", short_name="h", **here)
    return options


def _rewrite_gin_flag(argument: str, following: str) -> str:
    """Rewrite --gin.NAME=VALUE to --gin_bindings=NAME=VALUE."""
    found = re.fullmatch(r"--?gin\.(.*)", argument, re.DOTALL)
    if not found:
        return argument
    if "=" not in found[1]:
        value = "VALUE" if not following or following.startswith("-") else following
        raise ConfigError(
            f"{argument} has no value. Write {argument}={value}, with an equals sign."
        )
    return f"--gin_bindings={found[1]}"
