"""Fields of the loops: compiled programs and the files of a run change with them."""

import functools
import json
import os
import pathlib
import re
from collections.abc import Callable
from typing import Any

import effects
import jax
import numpy as np
import tiny
from effects import Case, Later, Refused, Room
from effects_runtime import stand_in_for_wandb

from idode_gin.checkpoints import saving
from idode_gin.checkpoints.saving import CheckpointConfig, SaveCheckpointConfig
from idode_gin.checkpoints.series import All
from idode_gin.dequantizers.truncated_normal import TruncatedNormal
from idode_gin.dequantizers.uniform import Uniform
from idode_gin.devices.partitioning import PjitPartitioner
from idode_gin.evaluation import pilot_run
from idode_gin.evaluation.classification import Classification
from idode_gin.evaluation.evaluator import Evaluator
from idode_gin.feed import batches, loading
from idode_gin.generation.encoder import Encoder
from idode_gin.generation.interpolator import Interpolator
from idode_gin.generation.sampler import Sampler
from idode_gin.interop.official_evaluation import OfficialParity
from idode_gin.likelihood.ode_likelihood import ODELikelihood
from idode_gin.likelihood.pilot import Pilot, Report
from idode_gin.losses.bound import VariationalBound
from idode_gin.reports.wandb_writer import WandB
from idode_gin.runs import image_loop, run_inputs
from idode_gin.samplers.ode import ODESampler
from idode_gin.solvers.divergence import Exact, Hutchinson
from idode_gin.solvers.fixed_grid import FixedGrid
from idode_gin.solvers.probes import Gaussian
from idode_gin.training import guards, profiling, programs, replays, reporter
from idode_gin.training.early_stopping import EarlyStopping
from idode_gin.training.optimizers import AdamW
from idode_gin.training.trainer import Trainer

MODEL = tiny.model(image_shape=tiny.SHAPE)
STEPS = FixedGrid(steps=2)
ROUNDED = Report("a solver", 0.1, 0.01, 0.0, 0.001, 65, 8, precision_error=0.01)
BAD_STEP = "bad_step_1.npz"


def traced_update(trainer: Trainer, _: Room) -> Any:
    """Return the update that a trainer compiles, and the shardings of its state."""
    there = trainer.partitioner.without_devices()
    batch = run_inputs.blank_batch(MODEL, tiny.SHAPE, 8)
    object.__setattr__(trainer, "partitioner", there)
    made = trainer.program(MODEL, tiny.SHAPE, batch)
    places = [str(leaf.sharding) for leaf in jax.tree.leaves(made.abstract_state)]
    return places, effects.program(made.step, made.abstract_state, batch)


def beginning(trainer: Trainer, _: Room) -> Any:
    """Return the state that a run from scratch starts with."""
    batch = run_inputs.blank_batch(MODEL, tiny.SHAPE, 8)
    return trainer.program(MODEL, tiny.SHAPE, batch).init().params


def prepare_run(room: Room) -> None:
    """Provide data without seqio, no plots, and a bad step to replay."""
    stand_in_for_wandb(room)
    splits = {"train": tiny.split(), "test": tiny.split(seed=1)}
    room.patch.setattr(loading, "load_split", lambda config: splits[config.split])
    for name in ("plot_rows", "_plot_integrand"):
        room.patch.setattr(reporter.Reporter, name, lambda *_: None)
    room.patch.setattr(jax.profiler, "start_trace", os.makedirs)
    room.patch.setattr(jax.profiler, "stop_trace", lambda: None)
    batch = batches.train_batch(tiny.split(), tiny.config(), 0)
    replays.BadStep(step=0, seed=0, batch=batch, health={"loss": 1.0}).write(room.folder / BAD_STEP)


def run_directory(trainer: Trainer, room: Room) -> Any:
    """Return the files of a run and its rows of metrics; of times, only the names."""
    made = small_program()
    room.patch.setattr(Trainer, "program", lambda *_: made)
    trainer.run(MODEL, tiny.config(), tiny.config(8))
    rows = []
    for path in room.folder.glob("*/metrics.jsonl"):
        for row in map(json.loads, path.read_text().splitlines()):
            rows.append({name: "time/" in name or value for name, value in row.items()})
    files = [str(path.relative_to(room.folder)) for path in room.folder.rglob("*")]
    return rows, sorted(
        {re.sub(r"checkpoint_(\d+)/.*|(tfevents).*", r"\1\2", each) for each in files}
    )


@functools.cache
def small_program() -> programs.Program:
    """Return the program of all runs here; it depends on none of the fields that they show."""
    batch = run_inputs.blank_batch(MODEL, tiny.SHAPE, 4)
    return Trainer(**RUN).program(MODEL, tiny.SHAPE, batch)


