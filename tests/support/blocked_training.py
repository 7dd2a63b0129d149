"""A tiny run in which compiling a function never ends: `blocked_training.py NAME FOLDER`."""

import dataclasses
import hashlib
import sys
import types

import jax
import tiny

from idode_gin.feed import loading
from idode_gin.processes import preemption
from idode_gin.training import programs
from idode_gin.training import trainer as trainer_lib

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
    """Block while data is read, in "restore", or in the program's "step" or "evaluate"."""

    def build_blocked(*arguments, **options):
        program = build(*arguments, **options)
        return dataclasses.replace(program, **{name: blocked(getattr(program, name))})

    preemption.GRACE = 0.2
    tiny.use_tiny_data(types.SimpleNamespace(setattr=setattr))
    if name == "read":
        loading.load_split = blocked(loading.load_split)
    elif name == "restore":
        trainer_lib.resume_or_begin = blocked(trainer_lib.resume_or_begin)
    else:
        programs.build = build_blocked
    trainer = tiny.trainer(folder, 6, period=100, eval_period=3)
    trainer.run(tiny.model(), tiny.config(), tiny.config(8))


if __name__ == "__main__":
    main(*sys.argv[1:])
