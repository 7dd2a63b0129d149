"""Output folders of the programs, and the configuration files written there."""

import contextlib
import functools
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterator

from idode_gin import checks
from idode_gin.configs import gin_internals, loading
from idode_gin.configs.loading import ConfigError
from idode_gin.processes import agreement, joining
from idode_gin.reports import differences, files, paths
from idode_gin.runs import output_folders, run_lock


def _write(directory: str | os.PathLike[str], macro: str, given: str, used: str) -> None:
    """Write `config.gin` (what is bound) and `operative_config.gin` (what is used, with defaults).

    Either file, given as the only --gin_file, repeats the run. A file that the configuration was
    read from is left as it is. Of several processes the first one writes.
    """
    if joining.index() > 0:
        return
    run_lock.check(directory)
    folder = make_folder(directory, macro)
    with _errors_named(folder, macro):
        for name, text in (("config.gin", given), ("operative_config.gin", used)):
            if (folder / name).resolve() not in loading.files_read:
                files.write_atomically(folder / name, text)


def _used() -> str:
    """Return the operative configuration.

    Bindings of functions that are passed on uncalled count as used, which gin does at a call.
    """
    called = {selector for _, selector in gin_internals.operative} - {loading.MACRO}
    for (scope, selector), bound in gin_internals.bindings.items():
        if selector not in called:
            gin_internals.operative.setdefault((scope, selector), dict(bound))
    return gin_internals.used_text()


@contextlib.contextmanager
def held(directory: str | os.PathLike[str], macro: str) -> Iterator[Callable[[], None]]:
    """Lock an output directory, and write the configuration if it holds none.

    An earlier configuration is kept at first: it describes what the directory holds. Enter the
    context in a program's function, when gin has built the arguments, after `check_agreement`.

    Args:
        directory: where to write; made if missing.
        macro: its name in the gin files.

    Yields:
        A function that replaces it by the present configuration; call it when all checks are done.

    Raises:
        ConfigError: if the directory cannot be made or written to.
        ValueError: if another process writes to the directory.
    """
    is_first = joining.index() == 0
    if is_first:
        make_folder(directory, macro)
    write = functools.partial(_write, directory, macro, gin_internals.given_text(), _used())
    with run_lock.held(os.fspath(directory), is_first=is_first, macro=macro):
        if is_first and not (paths.of(directory) / "config.gin").exists():
            write()
        yield write


@contextlib.contextmanager
def begun(directory: str | os.PathLike[str], macro: str) -> Iterator[str]:
    """Lock an output directory; at the end, or when stopped, write the configuration.

    Yields:
        SHA-256 of `operative_config.gin`.
    """
    digest = hashlib.sha256(_used().encode()).hexdigest()
    with held(directory, macro) as write:
        try:
            yield digest
        except checks.Preempted:
            write()
            raise
        write()


def check_agreement() -> None:
    """Raise ValueError on every process unless all have the same configuration and code."""
    agreement.check("configuration and code", lambda: {**used_bindings(), **agreement.of_code()})


def used_bindings() -> dict[str, str]:
    """Return the macros and parameters that have been used so far, see `differences.bindings`."""
    return differences.bindings(_used())


def check_folder(directory: str | os.PathLike[str], program: str, macro: str) -> None:
    """Raise ConfigError if a directory holds the output of another program; change nothing.

    Args:
        directory: the output directory.
        program: the program's module, such as `train`.
        macro: the directory's name in the gin files.
    """
    if refusal := output_folders.refusal(os.fspath(directory), program, macro):
        raise ConfigError(refusal)


def make_folder(directory: str | os.PathLike[str], macro: str) -> pathlib.Path:
    """Make a directory, which the gin files call `macro`, unless it exists.

    Raises:
        ConfigError: if it cannot be made.
    """
    folder = paths.of(directory)
    with _errors_named(folder, macro):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def _errors_named(folder: pathlib.Path, macro: str) -> Iterator[None]:
    try:
        yield
    except paths.StoreError:
        raise
    except OSError as error:
        reason = "it is a file" if folder.is_file() else error.strerror or error
        raise ConfigError(
            f"{macro} = {str(folder)!r} cannot be written to: {reason}. Bind another: "
            f"--gin.{macro}=\"'…'\""
        ) from error
