"""Names of t5x that are spelled otherwise here: some are accepted, the others are explained.

Most names are the same in both, such as `train.eval_period` or `DatasetConfig.batch_size`.
"""

import re
import sys
from collections.abc import Mapping

SYNONYMS: Mapping[str, str] = {
    "train.stats_period": "Trainer.log_period",
    "evaluate.output_dir": "Evaluator.output_dir",
    "evaluate.partitioner": "Evaluator.partitioner",
}
"""Parameters of t5x that are accepted, and the parameter of ours that each one sets."""

_UTILS = ("DatasetConfig", "CheckpointConfig", "SaveCheckpointConfig", "RestoreCheckpointConfig")
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
    "t5x.models": "include gin_configs/model.gin, which builds MODEL.",
    "t5x.adafactor": "bind OPTIMIZER to optax.adafactor, or another optax transformation.",
    "t5x.optimizers": "bind OPTIMIZER to AdamW of idode_gin.training.optimizers, or to optax's.",
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
            f"{_EARLY} Trainer.non_finite and Trainer.loss_spike stop a run that diverges, and "
            "SaveCheckpointConfig.keep_best keeps the checkpoints with the lowest bits per dim."
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
    "SaveCheckpointConfig": {
        "dtype": _DTYPE,
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
        "fallback_init_rng": "every parameter must be in the checkpoint. Leave it out.",
    },
}
_SYMBOLS: Mapping[str, str] = {
    "utils.DatasetConfig": "write `from idode_gin.feed import data` and `data.DatasetConfig`.",
    **{f"utils.{name}": f"write {_CHECKPOINTS.format(name)}." for name in _UTILS[1:]},
    "utils.create_learning_rate_scheduler": _LEARNING_RATE,
    "partitioning.standard_logical_axis_rules": (
        "the rules are pairs in PjitPartitioner.logical_axis_rules, which has a default for our "
        "networks. Leave it out."
    ),
    "gin_utils.summarize_gin_config": _CONFIG_FILES,
    "seqio.Evaluator": _RESULTS,
    "seqio.JSONLogger": _RESULTS,
    "RestoreCheckpointConfig": _RESTORE,
    "trainer.EarlyStoppingAction": _EARLY,
    "EarlyStoppingAction": _EARLY,
    "infer": _INFER,
}
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
    **{
        f"{each}.{name}": text
        for each, names in _PARAMETERS.items()
        for name, text in names.items()
    },
    **_SYMBOLS,
    **_MACROS,
    **_MODULES,
}
"""Every name of t5x that differs here, and what to write instead."""


def about_macro(name: str) -> str:
    """Return what to write instead of a macro of t5x; "" if t5x has none of this name."""
    return _about(name, _MACROS)


def about_symbol(selector: str) -> str:
    """Return the like for a function or class, with or without its module."""
    first, *rest = selector.split(".")
    return _about(".".join((first, *rest[:1])), _SYMBOLS)


def about_module(name: str) -> str:
    """Return the like for a module."""
    return _about(name, _MODULES)


def about_parameter(owner: str, parameter: str) -> str:
    """Return the like for a parameter that the function or class `owner` lacks."""
    if ours := SYNONYMS.get(f"{owner}.{parameter}"):
        return f"For t5x's {parameter}: write {ours}."
    if owner not in _PARAMETERS:
        return ""
    return _about(parameter, {k: v for each in _PARAMETERS.values() for k, v in each.items()})


def _about(name: str, texts: Mapping[str, str]) -> str:
    return f"For t5x's {name}: {texts[name]}" if name in texts else ""


def without_module(selector: str) -> str:
    """Return `DatasetConfig` for t5x's `utils.DatasetConfig`; other names as they are."""
    module, _, name = selector.rpartition(".")
    return name if module == "utils" and name in _UTILS else selector


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
