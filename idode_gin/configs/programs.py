"""What the programs share: flags, gin, the first screen and the exit code.

A program is a module with one function that gin binds; `run` takes it from `sys.argv` to an exit
code. Nothing heavier than gin is imported until the flags have been read.
"""

import difflib
import hashlib
import importlib
import os
import pathlib
import re
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import absl.logging  # noqa: F401  defines --verbosity and its like
from absl import flags
from gin import config

import idode_gin
from idode_gin import checks
from idode_gin.configs import binding_checks, quiet
from idode_gin.configs import loading as gin_loading
from idode_gin.configs.loading import ConfigError
from idode_gin.processes import agreement, failures, joining, output, places, preemption
from idode_gin.reports import files
from idode_gin.runs import output_folders

_BAD_INPUT = (ValueError, SyntaxError, OSError)
_PROGRAMS = ("train", "eval", "sample", "encode", "interpolate")
_IN_CALL = re.compile(r"\n  In call to configurable '([^']*)' \([^\n]*\)( in scope '[^']*')?")
_ABSL_NOTE = ";\n    repeat this option"  # what absl adds to the help of repeatable flags
EXIT_BROKEN_PIPE = 141
EXIT_DEFECT = 1


def run(program: str, function: str, about: str, argv: Sequence[str] | None = None) -> int:
    """Runs `function(dry_run=…)` of the module `program` and returns the exit code.

    0 done; 2 bad configuration or input, or a disk that refuses; 3 a number became non-finite; 75
    stopped when asked to, by SIGTERM or Ctrl-C, at whatever point. A second signal ends the process
    at once, with 128 + signal. Any other exception is a defect and passes through. Of several
    processes all end with the code of the first that did not end as agreed; a defect's is 1.

    Args:
        program: module name, such as `idode_gin.train`.
        function: the function in it that gin binds; with `dry_run` it only describes.
        about: the module's docstring, printed by --help; its `python -m` line is the example.
        argv: arguments without the program's name; those of the process if not given.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    with preemption.stoppable(), failures.until_done():
        return _exit_code_of(program, function, about, arguments)


def _exit_code_of(program: str, function: str, about: str, arguments: list[str]) -> int:
    try:
        _run(program, function, about, arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        failures.fail(EXIT_BROKEN_PIPE, "nobody reads its output any more.")
        return EXIT_BROKEN_PIPE
    except Exception as error:
        code = exit_code(error)
        if code is None:
            if failures.is_watching():
                failures.give_way(error)
                traceback.print_exc()
                failures.fail(EXIT_DEFECT, f"{type(error).__name__}: {error}")
            raise
        label = "stopped" if code == checks.EXIT_PREEMPTED else "error"
        hint = ""
        if "--debug" in arguments:
            traceback.print_exc()
        elif isinstance(error, ValueError) and not isinstance(error, ConfigError):
            hint = "\n(--debug prints where it was raised)"
        text = message(error, function)
        print(f"{label}: {text}{hint}", file=sys.stderr, flush=True)
        if code != checks.EXIT_PREEMPTED:  # which all processes agreed on
            failures.fail(code, text)
        return code
    except KeyboardInterrupt as error:
        text = str(error) or "interrupted."
        print(f"stopped: {text}", file=sys.stderr, flush=True)
        failures.fail(checks.EXIT_PREEMPTED, text)
        return checks.EXIT_PREEMPTED
    return checks.EXIT_DONE


def exit_code(error: BaseException) -> int | None:
    """The exit code that an exception asks for; None for a defect."""
    if isinstance(error, checks.Preempted):
        return checks.EXIT_PREEMPTED
    if isinstance(error, checks.NonFiniteError):
        return checks.EXIT_NON_FINITE
    return checks.EXIT_BAD_INPUT if isinstance(error, _BAD_INPUT) else None


def message(error: BaseException, function: str) -> str:
    """An exception's message without gin's trail of calls; the innermost object built is named."""
    if isinstance(error, SyntaxError) and error.filename:
        line = (error.text or "").strip()
        return f"{error.msg} [{error.filename}:{error.lineno}]  {line}"
    text = str(error) or type(error).__name__
    calls = [(name, scope) for name, scope in _IN_CALL.findall(text) if name != function]
    text = _IN_CALL.sub("", text)
    if not calls or not isinstance(error, ValueError):
        return text
    return f"{text} [{calls[0][0]}{calls[0][1]}]"


def write_configs(directory: str | os.PathLike[str], macro: str) -> str:
    """Writes `config.gin` (what was bound) and `operative_config.gin` (what is used, defaults too).

    Called from inside a program's function, when gin has built its arguments. Either file, given
    as the only --gin_file, repeats the run. Only the first of several processes writes, and only
    if all of them hold the same configuration and code.

    Args:
        directory: where to; made if it is not there.
        macro: what the gin files call it.

    Returns:
        SHA-256 of `operative_config.gin`.

    Raises:
        ConfigError: if it cannot be made or written to.
        ValueError: if the processes differ.
    """
    check_agreement()
    used = config.operative_config_str()
    if joining.index() == 0:
        folder = make_folder(directory, macro)
        try:
            files.write_atomically(folder / "config.gin", config.config_str())
            files.write_atomically(folder / "operative_config.gin", used)
        except OSError as error:
            raise _unusable(directory, macro, "written to", error.strerror) from error
    return hashlib.sha256(used.encode()).hexdigest()


def check_agreement() -> None:
    """Raises ValueError on every process unless all run the same configuration and code."""
    agreement.check("configuration and code", lambda: {**used_bindings(), **agreement.of_code()})


def check_folder(directory: str | os.PathLike[str], program: str, macro: str) -> None:
    """Raises ConfigError if an output directory holds what another program left; touches nothing.

    Args:
        directory: that the program would write to.
        program: the module's name, such as `train`.
        macro: what the gin files call the directory.
    """
    if said := output_folders.refusal(os.fspath(directory), program, macro):
        raise ConfigError(said)


def make_folder(directory: str | os.PathLike[str], macro: str) -> pathlib.Path:
    """Makes a directory that is called `macro` in the gin files, if it is not there.

    Raises:
        ConfigError: if it cannot be made.
    """
    folder = pathlib.Path(directory)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "it is a file" if folder.is_file() else error.strerror
        raise _unusable(directory, macro, "made a directory", reason) from error
    return folder


def _unusable(directory: Any, macro: str, what: str, reason: str | None) -> ConfigError:
    return ConfigError(
        f"{macro} = {str(directory)!r} cannot be {what}: {reason}. Bind another: "
        f"--gin.{macro}=\"'…'\""
    )


def used_bindings() -> dict[str, str]:
    """Every macro and parameter that was used so far, with its value in gin's words."""
    text = re.sub(r"( \\)?\n +", " ", config.operative_config_str())  # long values go on below
    pairs = (line.split(" = ", 1) for line in text.splitlines() if " = " in line)
    return {name: value for name, value in pairs if not name.startswith("#")}


