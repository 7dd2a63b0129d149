"""Fields of files, data and devices: checkpoints, updates, batches, verdicts and meshes change."""

import atexit
import dataclasses
import functools
import math
import pathlib
import shutil
import sys
import tempfile
import types
from typing import Any

import effects
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tiny
from effects import Case, Refused, Room
from PIL import Image

from idode_gin import checks
from idode_gin.checkpoints import series as checkpoint_series
from idode_gin.checkpoints.saving import (
    CheckpointConfig,
    Checkpoints,
    RestoreCheckpointConfig,
    SaveCheckpointConfig,
)
from idode_gin.checkpoints.series import Watch
from idode_gin.devices import partitioning
from idode_gin.devices.partitioning import PjitPartitioner
from idode_gin.feed import batches, loading
from idode_gin.feed.augmentation import Augmentation, BitPerKind
from idode_gin.feed.data import DatasetConfig, ImageSplit
from idode_gin.reports.wandb_writer import WandB
from idode_gin.training import guards, profiling, train_state
from idode_gin.training.early_stopping import EarlyStopping
from idode_gin.training.optimizers import AdamW
from idode_gin.types import TrainState

SAVED_STEPS = [2, 4, 6, 8, 10, 12]


def updates(optimizer: AdamW, _: Room) -> str:
    """Return parameters after two updates."""
    transformation = optimizer.build()

    def updated(params: Any, gradient: Any) -> Any:
        state = transformation.init(params)
        for _ in range(2):
            change, state = transformation.update(gradient, state, params)
            params = optax.apply_updates(params, change)
        return params

    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    return effects.program(updated, params, params)


def placed(partitioner: PjitPartitioner, _: Room) -> Any:
    """Return the mesh, and the shardings of a network's parameters."""
    there = partitioner.without_devices()
    network = tiny.AffineNetwork()
    params = jax.eval_shape(lambda: network.init(jax.random.key(0), tiny.SHAPE))
    shardings = there.param_sharding(params, network.logical_axes(tiny.SHAPE))
    return there.shown, [str(each.spec) for each in jax.tree.leaves(shardings)]


def kept(config: SaveCheckpointConfig, room: Room) -> Any:
    """Return which steps are saved, and which saved steps are deleted; step 6 is the best."""
    saved = Checkpoints(room.folder, CheckpointConfig(save=config), {})
    doomed = config.doomed(SAVED_STEPS, lambda step: (abs(step - 6.0), 8))
    return [saved.is_due(step) for step in range(13)], np.asarray(doomed)


def state_of(step: int) -> TrainState:
    """Return a state as after `step` steps of training, every leaf different."""
    params = {"a": jnp.full(2, 1.0 + step), "b": jnp.full(3, 2.0 + step)}
    state = train_state.create(params, AdamW().build(), ("loss",))
    ema, opt_state = jax.tree.map(lambda leaf: leaf + step, (state.params, state.opt_state))
    return dataclasses.replace(state, step=jnp.int32(step), ema=ema, opt_state=opt_state)


