"""Model and data of a training configuration, for the programs that use the trained model.

A run directory holds the configuration that it was trained with. Evaluation, sampling, encoding and
interpolation take model, objective, task and data path from there, and everything else from their
own file in `gin_configs/runs/`. Settings of the training itself are left out.
"""

import collections
import copy
import difflib
import functools
import pathlib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from gin import config

from idode_gin.configs import gin_internals, loading, t5x_names, value_types
from idode_gin.configs.loading import MACRO, Binding, ConfigError, Key
from idode_gin.configs.reach import macro_name, reachable
from idode_gin.reports import paths as paths_lib

PROGRAMS = tuple(
    f"idode_gin.{name}" for name in ("train", "eval", "sample", "encode", "interpolate")
)
"""Modules of the programs."""
CONFIGS = ("operative_config.gin", "config.gin")
"""Files of a run directory with its configuration; the first one also holds defaults."""
_NAMES_RUN = re.compile(r"\s*CHECKPOINT_PATH\s*=").match
_TRAIN = "idode_gin.train.train"
_DATASET = "idode_gin.feed.data.DatasetConfig"
_OF_IMAGES = ("mixture_or_task_name", "module", "data_path", "augmentation", "use_cached")
"""Parameters of a dataset that training shares with other programs."""
_OUTPUTS = {
    "EVAL_OUTPUT_DIR": "eval/{images}",
    "SAMPLE_OUTPUT_DIR": "samples",
    "ENCODE_OUTPUT_DIR": "encoded/{images}",
    "INTERPOLATE_OUTPUT_DIR": "interpolated/{images}",
}
"""Default output folders in the run directory."""


class NoRunError(ConfigError):
    """There is no run yet at CHECKPOINT_PATH, whose configuration a program would read."""


def names_run(program: str, bindings: Iterable[str]) -> bool:
    """Return True if command-line bindings name the run whose model a program uses."""
    return program in PROGRAMS[1:] and any(map(_NAMES_RUN, bindings))


def misspelt(program: str, bindings: Iterable[str]) -> str:
    """Return a hint if a command-line binding looks as if it should name the run; else ""."""
    names = [each.partition("=")[0].strip() for each in bindings if program in PROGRAMS[1:]]
    near = difflib.get_close_matches("CHECKPOINT_PATH", names, n=1, cutoff=0.8)
    return f"--gin.{near[0]}: did you mean CHECKPOINT_PATH? " if near else ""


def config_of(path: str | pathlib.Path) -> pathlib.Path:
    """Return the configuration of the run directory, or of the checkpoint in one, at `path`.

    Raises:
        ValueError: if there is no run, or no configuration in it.
    """
    run, _ = _run_and_step(paths_lib.stored(path, "The path of a run"))
    there = [run / name for name in CONFIGS if (run / name).is_file()]
    of_t5x = [each.name for each in there if t5x_names.is_config(_text(each))]
    if ours := [each for each in there if each.name not in of_t5x]:
        return ours[0]
    from idode_gin.checkpoints import files, meta  # import jax, which --help does not need

    try:
        found = files.find(path)
    except ValueError as error:
        raise NoRunError(str(error)) from error
    if meta.is_of_t5x(found):
        raise ConfigError(meta.must_be_converted(found))
    theirs = f" ({of_t5x[0]} there is t5x's)" if of_t5x else ""
    raise ConfigError(
        f"{run} holds checkpoints, but neither {' nor '.join(CONFIGS)} of idode_gin.train{theirs}, "
        "from which the model is built. Copy one from where it was trained. A converted checkpoint "
        "has none: name gin files of its network, task and objective, such as "
        "--gin_file=gin_configs/experiments/digits_eval.gin for the digits; or write "
        f"{run / CONFIGS[0]} with a line that includes the file for training, such as "
        "include 'gin_configs/experiments/digits.gin'."
    )


