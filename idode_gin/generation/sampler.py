"""Sampling: images from noise, as PNG files and an `.npz`, and a grid to look at."""

import dataclasses
import functools
import time
from collections.abc import Iterator
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np

from idode_gin import checks, types
from idode_gin.devices.partitioning import PjitPartitioner
from idode_gin.feed import batches as batch_lib
from idode_gin.feed import labels
from idode_gin.generation import outputs
from idode_gin.models import DiffusionODE
from idode_gin.reports.paths import StoredPath
from idode_gin.runs import descriptions, facts, image_loop, means, run_inputs
from idode_gin.samplers.base import AbstractSampler
from idode_gin.samplers.ode import ODESampler
from idode_gin.solvers.divergence import AbstractDivergence, Hutchinson


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler:
    """Draws images with a checkpoint and writes them, `grid.png` and `summary.json`.

    `samples/00000.png` and so on are the images by index, without the loss of a JPEG or a resize.
    `samples.npz` holds `arr_0`, uint8 `[N, H, W, C]` over the full range 0 … 255, and `levels`, the
    model's own integers 0 … V-1. Image i is a pure function of the parameters, `seed` and i. With
    `return_log_prob` it also holds `latent`, float `[N, H, W, C]`, z at the clean end before it is
    rounded to levels, and `log_p` `[N]`, its log-density under the ODE in nats, whose last digit
    may depend on the batch size. Of a model with classes it holds `label` `[N]`, and `class_names`.

    Images are saved in `partial_results/` while they are drawn. A run that was stopped, or even
    killed, resumes and ends in the same files.

    Args:
        output_dir: where the files are written.
        checkpoint_path: a run directory (its newest checkpoint) or one `checkpoint_<step>` in it.
        method: takes noise to images.
        num_samples: images to draw.
        batch_size: images at a time, rounded up to whole solves on every device.
        grid_images: images in the grid, at most `num_samples`.
        png_files: write each image as a PNG, too. Needs 1 or 3 channels.
        conditioning: the values the network is conditioned on beside a class, K numbers; None for
            zeros, images that are not augmented.
        label: class of all images, for a model that is conditioned on classes; None draws image i
            from class i modulo their number.
        use_ema: sample from the averaged parameters rather than the last ones.
        seed: of the noise.
        return_log_prob: also return the log-density of each image's latent, from the same solve.
        divergence: computes the trace for that; each image has its own probes.
        solve_size: images per solve, whatever the batch size, so that an image does not depend on
            it; see `Evaluator`.
        partitioner: devices; each has all parameters, as in `Evaluator`.
    """

    output_dir: StoredPath
    checkpoint_path: StoredPath
    method: AbstractSampler = dataclasses.field(default_factory=ODESampler)
    num_samples: int = 64
    batch_size: int = 64
    grid_images: int = 64
    png_files: bool = True
    conditioning: tuple[float, ...] | None = None
    label: int | None = None
    use_ema: bool = True
    seed: int = 0
    return_log_prob: bool = False
    divergence: AbstractDivergence = dataclasses.field(default_factory=Hutchinson)
    solve_size: int = 32
    partitioner: PjitPartitioner = dataclasses.field(default_factory=PjitPartitioner)

    def __post_init__(self) -> None:
        """Check the counts, and that the method has a log-density if one is requested."""
        for name in ("num_samples", "batch_size", "grid_images", "solve_size"):
            checks.check_count(name, getattr(self, name))
        checks.check_seed("seed", self.seed)
        checks.check_lanes_fit(getattr(self.method, "lanes", None), self.solve_size)
        self._method()  # raises if the method has no log-density

    def dry_run(self, model: DiffusionODE, *, full: bool = False) -> str:
        """Describe what `run` would do: see `descriptions.describe_use`."""
        self._conditioning(model)  # raises for another number of values
        use = f"draw {self.num_samples} images with"
        return descriptions.describe_use(self, model, self.batch_size, use, full=full)

    def run(self, model: DiffusionODE) -> dict[str, Any]:
        """Sample, and return the contents of `summary.json`.

        Raises:
            ValueError: if the model declares no image shape, has no such class or takes another
                number of conditioning values, the checkpoint is missing or belongs to another
                architecture, or there are other files in place of the pictures.
            checks.NonFiniteError: if a solve failed.
            checks.Preempted: when asked to stop; the next `run` resumes.
        """
        if model.image_shape is None:
            raise ValueError("Sampling needs `DiffusionODE.image_shape`; bind IMAGE_SHAPE.")
        if self.png_files:
            outputs.check_pngs(self.output_dir)
        began, bits = time.monotonic(), self._conditioning(model)
        where, sharding = self.checkpoint_path, self.partitioner.replicated
        restored = run_inputs.load_params(model, model.image_shape, where, self.use_ema, sharding)
        names = restored.facts.get("class_names", ())
        index = np.arange(self.num_samples)
        classes = run_inputs.labels_for(model, index, self.label, names)
        said = f"Drawing {self.num_samples} images from {restored.path}, step {restored.step}."
        if classes is not None:
            said += f"\nClasses: {labels.listed(model.num_classes, names)}."
        print(said, flush=True)
        known = facts.result_facts(model, restored.params, self)
        size = self.partitioner.rounded_up(self.batch_size, self.solve_size)
        with image_loop.opened(
            self.output_dir, known, self.num_samples, self.partitioner, size, "drawing"
        ) as loop:
            compute, params = self._compiled(model.at(restored.params)), restored.params
            batches = functools.partial(self._batches, bits, classes, model.num_classes, size)
            drawn = loop.run("samples", compute, params, batches)
            image_loop.check_solved(drawn.pop("success"), "samples")
        summary = {
            **facts.checkpoint_used(restored, self.use_ema),
            "trained_on": {
                name: restored.facts.get(name) for name in ("dataset", "dataset_sha256")
            },
            "num_samples": self.num_samples,
            "image_shape": list(model.image_shape),
            "levels": model.encoding.levels,
            "seed": self.seed,
            "sampler": type(self.method).__name__,
            "nfe": float(np.mean(drawn.pop("nfe"))),
            **({"log_p": means.summarize(drawn["log_p"])} if self.return_log_prob else {}),
            **loop.cost_since(began),
        }
        if classes is not None:
            summary |= {"label": self.label, "class_names": list(names)}
            drawn |= {"label": classes, "class_names": np.array(names, str)}
        arrays = {"arr_0": to_uint8(drawn["levels"], model.encoding.levels), **drawn}
        shown = drawn["levels"][: self.grid_images]
        outputs.write_pngs(self.output_dir, arrays["arr_0"] if self.png_files else None)
        outputs.write(self.output_dir, summary, "samples.npz", arrays, "grid.png", shown)
        loop.kept.remove()
        return summary

    def _compiled(self, model: DiffusionODE) -> image_loop.Compute:
        """Return the function that draws a batch: `levels`, `nfe`, `success`.

        With `return_log_prob` also `log_p` and `latent`.
        """
        method = self._method()
        dtype = np.min_scalar_type(model.encoding.levels - 1)

        def sample(params: types.Params, batch: types.Batch) -> dict[str, jax.Array]:
            found = model.sample_fn(params, batch, jax.random.key(self.seed), method)
            is_finite = jnp.isfinite(found.latent).all(axis=(1, 2, 3))
            values = {
                "levels": found.pixels.astype(dtype),
                "nfe": found.num_evaluations,
                "success": found.success & is_finite,
            }
            if found.log_p is not None:
                values |= {"log_p": found.log_p, "latent": found.latent}
                values["success"] &= jnp.isfinite(found.log_p)
            return values

        return image_loop.compiled(sample, self.partitioner, self.solve_size)

    def _conditioning(self, model: DiffusionODE) -> np.ndarray:
        """Return the K numbers of every image.

        Raises:
            ValueError: if the network takes another number.
        """
        count = model.conditioning_size - model.num_classes
        given = np.zeros(count) if self.conditioning is None else self.conditioning
        if len(given) != count:
            raise ValueError(
                f"`Sampler.conditioning` must have the {count} numbers that the network takes "
                f"beside a class, got {self.conditioning}. None means zeros."
            )
        return np.asarray(given, np.float32)

    def _batches(
        self,
        conditioning: np.ndarray,
        classes: np.ndarray | None,
        num_classes: int,
        size: int,
        index: np.ndarray,
        rows: np.ndarray,
    ) -> Iterator[types.Batch]:
        bits = np.tile(conditioning, (len(rows), 1))
        for chosen, _ in batch_lib.index_batches(index, size, rows):
            given = bits
            if classes is not None:
                given = labels.joined(bits, classes[chosen], num_classes)
            yield {"index": chosen.astype(np.int32), "conditioning": given}

    def _method(self) -> AbstractSampler:
        return self.method.with_log_prob(self.divergence) if self.return_log_prob else self.method


def to_uint8(pixels: np.ndarray, levels: int) -> np.ndarray:
    """Stretch levels 0 … V-1 over 0 … 255; 8-bit images are unchanged."""
    return np.round(np.arange(levels) * (255 / (levels - 1))).astype(np.uint8)[pixels]
