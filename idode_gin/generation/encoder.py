"""Encoding: images of a split to their latents at the noise end, and back."""

import dataclasses
import json
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np

from idode_gin import checks, types
from idode_gin.checkpoints import saving
from idode_gin.devices.partitioning import PjitPartitioner
from idode_gin.feed import batches as batch_lib
from idode_gin.feed import data
from idode_gin.models import DiffusionODE
from idode_gin.reports import files, fingerprints, plots
from idode_gin.runs import image_loop, means, run_inputs
from idode_gin.samplers.ode import ODESampler

PARTIAL = "partial_results"
"""The folder, in the output directory, of latents that are there before all are."""
SECTION = "latents"


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoder:
    """Takes images along the ODE to the noise end and back, and says how well they came back.

    It writes `latents.npz`, one row per image: `index` in the split; `noise` `[N, H, W, C]`, the
    latent in units of sigma, which `ODESampler.from_noise` makes the image of; `levels`, the image
    that came back; `error`, the root mean square over pixels of what y = z / alpha moved there and
    back, in levels; `changed`, how many pixels came back at another level; `nfe` both ways. Then
    `grid.png`, images above what came back, and `summary.json`.

    An image's row is a pure function of the parameters, the image, its place in the split and
    `seed`. Stopped anywhere and run again, it goes on from there, as evaluation does.

    Args:
        output_dir: where the files go.
        checkpoint_path: a run directory (its latest checkpoint) or one `checkpoint_<step>` in it.
        method: the ODE's solver, for both ways.
        indices: places in the split of the images wanted; None for all.
        grid_images: images in the grid at most.
        use_ema: encode with the averaged parameters rather than the last ones.
        seed: of where in its bin a pixel starts.
        solve_size: images that one solve works on, whatever the batch size; see `Evaluator`.
        partitioner: devices; each has all parameters, as in `Evaluator`.
    """

    output_dir: str
    checkpoint_path: str
    method: ODESampler = dataclasses.field(default_factory=ODESampler)
    indices: tuple[int, ...] | None = None
    grid_images: int = 16
    use_ema: bool = True
    seed: int = 0
    solve_size: int = 32
    partitioner: PjitPartitioner = dataclasses.field(default_factory=PjitPartitioner)

    def __post_init__(self) -> None:
        """Checks the counts."""
        for name in ("grid_images", "solve_size"):
            checks.check_positive(name, getattr(self, name))

    def run(self, model: DiffusionODE, dataset: data.DatasetConfig) -> dict[str, Any]:
        """Encodes and returns what it wrote to `summary.json`.

        Raises:
            ValueError: for an unknown task, split or index, images that do not fit the model, or a
                checkpoint that is missing or of another architecture.
            checks.NonFiniteError: if a solve did not arrive.
            checks.Preempted: when asked to stop; the next `run` goes on from there.
        """
        self.partitioner.check_batch_size("batch_size", dataset.batch_size, per_device=True)
        began = time.monotonic()
        saving.find(self.checkpoint_path)  # before images are read
        split = run_inputs.load(dataset, model)
        chosen = check_indices(self.indices, split)
        restored = run_inputs.load_params(
            model,
            split.image_shape,
            self.checkpoint_path,
            self.use_ema,
            self.partitioner.replicated,
        )
        print(
            f"Encoding {len(chosen)} images of {split.name} / {split.split} with {restored.path}, "
            f"step {restored.step}.",
            flush=True,
        )
        facts = self._facts(model, restored.params, split)
        loop = image_loop.ImageLoop(self._directory / PARTIAL, facts, len(chosen))
        with loop:
            found = self._encode(model, restored.params, split, chosen, dataset.batch_size, loop)
        summary = {
            **split.facts(),
            "num_encoded": len(chosen),
            "checkpoint": str(restored.path),
            "step": restored.step,
            "parameters": "ema" if self.use_ema else "raw",
            "seed": self.seed,
            **_summarize(found),
            "wall_seconds": loop.seconds_before + time.monotonic() - began,
        }
        self._write(summary, chosen, found, split.images[chosen[: self.grid_images]], model)
        loop.remove()
        return summary

    @property
    def _directory(self) -> pathlib.Path:
        return pathlib.Path(self.output_dir)

    def dry_run(self, model: DiffusionODE, dataset: data.DatasetConfig) -> str:
        """What `run` would do, in words, on devices that need not be there. Reads no images.

        Raises:
            ValueError: for a batch size that does not suit the mesh, or a model that does not say
                the shape of its images.
        """
        partitioner = self.partitioner.without_devices()
        partitioner.check_batch_size("batch_size", dataset.batch_size, per_device=True)
        use = f"encode {dataset.mixture_or_task_name} / {dataset.split} with"
        return run_inputs.describe_use(model, partitioner, self.checkpoint_path, use)

    def _facts(
        self, model: DiffusionODE, params: types.Params, split: data.ImageSplit
    ) -> dict[str, Any]:
        """What decides the rows."""
        return run_inputs.result_facts(
            model,
            params,
            self.use_ema,
            dataset=str(split),
            dataset_sha256=split.fingerprint.sha256,
            conditioning_sha256=fingerprints.sha256(split.conditioning),
            method=self.method,
            indices=self.indices,
            seed=self.seed,
            solve_size=self.solve_size,
        )

    def _encode(
        self,
        model: DiffusionODE,
        params: types.Params,
        split: data.ImageSplit,
        chosen: np.ndarray,
        batch_size: int,
        loop: image_loop.ImageLoop,
    ) -> dict[str, np.ndarray]:
        """Rows of the images `chosen`, in that order."""
        dtype = np.min_scalar_type(model.encoding.levels - 1)

        def encode(params: types.Params, batch: types.Batch) -> Mapping[str, jax.Array]:
            found = model.encode_fn(params, batch, jax.random.key(self.seed), self.method)
            return {
                "noise": found.noise,
                "levels": found.pixels.astype(dtype),
                "error": found.error,
                "changed": found.num_changed,
                "nfe": found.num_evaluations,
                "success": found.success & jnp.isfinite(found.error),
            }

        compiled = image_loop.compiled(encode, self.partitioner, self.solve_size)
        rows = self.partitioner.local_rows(batch_size)

        def batches(missing: np.ndarray) -> Iterator[types.Batch]:
            return batch_lib.eval_batches(split, batch_size, rows, chosen[missing])

        found = loop.run(
            SECTION,
            lambda batch: compiled(params, self.partitioner.put_batch(batch, batch_size)),
            batches,
            batch_size,
        )
        check_arrived(found.pop("success"), "images", loop)
        return found

    def _write(
        self,
        summary: Mapping[str, Any],
        chosen: np.ndarray,
        found: Mapping[str, np.ndarray],
        originals: np.ndarray,
        model: DiffusionODE,
    ) -> None:
        if jax.process_index() != 0:
            return
        directory, shown = self._directory, len(originals)
        files.write_npz_atomically(directory / "latents.npz", {"index": chosen, **found})
        tiles = np.concatenate([originals, found["levels"][:shown]])
        plots.image_grid(
            tiles, model.encoding.levels, directory / "grid.png", columns_for(originals)
        )
        text = json.dumps(summary, indent=2, allow_nan=False) + "\n"
        files.write_atomically(directory / "summary.json", text)
        print(
            f"Wrote latents.npz and grid.png to {directory}. There and back, the pixels of an "
            f"image moved by {summary['round_trip']['mean']:.2g} levels (root mean square; the "
            f"mean over images, and {summary['round_trip']['max']:.2g} in the worst one), and "
            f"{summary['changed_pixels']} of {found['levels'].size} came back at another level.",
            flush=True,
        )


