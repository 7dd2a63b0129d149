"""Names of t5x that are spelled otherwise here: some are accepted, the others are explained.

Most names are the same in both, such as `train.eval_period` or `DatasetConfig.batch_size`.
"""

import re
import sys
from collections.abc import Mapping

from idode_gin.configs import t5x_values

SYNONYMS: Mapping[str, str] = {
    "train.stats_period": "Trainer.log_period",
    "evaluate.output_dir": "Evaluator.output_dir",
    "evaluate.partitioner": "Evaluator.partitioner",
}
"""Parameters of t5x that are accepted, and the parameter of ours that each one sets."""

_UTILS = ("DatasetConfig", "CheckpointConfig", "SaveCheckpointConfig", "RestoreCheckpointConfig")
_SHARED = (
    *(f"utils.{name}" for name in _UTILS),
    "partitioning.PjitPartitioner",
    "trainer.Trainer",
    "train.train",
    "eval.evaluate",
)
"""Classes and functions of both, by their module in t5x."""
_CHECKPOINTS = "`from idode_gin.checkpoints import config as checkpoints` and `checkpoints.{}`"
_PROGRAMS = {
    "train": "idode_gin.train",
    "evaluate": "idode_gin.eval",
    "sample": "idode_gin.sample",
    "encode": "idode_gin.encode",
    "interpolate": "idode_gin.interpolate",
}
"""Function of each program that gin binds, and the module that holds it."""

