"""The steps of a program between its flags and its function."""

import contextlib
import importlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence

from absl.flags import FlagValues
from gin import config

import idode_gin
from idode_gin import checks
from idode_gin.configs import (
    building,
    flags,
    from_training,
    gin_internals,
    next_steps,
)
from idode_gin.configs.loading import MACRO, ConfigError
from idode_gin.feed import quiet, tasks_package
from idode_gin.processes import garbage, joining, output, places, preemption
from idode_gin.reports import progress

_WIDTH, _LONGEST = 96, 60
"""Characters of a line of `short_screen`, and of a value in it."""
_MACROS = re.compile(r"# Macros:\n# =+\n.*?(?=^# |\Z)", re.DOTALL | re.MULTILINE)
"""The part of gin's configuration that `first_screen` prints."""


def execute(program: str, function: str, about: str, arguments: Sequence[str]) -> None:
    """Run a program to its end; see `programs.run` for the arguments."""
    options = flags.parse(arguments)
    if options.help:
        print(flags.usage(about))
        return
    if options.version:
        print(f"idode_gin {idode_gin.__version__}")
        return
    if not options.gin_file and not from_training.names_run(program, options.gin_bindings):
        examples = re.findall(r"python -m [^`\n]*", about) or [about]
        near = from_training.misspelt(program, options.gin_bindings)
        head = f"{near}No --gin_file. For example:"
        raise ConfigError("\n  ".join([head, *map(str.strip, examples)]))
    with progress.phase(program):  # for what is inside none of its phases, such as imports
        _execute(program, function, options)


def _execute(program: str, function: str, options: FlagValues) -> None:
    quiet.silence_tensorflow()
    tasks_package.reserve()
    try:
        with garbage.paused():
            root = getattr(importlib.import_module(program), function)
            building.load_and_check(
                root, options.gin_file, options.gin_bindings, options.gin_search_paths
            )
    except from_training.NoRunError as error:
        if not options.dry_run:
            raise
        print(
            f"{program}, dry run. Nothing to do yet. {error} The model is declared in the run: to "
            "see what the program would do before there is one, name its gin files by --gin_file."
        )
        return
    building.refuse_bindings(root, ["dry_run"], "use the flag --dry_run")
    preemption.started()
    devices = _start_devices(options)
    if options.tfds_data_dir or options.seqio_additional_cache_dirs:
        from idode_gin.feed import loading

        loading.set_data_dirs(
            tfds_data_dir=options.tfds_data_dir,
            seqio_cache_dirs=options.seqio_additional_cache_dirs,
        )
    _print_screen(program, options, devices)
    data_dirs = {
        "tfds_data_dir": options.tfds_data_dir or "",
        "seqio_additional_cache_dirs": ",".join(options.seqio_additional_cache_dirs),
    }
    folder = _run(root, options.dry_run, data_dirs)
    if folder is not None:
        print(next_steps.after(program.rpartition(".")[2], folder, data_dirs), flush=True)


def _start_devices(options: FlagValues) -> str:
    """Connect the processes and start the devices; a dry run takes the CPU, and starts none.

    Returns:
        The devices in words, "" if none were started.
    """
    if options.dry_run:
        import jax

        jax.config.update("jax_platforms", "cpu")  # accelerators may be in use
        return ""
    initialize_processes(options)
    if "jax" not in sys.modules:
        return ""
    from idode_gin.devices import backends

    backends.start()
    return backends.described()


def _print_screen(program: str, options: FlagValues, devices: str) -> None:
    """Print what is about to run, as long as --dry_run asks for."""
    files = [*from_training.configs_read(options.gin_file), *options.gin_file]
    if options.dry_run is True:
        print(short_screen(program, files), flush=True)
    else:
        print(first_screen(program, files, devices), flush=True)
    if options.dry_run == "full":
        print(f"\n{_MACROS.sub('', gin_internals.given_text())}", flush=True)


def _run(
    root: Callable[..., str | None], dry_run: bool | str, data_dirs: Mapping[str, str]
) -> str | None:
    """Call the function of a program; its errors say what can be typed next.

    Returns:
        The output folder, None for a dry run.
    """
    try:
        with garbage.paused() if dry_run else contextlib.nullcontext():
            return config.get_configurable(root)(dry_run=dry_run)
    except checks.NonFiniteError as error:
        if error.batch is None:
            raise
        command = next_steps.to_replay(error.batch, data_dirs)
        raise checks.NonFiniteError(f"{error} To examine it:\n  {command}") from error
    except checks.Preempted as stopped:
        if stopped.run is None:
            raise
        use = next_steps.stopped(stopped.run, data_dirs)
        raise checks.Preempted(f"{stopped}{use}") from stopped


def first_screen(program: str, gin_files: Sequence[str], devices: str = "") -> str:
    """Return what is about to run: devices if started, gin files, every macro with its value."""
    rows = {"gin files": ", ".join(gin_files), **_macros()}
    width = max(map(len, rows))
    title = f"{program} (idode_gin {idode_gin.__version__})"
    if devices:
        title += f" on {devices}"
    return "\n".join([title, *(f"  {name:<{width}}  {value}" for name, value in rows.items())])


def short_screen(program: str, gin_files: Sequence[str]) -> str:
    """Return the first screen of a dry run: several macros a line, long values cut."""
    title = f"{program} (idode_gin {idode_gin.__version__}), dry run. --dry_run=full prints more."
    lines = ["gin files: " + ", ".join(gin_files), ""]
    for name, value in _macros().items():
        short = value if len(value) <= _LONGEST else f"{value[: _LONGEST - 3]}..."
        text = f"{name}={short}"
        if len(lines[-1]) + len(text) > _WIDTH:
            lines.append("")
        lines[-1] += f"{'  ' if lines[-1] else ''}{text}"
    return "\n".join([title, *(f"  {line}" for line in lines), ""])


def _macros() -> dict[str, str]:
    """Return every macro with its value, sorted."""
    found = {
        scope: repr(bound["value"]).removeprefix("@")
        for (scope, selector), bound in gin_internals.bindings.items()
        if selector == MACRO
    }
    return dict(sorted(found.items()))


def initialize_processes(options: FlagValues) -> None:
    """Connect this process to the others, if --multiprocess_gpu is given.

    Raises:
        ConfigError: if another flag of several processes is given without --multiprocess_gpu.
        ValueError: if the flags describe no set of processes, or the others do not connect.
    """
    others = ("coordinator_address", "process_count", "process_index", "local_device_ids")
    given = [f"--{name}" for name in others if options[name].value is not None]
    if not options.multiprocess_gpu:
        if given:
            raise ConfigError(f"{', '.join(given)} without --multiprocess_gpu. Add it.")
        return
    timeout = options.initialization_timeout
    place = places.find_place(*(options[name].value for name in others), timeout=timeout)
    if place.index > 0:
        output.only_errors(place.index)
    joining.join(place, timeout)
