"""The entry of every program: from the command line to an exit code.

A program is a module with one function that gin binds. gin is imported in `run`, not above, so that
a request to stop is handled while it is imported.
"""

import contextlib
import os
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

from idode_gin.processes import failures, garbage, output, preemption

_DEBUG = re.compile(r"--?debug(=(true|t|1))?", re.IGNORECASE)
"""How absl takes a flag for true. It is read before the flags are parsed, which may fail."""


def main(program: str, function: str, about: str) -> NoReturn:
    """Run a program and exit; for `python -m`.

    A program calls it above its imports, so that --help and a misspelt flag answer at once. The
    function that runs is that of the module gin files import, not of the copy named `__main__`.
    """
    output.make_safe()
    garbage.leave_to_the_end()
    with preemption.starting():
        _leave(run(program, function, about))


def _leave(code: int) -> NoReturn:
    """Exit; if a bucket was lost, without waiting for the threads that still write to it."""
    from idode_gin.configs import exit_codes

    if exit_codes.is_store_lost.is_set():
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(code)
    sys.exit(code)


def run(program: str, function: str, about: str, argv: Sequence[str] | None = None) -> int:
    """Run `function(dry_run=…)` of the module `program` and return the exit code.

    - 0: done.
    - 2: wrong configuration or input, or a file that cannot be read or written.
    - 3: a number became NaN or infinite.
    - 75: stopped by SIGTERM, Ctrl-C or another of `preemption.MORE_SIGNALS`, at any time. A second
      signal (but SIGXCPU), more than a second later, or Ctrl-C again ends the process at once, with
      128 + signal.

    Any other exception is a bug and is raised; where there are several processes it ends them with
    1. All processes end with the code of the first one that failed.

    Args:
        program: module name, such as `idode_gin.train`.
        function: the function in it that gin binds; with `dry_run` it only prints a description.
        about: the module's docstring, printed by --help. Its `python -m` line is the example.
        argv: arguments without the program's name; by default those of the process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    with preemption.stoppable(), failures.until_done():
        from idode_gin.configs import execution, exit_codes

        return exit_codes.of(
            lambda: execution.execute(program, function, about, arguments),
            function,
            print_traceback=any(map(_DEBUG.fullmatch, arguments)),
        )