def check_indices(
    indices: tuple[int, ...] | None,
    split: data.ImageSplit,
    name: str = "indices",
    way_out: str = "--gin.INDICES='(0, 5)', or None for all images.",
) -> np.ndarray:
    """Places in the split as integers `[N]`; all of them for None.

    Args:
        indices: the places.
        split: the images.
        name: what the places are called where they are bound.
        way_out: how others are bound.

    Raises:
        ValueError: if there are none, or one is not in the split.
    """
    if indices is None:
        return np.arange(split.num_images)
    outside = [each for each in indices if not 0 <= each < split.num_images]
    if outside or not indices:
        got = f"{outside[0]}" if outside else "none"
        raise ValueError(
            f"`{name}` must be places in {split}, 0 to {split.num_images - 1}, at least one, got "
            f"{got}. Bind others: {way_out}"
        )
    return np.asarray(indices)


def check_arrived(success: np.ndarray, what: str, loop: image_loop.ImageLoop) -> None:
    """Raises NonFiniteError, and drops what was kept, if a solve did not arrive."""
    failed = int((~success).sum())
    if failed:
        loop.remove()  # they would be no better the next time
        raise checks.NonFiniteError(
            f"{failed} of {len(success)} {what} did not make their way along the ODE. Raise the "
            "solver's max_steps or its tolerances, or use an earlier checkpoint."
        )


def columns_for(images: np.ndarray) -> int:
    """Columns of a grid that has these images `[N, H, W, C]` in one row."""
    return len(images) * (1 if images.shape[3] in (1, 3) else images.shape[3])


def summarize_error(error: np.ndarray) -> dict[str, Any]:
    """Of round-trip errors of any shape: mean, its standard error, and the largest."""
    values = error.astype(np.float64).ravel()
    return {
        "unit": "levels, root mean square over pixels",
        "mean": float(np.mean(values)),
        "stderr": means.standard_error(values),
        "max": float(np.max(values)),
    }


def _summarize(found: Mapping[str, np.ndarray]) -> dict[str, Any]:
    return {
        "round_trip": summarize_error(found["error"]),
        "changed_pixels": int(found["changed"].sum()),
        "noise_mean_square": float(np.mean(found["noise"].astype(np.float64) ** 2)),
        "nfe": float(np.mean(found["nfe"])),
    }
