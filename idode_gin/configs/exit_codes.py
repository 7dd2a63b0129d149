"""Exit codes of the programs, and the error messages that they print."""

import re
import sys
import threading
import traceback
from collections.abc import Callable

from idode_gin import checks
from idode_gin.configs import building
from idode_gin.configs.loading import ConfigError
from idode_gin.processes import failures, output
from idode_gin.reports import paths

EXIT_DEFECT = 1
_CODES = {
    checks.Preempted: checks.EXIT_PREEMPTED,
    checks.NonFiniteError: checks.EXIT_NON_FINITE,
    **dict.fromkeys((ValueError, SyntaxError, OSError, MemoryError), checks.EXIT_BAD_INPUT),
}
is_store_lost = threading.Event()
"""Set once a program has ended because a bucket refuses or does not answer."""
_IN_CALL = re.compile(r"\n  In call to configurable '([^']*)' \([^\n]*\)( in scope '[^']*')?")
_ARGUMENT = re.compile(r"`(?:(\w+)\.)?(\w+)`")


def of(program: Callable[[], None], function: str, *, print_traceback: bool) -> int:
    """Call `program`, print the error that it ends in, and return the exit code.

    Args:
        program: the whole program.
        function: the name of the function that gin binds; error messages leave it out.
        print_traceback: also print where an error was raised.

    Raises:
        Exception: anything that has no exit code, which is a bug.
    """
    try:
        program()
        sys.stdout.flush()
        return checks.EXIT_DONE
    except KeyboardInterrupt as error:
        code, text = checks.EXIT_PREEMPTED, str(error) or "interrupted."
        output.complain(f"stopped: {text}")
    except BrokenPipeError:
        output.drop()
        code, text = output.EXIT_BROKEN_PIPE, "the reader of its output has closed it."
    except Exception as error:
        found = exit_code(error)
        if found is None:
            if failures.is_watching():
                failures.give_way(error)
                traceback.print_exc()
                failures.fail(EXIT_DEFECT, f"{type(error).__name__}: {error}")
            raise
        code, text, hint = found, message(error, function), ""
        if isinstance(error, paths.StoreError):
            is_store_lost.set()
        if print_traceback:
            traceback.print_exc()
        elif isinstance(error, ValueError) and not isinstance(error, ConfigError):
            hint = "\n(--debug prints where it was raised)"
        label = "stopped" if code == checks.EXIT_PREEMPTED else "error"
        output.complain(f"{label}: {text}{hint}")
        if isinstance(error, checks.Preempted | checks.DisagreementError):
            return code  # all processes raise it together
    failures.fail(code, text)
    return code


def exit_code(error: BaseException) -> int | None:
    """Return the exit code of a program that ends in `error`; None for a bug."""
    if _is_lack_of_device_memory(error):
        return checks.EXIT_BAD_INPUT
    return next((code for kind, code in _CODES.items() if isinstance(error, kind)), None)


def _is_lack_of_device_memory(error: BaseException) -> bool:
    is_of_jax = type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError")
    return is_of_jax and "RESOURCE_EXHAUSTED" in str(error)


def message(error: BaseException, function: str) -> str:
    """Return the message of an exception, in the words of gin files.

    gin's list of the calls that led to a ValueError is reduced to the innermost object built. If
    the message names an argument, such as `lanes` or `Pilot.tolerance`, the macros bound to it are
    added.
    """
    if isinstance(error, SyntaxError) and error.filename:
        line = (error.text or "").strip()
        return f"{error.msg} [{error.filename}:{error.lineno}]  {line}"
    text = str(error) or type(error).__name__
    if _is_lack_of_device_memory(error):
        return (
            f"The devices have too little memory: {text.splitlines()[0]} Train with a higher "
            "Trainer.num_microbatches, with UNet.remat = 'full' or a smaller BATCH_SIZE; score "
            "fewer images at a time (SOLVE_SIZE, LANES)."
        )
    if isinstance(error, MemoryError):
        return (
            f"This machine has too little memory: {text.splitlines()[0].rstrip('.')}. Use another, "
            "or let images stay on the disk: DatasetConfig.memory_map = True, the default."
        )
    calls = [(name, scope) for name, scope in _IN_CALL.findall(text) if name != function]
    text = _IN_CALL.sub("", text)
    if isinstance(error, ValueError | checks.NonFiniteError) and not isinstance(error, ConfigError):
        text += _macros_of_arguments(text)
    if not calls or not isinstance(error, ValueError):
        return text
    return f"{text} [{calls[0][0]}{calls[0][1]}]"


def _macros_of_arguments(text: str) -> str:
    macros: dict[str, None] = {}
    for owner, parameter in _ARGUMENT.findall(text):
        macros |= dict.fromkeys(building.macros_bound_to(owner, parameter))
    missing = [each for each in macros if not re.search(rf"\b{each}\b", text)]
    return f" In gin: {', '.join(missing)}." if missing else ""
