"""Parameters of the programs: each changes the arguments of the loop, or what else is done."""

import functools
import pathlib
from collections.abc import Callable

import tiny
from effects import Case, Room
from effects_loops import DRAW, ENCODE, INTERPOLATE, MODEL, SCORE

from idode_gin import encode as encode_program
from idode_gin import eval as eval_program
from idode_gin import interpolate as interpolate_program
from idode_gin import sample as sample_program
from idode_gin import train as train_program
from idode_gin.checkpoints import saving
from idode_gin.checkpoints.saving import CheckpointConfig, SaveCheckpointConfig
from idode_gin.configs import building, outputs
from idode_gin.devices import compilation_cache
from idode_gin.devices.partitioning import PjitPartitioner
from idode_gin.evaluation.evaluator import Evaluator
from idode_gin.generation.encoder import Encoder
from idode_gin.generation.interpolator import Interpolator
from idode_gin.generation.sampler import Sampler
from idode_gin.processes import agreement
from idode_gin.training.optimizers import AdamW
from idode_gin.training.trainer import Trainer


def passed_on(program: Callable[[], None], room: Room) -> str:
    """Return the arguments that a program passes to its loop, and what else it does.

    `effects_loops` shows the effect of those arguments.
    """
    told: list[str] = []
    for loop in (Trainer, Evaluator, Sampler, Encoder, Interpolator):
        for method in ("run", "dry_run"):
            room.patch.setattr(
                loop, method, lambda *given, n=method, **_: told.append(f"{n} {given}")
            )
    room.patch.setattr(building, "refuse_bindings", lambda *_: None)
    room.patch.setattr(outputs, "_write", lambda *_: None)
    room.patch.setattr(saving, "find", pathlib.Path)
    room.patch.setattr(agreement, "check_shared", lambda *_: None)
    room.patch.setattr(compilation_cache, "use", lambda folder: told.append(f"cache {folder}"))
    program()
    return "\n".join(told)


CASES = {
    train_program.train: Case(
        passed_on,
        {
            "model": MODEL,
            "model_dir": "run",
            "train_dataset_cfg": tiny.config(),
            "train_eval_dataset_cfg": None,
            "checkpoint_cfg": CheckpointConfig(),
            "optimizer": AdamW(),
            "partitioner": PjitPartitioner(),
            "total_steps": 5,
            "eval_period": 2,
            "eval_steps": 2,
            "random_seed": 0,
        },
        {
            "model": tiny.model(width=5),
            "model_dir": "elsewhere",
            "train_dataset_cfg": tiny.config(2),
            "train_eval_dataset_cfg": tiny.config(),
            "checkpoint_cfg": CheckpointConfig(save=SaveCheckpointConfig(period=1)),
            "optimizer": AdamW(b1=0.5),
            "partitioner": PjitPartitioner(mesh_shape={"fsdp": -1}),
            "total_steps": 6,
            "eval_period": 3,
            "eval_steps": 3,
            "random_seed": 1,
            "relative_steps": 7,
            "run_eval_before_training": True,
            "trainer_cls": functools.partial(Trainer, num_microbatches=2),
            "compilation_cache_dir": "cache",
            "dry_run": True,
        },
    ),
    eval_program.evaluate: Case(
        passed_on,
        {"model": MODEL, "dataset_cfg": tiny.config(), "evaluator": Evaluator(**SCORE)},
        {
            "model": tiny.model(width=5),
            "dataset_cfg": tiny.config(2),
            "evaluator": Evaluator(**SCORE, seed=1),
            "compilation_cache_dir": "cache",
            "dry_run": True,
        },
    ),
    sample_program.sample: Case(
        passed_on,
        {"model": MODEL, "sampler": Sampler(**DRAW)},
        {
            "model": tiny.model(width=5),
            "sampler": Sampler(**DRAW, seed=1),
            "compilation_cache_dir": "cache",
            "dry_run": True,
        },
    ),
    encode_program.encode: Case(
        passed_on,
        {"model": MODEL, "dataset_cfg": tiny.config(), "encoder": Encoder(**ENCODE)},
        {
            "model": tiny.model(width=5),
            "dataset_cfg": tiny.config(2),
            "encoder": Encoder(**ENCODE, seed=1),
            "compilation_cache_dir": "cache",
            "dry_run": True,
        },
    ),
    interpolate_program.interpolate: Case(
        passed_on,
        {"model": MODEL, "dataset_cfg": tiny.config(), "interpolator": Interpolator(**INTERPOLATE)},
        {
            "model": tiny.model(width=5),
            "dataset_cfg": tiny.config(2),
            "interpolator": Interpolator(**INTERPOLATE, seed=1),
            "compilation_cache_dir": "cache",
            "dry_run": True,
        },
    ),
}