_SHAPE = "the task declares the shape of its images. Leave it out."
_PREFETCH = "batches are always prepared ahead of time. Leave it out."
_NO_TEXT = "it is about text, and images have none of it. Leave it out."
_RULES = (
    "RestoreCheckpointConfig.rules decides for single leaves: {'regular expression': 'restore', "
    "'restore from NAME', 'pad', 'reset' or 'drop'}."
)
_MESH = (
    "PjitPartitioner.mesh_shape, or the macro MESH_SHAPE, is the number of devices along each "
    "axis: {'data': 2, 'model': 4}. PjitPartitioner.num_partitions is the size of `model` alone."
)
_LEARNING_RATE = (
    "the learning rate and its schedule are the optimizer's: LEARNING_RATE, AdamW.warmup_steps "
    "and AdamW.decay_steps, or bind OPTIMIZER to any optax transformation."
)
_ORBAX = "checkpoints are always written and read by Orbax. Leave it out."
_EXACT_DATA = (
    "the order of images is a function of DatasetConfig.seed and the step, so a resumed run "
    "continues it exactly and no state of the data is saved. Leave it out."
)
_DTYPE = (
    "checkpoints hold parameters in the dtype that they are trained in, float32, so that a run "
    "resumes bit for bit. For a smaller copy: python -m idode_gin.interop.convert "
    "--dtype=bfloat16. Leave it out."
)
_NO_READER = (
    "images come from seqio tasks: register one and bind MIXTURE_OR_TASK_NAME and "
    "DatasetConfig.module. Leave it out."
)
_RANDOM = (
    "random numbers are always jax's own, a function of RANDOM_SEED on any mesh. Leave it out."
)
_SCORING = (
    "the program idode_gin.eval scores every image of a split; bind EVAL_OUTPUT_DIR and "
    "Evaluator.likelihoods. During training train.train_eval_dataset_cfg evaluates a bound."
)
_RESULTS = (
    "idode_gin.eval scores every image of the split and writes the values of each into "
    "results.npz and results.parquet. Leave it out."
)
_RESTORE = (
    "CHECKPOINT_PATH names what to score: a run directory or a checkpoint_<step> in it. Instead "
    "of mode='all' add --gin_file=gin_configs/checkpoints/all.gin."
)
_CONFIG_FILES = "config.gin and operative_config.gin are always written. Leave it out."
_INFER = (
    "the program idode_gin.eval scores the images of any seqio task into results.npz and "
    "results.parquet, as t5x's infer does in mode='score', and idode_gin.sample draws them, as in "
    "mode='predict'. Both resume after an interruption."
)
_SAVES_NONE = "this program saves no checkpoints. Leave it out."
_BEST = (
    "SaveCheckpointConfig.keep_best keeps the checkpoints with the lowest bits per dim, and "
    "SaveCheckpointConfig.keep_period those of every so many steps."
)
_DIVERGES = "Trainer.non_finite and Trainer.loss_spike stop a run that diverges."
_MODEL = "include gin_configs/model.gin, which builds MODEL of a network, a task and an objective."
_ADAFACTOR = "bind OPTIMIZER to optax.adafactor, or another optax transformation."
_OPTIMIZER = (
    "bind OPTIMIZER to AdamW of idode_gin.training.optimizers, or to any optax transformation."
)
_NETWORK = (
    "it is a network for text. Networks for images are files of gin_configs/models, such as "
    "gin_configs/models/unet_small.gin."
)
_TASKS = (
    "images come from seqio tasks: DatasetConfig.module is the module that registers them, so that "
    "no gin file imports it."
)
_OTHER = (
    "whole runs are files of gin_configs/experiments, such as gin_configs/experiments/digits.gin "
    "for training and gin_configs/experiments/digits_eval.gin for evaluation; their parts are in "
    "the other folders of gin_configs."
)
_EARLY = (
    "Trainer.early_stopping, or --gin_file=gin_configs/guards/early_stopping.gin, ends a run whose "
    "evaluations no longer improve: EarlyStopping.patience and EarlyStopping.min_improvement."
)
_MODULES: Mapping[str, str] = {
    "t5x.utils": (
        "write `from idode_gin.feed import data` and `data.DatasetConfig`, "
        f"{_CHECKPOINTS.format('CheckpointConfig')}."
    ),
    "t5x.partitioning": "write `from idode_gin.devices import partitioning`.",
    "t5x.trainer": "write `from idode_gin.training import trainer`.",
    "t5x.gin_utils": _CONFIG_FILES,
    "t5x.models": _MODEL,
    "t5x.adafactor": _ADAFACTOR,
    "t5x.optimizers": _OPTIMIZER,
    "t5x.checkpoints": f"{_ORBAX} {_BEST}",
    "t5x.examples.t5.network": _NETWORK,
}
_PARAMETERS: Mapping[str, Mapping[str, str]] = {
    "train": {
        "infer_eval_dataset_cfg": _SCORING,
        "inference_evaluator_cls": _SCORING,
        "use_hardware_rng": _RANDOM,
        "summarize_config_fn": _CONFIG_FILES,
        "get_dataset_fn": _NO_READER,
        "train_eval_get_dataset_fn": _NO_READER,
        "concurrent_metrics": "metrics are always read while later steps run. Leave it out.",
        "actions": (
            f"{_EARLY} {_DIVERGES} SaveCheckpointConfig.keep_best keeps the checkpoints with the "
            "lowest bits per dim."
        ),
        "train_state_initializer_cls": (
            "RestoreCheckpointConfig.params, ema, optimizer, step and rules decide what a run "
            "starts from."
        ),
        "use_orbax": _ORBAX,
        "verify_matching_vocabs_fn": _NO_TEXT,
        "gc_period": "Python's garbage collector is left as it is. Leave it out.",
    },
    "Trainer": {
        "learning_rate_fn": _LEARNING_RATE,
        "weight_metrics_computer": "the norm of the gradient is always logged. Leave it out.",
    },
    "DatasetConfig": {
        "task_feature_lengths": _SHAPE,
        "pack": _NO_TEXT,
        "use_custom_packing_ops": _NO_TEXT,
        "trim_output_features": _NO_TEXT,
        "use_memory_cache": (
            "decoded images are always cached: DatasetConfig.cache_dir is the folder, '' is memory "
            "alone, and DatasetConfig.memory_map decides how it is read."
        ),
        "runtime_preprocessors": _NO_READER,
        "num_prefetch_threads": _PREFETCH,
        "num_workers": _PREFETCH,
    },
    "CheckpointConfig": {},
    "Checkpointer": {"save_dtype": _DTYPE, "restore_dtype": _DTYPE},
    "SaveCheckpointConfig": {
        "dtype": _DTYPE,
        "save_dtype": _DTYPE,
        "keep_dataset_checkpoints": _EXACT_DATA,
        "save_dataset": _EXACT_DATA,
        "checkpointer_cls": _ORBAX,
        "checkpoint_manager_cls": _ORBAX,
        "state_transformation_fns": _RULES,
    },
    "RestoreCheckpointConfig": {
        "assignment_map": _RULES,
        "strict": _RULES,
        "fallback_to_scratch": _RULES,
        "dtype": _DTYPE,
        "restore_dtype": _DTYPE,
        "restore_dataset": _EXACT_DATA,
        "checkpointer_cls": _ORBAX,
        "checkpoint_manager_cls": _ORBAX,
        "state_transformation_fns": _RULES,
    },
    "PjitPartitioner": {
        "model_parallel_submesh": _MESH,
        "ici_mesh_shape": _MESH,
        "params_on_devices": "parameters are always on the devices. Leave it out.",
        "backend": "set the environment variable JAX_PLATFORMS, for example to cpu. Leave it out.",
    },
    "evaluate": {
        "restore_checkpoint_cfg": _RESTORE,
        "training_evaluator_cls": _SCORING,
        "inference_evaluator_cls": _RESULTS,
        "fallback_init_rng": "every parameter must be in the checkpoint. Leave it out.",
    },
}
_SYMBOLS: Mapping[str, str] = {
    "utils.DatasetConfig": "write `from idode_gin.feed import data` and `data.DatasetConfig`.",
    **{f"utils.{name}": f"write {_CHECKPOINTS.format(name)}." for name in _UTILS[1:]},
    "utils.create_learning_rate_scheduler": _LEARNING_RATE,
    "partitioning.PjitPartitioner": (
        "write `from idode_gin.devices import partitioning` and `partitioning.PjitPartitioner`."
    ),
    "partitioning.standard_logical_axis_rules": (
        "the rules are pairs in PjitPartitioner.logical_axis_rules, which has a default for our "
        "networks. Leave it out."
    ),
    "gin_utils.summarize_gin_config": _CONFIG_FILES,
    "seqio.Evaluator": _RESULTS,
    "seqio.JSONLogger": _RESULTS,
    "seqio.PyLoggingLogger": _RESULTS,
    "seqio.TensorBoardLogger": _RESULTS,
    "trainer.Trainer": "write `from idode_gin.training import trainer` and `trainer.Trainer`.",
    "trainer.EarlyStoppingAction": _EARLY,
    "trainer.TerminateOnNanAction": _DIVERGES,
    "trainer.WeightMetricsComputer": _PARAMETERS["Trainer"]["weight_metrics_computer"],
    "checkpoints.Checkpointer": _ORBAX,
    "checkpoints.OrbaxCheckpointManagerInterface": _ORBAX,
    "checkpoints.SaveBestCheckpointer": _BEST,
    "adafactor.Adafactor": _ADAFACTOR,
    "adafactor.standard_logical_factor_rules": _ADAFACTOR,
    "optimizers.MultiOptimizer": _OPTIMIZER,
    "optimizers.adamw": _OPTIMIZER,
    "models.BaseModel": _MODEL,
    "models.EncoderDecoderModel": _MODEL,
    "models.DecoderOnlyModel": _MODEL,
    "network.Transformer": _NETWORK,
    "network.T5Config": _NETWORK,
    "infer": _INFER,
}
"""By their module in t5x's gin files."""
_BARE: Mapping[str, str] = {
    name.rpartition(".")[2]: name
    for name in _SYMBOLS
    if name not in (*_SHARED, "seqio.Evaluator", "models.BaseModel")
}
"""Those whose name is none of ours, and the whole name."""
_OF_TRAINING: Mapping[str, str] = {
    "RestoreCheckpointConfig": _RESTORE,
    "CheckpointConfig": _SAVES_NONE,
    "SaveCheckpointConfig": _SAVES_NONE,
    "Trainer": "this program does not train. Leave it out.",
}
"""Classes that t5x's evaluation may read, and ours does not."""
_SCOPES: Mapping[str, str] = {"infer_eval": _SCORING}
_MACROS: Mapping[str, str] = {
    "TASK_FEATURE_LENGTHS": _SHAPE,
    "MIXTURE_OR_TASK_MODULE": "DatasetConfig.module is the module that registers the task.",
    "USE_CACHED_TASKS": "DatasetConfig.use_cached reads seqio's offline cache.",
    "SHUFFLE_TRAIN_EXAMPLES": "train/DatasetConfig.shuffle decides it.",
    "USE_HARDWARE_RNG": _RANDOM,
    "INFER_OUTPUT_DIR": _INFER,
    "EVALUATOR_USE_MEMORY_CACHE": "decoded images are always cached. Leave it out.",
    "EVALUATOR_NUM_EXAMPLES": _RESULTS,
    "JSON_WRITE_N_RESULTS": _RESULTS,
    "LOSS_NORMALIZING_FACTOR": "losses are means over images. Leave it out.",
    "LABEL_SMOOTHING": _NO_TEXT,
    "Z_LOSS": _NO_TEXT,
}
TABLE: Mapping[str, str] = {
    **{name: f"accepted; the same as {ours}" for name, ours in SYNONYMS.items()},
    **{name: f"accepted; the same as {name.rpartition('.')[2]}" for name in _SHARED},
    **{
        f"{each}.{name}": text
        for each, names in _PARAMETERS.items()
        for name, text in names.items()
    },
    **{name: text for name, text in _SYMBOLS.items() if name not in _SHARED},
    **{f"{name} (in evaluation)": text for name, text in _OF_TRAINING.items()},
    **{f"{name}/…": text for name, text in _SCOPES.items()},
    **t5x_values.TABLE,
    **_MACROS,
    **_MODULES,
    "other modules and gin files of t5x": _OTHER,
    "modules of tasks": _TASKS,
}
"""Every name of t5x that differs here, and what to write instead."""


