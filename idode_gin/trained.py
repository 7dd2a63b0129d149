"""A trained model in Python, as `idode_gin.load("runs/a")` returns it.

    trained = idode_gin.load("runs/a")
    scored = trained.bits_per_dim(images)  # integers [N, H, W, C]
    print(scored.mean, "±", scored.standard_error, "solver:", scored.solver_error)
    pixels = trained.sample(16, jax.random.key(1))

Figures, samples and latents are those of the programs, bit for bit, for the same checkpoint,
images, places in the split, key and devices.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from idode_gin import checks, numerics, types
from idode_gin.devices.partitioning import PjitPartitioner
from idode_gin.evaluation import bits_per_dim
from idode_gin.evaluation.bits_per_dim import BitsPerDim, Bound
from idode_gin.feed import data, labels, loading, quiet
from idode_gin.models import DiffusionODE
from idode_gin.runs import image_loop, in_memory, run_inputs
from idode_gin.runs.in_memory import Seed
from idode_gin.samplers.base import AbstractDeterministicSampler, AbstractSampler, Samples
from idode_gin.samplers.ode import ODESampler, check_images_alone
from idode_gin.solvers.base import AbstractSolver, all_finite

Label: TypeAlias = int | Sequence[int] | np.ndarray | None
"""A class for all images, or one for each; None for a model without classes."""
_ODE = ODESampler()


@final
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class TrainedModel:
    """A model with its parameters, on all devices of this process. `load` and `wrap` make one.

    Images are integers `[N, H, W, C]` in 0 … V-1. Random numbers of an image depend on `key` and on
    its `index` alone: its place in a split, 0 … N-1 if not given. `conditioning` is `[N, K]`, zeros
    if not given. A model that is conditioned on classes needs the `label` of each image, an integer
    in 0 … C-1; or a `conditioning` `[N, K + C]`, whose last numbers are weights of the classes.
    Each combination of method, bound and solver is compiled once.

    Args:
        model: network, path, meaning of the output, levels; gamma(t) as it was learned.
        params: of the network and of gamma(t), replicated over the devices.
        partitioner: devices.
        config: macros and parameters of the training configuration, as gin writes them.
        step: training step of the parameters; None for a function of the caller's.
        path: of the checkpoint; likewise.
        class_names: name of each class that the model is conditioned on; empty if they have none.
        dataset: task of the run, its split `test`; None for a function of the caller's.
    """

    model: DiffusionODE
    params: types.Params
    partitioner: PjitPartitioner
    config: Mapping[str, str] = dataclasses.field(default_factory=dict)
    step: int | None = None
    path: pathlib.Path | None = None
    class_names: tuple[str, ...] = ()
    dataset: data.DatasetConfig | None = None

    def __repr__(self) -> str:
        shape, source = " x ".join(map(str, self.image_shape)), self.path or "a function"
        count = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        return (
            f"TrainedModel({source}, {shape}, {self.model.encoding.levels} levels, "
            f"{count:,} parameters)"
        )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        assert self.model.image_shape is not None  # `load` checks it
        height, width, channels = self.model.image_shape
        return height, width, channels

    def images(self, split: str = "test", *, tfds_data_dir: str | None = None) -> np.ndarray:
        """Return all images of a split of the run's task, integers `[N, H, W, C]`, in its order.

        Args:
            split: such as `train`.
            tfds_data_dir: as the flag `--tfds_data_dir` of the programs.

        Raises:
            ValueError: for an unknown split, data that cannot be read, or no run.
        """
        return loading.load_split(self._dataset(split, tfds_data_dir)).images

    def labels(self, split: str = "test", *, tfds_data_dir: str | None = None) -> np.ndarray:
        """Return the class of each of `images`, integers `[N]`; arguments as there.

        Raises:
            ValueError: as `images`, or if the model is not conditioned on classes.
        """
        dataset, count = self._dataset(split, tfds_data_dir), self.model.num_classes
        if not count:
            raise ValueError(f"{self} is not conditioned on classes, so it takes no labels.")
        found, what = loading.load_labels(dataset, count), f"{dataset.mixture_or_task_name}/{split}"
        return labels.check(found, count, 0 if found is None else len(found), what)

    def log_prob(self, images: np.ndarray, **options: Any) -> np.ndarray:
        """Return a lower bound on log P(x), nats, `[N]`; arguments as in `bits_per_dim`."""
        return self.bits_per_dim(images, **options).log_prob

    def bits_per_dim(
        self,
        images: np.ndarray,
        *,
        bound: Bound = "truncated_normal",
        tolerance: float | None = 1e-3,
        solver: AbstractSolver | None = None,
        key: Seed = None,
        index: np.ndarray | None = None,
        conditioning: np.ndarray | None = None,
        label: Label = None,
    ) -> BitsPerDim:
        """Score images, as `idode_gin.eval` does.

        Args:
            images: integers `[N, H, W, C]`.
            bound: `truncated_normal`, `uniform`, `variational` (ODE likelihoods by dequantizer), an
                `ODELikelihood` of your own; `variational_bound` or an `AbstractBound`, which solve
                no ODE.
            tolerance: largest solver error, bits per dim. A pilot on 16 of the images chooses the
                steps, or measures the error of `solver`. None measures nothing.
            solver: solver of the ODE; None leaves the choice to the pilot.
            key: see `in_memory.Seed`.
            index: places in the split, `[N]`, which key the noise; give them if you score in parts.
            conditioning: `[N, K]`.
            label: class of each image, `[N]`, or of all.

        Raises:
            ValueError: for images that do not fit the model, or an unknown bound.
            checks.NonFiniteError: if a solve failed.
        """
        batch = self._batch(images, index, conditioning, label)
        return bits_per_dim.score(
            self.model,
            self._memory,
            batch,
            in_memory.key_of(key),
            bound=bound,
            tolerance=tolerance,
            solver=solver,
        )

    def sample(
        self,
        n: int,
        key: Seed = None,
        *,
        method: AbstractSampler = _ODE,
        first: int = 0,
        conditioning: np.ndarray | None = None,
        label: Label = None,
    ) -> np.ndarray:
        """Draw n images, integers `[n, H, W, C]`, as `idode_gin.sample` does.

        Args:
            n: number of images.
            key: see `in_memory.Seed`.
            method: takes noise to images.
            first: index of the first image; images of other indices are others.
            conditioning: `[n, K]`.
            label: class of each image, `[n]`, or of all; None takes all classes in turn.

        Raises:
            ValueError: if `method` computes a density too, which is not returned.
            checks.NonFiniteError: if a solve failed.
        """
        checks.check_integer("n", n, at_least=1)
        checks.check_places("first", np.arange(first, first + n), n)
        check_images_alone(method)
        batch = {"index": np.arange(first, first + n, dtype=np.int32)}
        if label is None and self._is_short(conditioning):
            label = run_inputs.labels_for(self.model, batch["index"], None)
        batch["conditioning"] = self._conditioning(conditioning, n, label)

        def sample(
            given: types.Params, batch: types.Batch, key: types.PRNGKey
        ) -> Mapping[str, Array]:
            return self._levels(self.model.sample_fn(given["network"], batch, key, method))

        found = self._memory.run("drawing samples", (method,), sample, batch, key)
        image_loop.check_solved(found["success"], "samples")
        return found["levels"]

    def encode(
        self,
        images: np.ndarray,
        key: Seed = None,
        *,
        method: ODESampler = _ODE,
        index: np.ndarray | None = None,
        conditioning: np.ndarray | None = None,
        label: Label = None,
    ) -> np.ndarray:
        """Return the noise that decodes to the images, `[N, H, W, C]`, as `idode_gin.encode` does.

        Args:
            images: integers `[N, H, W, C]`.
            key: of the position within its bin at which a pixel starts; see `in_memory.Seed`.
            method: the ODE's solver.
            index: places in the split, `[N]`.
            conditioning: `[N, K]`.
            label: class of each image, `[N]`, or of all.

        Raises:
            checks.NonFiniteError: if a solve failed.
        """

        def encode(
            given: types.Params, batch: types.Batch, key: types.PRNGKey
        ) -> Mapping[str, Array]:
            found = self.model.encode_fn(given["network"], batch, key, method)
            return {"noise": found.noise, "success": found.success & all_finite(found.noise)}

        checks.check_kind("method", method, ODESampler)
        batch = self._batch(images, index, conditioning, label)
        found = self._memory.run("encoding images", (method,), encode, batch, key)
        image_loop.check_solved(found["success"], "images")
        return found["noise"]

    def decode(
        self,
        noise: np.ndarray,
        *,
        method: AbstractDeterministicSampler = _ODE,
        conditioning: np.ndarray | None = None,
        label: Label = None,
    ) -> np.ndarray:
        """Return the images, integers `[N, H, W, C]`, that noise decodes to.

        Args:
            noise: standard normal, or from `encode`; `[N, H, W, C]`.
            method: takes noise to images.
            conditioning: `[N, K]`.
            label: class of each image, `[N]`, or of all.

        Raises:
            checks.NonFiniteError: if a solve failed.
        """
        checks.check_kind("method", method, AbstractDeterministicSampler)
        noise = np.asarray(noise, numerics.float_dtype())
        self._check_shape("noise", noise)

        def decode(
            given: types.Params, batch: types.Batch, key: types.PRNGKey
        ) -> Mapping[str, Array]:
            return self._levels(self.model.decode_fn(given["network"], batch, method))

        given = self._conditioning(conditioning, len(noise), label)
        batch = {"noise": noise, "conditioning": given}
        found = self._memory.run("decoding latents", (method,), decode, batch, None)
        image_loop.check_solved(found["success"], "latents")
        return found["levels"]

    def field(
        self,
        z: Array,
        gamma: Array,
        conditioning: Array | None = None,
        *,
        params: types.Params | None = None,
    ) -> Array:
        """Return the network's output: a plain function for `likelihood.log_prob`, and for jax.

            likelihood.log_prob(trained.field, x, key, **trained.field_options)

        Args:
            z: latents `[B, H, W, C]`; x of `log_prob` is `trained.model.encoding.encode(images)`.
            gamma: log(sigma^2 / alpha^2), `[B]`.
            conditioning: `[B, K]`; with classes `[B, K + C]`, which is needed then.
                `args=(conditioning,)` of `log_prob`.
            params: used in place of those of this model, to differentiate by them. Inside
                `jax.jit`, pass them through its arguments: otherwise they become constants of the
                compiled program.

        Raises:
            ValueError: without `conditioning`, if the model has classes.
        """
        if conditioning is None and self.model.num_classes:
            size = self.model.conditioning_size
            raise ValueError(
                f"A field of a model with classes needs `conditioning` [B, {size}], whose last "
                f"{self.model.num_classes} numbers are 1 for the class of the image and 0 for the "
                "others. `log_prob` passes it on as args=(conditioning,)."
            )
        if conditioning is None:
            conditioning = jnp.asarray(self._conditioning(None, z.shape[0], None), z.dtype)
        time = self.model.time.rescale(gamma)
        params = self.model.network_params(self._local_params if params is None else params)
        return self.model.network(params, z, time, conditioning)

    @property
    def field_options(self) -> dict[str, Any]:
        """Arguments of `likelihood.log_prob` that give the meaning of `field`, and its range."""
        return {
            "schedule": self.model.schedule,
            "parameterization": self.model.parameterization,
            "gamma_min": self.model.end.gamma_number,
            "gamma_max": self.model.gamma_max,
        }

    @functools.cached_property
    def _memory(self) -> in_memory.InMemory:
        return in_memory.InMemory(params=self.params, partitioner=self.partitioner)

    @functools.cached_property
    def _local_params(self) -> types.Params:
        """Parameters that are bound to no device."""
        with jax.ensure_compile_time_eval():  # arrays, even if a transformation is under way
            return jax.tree.map(jnp.asarray, jax.device_get(self.params))

    def _dataset(self, split: str, tfds_data_dir: str | None) -> data.DatasetConfig:
        if self.dataset is None:
            raise ValueError("A function of your own has no dataset. Load its images yourself.")
        quiet.silence_tensorflow()
        loading.set_data_dirs(tfds_data_dir=tfds_data_dir)
        return dataclasses.replace(self.dataset, split=split)

    def _levels(self, found: Samples) -> Mapping[str, Array]:
        dtype = np.min_scalar_type(self.model.encoding.levels - 1)
        success = found.success & all_finite(found.latent)
        return {"levels": found.pixels.astype(dtype), "success": success}

    def _batch(
        self,
        images: np.ndarray,
        index: np.ndarray | None,
        conditioning: np.ndarray | None,
        label: Label,
    ) -> types.Batch:
        images, levels = np.asarray(images), self.model.encoding.levels
        checks.check_pixels(images, levels)
        self._check_shape("images", images)
        index = np.arange(len(images)) if index is None else np.asarray(index)
        checks.check_places("index", index, len(images))
        return {
            "image": images.astype(np.min_scalar_type(levels - 1)),
            "conditioning": self._conditioning(conditioning, len(images), label),
            "index": index.astype(np.int32),
        }

    def _is_short(self, conditioning: np.ndarray | None) -> bool:
        """Return True if there are no weights of classes in `conditioning`."""
        return conditioning is None or np.shape(conditioning)[1:] != (self.model.conditioning_size,)

    def _conditioning(
        self, conditioning: np.ndarray | None, count: int, label: Label
    ) -> np.ndarray:
        classes = self.model.num_classes
        if label is None and classes and self._is_short(conditioning):
            labels.check(None, classes, count, names=self.class_names)
        width = self.model.conditioning_size - (0 if label is None else classes)
        given = np.zeros((count, width)) if conditioning is None else conditioning
        given = np.asarray(given, np.float32)
        if given.shape != (count, width):
            raise ValueError(
                f"`conditioning` must be [{count}, {width}], a row for each image, got "
                f"{list(given.shape)}."
            )
        found = run_inputs.labels_for(self.model, np.arange(count), label, self.class_names)
        return given if label is None or found is None else labels.joined(given, found, classes)

    def _check_shape(self, name: str, values: np.ndarray) -> None:
        if values.shape[1:] != self.image_shape or not len(values):
            raise ValueError(
                f"`{name}` must be [N, height, width, channels] of {self.image_shape}, N >= 1, "
                f"the images that the model is for, got {list(values.shape)}."
            )
