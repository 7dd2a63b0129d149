"""What a learned gamma(t) is worth: noise of loss and gradient, and the bound.

    python -m benchmarks.schedules [--task=digits] [--only schedules ends objectives]
        [--steps=1000] [--seeds 0 1 2] [--folder=runs/schedules]

Every run trains one network on the task's training images by the same optimizer, for the same
number of steps, on the same batches for a seed: for `digits` the network of `digits.gin`, for
`photo_patches` one of 16 channels and 2 levels, which takes minutes on a CPU.
`schedules` are four densities of gamma for one objective, velocity on the variance-preserving path;
`ends`, with one seed, tell apart what the ends and the interior do; `objectives` are the files of
`gin_configs/objectives` with one seed.

`noise`: 200 further batches at the last parameters, without training. The same images and noise for
every run of a seed. `loss, one` is the variance of an image's loss, `loss, batch` that of the mean
of a batch; `norm` the variance of the gradient's norm divided by its squared mean; `gradient` the
mean of |g - mean g|^2. Gradients are those of the network's parameters alone.

The bound is that of the moving average on the test images, at 64 equally spaced gammas of each
image with one random offset, the same for every run; only learned ends move them. Differences from
the first row are paired by image: their error is that of the mean over images, after the mean over
seeds; `seeds` is the standard deviation of the difference over seeds.

Results are kept in the folder, so that an interrupted benchmark resumes.
"""

import argparse
import dataclasses
import datetime
import functools
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from idode_gin.checkpoints import config as checkpoints
from idode_gin.encoding import Encoding
from idode_gin.feed import batches, data
from idode_gin.losses.bound import VariationalBound
from idode_gin.losses.first_order import FirstOrder
from idode_gin.losses.unweighted import Unweighted
from idode_gin.models import DiffusionODE
from idode_gin.networks.unet import UNet
from idode_gin.parameterizations.noise import Noise
from idode_gin.parameterizations.velocity import Velocity
from idode_gin.runs import run_inputs
from idode_gin.schedules.straight_path import StraightPath
from idode_gin.schedules.time.learned_linear import LearnedLinear
from idode_gin.schedules.time.linear import Linear, gamma_min_for_levels
from idode_gin.schedules.time.linear_beta import LinearBeta
from idode_gin.schedules.time.monotone import Monotone
from idode_gin.schedules.time.straight import Straight
from idode_gin.schedules.time.tabulated import Tabulated
from idode_gin.schedules.variance_preserving import VariancePreserving
from idode_gin.time_samplers.closed_form_importance import VPVelocityImportance
from idode_gin.time_samplers.discrete_steps import DiscreteSteps
from idode_gin.time_samplers.importance import Importance
from idode_gin.time_samplers.uniform import Uniform
from idode_gin.time_samplers.uniform_in_gamma import UniformInGamma
from idode_gin.training.optimizers import AdamW
from idode_gin.training.trainer import Trainer