def about_macro(name: str) -> str:
    """Return what to write instead of a macro of t5x; "" if t5x has none of this name."""
    return _about(name.rpartition("/")[2], _MACROS)


def about_bare(name: str) -> str:
    """Return what to write instead of a parameter of t5x without its function or class."""
    for parameter in SYNONYMS:
        owner, _, own = parameter.rpartition(".")
        if own == name:
            return about_parameter(owner, name)
    return _about(name, _every_parameter())


def about_symbol(selector: str, parameter: str = "") -> str:
    """Return what to write instead of a function or class of t5x, or of a parameter of it.

    The module may be left out.
    """
    name = _without_t5x(selector)
    bare = name.rpartition(".")[2]
    whole = _BARE.get(name, name)
    if whole in _SYMBOLS and parameter in _PARAMETERS.get(bare, {}):
        return about_parameter(bare, parameter)
    return _about(whole, _SYMBOLS) or (_of_t5x(selector) if name != selector else "")


def about_idle(selector: str, scope: str = "") -> str:
    """Return what to write instead of a class or a scope that this program does not read."""
    scopes = scope.split("/")
    found = next((_about(each, _SCOPES) for each in scopes if each in _SCOPES), "")
    return found or _about(selector.rpartition(".")[2], _OF_TRAINING)


