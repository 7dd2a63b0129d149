"""Train a diffusion ODE, or resume training from its run directory.

    python -m idode_gin.train --gin_file=gin_configs/experiments/digits.gin

The command line can set any macro or parameter of the gin files; text needs quotes of its own:

    --gin.TRAIN_STEPS=100 --gin.MODEL_DIR="'runs/a'" --gin.Trainer.num_microbatches=2
"""

if __name__ == "__main__":  # above the imports, so that --help answers at once
    from idode_gin.configs import programs

    programs.main("idode_gin.train", "train", __doc__)

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import optax

from idode_gin import checks
from idode_gin.checkpoints import files, steps_left
from idode_gin.checkpoints.saving import CheckpointConfig
from idode_gin.configs import building, outputs
from idode_gin.devices import compilation_cache
from idode_gin.devices.partitioning import PjitPartitioner
from idode_gin.feed.data import DatasetConfig
from idode_gin.models import DiffusionODE
from idode_gin.processes import agreement
from idode_gin.reports import paths
from idode_gin.reports.paths import StoredPath
from idode_gin.training.optimizers import AdamW
from idode_gin.training.trainer import Trainer


def train(
    *,
    model: DiffusionODE,
    model_dir: StoredPath,
    train_dataset_cfg: DatasetConfig,
    train_eval_dataset_cfg: DatasetConfig | None,
    checkpoint_cfg: CheckpointConfig,
    optimizer: AdamW | optax.GradientTransformation,
    partitioner: PjitPartitioner,
    total_steps: int,
    eval_period: int | None,
    eval_steps: int | None,
    random_seed: int,
    relative_steps: int | None = None,
    run_eval_before_training: bool = False,
    trainer_cls: Callable[..., Trainer] = Trainer,
    compilation_cache_dir: StoredPath | None = None,
    dry_run: bool | str = False,
) -> str | None:
    """Train `model`. The parameters have t5x's names.

    Args:
        model: the model to train.
        model_dir: run directory, for everything that is written.
        train_dataset_cfg: images to train on.
        train_eval_dataset_cfg: images to evaluate on during training; None for no evaluation.
        checkpoint_cfg: when to save, what to restore.
        optimizer: an `AdamW`, or any optax transformation.
        partitioner: places arrays on devices.
        total_steps: step at which training ends.
        eval_period: steps between evaluations; None evaluates at the end only.
        eval_steps: batches of one evaluation, of images spread evenly over the split; None takes
            the whole split.
        random_seed: seed of initial parameters and noise.
        relative_steps: steps to train after the step that the run starts at, which a warm start
            takes from its checkpoint; `total_steps` is then ignored. A run that is resumed ends at
            the same step.
        run_eval_before_training: evaluate what the run starts from as well.
        trainer_cls: builds the `Trainer`; gin binds its other parameters.
        compilation_cache_dir: see `compilation_cache.use`.
        dry_run: only print what would be done, "full" in full. Set by the flag --dry_run.

    Returns:
        The run directory; None if nothing was to be trained.
    """
    if not dry_run:
        outputs.check_agreement()  # before anything is written
        checkpoint_cfg = _with_one_start(checkpoint_cfg, model_dir, relative_steps)
    restore = checkpoint_cfg.restore
    last_step = steps_left.last_step(model_dir, restore, total_steps, relative_steps)
    if relative_steps is not None:
        print(
            f"Training ends at step {last_step}: TRAIN_STEPS_RELATIVE = {relative_steps} replaces "
            "TRAIN_STEPS."
        )
    trainer = _built(
        trainer_cls,
        model_dir=model_dir,
        train_steps=last_step,
        optimizer=optimizer,
        checkpoints=checkpoint_cfg,
        partitioner=partitioner,
        eval_period=eval_period,
        eval_steps=eval_steps,
        seed=random_seed,
        run_eval_before_training=run_eval_before_training,
    )
    outputs.check_folder(model_dir, "train", "MODEL_DIR")
    files.described(
        files.newest_first(model_dir)
    )  # refuses those of others before a file is written
    if dry_run:
        datasets = train_dataset_cfg, train_eval_dataset_cfg
        print(trainer.dry_run(model, *datasets, full=dry_run == "full"))
        return None
    compilation_cache.use(compilation_cache_dir)
    try:
        datasets = train_dataset_cfg, train_eval_dataset_cfg
        trainer.run(model, *datasets, begin=lambda: _held(model_dir))
    except checks.Preempted as stopped:
        raise checks.Preempted(str(stopped), run=model_dir) from stopped
    return None if trainer.replay else model_dir


def _built(trainer_cls: Callable[..., Trainer], **fields: Any) -> Trainer:
    """Return the trainer; its other fields are those that gin binds."""
    building.refuse_bindings(Trainer, fields, "`train` passes its own value of it")
    return trainer_cls(**fields)


def _with_one_start(
    checkpoint_cfg: CheckpointConfig, model_dir: str, relative_steps: int | None
) -> CheckpointConfig:
    """Return the config in which steps are counted from the checkpoint that is restored."""
    if relative_steps is None:
        return checkpoint_cfg
    restore = steps_left.settled(model_dir, checkpoint_cfg.restore)
    return dataclasses.replace(checkpoint_cfg, restore=restore)


@contextlib.contextmanager
def _held(model_dir: str) -> Iterator[Callable[[], None]]:
    """Hold the run directory, which all processes must see; what is yielded writes its configs."""
    with outputs.held(model_dir, "MODEL_DIR") as write:
        agreement.check_shared(paths.of(model_dir) / "config.gin", "MODEL_DIR")
        yield write