def lasting_folder() -> pathlib.Path:
    """Return a folder that exists until this process ends."""
    folder = tempfile.mkdtemp(prefix="idode_gin_effects_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return pathlib.Path(folder)


@functools.cache
def runs() -> pathlib.Path:
    """Return a folder that holds two runs, `one` and `two`, with a checkpoint each."""
    folder = lasting_folder()
    for step, name in enumerate(("one", "two"), 3):
        with Checkpoints(folder / name, CheckpointConfig(), {}) as saved:
            saved.save(state_of(step))
    return folder


def restored(config: RestoreCheckpointConfig, room: Room) -> Any:
    """Return the state that a new run starts from."""
    room.patch.chdir(runs())
    fresh = state_of(0)
    sharding = PjitPartitioner().state_sharding(fresh)
    with Checkpoints(room.folder, CheckpointConfig(restore=config), {}) as saved:
        state, _ = saved.restore(partitioning.abstract(fresh, sharding), lambda: fresh)
    return state


def saved_and_restored(config: CheckpointConfig, room: Room) -> Any:
    """Return the results of `kept` and `restored`."""
    return kept(config.save, room), restored(config.restore, room)


@functools.cache
def own_images() -> pathlib.Path:
    """Return a folder with two folders of a few small images, `one` and `two`."""
    folder = lasting_folder()
    rng = np.random.default_rng(0)
    for place in ("one/train", "one/test", "two/train"):
        (folder / place).mkdir(parents=True)
        for number in range(6):
            pixels = rng.integers(0, 256, (4, 4, 3), np.uint8)
            Image.fromarray(pixels).save(folder / place / f"{number}.png")
    return folder


def fed(config: DatasetConfig, room: Room) -> Any:
    """Return two batches, whether images are memory-mapped, and files cached in the folder."""
    room.patch.setenv("IDODE_CACHE_DIR", str(room.folder / "usual"))
    room.patch.chdir(own_images())
    split = loading.load_split(config)
    is_mapped, base = False, split.images
    while base is not None and not is_mapped:
        is_mapped, base = isinstance(base, np.memmap), getattr(base, "base", None)
    room.patch.chdir(room.folder)
    folders = sorted(each.name for each in room.folder.iterdir())
    return [batches.train_batch(split, config, step) for step in (0, 1)], is_mapped, folders


def augmented(made: Augmentation, _: Room) -> Any:
    """Return a batch of training images with their conditioning."""
    images = np.arange(16 * 48, dtype=np.int32).reshape(16, 4, 4, 3)
    nothing = np.zeros((16, 1), np.float32)
    split = ImageSplit(images=images, conditioning=nothing, name="n", split="s", augmentation=made)
    return batches.train_batch(split, tiny.config(16), 0)


def pauses(series: Watch, room: Room) -> Any:
    """Return how long, and how often, the series waits for an empty directory."""
    seen: list[float] = []
    room.patch.setattr(checkpoint_series, "_wait", lambda seconds, _: seen.append(seconds))
    return [*series.each(str(room.folder), lambda _: False), *seen]


def verdicts(rules: guards.Guards, losses: list[float]) -> Any:
    """Return the verdict on each step and whether it is skipped, until the run stops."""
    state, watch, seen = guards.fresh(), guards.Watch(rules, look_ahead=0, say=lambda _: None), []
    for step, loss in enumerate(losses):
        skip, state, health = guards.judge(rules, state, jnp.float32(loss), jnp.float32(1))
        seen.append((bool(skip), int(health["verdict"])))
        loss_and_norms = {"loss": loss, "grad_norm": 1.0, "param_norm": 1.0}
        try:
            watch.push(step, {**health, **loss_and_norms})
        except checks.NonFiniteError:
            break
    return seen


def after_skips(rule: guards.Skip, _: Room) -> Any:
    """Return the verdicts on losses that are NaN twice in a row, and later now and then."""
    nan = math.nan
    return verdicts(guards.Guards(non_finite=rule), [nan, nan, 1, nan, 1, nan, 1, nan])


def after_spikes(rule: guards.LossSpike, _: Room) -> Any:
    """Return the verdicts on losses that fall, jump, and jump higher."""
    return verdicts(guards.Guards(loss_spike=rule), [2, 1, 1, 1, 1, 3.4, 1, 1, 1, 30, 1])


def traced(window: profiling.ProfileWindow, room: Room) -> Any:
    """Return the steps between which a trace runs."""
    events: list[str] = []
    room.patch.setattr(jax.profiler, "start_trace", lambda _: events.append("start"))
    room.patch.setattr(jax.profiler, "stop_trace", lambda: events.append("stop"))
    profiler = profiling.Profiler(window, room.folder, lambda _: None)
    for step in range(20):
        profiler.before(step)
        events.append(str(step))
        profiler.after(step + 1, ())
    return events


def stand_in_for_wandb(room: Room) -> None:
    """Install a module `wandb` whose `init` writes its arguments to a file."""

    def init(**given: Any) -> Any:
        told = [f"{name}: {given[name]}" for name in ("project", "entity", "name")]
        (room.folder / "told.txt").write_text("\n".join(told))
        return types.SimpleNamespace(
            define_metric=lambda *_, **__: None, log=lambda _: None, finish=lambda: None
        )

    module = types.ModuleType("wandb")
    module.init = init  # type: ignore[attr-defined]
    room.patch.setitem(sys.modules, "wandb", module)


def logged(made: WandB, room: Room) -> str:
    """Return the arguments that Weights & Biases gets for a run."""
    made.open(room.folder / "run", {})
    return (room.folder / "told.txt").read_text()


CASES = {
    Watch: Case(pauses, {"period": 2.0, "timeout": 5.0}, {"period": 1.0, "timeout": 4.0}),
    AdamW: Case(
        updates,
        {"learning_rate": 0.1, "warmup_steps": 2},
        {
            "learning_rate": 0.2,
            "b1": 0.5,
            "b2": 0.5,
            "eps": 1.0,
            "weight_decay": 0.5,
            "warmup_steps": 1,
            "decay_steps": 3,
            "clip_norm": 0.1,
            "accumulation_steps": 2,
        },
    ),
    PjitPartitioner: Case(
        placed,
        {"mesh_shape": {"data": 2, "fsdp": 2}},
        {
            "num_partitions": 2,
            "mesh_shape": {"data": 2, "fsdp": 4},
            "dcn_mesh_shape": {"data": 2},
            "logical_axis_rules": (("hidden", "fsdp"),),
        },
    ),
    SaveCheckpointConfig: Case(
        kept,
        {"period": 2, "keep": 1},
        {
            "period": 3,
            "checkpoint_steps": (4, 5),
            "keep": 2,
            "keep_period": 4,
            "keep_best": 1,
        },
    ),
    RestoreCheckpointConfig: Case(
        restored,
        {"path": "one"},
        {
            "path": "two",
            "mode": Refused("specific", "requires a checkpoint directory"),
            "params": "reset",
            "ema": "reset",
            "optimizer": "reset",
            "step": "reset",
            "rules": {"params/a": "reset"},
        },
    ),
    CheckpointConfig: Case(
        saved_and_restored,
        {},
        {"save": SaveCheckpointConfig(period=2), "restore": RestoreCheckpointConfig(path="one")},
    ),
    DatasetConfig: Case(
        fed,
        {
            "mixture_or_task_name": "image_folder",
            "data_path": "one",
            "split": "train",
            "batch_size": 4,
        },
        {
            "mixture_or_task_name": Refused("digits", "reads no files of yours"),
            "split": "test",
            "batch_size": 3,
            "shuffle": False,
            "seed": 1,
            "use_cached": Refused(True, "cannot be cached by seqio"),
            "module": Refused("no_such_module", "importable module"),
            "data_path": "two",
            "augmentation": Augmentation(),
            "cache_dir": "",
            "memory_map": False,
            "num_images": 2,
            "fingerprint": Refused("0" * 16, "must have fingerprint="),
        },
    ),
    Augmentation: Case(
        augmented, {}, {"flip": False, "rotation": False, "channels": True, "bits": BitPerKind()}
    ),
    guards.Skip: Case(
        after_skips,
        {"max_consecutive": 2, "max_total": 4},
        {"max_consecutive": 1, "max_total": 3},
    ),
    EarlyStopping: Case(
        lambda rule, _: (
            [rule.message([{"eval/bpd": each}] * 3) for each in (3.0, 2.0)]
            + [rule.since_best([3.0, 2.95])[0]]
        ),
        {"patience": 2},
        {"patience": 3, "min_improvement": 0.1},
    ),
    guards.LossSpike: Case(
        after_spikes,
        {"rate": 0.5, "warmup_steps": 1, "then": guards.Skip()},
        {"factor": 6.0, "rate": 0.9, "warmup_steps": 7, "then": guards.Stop()},
    ),
    WandB: Case(
        logged,
        {"project": "mine"},
        {"project": "yours", "entity": "us", "name": "first"},
        before=stand_in_for_wandb,
    ),
    profiling.ProfileWindow: Case(traced, {}, {"start": 4, "steps": 3}),
}