def about_module(name: str) -> str:
    """Return what to write instead of a module of t5x."""
    return _about(name, _MODULES)


def about_missing(name: str) -> str:
    """Return what to write for a module that is not installed, or a gin file that is missing."""
    first = re.split(r"[./]", name)[0]
    if first == "t5x":
        return _of_t5x(name)
    return f"For {name} of t5x: {_TASKS}" if first == "t5" else ""


def about_parameter(owner: str, parameter: str) -> str:
    """Return what to write for a parameter that the function or class `owner` lacks."""
    if ours := SYNONYMS.get(f"{owner}.{parameter}"):
        return f"For t5x's {parameter}: write {ours}."
    if owner not in _PARAMETERS:
        return ""
    return _about(parameter, {**_every_parameter(), **_PARAMETERS[owner]})


def _every_parameter() -> dict[str, str]:
    return {name: text for each in _PARAMETERS.values() for name, text in each.items()}


def _about(name: str, texts: Mapping[str, str]) -> str:
    return f"For t5x's {name}: {texts[name]}" if name in texts else ""


def _of_t5x(name: str) -> str:
    """Return the answer of the innermost module of t5x that a name is in."""
    parts = name.split(".")
    modules = (".".join(parts[:end]) for end in range(len(parts), 1, -1))
    return next(filter(None, map(about_module, modules)), f"For t5x's {name}: {_OTHER}")


def _without_t5x(selector: str) -> str:
    """Return `utils.DatasetConfig` for `t5x.utils.DatasetConfig`, `network.T5Config` likewise."""
    first, *rest = selector.split(".")
    return ".".join(rest[-2:]) if first == "t5x" and rest else selector


def without_module(selector: str) -> str:
    """Return `DatasetConfig` for t5x's `utils.DatasetConfig`; other names as they are."""
    name = _without_t5x(selector)
    return name.rpartition(".")[2] if name in _SHARED else selector


def is_config(text: str) -> bool:
    """Return True for a gin file of t5x: it imports modules that have another name here."""
    imports = re.findall(r"^(?:from +([\w.]+) +)?import +([\w.]+)", text, re.MULTILINE)
    return any(".".join(filter(None, each)) in _MODULES for each in imports)


def program(alias: str, text: str) -> str | None:
    """Return the module of ours that a gin file means by `import __main__ as alias`.

    t5x's gin files bind the function of the program that is running, whose module is `__main__`.
    Ours is known by the function that the file binds, such as `train`.

    Args:
        alias: name in the file.
        text: of the file.

    Returns:
        A module's name; None if `__main__` is not ours and has the function itself.
    """
    for name in re.findall(rf"\b{re.escape(alias)}\.(\w+)", text):
        if name in _PROGRAMS and not hasattr(sys.modules["__main__"], name):
            return _PROGRAMS[name]
    return None