def with_checkpoint(room: Room) -> None:
    """Provide parameters that depend on the checkpoint and on averaging; data as above."""
    prepare_run(room)

    def load_params(model: Any, shape: Any, path: str, use_ema: bool, *_: Any) -> Any:
        params = model.init(jax.random.key(len(path) + use_ema), shape)
        return saving.RestoredParams(params, 3, pathlib.Path(path), {})

    room.patch.setattr(run_inputs, "load_params", load_params)
    room.patch.setattr(saving, "find", pathlib.Path)


def results(run: Callable[[], Any], room: Room) -> Any:
    """Return the arrays that a loop writes, their paths, and the shapes that were solved."""
    solved: list[str] = []
    compiled = image_loop.compiled

    def watched(compute: Any, *others: Any) -> Any:
        def seen(params: Any, batch: Any) -> Any:
            solved.append(f"{batch['index'].shape}")
            return compute(params, batch)

        inner = compiled(seen, *others)

        def outer(params: Any, batch: Any) -> Any:
            solved.append(f"batch {batch['index'].shape}")
            return inner(params, batch)

        return outer

    room.patch.setattr(image_loop, "compiled", watched)
    run()
    found = {}
    for path in sorted(room.folder.glob("*/*.npz")):
        with np.load(path) as arrays:
            found[str(path.relative_to(room.folder))] = dict(arrays)
    grids = [path.read_bytes() for path in sorted(room.folder.glob("*/**/*.png"))]
    return found, grids, solved


def scored(evaluator: Evaluator, room: Room) -> Any:
    """Return the results of an evaluation, and the solver's error from its summary."""
    found = results(lambda: evaluator.run(MODEL, tiny.config(4, split="test")), room)
    summaries = [json.loads(path.read_text()) for path in room.folder.glob("*/summary.json")]
    return found, [each["tn"]["solver_error"] for each in summaries]


def piloted(pilot: Pilot, _: Room) -> Any:
    """Return what a pilot chooses and measures for a likelihood."""
    estimator = ODELikelihood(dequantizer=TruncatedNormal(), divergence=Exact())
    params = MODEL.init(jax.random.key(0), tiny.SHAPE)
    run = pilot_run.runner(pilot, MODEL, tiny.split(), lambda _: jax.random.key(0), 32)
    found = run(params, "tn", estimator)[1]
    return found.solver, found.error, found.bias, found.reference_evaluations


def drawn(sampler: Sampler, room: Room) -> Any:
    """Return the results of sampling."""
    return results(lambda: sampler.run(MODEL), room)


def encoded(encoder: Encoder, room: Room) -> Any:
    """Return the results of encoding."""
    return results(lambda: encoder.run(MODEL, tiny.config(4)), room)


def interpolated(interpolator: Interpolator, room: Room) -> Any:
    """Return the results of interpolation."""
    return results(lambda: interpolator.run(MODEL, tiny.config(2)), room)