NOISE_BATCHES, TIMES = 200, 64
VP, SP, FIRST, UNIFORM = VariancePreserving(), StraightPath(), FirstOrder(), Uniform()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A dataset, and the network and optimizer that every run on it has."""

    name: str
    levels: int
    shape: tuple[int, int, int]
    channels: int
    unet_levels: int
    batch: int
    learning_rate: float
    ema_rate: float

    @property
    def ends(self) -> dict[str, Any]:
        """gamma_min and gamma_max before they are learned."""
        return {"gamma_min": gamma_min_for_levels(self.levels), "gamma_max": 5.0}


TASKS = {
    each.name: each
    for each in (
        Task(
            name="digits",
            levels=17,
            shape=(8, 8, 1),
            channels=32,
            unet_levels=3,
            batch=64,
            learning_rate=2e-3,
            ema_rate=0.995,
        ),
        Task(
            name="photo_patches",
            levels=256,
            shape=(32, 32, 3),
            channels=16,
            unet_levels=2,
            batch=16,
            learning_rate=1e-3,
            ema_rate=0.99,
        ),
    )
}


def model_of(
    task: Task, path: Any, parameterization: Any, time: Any, sampler: Any, loss: Any
) -> DiffusionODE:
    return DiffusionODE(
        network=UNet(
            channels=task.channels, levels=task.unet_levels, groups=8, fourier_exponents=()
        ),
        schedule=path,
        time=time,
        parameterization=parameterization,
        time_sampler=sampler,
        loss=loss,
        encoding=Encoding(levels=task.levels),
        image_shape=task.shape,
    )


def cases(task: Task, steps: int) -> dict[str, dict[str, DiffusionODE]]:
    velocity, noise, every = Velocity(), Noise(), max(1, steps // 10)
    ends, model = task.ends, functools.partial(model_of, task)
    linear = Linear(**ends)
    importance = model(VP, velocity, linear, VPVelocityImportance(), FIRST)
    uniform = model(VP, velocity, linear, UNIFORM, FIRST)
    fixed = Tabulated(**ends, adapt_period=every, learn_ends=False)
    return {
        "schedules": {
            "vp_velocity_uniform": uniform,
            "vp_velocity_importance": importance,
            "monotone": model(VP, velocity, Monotone(**ends), UNIFORM, FIRST),
            "tabulated": model(VP, velocity, Tabulated(**ends, adapt_period=every), UNIFORM, FIRST),
        },
        "ends": {
            "vp_velocity_uniform": uniform,
            "importance, learned ends": model(
                VP, velocity, LearnedLinear(**ends), VPVelocityImportance(), FIRST
            ),
            "tabulated, fixed ends": model(VP, velocity, fixed, UNIFORM, FIRST),
        },
        "objectives": {
            "vp_velocity_importance": importance,
            "vp_velocity_uniform": uniform,
            "vp_noise_uniform": model(VP, noise, linear, UNIFORM, FIRST),
            "ddpm": model(VP, noise, LinearBeta(**ends), UNIFORM, Unweighted()),
            "flow_matching": model(SP, velocity, Straight(**ends), UNIFORM, Unweighted()),
            "scoreflow": model(VP, noise, LinearBeta(**ends), UNIFORM, FIRST),
            "sp_velocity_importance": model(SP, velocity, linear, Importance(), FIRST),
            "sp_velocity_uniform": model(SP, velocity, linear, UNIFORM, FIRST),
            "sp_noise_uniform": model(SP, noise, linear, UNIFORM, FIRST),
            "vp_noise_discrete": model(VP, noise, linear, DiscreteSteps(steps=1000), FIRST),
        },
    }


def measured(
    model: DiffusionODE, task: Task, seed: int, steps: int, folder: pathlib.Path
) -> dict[str, Any]:
    """Train, then measure; or return what an earlier run has measured."""
    kept = folder / "measured.json"
    if kept.exists():
        return json.loads(kept.read_text())
    train = data.DatasetConfig(
        mixture_or_task_name=task.name, split="train", batch_size=task.batch, seed=seed
    )
    save = checkpoints.SaveCheckpointConfig(period=steps)
    summary = Trainer(
        model_dir=str(folder),
        train_steps=steps,
        optimizer=AdamW(
            learning_rate=task.learning_rate, b2=0.99, weight_decay=0.01, warmup_steps=100
        ),
        checkpoints=checkpoints.CheckpointConfig(save=save),
        eval_period=None,
        seed=seed,
        ema_rate=task.ema_rate,
        tensorboard=False,
    ).run(model, train)
    found = noise_of(model, params_of(model, task, folder, use_ema=False), train, seed)
    params = params_of(model, task, folder, use_ema=True)
    found |= {
        "images_per_second": summary["images_per_second"],
        "ends": [float(model.at(params).end.gamma_number), model.at(params).gamma_max],
        "bpd": bound_of(model, params, task.name).tolist(),
    }
    kept.write_text(json.dumps(found))
    return found


def params_of(model: DiffusionODE, task: Task, folder: pathlib.Path, *, use_ema: bool) -> Any:
    return run_inputs.load_params(model, task.shape, str(folder), use_ema).params


def noise_of(model: DiffusionODE, params: Any, train: data.DatasetConfig, seed: int) -> dict:
    split = run_inputs.load(train, model)
    key = jax.random.fold_in(jax.random.key(seed), 0x5C4E)
    own = {name: each for name, each in params.items() if name not in model.network_params(params)}

    @jax.jit
    def one(network: Any, batch: Any, number: Any) -> Any:
        def loss(network: Any) -> Any:
            here = jax.random.fold_in(key, number)
            return model.loss_fn({**network, **own}, batch, here)

        (mean, parts), gradient = jax.value_and_grad(loss, has_aux=True)(network)
        flat = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(gradient)])
        return mean, parts["loss"], flat

    network, means, losses, norms = model.network_params(params), [], [], []
    total: Any = 0.0
    squares = 0.0
    for number in range(NOISE_BATCHES):
        batch = batches.train_batch(split, train, number)
        mean, each, gradient = one(network, jax.device_put(batch), number)
        gradient = np.asarray(gradient, np.float64)
        total, squares = total + gradient, squares + gradient @ gradient
        means.append(float(mean))
        losses.append(np.asarray(each))
        norms.append(float(np.sqrt(gradient @ gradient)))
    mean_gradient = total / NOISE_BATCHES
    spread = (squares - NOISE_BATCHES * (mean_gradient @ mean_gradient)) / (NOISE_BATCHES - 1)
    return {
        "loss_one": float(np.var(np.concatenate(losses), ddof=1)),
        "loss_batch": float(np.var(means, ddof=1)),
        "norm": float(np.var(norms, ddof=1) / np.mean(norms) ** 2),
        "gradient": float(spread),
    }


def bound_of(model: DiffusionODE, params: Any, task: str) -> np.ndarray:
    config = data.DatasetConfig(mixture_or_task_name=task, split="test", batch_size=1)
    split = run_inputs.load(config, model)
    estimator, here = VariationalBound(num_times=TIMES, time_sampler=UniformInGamma()), 100
    score = jax.jit(lambda batch: model.bound_fn(params, batch, jax.random.key(7), estimator))
    found = []
    for start in range(0, len(split.images), here):
        rows = slice(start, start + here)
        batch = {
            "image": split.images[rows],
            "conditioning": split.conditioning[rows],
            "index": np.arange(start, start + len(split.images[rows])),
        }
        found.append(np.asarray(score(batch)["bpd"]))
    return np.concatenate(found)


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """One row per case, with the means over seeds."""
    first = np.array([each["bpd"] for each in next(iter(found.values()))])
    rows = [
        "| | loss, one | loss, batch | norm | gradient | ends | bits per dim | difference | error "
        "| seeds |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, runs in found.items():
        bpd = np.array([each["bpd"] for each in runs])
        change = bpd - first
        by_image, by_seed = change.mean(axis=0), change.mean(axis=1)
        error = by_image.std(ddof=1) / np.sqrt(len(by_image))
        spread = f"{by_seed.std(ddof=1):.4f}" if len(runs) > 1 else "-"
        names = ("loss_one", "loss_batch", "norm", "gradient")
        one, batch, norm, gradient = (np.mean([each[k] for each in runs]) for k in names)
        low, high = np.mean([r["ends"] for r in runs], axis=0)
        rows.append(
            f"| {name} | {one:.3f} | {batch:.5f} | {norm:.3f} | {gradient:.2f} | {low:.2f}, "
            f"{high:.2f} | {bpd.mean():.4f} | {by_image.mean():+.4f} | {error:.4f} | {spread} |"
        )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=TASKS, default="digits")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    groups = ("schedules", "ends", "objectives")
    parser.add_argument("--only", nargs="+", choices=groups, default=list(groups))
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("runs/schedules"))
    args = parser.parse_args()
    device, task = jax.devices()[0], TASKS[args.task]
    heading = (
        f"{datetime.date.today()}, jax {jax.__version__}, {device.device_kind}; {task.name}, "
        f"{args.steps} steps of {task.batch} images"
    )
    for group in args.only:
        seeds = args.seeds if group == "schedules" else args.seeds[:1]
        found: dict[str, list[dict[str, Any]]] = {}
        for seed in seeds:
            for name, model in cases(task, args.steps)[group].items():
                own = name.replace(", ", "_").replace(" ", "_")
                folder = args.folder / task.name / f"{own}_{args.steps}_{seed}"
                runs = found.setdefault(name, [])
                runs.append(measured(model, task, seed, args.steps, folder))
                print(f"{name}, seed {seed}: {np.mean(runs[-1]['bpd']):.4f}", flush=True)
        print(f"\n{heading}, seeds {', '.join(map(str, seeds))}\n\n{table(found)}\n", flush=True)


if __name__ == "__main__":
    main()
