"""The command `idode-gin`: every program under one name.

    idode-gin train --gin_file=gin_configs/experiments/digits.gin

is `python -m idode_gin.train --gin_file=…`. `idode-gin completion bash` prints a script that lets
the shell complete programs, flags and gin files.
"""

import os
import runpy
import sys
from collections.abc import Sequence

import idode_gin
from idode_gin import checks

PROGRAMS = {
    "train": ("idode_gin.train", "Train a model, or resume training."),
    "eval": ("idode_gin.eval", "Score checkpoints in bits per dim."),
    "sample": ("idode_gin.sample", "Draw images."),
    "encode": ("idode_gin.encode", "Encode images to latents, and decode them."),
    "interpolate": ("idode_gin.interpolate", "Interpolate between images."),
    "report": ("idode_gin.report", "Write one HTML file about runs and evaluations."),
    "compare": ("idode_gin.compare", "Compare evaluations, with paired standard errors."),
    "doctor": ("idode_gin.doctor", "Check the installation, with a fix for what is wrong."),
    "prepare": ("tasks.prepare", "Make datasets from downloaded files."),
    "convert": ("idode_gin.interop.convert", "Convert published checkpoints, and those of t5x."),
}
"""Module and description of each program."""
_COMPLETION = "completion"

_BASH = """\
# Completion of idode-gin in bash. Use it with: source <(idode-gin completion bash)
_idode_gin() {{
    local line="${{COMP_LINE:0:COMP_POINT}}"
    local word="${{line##* }}"
    COMPREPLY=()
    if ((COMP_CWORD == 1)); then
        COMPREPLY=($(compgen -W "{programs}" -- "$word"))
    elif [[ $word == --gin_file=* ]]; then
        word="${{word#*=}}"
        COMPREPLY=($(compgen -W "{files}" -- "$word") $(compgen -G "$word*.gin"))
    elif [[ $word == -* ]]; then
        COMPREPLY=($(compgen -W "{flags}" -- "$word"))
        [[ ${{COMPREPLY[0]}} == *[=.] ]] && compopt -o nospace 2> /dev/null
    fi
    return 0
}}
complete -o default -F _idode_gin idode-gin
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program that the first argument names; return an exit code if it does not exit."""
    name, *rest = list(sys.argv[1:] if arguments is None else arguments) or [""]
    if name in PROGRAMS:
        sys.argv = [f"idode-gin {name}", *rest]
        sys.path.append(os.getcwd())  # for modules of the user's own, as with `python -m`
        runpy.run_module(PROGRAMS[name][0], run_name="__main__", alter_sys=True)
        return checks.EXIT_DONE
    if name == _COMPLETION and rest in ([], ["bash"]):
        print(completion(), end="")
        return checks.EXIT_DONE
    if name == "--version":
        print(f"idode_gin {idode_gin.__version__}")
        return checks.EXIT_DONE
    if name in ("--help", "-h", "help"):
        print(usage())
        return checks.EXIT_DONE
    if name == _COMPLETION:
        text = f"there is completion for bash only, got {' '.join(rest)!r}."
    elif not name:
        text = f"no program named.\n\n{usage()}"
    else:
        text = f"there is no program {name!r}. {checks.nearest(name, [*PROGRAMS, _COMPLETION])}"
    print(f"error: {text}", file=sys.stderr)
    return checks.EXIT_BAD_INPUT


def usage() -> str:
    """Return the text of --help."""
    rows = {name: about for name, (_, about) in PROGRAMS.items()}
    rows[_COMPLETION] = "Print a script for completion in bash: source <(idode-gin completion bash)"
    listed = "\n".join(f"  {name:<12} {about}" for name, about in rows.items())
    return f"idode-gin PROGRAM --flags\n\n{listed}\n\nidode-gin PROGRAM --help lists its flags."


def completion() -> str:
    """Return the script for bash."""
    from idode_gin.configs import flags, loading, readers

    return _BASH.format(
        programs=" ".join([*PROGRAMS, _COMPLETION]),
        files=" ".join(each.name for each in readers.gin_files(loading.search_paths())),
        flags=" ".join(flags.completions()),
    )


if __name__ == "__main__":
    sys.exit(main())