UPDATE = {"model_dir": "run", "train_steps": 8, "gamma_bins": 0}
RUN = {
    "model_dir": "run",
    "train_steps": 3,
    "log_period": 1,
    "eval_period": 2,
    "tensorboard": False,
    "optimizer": AdamW(warmup_steps=0),
}
SCORE = {
    "output_dir": "out",
    "checkpoint_path": "run",
    "likelihoods": {
        "tn": ODELikelihood(dequantizer=TruncatedNormal(), solver=STEPS, divergence=Exact())
    },
    "variational_bound": VariationalBound(num_times=2),
    "solve_size": 2,
}
DRAW = {
    "output_dir": "out",
    "checkpoint_path": "run",
    "method": ODESampler(solver=STEPS),
    "num_samples": 4,
    "batch_size": 4,
    "solve_size": 2,
}
ENCODE = {
    "output_dir": "out",
    "checkpoint_path": "run",
    "method": ODESampler(solver=STEPS),
    "indices": (0, 2, 5, 1),
    "grid_images": 4,
    "solve_size": 2,
}
INTERPOLATE = {
    "output_dir": "out",
    "checkpoint_path": "run",
    "pairs": ((0, 1), (2, 3)),
    "num_points": 3,
    "method": ODESampler(solver=STEPS),
}
UNEVEN = PjitPartitioner(mesh_shape={"data": 3})
CASES: dict[Any, Any] = {
    Trainer: [
        Case(
            traced_update,
            UPDATE,
            {
                "optimizer": AdamW(b1=0.5),
                "partitioner": PjitPartitioner(mesh_shape={"data": 2, "fsdp": 2}),
                "log_period": 7,
                "num_microbatches": 2,
                "ema_rate": 0.5,
                "ema_warmup": True,
                "non_finite": guards.Skip(),
                "loss_spike": guards.LossSpike(),
                "gamma_bins": 4,
            },
        ),
        Case(beginning, UPDATE, {"seed": 1}),
        Case(
            run_directory,
            RUN,
            {
                "model_dir": "elsewhere",
                "train_steps": 4,
                "checkpoints": CheckpointConfig(save=SaveCheckpointConfig(period=1)),
                "eval_period": 1,
                "eval_steps": 1,
                "run_eval_before_training": True,
                "early_stopping": EarlyStopping(patience=1, min_improvement=100.0),
                "tensorboard": True,
                "wandb": Later(lambda: WandB(project="mine")),
                "peak_flops": {"cpu": {"float32": 1e9}},
                "profile": profiling.ProfileWindow(start=0, steps=1),
                "replay": BAD_STEP,
            },
            before=prepare_run,
            is_slow=True,
        ),
    ],
    Evaluator: Case(
        scored,
        SCORE,
        {
            "output_dir": "elsewhere",
            "checkpoint_path": "another run",
            "likelihoods": {
                "tn": ODELikelihood(dequantizer=Uniform(), solver=STEPS, divergence=Exact())
            },
            "variational_bound": VariationalBound(num_times=3),
            "discrete_steps": (4,),
            "checkpoints": Refused(All(), "there is no such directory"),
            "histogram_split": None,
            "use_ema": False,
            "seed": 1,
            "noise_by_pixels": True,
            "solve_size": 4,
            "partitioner": Refused(UNEVEN, "must be the number of devices"),
            "parity": OfficialParity(num_batches=2, batch_size=2),
            "pilot": Pilot(num_images=2, max_steps=16),
            "classification": Refused(Classification(by="x"), "must be the name of a bound"),
        },
        before=with_checkpoint,
        is_slow=True,
    ),
    Classification: Case(
        lambda made, _: (
            made.images(tiny.split()),
            made.posterior(np.zeros((1, 2))),
            made.check(["tn"]),
        ),
        {"by": "tn"},
        {"num_images": 3, "prior": (0.25, 0.75), "by": Refused("x", "must be the name of a bound")},
    ),
    Pilot: [
        Case(
            piloted,
            {"tolerance": 0.01, "num_images": 2, "max_steps": 16},
            {"tolerance": 0.1, "num_images": 3, "max_steps": 32},
            is_slow=True,
        ),
        Case(
            piloted,
            {"tolerance": 0.01, "num_images": 2, "max_steps": 256},
            {"fit_spacing": True},
            is_slow=True,
        ),
        Case(
            lambda made, _: made.check_precision(MODEL, ROUNDED) or "nothing is wrong",
            {"tolerance": 0.1},
            {"precision_tolerance": Refused(1e-3, "must be within 1.0e-03 bits per dim")},
        ),
    ],
    OfficialParity: Case(
        lambda made, _: made.summarize({"tn": {"bpd": np.arange(20.0)}}),
        {"num_batches": 3, "batch_size": 5},
        {"num_batches": 5, "batch_size": 4, "num_skipped": 2, "seed": 1},
    ),
    Sampler: [
        Case(
            drawn,
            DRAW,
            {
                "output_dir": "elsewhere",
                "checkpoint_path": "another run",
                "method": ODESampler(solver=FixedGrid(steps=3)),
                "num_samples": 3,
                "batch_size": 2,
                "grid_images": 2,
                "png_files": False,
                "conditioning": (1.0,),
                "label": Refused(0, "not conditioned on classes"),
                "use_ema": False,
                "seed": 1,
                "return_log_prob": True,
                "solve_size": 4,
                "partitioner": Refused(UNEVEN, "must be the number of devices"),
            },
            before=with_checkpoint,
            is_slow=True,
        ),
        Case(
            drawn,
            {**DRAW, "return_log_prob": True},
            {"divergence": Hutchinson(probe=Gaussian())},
            before=with_checkpoint,
            is_slow=True,
        ),
    ],
    Encoder: Case(
        encoded,
        ENCODE,
        {
            "output_dir": "elsewhere",
            "checkpoint_path": "another run",
            "method": ODESampler(solver=FixedGrid(steps=3)),
            "indices": (3, 1),
            "grid_images": 2,
            "use_ema": False,
            "seed": 1,
            "solve_size": 4,
            "partitioner": Refused(UNEVEN, "must be the number of devices"),
        },
        before=with_checkpoint,
        is_slow=True,
    ),
    Interpolator: Case(
        interpolated,
        INTERPOLATE,
        {
            "output_dir": "elsewhere",
            "checkpoint_path": "another run",
            "pairs": ((0, 1), (3, 2)),
            "num_points": 2,
            "method": ODESampler(solver=FixedGrid(steps=3)),
            "use_ema": False,
            "seed": 1,
            "solve_size": 2,
            "partitioner": Refused(UNEVEN, "must be the number of devices"),
        },
        before=with_checkpoint,
        is_slow=True,
    ),
}
