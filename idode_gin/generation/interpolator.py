"""Interpolation between two images by way of their latents."""

import dataclasses
import itertools
import time
from collections.abc import Iterator
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np

from idode_gin import checks, types
from idode_gin.devices.partitioning import PjitPartitioner
from idode_gin.feed import batches as batch_lib
from idode_gin.feed import data
from idode_gin.generation import outputs
from idode_gin.models import DiffusionODE
from idode_gin.reports.paths import StoredPath
from idode_gin.runs import descriptions, facts, image_loop, run_inputs
from idode_gin.samplers import latents
from idode_gin.samplers.ode import ODESampler


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Interpolator:
    """Takes pairs of images to their latents, and points on the sphere between those to images.

    `interpolation.npz` holds `pairs` `[N, 2]`, places in the whole split; `levels`
    `[N, num_points, H, W, C]`, from the first image of a pair, after its round trip, to the second;
    `error` `[N, 2]`, the round-trip errors of these two (see `Encoder`); `nfe` `[N]`, network
    evaluations of all solves of a pair. `strip.png` has a row per pair, with the original images at
    its ends. `summary.json` is written last. An interrupted run resumes after the last pair that is
    finished.

    Args:
        output_dir: where the files are written.
        checkpoint_path: a run directory (its newest checkpoint) or one `checkpoint_<step>` in it.
        pairs: the images to interpolate between, as places in the split, or among its
            `DatasetConfig.num_images` images.
        num_points: images from the first to the second, both included.
        method: the ODE's solver, for both ways.
        use_ema: use the averaged parameters rather than the last ones.
        seed: of the position within its bin at which a pixel starts.
        solve_size: pairs per solve, whatever the batch size; see `Evaluator`.
        partitioner: devices; each has all parameters, as in `Evaluator`. The batch size counts
            pairs, and is rounded up to a multiple of the devices.
    """

    output_dir: StoredPath
    checkpoint_path: StoredPath
    pairs: tuple[tuple[int, int], ...] = ((0, 1),)
    num_points: int = 9
    method: ODESampler = dataclasses.field(default_factory=ODESampler)
    use_ema: bool = True
    seed: int = 0
    solve_size: int = 1
    partitioner: PjitPartitioner = dataclasses.field(default_factory=PjitPartitioner)

    def __post_init__(self) -> None:
        """Check pairs and counts."""
        checks.check_count("solve_size", self.solve_size)
        checks.check_seed("seed", self.seed)
        checks.check_integer("num_points", self.num_points, at_least=2)
        checks.check_lanes_fit(self.method.lanes, self.solve_size, images_each=self.num_points)
        if not self.pairs or any(np.shape(each) != (2,) for each in self.pairs):
            raise ValueError(
                "`pairs` must be pairs of places in the split, such as ((0, 1), (5, 7)), got "
                f"{self.pairs}."
            )

    def dry_run(
        self, model: DiffusionODE, dataset: data.DatasetConfig, *, full: bool = False
    ) -> str:
        """Describe what `run` would do: see `descriptions.describe_use`."""
        use = f"interpolate {dataset.mixture_or_task_name} / {dataset.split} with"
        return descriptions.describe_use(
            self, model, dataset.batch_size, use, dataset=dataset, full=full
        )

    def run(self, model: DiffusionODE, dataset: data.DatasetConfig) -> dict[str, Any]:
        """Interpolate, and return the contents of `summary.json`.

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
        remedy = "--gin.PAIRS='((0, 1), (5, 7))'"
        outputs.check_indices(tuple(itertools.chain(*self.pairs)), split, "pairs", remedy)
        print(
            f"Interpolating between {len(self.pairs)} pairs of images of {split.name} / "
            f"{split.split} with {restored.path}, step {restored.step}.",
            flush=True,
        )
        known = facts.result_facts(model, restored.params, self, split)
        size = self.partitioner.rounded_up(dataset.batch_size, self.solve_size)
        with image_loop.opened(
            self.output_dir,
            known,
            len(self.pairs),
            self.partitioner,
            size,
            verb="interpolating",
            unit="pairs",
        ) as loop:
            found = loop.run(
                "strips",
                self._compiled(model.at(restored.params)),
                restored.params,
                lambda index, rows: self._batches(split, index, rows, size),
            )
            image_loop.check_solved(found.pop("success"), "pairs")
        summary = {
            **split.facts(),
            "levels": model.encoding.levels,
            "pairs": split.place_of(np.asarray(self.pairs)).tolist(),
            "num_points": self.num_points,
            **facts.checkpoint_used(restored, self.use_ema),
            "seed": self.seed,
            "round_trip": outputs.round_trip(found["error"], np.asarray(self.pairs)),
            "nfe": float(np.mean(found["nfe"])),
            **loop.cost_since(began),
        }
        pairs = np.asarray(self.pairs)
        ends = split.images[pairs][:, :, None]
        rows = np.concatenate([ends[:, 0], found["levels"], ends[:, 1]], axis=1)
        arrays, columns = {"pairs": split.place_of(pairs), **found}, outputs.columns_for(rows[0])
        tiles = _flat(rows)
        outputs.write(
            self.output_dir, summary, "interpolation.npz", arrays, "strip.png", tiles, columns
        )
        loop.kept.remove()
        return summary

    def _batches(
        self, split: data.ImageSplit, index: np.ndarray, rows: np.ndarray, batch_size: int
    ) -> Iterator[types.Batch]:
        for chosen, _ in batch_lib.index_batches(index, batch_size, rows):
            pairs = np.asarray(self.pairs)[chosen]
            yield {
                "image": split.images[pairs],
                "conditioning": split.conditioning_of(pairs),
                "index": split.place_of(pairs).astype(np.int32),
            }

    def _compiled(self, model: DiffusionODE) -> image_loop.Compute:
        """Return the function that gives the rows of pairs, of `image` `[B, 2, H, W, C]`."""
        count = self.num_points
        dtype = np.min_scalar_type(model.encoding.levels - 1)

        def strip(params: types.Params, batch: types.Batch) -> dict[str, jax.Array]:
            ends = {name: _flat(each) for name, each in batch.items()}
            encoded = model.round_trip_fn(params, ends, jax.random.key(self.seed), self.method)
            noise = _grouped(encoded.noise, 2)
            conditioning = batch["conditioning"]
            points = {
                "noise": _flat(latents.between(noise[:, 0], noise[:, 1], count)),
                # Conditioning, of classes too, that differs at the ends is interpolated linearly.
                "conditioning": _flat(
                    jnp.linspace(conditioning[:, 0], conditioning[:, 1], count, axis=1)
                ),
            }
            drawn = model.decode_fn(params, points, self.method)
            decoded = drawn.success & jnp.isfinite(drawn.latent).all(axis=(1, 2, 3))
            return {
                "levels": _grouped(drawn.pixels.astype(dtype), count),
                "error": _grouped(encoded.error, 2),
                "nfe": _grouped(encoded.num_evaluations, 2).sum(axis=1)
                + _grouped(drawn.num_evaluations, count).sum(axis=1),
                "success": _grouped(encoded.success, 2).all(axis=1)
                & _grouped(decoded, count).all(axis=1),
            }

        return image_loop.compiled(strip, self.partitioner, self.solve_size)


def _flat(values: Any) -> Any:
    """Reshape `[B, n, ...]` to `[B n, ...]`."""
    return values.reshape(-1, *values.shape[2:])


def _grouped(values: jax.Array, count: int) -> jax.Array:
    """Reshape `[B n, ...]` to `[B, n, ...]`."""
    return values.reshape(-1, count, *values.shape[1:])
