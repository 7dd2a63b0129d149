"""A trained network, images, and the noise and probes that all solvers share."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from idode_gin import eval as eval_program
from idode_gin import numerics, ode
from idode_gin.configs import building
from idode_gin.dequantizers.truncated_normal import TruncatedNormal
from idode_gin.models import DiffusionODE
from idode_gin.runs import run_inputs
from idode_gin.solvers.divergence import Hutchinson

DEQUANTIZER = TruncatedNormal()


@dataclasses.dataclass(frozen=True)
class Case:
    """The problem that every solver solves.

    Args:
        model: network and path; gamma(t) as it was learned.
        params: moving averages.
        conditioning: `[B, K + C]`, that of an image and its class.
        z: dequantized images at the clean end, `[B, H, W, C]`.
        probes: one Rademacher vector per image, `[1, B, H, W, C]`.
        about: description of images and network.
    """

    model: DiffusionODE
    params: Any
    conditioning: Any
    z: Any
    probes: Any
    about: str

    @property
    def span(self) -> tuple[float, float]:
        """Gamma at the clean end and at the noise end."""
        return DEQUANTIZER.gamma_start(self.model.end), self.model.gamma_max

    @property
    def count(self) -> int:
        """Number of images."""
        return self.z.shape[0]

    @property
    def dims(self) -> int:
        """Number of dimensions of an image."""
        return numerics.num_dims(self.z)

    def field(self) -> ode.Field:
        """Return the field of these images."""
        return self.model.field(self.params, self.conditioning)

    def bpd(self, log_p: Any) -> np.ndarray:
        """Convert log-densities to bits per dim, without the entropy of the noise."""
        return -np.asarray(log_p, np.float64) / (self.dims * np.log(2))

    def take(self, count: int) -> "Case":
        """Return the first `count` images, repeated if there are fewer."""
        index = np.arange(count) % self.count
        return dataclasses.replace(
            self,
            conditioning=self.conditioning[index],
            z=self.z[index],
            probes=self.probes[:, index],
        )


def load(
    experiment: str, checkpoint: str, count: int, bindings: Sequence[str] = (), seed: int = 0
) -> Case:
    """Load the first `count` images of the experiment's split, and the EMA of the checkpoint."""
    file = f"gin_configs/experiments/{experiment}.gin"
    root = eval_program.evaluate
    here = [f"CHECKPOINT_PATH = {checkpoint!r}", "EVAL_OUTPUT_DIR = 'unused'"]
    building.load_and_check(root, [file], [*here, *bindings])
    built = building.build(root)
    model = built["model"]
    split = run_inputs.load(built["dataset_cfg"], model)
    restored = run_inputs.load_params(model, split.image_shape, checkpoint, use_ema=True)
    model = model.at(restored.params)
    x = jnp.asarray(split.images[:count])
    keys = numerics.fold_in_each(jax.random.key(seed), jnp.arange(len(x)))
    keys_noise, keys_probes = numerics.split_each(keys, 2)
    noise = DEQUANTIZER.draw(keys_noise, split.image_shape, model.end)
    size = "x".join(str(each) for each in split.image_shape)
    return Case(
        model=model,
        params=restored.params,
        conditioning=jnp.asarray(split.conditioning_of(np.arange(len(x)))),
        z=DEQUANTIZER.start(x, noise, model.end),
        probes=Hutchinson().draw(keys_probes, split.image_shape),
        about=f"{len(x)} images of {split.name} / {split.split}, {size}; step {restored.step}",
    )
