"""Encoding: images of a split to their latents at the noise end, and back."""

import dataclasses
import time
from collections.abc import Mapping
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np

from idode_gin import checks, types
from idode_gin.devices.partitioning import PjitPartitioner
from idode_gin.feed import data
from idode_gin.generation import outputs
from idode_gin.models import DiffusionODE
from idode_gin.reports.paths import StoredPath
from idode_gin.runs import descriptions, facts, image_loop, run_inputs
from idode_gin.samplers.ode import ODESampler


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoder:
    """Takes images along the ODE to the noise end and back, and measures the round trip.

    `latents.npz` holds one row per image: `index` in the whole split; `noise` `[N, H, W, C]`, the
    latent in units of sigma, from which `ODESampler.from_noise` makes the image; `levels`, the
    image after the round trip; `error`, by how much the round trip moved y = z / alpha, root mean
    square over pixels, in levels; `changed`, the number of pixels that came back at another level;
    `nfe`, both ways together. `grid.png` shows images above their round trips. `summary.json` is
    written last.

    An image's row is a pure function of the parameters, the image, its place in the split and
    `seed`. Like an evaluation, an interrupted run resumes.

    Args:
        output_dir: where the files are written.
        checkpoint_path: a run directory (its newest checkpoint) or one `checkpoint_<step>` in it.
        method: the ODE's solver, for both ways.
        indices: the images to encode, as places in the split, or among its
            `DatasetConfig.num_images` images; None for all.
        grid_images: largest number of images in the grid.
        use_ema: encode with the averaged parameters rather than the last ones.
        seed: of the position within its bin at which a pixel starts.
        solve_size: images per solve, whatever the batch size; see `Evaluator`.
        partitioner: devices; each has all parameters, as in `Evaluator`.
    """

    output_dir: StoredPath
    checkpoint_path: StoredPath
    method: ODESampler = dataclasses.field(default_factory=ODESampler)
    indices: tuple[int, ...] | None = None
    grid_images: int = 16
    use_ema: bool = True
    seed: int = 0
    solve_size: int = 32
    partitioner: PjitPartitioner = dataclasses.field(default_factory=PjitPartitioner)

    def __post_init__(self) -> None:
        """Check the counts."""
        checks.check_count("grid_images", self.grid_images)
        checks.check_count("solve_size", self.solve_size)
        checks.check_lanes_fit(self.method.lanes, self.solve_size)
        checks.check_seed("seed", self.seed)

    def dry_run(
        self, model: DiffusionODE, dataset: data.DatasetConfig, *, full: bool = False
    ) -> str:
        """Describe what `run` would do: see `descriptions.describe_use`."""
        use = f"encode {dataset.mixture_or_task_name} / {dataset.split} with"
        return descriptions.describe_use(
            self, model, dataset.batch_size, use, dataset=dataset, full=full
        )

    def run(self, model: DiffusionODE, dataset: data.DatasetConfig) -> dict[str, Any]:
        """Encode, and return the contents of `summary.json`.

        Raises:
            ValueError: for an unknown task, split or index, images that do not fit the model, or a
                checkpoint that is missing or belongs to another architecture.
            checks.NonFiniteError: if a solve failed.
            checks.Preempted: when asked to stop; the next `run` resumes.
        """
        began = time.monotonic()
        split, restored = run_inputs.load_both(
            model, dataset, self.checkpoint_path, self.use_ema, self.partitioner
        )
        chosen = np.arange(split.num_images)
        if self.indices is not None:
            remedy = "--gin.INDICES='(0, 5)', or None for all images."
            outputs.check_indices(self.indices, split, "indices", remedy)
            chosen = np.asarray(self.indices)
        print(
            f"Encoding {len(chosen)} images of {split.name} / {split.split} with {restored.path}, "
            f"step {restored.step}.",
            flush=True,
        )
        known = facts.result_facts(model, restored.params, self, split)
        size = self.partitioner.rounded_up(dataset.batch_size, self.solve_size)
        with image_loop.opened(
            self.output_dir, known, len(chosen), self.partitioner, size, "encoding"
        ) as loop:
            compute, images = (
                self._compiled(model.at(restored.params)),
                loop.batches_of(split, chosen),
            )
            found = loop.run("latents", compute, restored.params, images)
            image_loop.check_solved(found.pop("success"), "images")
        summary = {
            **split.facts(),
            "levels": model.encoding.levels,
            "num_encoded": len(chosen),
            **facts.checkpoint_used(restored, self.use_ema),
            "seed": self.seed,
            "round_trip": outputs.round_trip(found["error"], chosen),
            "changed_pixels": int(found["changed"].sum()),
            "noise_mean_square": float(np.mean(found["noise"].astype(np.float64) ** 2)),
            "nfe": float(np.mean(found["nfe"])),
            **loop.cost_since(began),
        }
        arrays = {"index": split.place_of(chosen), **found}
        self._write(summary, arrays, split.images[chosen[: self.grid_images]])
        loop.kept.remove()
        return summary

    def _compiled(self, model: DiffusionODE) -> image_loop.Compute:
        """Return the function that gives the rows of a batch of images."""
        dtype = np.min_scalar_type(model.encoding.levels - 1)

        def encode(params: types.Params, batch: types.Batch) -> Mapping[str, jax.Array]:
            found = model.round_trip_fn(params, batch, jax.random.key(self.seed), self.method)
            return {
                "noise": found.noise,
                "levels": found.pixels.astype(dtype),
                "error": found.error,
                "changed": found.num_changed,
                "nfe": found.num_evaluations,
                "success": found.success & jnp.isfinite(found.error),
            }

        return image_loop.compiled(encode, self.partitioner, self.solve_size)

    def _write(
        self, summary: Mapping[str, Any], arrays: Mapping[str, np.ndarray], originals: np.ndarray
    ) -> None:
        tiles = np.concatenate([originals, arrays["levels"][: self.grid_images]])
        columns = outputs.columns_for(originals)
        outputs.write(self.output_dir, summary, "latents.npz", arrays, "grid.png", tiles, columns)
        if jax.process_index() == 0:
            error = summary["round_trip"]
            print(
                f"The round trip moved the pixels of an image by {error['mean']:.2g} levels (root "
                f"mean square; mean over images, maximum {error['max']:.2g}); "
                f"{summary['changed_pixels']} of {arrays['levels'].size} pixels changed level.",
                flush=True,
            )