def refuse_bindings(target: Callable[..., Any], parameters: Iterable[str], reason: str) -> None:
    """ConfigError if gin binds one of `parameters` of `target`, which its caller overrides."""
    for (scope, selector), bound in config._CONFIG.items():
        wasted = sorted(set(bound) & set(parameters))
        if wasted and config._REGISTRY[selector].wrapped is target:
            key = gin_loading.Key(scope, selector, wasted[0])
            raise ConfigError(f"{key} has no effect: {reason}.")


def load_and_check(
    root: Callable[..., Any],
    gin_files: Sequence[str],
    gin_bindings: Sequence[str] = (),
    gin_search_paths: Sequence[str] = (),
) -> binding_checks.Reach:
    """Replaces gin's configuration by the given files and bindings, checked for `root`.

    Raises:
        ConfigError: with every finding, before anything has been built.
    """
    config.clear_config()
    paths = search_paths(gin_search_paths)
    bindings = gin_loading.load(gin_files, gin_bindings, paths)
    _check_root(root, bindings)
    reach = binding_checks.check(root, bindings, paths)
    _drop_unused(reach)
    return reach


def build(root: Callable[..., Any]) -> dict[str, Any]:
    """The arguments that gin gives to `root`: constructors run, `root` does not."""
    return config.get_bindings(root)


