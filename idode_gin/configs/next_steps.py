"""The last lines of a program: where its output is, and what can be typed next."""

import contextlib
import pathlib
import shlex
from collections.abc import Mapping, Sequence

from idode_gin.configs import loading
from idode_gin.evaluation import cost
from idode_gin.reports import paths
from idode_gin.reports.commands import bound
from idode_gin.runs import output_folders

_HOLDS = {
    "train": "The run is in {}: checkpoints, metrics.jsonl, summary.json, plots in train/.",
    "eval": "The evaluation is in {}: table.txt, summary.json, results.npz, plots.",
    "sample": "The samples are in {}: grid.png, samples/, samples.npz.",
    "encode": "The latents are in {}: grid.png, latents.npz.",
    "interpolate": "The images are in {}: strip.png, interpolation.npz.",
}
_SERIES = "The curve is in {}: curve.csv, curve.png, an evaluation in each step_<step>/."


def after(program: str, folder: str, data_dirs: Mapping[str, str] | None = None) -> str:
    """Return what to print at the end of a program.

    Args:
        program: the last part of its module's name, such as `eval`.
        folder: its output folder.
        data_dirs: values of the flags that say where data are, "" for those not given.
    """
    holds = _HOLDS[program].format(folder)
    if program == "train":
        costs, commands = _of_a_run(folder, data_dirs or {})
        return _listed(f"{holds}{costs} Next:", commands)
    run, compared = folder, folder
    with contextlib.suppress(paths.StoreError):  # what is printed last does not undo what was done
        run = _run_of(paths.of(folder)) or folder
    commands = [_command("report", shlex.quote(run))]
    if program == "eval":
        if steps := _steps(folder):
            holds, compared = _SERIES.format(folder), f"{folder}/{steps[-1]}"
        commands.append(_command("compare", shlex.quote(compared), "OTHER_RUN"))
    return _listed(f"{holds} Next:", commands)


def stopped(run: str, data_dirs: Mapping[str, str]) -> str:
    """Return what to print behind the message of a stopped training; "" without a checkpoint.

    Args:
        run: the run directory.
        data_dirs: as for `after`.
    """
    from idode_gin.checkpoints import files  # imports jax

    with contextlib.suppress(paths.StoreError):
        if files.newest_first(run):
            costs, commands = _of_a_run(run, data_dirs)
            return _listed(f" The model can be used as it is:{costs}", commands)
    return ""


def _listed(title: str, commands: Sequence[str]) -> str:
    return "\n  ".join([title, *commands])


def _of_a_run(run: str, data_dirs: Mapping[str, str]) -> tuple[str, list[str]]:
    """Return a line on what evaluations take, "" if they are cheap, and commands."""
    where, flags = bound("CHECKPOINT_PATH", run), _flags(data_dirs)
    commands = [
        _command("eval", where, *flags),
        _command("sample", where),
        _command("report", shlex.quote(run)),
    ]
    costs = ""
    with contextlib.suppress(paths.StoreError):  # what is printed last does not undo what was done
        costs = cost.compared_with_training(paths.of(run))
    if not costs:
        return "", commands
    output = bound("EVAL_OUTPUT_DIR", str(paths.of(run) / "eval" / "quick"))
    quick = _command("eval", f"--gin_file={cost.QUICK_FILE}", where, output, *flags)
    return f"\n{costs}", [quick, *commands]


def to_replay(batch: str, data_dirs: Mapping[str, str]) -> str:
    """Return the command that examines the batch of a failed training step.

    Args:
        batch: its file, in `train/` of the run directory.
        data_dirs: as for `after`.
    """
    run = paths.of(batch).parent.parent
    files = [run / name for name in ("config.gin", "operative_config.gin")]
    # One that was read may lack bindings of the command line: `outputs.held` left it.
    new = [each for each in files if each.resolve() not in loading.files_read]
    file = f"--gin_file={shlex.quote(str((new or files)[0]))}"
    return _command("train", file, bound("Trainer.replay", batch), *_flags(data_dirs))


def _flags(data_dirs: Mapping[str, str]) -> list[str]:
    return [f"--{name}={shlex.quote(value)}" for name, value in data_dirs.items() if value]


def _command(program: str, *arguments: str) -> str:
    return " ".join([f"python -m idode_gin.{program}", *arguments])


def _steps(output: str) -> list[str]:
    """Return the folders of the scored checkpoints of a series, by step; none for no series."""
    with contextlib.suppress(paths.StoreError):
        folder = paths.of(output)
        if (folder / "series.json").exists():
            found = (each.parent.name for each in folder.glob("step_*/summary.json"))
            return sorted(found, key=lambda name: (len(name), name))
    return []


def _run_of(folder: pathlib.Path) -> str | None:
    """Return the run directory that a folder lies in, None if it lies in none."""
    levels = min(3, len(folder.parents) - (3 if paths.in_bucket(folder) else 0))
    outer = (each for each in folder.parents[:levels] if output_folders.owner(each) == "train")
    found = next(outer, None)
    return None if found is None else str(found)
