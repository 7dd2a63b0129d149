"""Compare a run of upstream t5x on `digits` with our own update, on the same batches and keys.

    python -m benchmarks.t5x_parity RUN… [--infer FOLDER] [--eval FOLDER]

RUN is a MODEL_DIR of `t5x.train` with the settings of `benchmarks/results/t5x.md`; t5x must be
installed. The FOLDERs are those of `t5x.infer` and `idode_gin.eval`, on the last checkpoint of the
first RUN, for the second converted to ours.
"""

import argparse
import json
import pathlib
from typing import Any

import jax
import numpy as np
from t5x import utils

from idode_gin import models, types
from idode_gin import train as train_program
from idode_gin.configs import building
from idode_gin.evaluation import pixel_keys, scores
from idode_gin.interop import t5x_checkpoints
from idode_gin.losses.bound import VariationalBound
from idode_gin.reports import fingerprints
from idode_gin.training import optimizers, train_state, train_step
from tasks import digits
from tasks.support.feature_converter import ImageFeatureConverter

STEPS, SIZE, EVERY = 200, 64, 50
OPTIMIZER = optimizers.AdamW(learning_rate=2e-3)
EXEMPT = "attention/key/bias"
"""Softmax cancels it, so its true gradient is zero and Adam follows rounding alone."""
UPDATE = train_step.UpdateConfig(ema_rate=0.99, log_period=1)


def model() -> models.DiffusionODE:
    """Return the model of `gin_configs/experiments/digits.gin`."""
    file = "gin_configs/experiments/digits.gin"
    building.load_and_check(train_program.train, [file], ["MODEL_DIR='unused'"])
    return building.build(train_program.train)["model"]


def trained(ode: models.DiffusionODE) -> types.TrainState:
    """Train by our update, with the batches and keys that t5x's trainer has for seed 0."""
    config = utils.DatasetConfig(
        mixture_or_task_name="digits",
        task_feature_lengths=None,
        split="train",
        batch_size=SIZE,
        shuffle=True,
        seed=0,
    )
    rows = np.arange(SIZE, dtype=np.int32)
    images = utils.get_dataset(config, 0, 1, ImageFeatureConverter).as_numpy_iterator()
    batches = ({**each, "position": rows} for each in images)
    key_init, key_train = jax.random.split(jax.random.PRNGKey(0))
    params = jax.jit(lambda: ode.init(key_init, (8, 8, 1)))()
    shapes = {"image": np.zeros((SIZE, 8, 8, 1), np.uint8), "conditioning": np.zeros((SIZE, 1))}
    placed = {**shapes, "position": rows}
    names = train_step.metric_names(ode.loss_fn, params, placed, key_train)
    state = train_state.create(params, OPTIMIZER.build(), names)
    update = train_step.make_train_step(ode.loss_fn, OPTIMIZER.build(), key_train, UPDATE)
    step = jax.jit(update, donate_argnums=0)
    losses: list[float] = []
    for number, batch in zip(range(1, STEPS + 1), batches, strict=False):
        state, health = step(state, batch)
        losses.append(float(health["loss"]))
        if number % EVERY == 0:
            print(f"ours, steps to {number}: mean loss {np.mean(losses[-EVERY:]):.5f}")
    return state


def compared(name: str, there: Any, here: Any) -> str:
    """Return how many leaves are equal bit for bit, and the largest difference without `EXEMPT`."""
    ours, theirs = (dict(fingerprints.paths_and_leaves(each)) for each in (here, there))
    assert ours.keys() == theirs.keys()
    pairs = {key: (np.asarray(ours[key]), np.asarray(theirs[key])) for key in ours}
    same = sum(a.tobytes() == b.tobytes() for a, b in pairs.values())
    apart = {
        key: float(np.abs(np.float64(a) - np.float64(b)).max()) for key, (a, b) in pairs.items()
    }
    exempt = max((apart.pop(key) for key in list(apart) if key.endswith(EXEMPT)), default=0.0)
    return (
        f"{name}: {same} of {len(pairs)} leaves equal, largest difference "
        f"{max(apart.values()):.2g}, of {EXEMPT} {exempt:.2g}"
    )


def bits_per_dim(ode: models.DiffusionODE, params: types.Params) -> np.ndarray:
    """Return our bound of every test image, with the noise of the adapter, `[N]`."""
    images = jax.numpy.asarray(digits.load_split("test"))
    batch = {"image": images, "conditioning": np.zeros((len(images), 1), np.float32)}
    bound = VariationalBound(num_times=64, time_sampler=ode.bound_sampler)
    score = pixel_keys.by_pixels(scores.of_bound(ode, bound, seed=0))
    return np.asarray(jax.jit(score)(params, batch)["bpd"])


def inferred(folder: pathlib.Path) -> np.ndarray:
    """Return bits per dim from the scores that `t5x.infer` wrote, `[N]`."""
    files = [each for each in folder.glob("*-score.jsonl-*") if each.suffix != ".COMPLETED"]
    rows = [json.loads(line) for each in sorted(files) for line in each.read_text().splitlines()]
    return -np.asarray([row["score"] for row in rows]) / (64 * np.log(2))


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--infer", type=pathlib.Path)
    parser.add_argument("--eval", type=pathlib.Path)
    options = parser.parse_args()
    ode = model()
    here = trained(ode)
    for run in options.runs:
        there = t5x_checkpoints.load(run)
        for part in ("params", "ema", "opt_state"):
            print(compared(f"{run}, {part}", getattr(there, part), getattr(here, part)))
        ours = bits_per_dim(ode, there.params)
        print(f"{run}: our bound on the test split {ours.mean():.7f}")
    if options.infer:
        theirs = np.sort(inferred(options.infer))
        ours = np.sort(bits_per_dim(ode, t5x_checkpoints.load(options.runs[0]).params))
        print(f"t5x.infer: {theirs.mean():.7f}, {len(theirs)} images, ours {ours.mean():.7f}; an")
        print(f"image differs by at most {np.abs(theirs - ours).max():.2g}")
        if options.eval:
            with np.load(options.eval / "results.npz") as found:
                ours = np.sort(found["variational_bound/bpd"])
            print(
                f"idode_gin.eval of the converted checkpoint: {ours.mean():.7f}; an image differs"
            )
            print(f"from t5x.infer by at most {np.abs(theirs - ours).max():.2g}")


if __name__ == "__main__":
    main()