def search_paths(users: Sequence[str] = ()) -> list[str]:
    """Where gin files are looked for: the user's folders, the current one, then this package's.

    The last is the folder that holds `gin_configs`, in a checkout as in an installed wheel.
    """
    ours = pathlib.Path(idode_gin.__file__).resolve().parent.parent
    return [*users, "", str(ours)]


def _run(program: str, function: str, about: str, arguments: list[str]) -> None:
    options = parse_flags(arguments)
    if options.help:
        print(usage(about))
        return
    if not options.gin_file:
        raise ConfigError(f"No --gin_file. For example:\n  {_example(about)}")
    quiet.silence_tensorflow()
    root = getattr(importlib.import_module(program), function)
    load_and_check(root, options.gin_file, options.gin_bindings, options.gin_search_paths)
    refuse_bindings(root, ["dry_run"], "use the flag --dry_run")
    preemption.started()
    if options.dry_run:
        _stay_off_accelerators()
    else:
        initialize_processes(options)
    _set_data_dirs(options)
    print(first_screen(program, options.gin_file), flush=True)
    if options.dry_run:
        print(f"\n{config.config_str()}", flush=True)
    config.get_configurable(root)(dry_run=options.dry_run)


def parse_flags(arguments: Sequence[str]) -> flags.FlagValues:
    """The flags of a program.

    Raises:
        ConfigError: for an unknown flag, naming the nearest, a value that does not parse, or an
            argument that is no flag.
    """
    options = _define_flags()
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
    """The text of --help."""
    lines = [about.strip(), "", "Flags:", "  --gin.NAME=VALUE"]
    lines += _wrapped(
        "Binds a macro or a parameter after all files; text needs two kinds of quotes."
    )
    options = _define_flags()
    for name in options:
        if len(name) > 1:  # -h is --help
            lines += [f"  --{name}", *_wrapped(options[name].help.partition(_ABSL_NOTE)[0])]
    return "\n".join(lines)


def first_screen(program: str, gin_files: Sequence[str]) -> str:
    """What is about to run: the gin files and every macro's value."""
    macros = {
        scope: bound["value"]
        for (scope, selector), bound in config._CONFIG.items()
        if selector == gin_loading.MACRO
    }
    rows = {"gin files": ", ".join(gin_files)}
    rows |= {name: repr(macros[name]).removeprefix("@") for name in sorted(macros)}
    width = max(map(len, rows))
    title = f"{program} (idode_gin {idode_gin.__version__})"
    return "\n".join([title, *(f"  {name:<{width}}  {value}" for name, value in rows.items())])


def initialize_processes(options: flags.FlagValues) -> None:
    """Joins this process to the others, where --multiprocess_gpu asks for it.

    Raises:
        ConfigError: if the others are described but --multiprocess_gpu is missing.
        ValueError: if they are not described, do not fit together, or do not come.
    """
    described = ("coordinator_address", "process_count", "process_index", "local_device_ids")
    given = [f"--{name}" for name in described if options[name].value is not None]
    if not options.multiprocess_gpu:
        if given:
            raise ConfigError(f"{', '.join(given)} without --multiprocess_gpu. Add it.")
        return
    timeout = options.initialization_timeout
    place = places.find_place(
        options.coordinator_address,
        options.process_count,
        options.process_index,
        options.local_device_ids,
        timeout=timeout,
    )
    if place.index > 0:
        output.only_errors(place.index)
    joining.join(place, timeout)


