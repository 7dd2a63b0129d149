"""A tiny run in which compiling a function never ends: `blocked_training.py NAME FOLDER`."""

import dataclasses
import hashlib
import sys
import types

import jax
import tiny

from idode_gin.processes import preemption
from idode_gin.training import programs

build = programs.build


def blocked(function):
    def run(*arguments):
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(arguments)):
            return function(*arguments)
        print("blocked", flush=True)
        # C code that runs for minutes, as a compilation does.
        return hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)

    return run


def main(name, folder):
    """Block in the function `name` of the program: "step" or "evaluate"."""

    def build_blocked(*arguments, **options):
        program = build(*arguments, **options)
        return dataclasses.replace(program, **{name: blocked(getattr(program, name))})

    programs.build = build_blocked
    preemption.GRACE = 0.2
    tiny.use_tiny_data(types.SimpleNamespace(setattr=setattr))
    trainer = tiny.trainer(folder, 6, period=100, eval_period=3)
    trainer.run(tiny.model(), tiny.config(), tiny.config(8))


if __name__ == "__main__":
    main(*sys.argv[1:])