def _text(file: pathlib.Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace")


def configs_read(gin_files: Sequence[str]) -> list[str]:
    """Return the configuration of a run that was read though it is not among `gin_files`."""
    given = {paths_lib.of(each).resolve() for each in gin_files}
    return [str(each) for each in loading.files_read - given if each.name in CONFIGS]


def read(
    root: Callable[..., Any],
    gin_files: Sequence[str],
    gin_bindings: Sequence[str],
    paths: Sequence[str],
) -> list[Binding]:
    """Read the files and bindings of a program into gin's configuration, as `loading.load` does.

    Of files for training, other programs read model and data only. If no file is for the program,
    its own in `gin_configs/runs/` is read first; and if none is for training either, next the
    configuration of the run at CHECKPOINT_PATH.
    """
    given = loading.load(gin_files, (), paths)
    if root.__module__ in PROGRAMS[1:]:
        given = _completed(root, given, gin_bindings, paths)
    return _with_output(loading.load((), gin_bindings, paths, given))


def model_and_dataset_of(file: pathlib.Path) -> tuple[Any, dict[str, Any]]:
    """Build the model of a training configuration, which replaces gin's.

    Functions that the model holds are plain ones, with their bindings, and need gin no longer.

    Returns:
        The model, and the arguments of `data.DatasetConfig` that name its dataset.

    Raises:
        ValueError: if the model cannot be built, or the file is not for training.
    """
    config.clear_config()
    given = loading.load([str(file)])
    if not any(_target(each) == _TRAIN for each in given):
        raise ConfigError(f"{file} is no configuration of idode_gin.train.")
    config.clear_config()
    _bound(_model_and_images(given, has_images=True))
    for bound in gin_internals.bindings.values():
        bound |= {name: _without_gin(value) for name, value in bound.items()}
    return copy.deepcopy((config.parse_value("%MODEL"), config.get_bindings(_DATASET)))


def _completed(
    root: Callable[..., Any],
    given: list[Binding],
    gin_bindings: Sequence[str],
    paths: Sequence[str],
) -> list[Binding]:
    """Return `given` with what the program lacks before it, and without settings of training."""
    training = {each.named for each in given if _target(each) == _TRAIN}
    is_bound = any(_target(each) == _name(root) for each in given)
    if {_target(each).rpartition(".")[0] for each in given}.isdisjoint(PROGRAMS):
        path = _checkpoint_path(
            loading.load((), list(filter(_NAMES_RUN, gin_bindings)), paths, given)
        )
        if path is None:
            return given
        run = str(config_of(path))
        given, training = [*loading.load([run], (), paths), *given], {run}
    if not training:
        return given
    imports = [each for each in gin_internals.imports if not each.module.startswith("idode_gin.")]
    trained = [each for each in given if each.named in training]
    has_images = "dataset_cfg" in value_types.parameters(root)
    more = _of_task(trained, paths) if has_images else []
    config.clear_config()
    found: list[Binding] = []
    if not is_bound:
        program = root.__module__.rpartition(".")[2]
        found = loading.load([f"gin_configs/runs/{program}.gin"], (), paths)
        found += _bound(more)
    for name in dict.fromkeys(each.named for each in given):
        here = [each for each in given if each.named == name]
        found += _bound(_model_and_images(here, has_images) if name in training else here)
    gin_internals.imports.update(imports)
    return found


def _of_task(trained: Sequence[Binding], paths: Sequence[str]) -> list[Binding]:
    """Return the binding of the split that a task of ours is scored on, if it is not `test`."""
    task = _macros(trained).get("MIXTURE_OR_TASK_NAME")
    try:
        found = loading.load([f"gin_configs/tasks/{task and task.value}.gin"], (), paths)
    except ConfigError:  # a task of the user's own
        return []
    return [each._replace(is_part=True) for each in found if each.key.scope == "EVAL_SPLIT"]


def _model_and_images(given: Sequence[Binding], has_images: bool) -> list[Binding]:
    """Return the bindings of a training configuration that make up its model and its images."""
    chosen = ("model", "train_dataset_cfg") if has_images else ("model",)
    wanted = [
        each
        for each in given
        if (_target(each) != _TRAIN or each.key.parameter in chosen)
        and (_target(each) != _DATASET or each.key.parameter in _OF_IMAGES)
    ]
    (train,) = {each.key.selector for each in given if _target(each) == _TRAIN}
    reach = reachable(gin_internals.registry[train].wrapped, wanted)
    kept = [each for each in wanted if each.key in reach.used]
    found = [each for each in kept if each.key.selector != train]
    scopes: dict[str, set[str]] = collections.defaultdict(set)
    for each in found:
        scopes[each.key.selector].add(each.key.scope)
    # An operative configuration has each class in its scope, where no --gin_file would replace it.
    for order, each in enumerate(found):
        is_single = each.key.selector != MACRO and len(scopes[each.key.selector]) == 1
        if is_single or _target(each) == _DATASET:
            found[order] = each._replace(key=each.key._replace(scope=""))
    models = [each for each in kept if each.key == Key("", train, "model")]
    if models and macro_name(models[-1].value) != "MODEL":
        found.append(models[-1]._replace(key=Key("MODEL", MACRO, "value")))
    return [each._replace(is_part=True) for each in found]


def _with_output(bindings: list[Binding]) -> list[Binding]:
    """Return `bindings` with a place in the run directory for an output folder that is None."""
    macros = _macros(bindings)
    path = _checkpoint_path(bindings)
    for name, place in _OUTPUTS.items():
        if name in macros and macros[name].value is None and path:
            of_images = (macros.get(each) for each in ("MIXTURE_OR_TASK_NAME", "EVAL_SPLIT"))
            images = "_".join(str(each.value) for each in of_images if each is not None)
            run, step = _run_and_step(path)
            folder = run / place.format(images=re.sub(r"[^\w.-]", "_", images))
            series = macros.get("CHECKPOINTS")
            curve = "_curve" if series is not None and series.value is not None else ""
            bindings += _bound([macros[name]._replace(value=f"{folder}{step}{curve}")])
    return bindings


def _run_and_step(path: str | pathlib.Path) -> tuple[pathlib.Path, str]:
    """Return the run directory, and `_<step>` if `path` is a checkpoint in it, else ""."""
    path = paths_lib.of(path).expanduser()
    step = re.fullmatch(r"checkpoint(_\d+)", path.name)
    return (path.parent, step[1]) if step else (path, "")


def _checkpoint_path(bindings: Sequence[Binding]) -> str | None:
    found = _macros(bindings).get("CHECKPOINT_PATH")
    return found.value if found is not None and isinstance(found.value, str) else None


def _macros(bindings: Iterable[Binding]) -> dict[str, Binding]:
    return {each.key.scope: each for each in bindings if each.key.selector == MACRO}


def _bound(bindings: list[Binding]) -> list[Binding]:
    for each in bindings:
        config.bind_parameter((each.key.scope, each.key.selector, each.key.parameter), each.value)
    return bindings


def _without_gin(value: Any) -> Any:
    """Return the function or class itself, with its bindings, for an uncalled reference to it."""
    if not isinstance(value, config.ConfigurableReference) or value.evaluate:
        return value
    with config.config_scope(value.scopes or None):
        bound = config.get_bindings(value.configurable.wrapped)
    target = value.configurable.wrapped
    return functools.partial(target, **bound) if bound else target


def _target(binding: Binding) -> str:
    """Return the whole name of the function or class whose parameter is bound."""
    return _name(gin_internals.registry[binding.key.selector].wrapped)


def _name(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{function.__qualname__}"