def _stay_off_accelerators() -> None:
    import jax

    jax.config.update("jax_platforms", "cpu")


def _define_flags() -> flags.FlagValues:
    # A set of our own, not absl's global one: programs can run more than once in a process.
    options = flags.FlagValues()
    here: dict[str, Any] = {"flag_values": options}
    flags.DEFINE_multi_string("gin_file", [], "A gin file; repeatable, later ones win.", **here)
    flags.DEFINE_multi_string("gin_bindings", [], "The same as --gin.NAME=VALUE.", **here)
    flags.DEFINE_list("gin_search_paths", [], "Folders to look for gin files in first.", **here)
    flags.DEFINE_string("tfds_data_dir", None, "Where TensorFlow Datasets keeps its data.", **here)
    flags.DEFINE_list("seqio_additional_cache_dirs", [], "Folders with cached tasks.", **here)
    flags.DEFINE_bool("dry_run", False, "Check and describe; write nothing.", **here)
    flags.DEFINE_bool("debug", False, "Print tracebacks of errors that are explained.", **here)
    flags.DEFINE_bool("multiprocess_gpu", False, "One of several processes; any device.", **here)
    flags.DEFINE_string("coordinator_address", None, "host:port of process 0.", **here)
    flags.DEFINE_integer("process_count", None, "How many processes there are.", **here)
    flags.DEFINE_integer("process_index", None, "Which one this is, from 0.", **here)
    flags.DEFINE_integer("initialization_timeout", 300, "Seconds to wait for others.", **here)
    flags.DEFINE_list("local_device_ids", None, "GPUs by number, or all.", **here)
    flags.DEFINE_bool("help", False, "Print this.", short_name="h", **here)
    return options


def _rewrite_gin_flag(argument: str, following: str) -> str:
    found = re.fullmatch(r"--?gin\.(.*)", argument, re.DOTALL)
    if not found:
        return argument
    if "=" not in found[1]:
        value = "VALUE" if not following or following.startswith("-") else following
        raise ConfigError(
            f"{argument} has no value. Write {argument}={value}, with an equals sign."
        )
    return f"--gin_bindings={found[1]}"


def _check_root(root: Callable[..., Any], bindings: Sequence[gin_loading.Binding]) -> None:
    """ConfigError if the files were written for another program."""
    registered = config._inverse_lookup(root)
    if registered and any(each.key.selector == registered.selector for each in bindings):
        return
    modules = {config._REGISTRY[each.key.selector].wrapped.__module__ for each in bindings}
    others = [f"idode_gin.{name}" for name in _PROGRAMS if f"idode_gin.{name}" in modules]
    near = f" They are files of {others[0]}: run `python -m {others[0]} …`." if others else ""
    raise ConfigError(f"The gin files bind nothing of `{root.__module__}.{root.__name__}`.{near}")


def _drop_unused(reach: binding_checks.Reach) -> None:
    """Removes what later lines put out of use, so that config.gin holds what counts."""
    used = reach.used
    for (scope, selector), bound in list(config._CONFIG.items()):
        for parameter in list(bound):
            if gin_loading.Key(scope, selector, parameter) not in used:
                del bound[parameter]
        if not bound:
            del config._CONFIG[scope, selector]


def _set_data_dirs(options: flags.FlagValues) -> None:
    if options.tfds_data_dir or options.seqio_additional_cache_dirs:
        from idode_gin.feed import loading

        loading.set_data_dirs(
            tfds_data_dir=options.tfds_data_dir,
            seqio_cache_dirs=options.seqio_additional_cache_dirs,
        )


def _example(about: str) -> str:
    found = re.search(r"python -m [^`\n]*", about)
    return found[0].strip() if found else about


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 90, initial_indent=" " * 6, subsequent_indent=" " * 6)
