"""A model and data that compile quickly, for tests of everything around them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from idode_gin import models
from idode_gin.checkpoints import saving
from idode_gin.devices import partitioning
from idode_gin.encoding import Encoding
from idode_gin.feed import data, loading
from idode_gin.losses import first_order
from idode_gin.networks import base
from idode_gin.parameterizations import velocity
from idode_gin.schedules import variance_preserving
from idode_gin.schedules.time import linear
from idode_gin.time_samplers import uniform
from idode_gin.time_samplers.quantiles import low_discrepancy
from idode_gin.training import optimizers
from idode_gin.training.trainer import Trainer

LEVELS = 17
SHAPE = (4, 4, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AffineNetwork(base.AbstractNetwork):
    """F = z + time-dependent scale and shift of every pixel, through one hidden layer."""

    width: int = 8

    def init(self, key, image_shape):
        size = int(np.prod(image_shape))
        keys = jax.random.split(key, 2)
        return {
            "hidden": {
                "kernel": jax.random.normal(keys[0], (2, self.width)),
                "bias": jnp.zeros(self.width),
            },
            "out": {
                "kernel": 0.1 * jax.random.normal(keys[1], (self.width, 2 * size)),
                "bias": jnp.zeros(2 * size),
            },
        }

    def logical_axes(self, image_shape):
        return {
            "hidden": {
                "kernel": PartitionSpec("features", "hidden"),
                "bias": PartitionSpec("hidden"),
            },
            "out": {
                "kernel": PartitionSpec("hidden", "channels"),
                "bias": PartitionSpec("channels"),
            },
        }

    def __call__(self, params, z, time, conditioning, key=None):
        flat = z.reshape(z.shape[0], -1)
        inputs = jnp.stack([time, conditioning[:, 0]], axis=1)
        hidden = jnp.tanh(inputs @ params["hidden"]["kernel"] + params["hidden"]["bias"])
        scale, shift = jnp.split(hidden @ params["out"]["kernel"] + params["out"]["bias"], 2, 1)
        return (flat * (1 + scale) + shift).reshape(z.shape)


def model(width=8, **changes):
    fields = {
        "network": AffineNetwork(width=width),
        "schedule": variance_preserving.VariancePreserving(),
        "time": linear.Linear(gamma_min=linear.gamma_min_for_levels(LEVELS), gamma_max=5.0),
        "parameterization": velocity.Velocity(),
        "time_sampler": uniform.Uniform(quantiles=low_discrepancy.LowDiscrepancy()),
        "loss": first_order.FirstOrder(),
        "encoding": Encoding(levels=LEVELS),
    }
    return models.DiffusionODE(**(fields | changes))


def split(name="tiny", number=20, seed=0):
    rng = np.random.default_rng(seed)
    images = np.clip(rng.normal(8, 3, (number, *SHAPE)), 0, LEVELS - 1).astype(np.uint8)
    conditioning = np.zeros((number, 1), np.float32)
    return data.ImageSplit(images=images, conditioning=conditioning, name=name, split="train")


def config(batch_size=4, name="tiny", **changes):
    fields = {"mixture_or_task_name": name, "split": "train", "batch_size": batch_size}
    return data.DatasetConfig(**(fields | changes))


def trainer(model_dir, train_steps=6, *, period=2, keep=3, restore=None, **changes):
    fields = {
        "model_dir": str(model_dir),
        "train_steps": train_steps,
        "optimizer": optimizers.AdamW(learning_rate=1e-2, warmup_steps=2),
        "checkpoints": saving.CheckpointConfig(
            save=saving.SaveCheckpointConfig(period=period, keep=keep),
            restore=restore or saving.RestoreCheckpointConfig(),
        ),
        "partitioner": partitioning.PjitPartitioner(),
        "eval_period": 4,
        "log_period": 3,
        "ema_rate": 0.5,
        "tensorboard": False,
    }
    return Trainer(**(fields | changes))


def use_tiny_data(monkeypatch, number=20, seed=0):
    """Make `loading.load_split` return a tiny split, or some of it, without seqio."""

    def load(config):
        whole = split(config.mixture_or_task_name, number, seed)
        return whole.some(config.num_images or number)

    monkeypatch.setattr(loading, "load_split", load)
    monkeypatch.setattr(loading, "check_there", lambda *_: None)
