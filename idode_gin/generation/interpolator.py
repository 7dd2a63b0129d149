"""Interpolation: what lies between two images, by way of their latents."""

import dataclasses
import itertools
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
from idode_gin.generation import encoder
from idode_gin.models import DiffusionODE
from idode_gin.reports import files, fingerprints, plots
from idode_gin.runs import image_loop, run_inputs
from idode_gin.samplers import latents
from idode_gin.samplers.ode import ODESampler

PARTIAL = "partial_results"
"""The folder, in the output directory, of strips that are there before all are."""
SECTION = "strips"


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Interpolator:
    """Takes two images to their latents, and points of the sphere between those back to images.

    It writes `interpolation.npz`: `pairs` `[N, 2]`, places in the split; `levels`
    `[N, num_points, H, W, C]`, from the first image of a pair, come back, to the second; `error`
    `[N, 2]`, how well these two came back (as in `Encoder`); `nfe` `[N]`, network evaluations of
    all solves of a pair. Then `strip.png`, a row per pair with the two images themselves at its
    ends, and `summary.json`. It can be stopped between pairs, and goes on from there.

    Args:
        output_dir: where the files go.
        checkpoint_path: a run directory (its latest checkpoint) or one `checkpoint_<step>` in it.
        pairs: places in the split of the images to go between.
        num_points: images from the one to the other, both included.
        method: the ODE's solver, for both ways.
        use_ema: use the averaged parameters rather than the last ones.
        seed: of where in its bin a pixel starts.
        solve_size: pairs that one solve works on, whatever the batch size; see `Evaluator`.
        partitioner: devices; each has all parameters, as in `Evaluator`. The batch size counts
            pairs.
    """

    output_dir: str
    checkpoint_path: str
    pairs: tuple[tuple[int, int], ...] = ((0, 1),)
    num_points: int = 9
    method: ODESampler = dataclasses.field(default_factory=ODESampler)
    use_ema: bool = True
    seed: int = 0
    solve_size: int = 1
    partitioner: PjitPartitioner = dataclasses.field(default_factory=PjitPartitioner)

    def __post_init__(self) -> None:
        """Checks pairs and counts."""
        checks.check_positive("solve_size", self.solve_size)
        checks.check_integer("num_points", self.num_points, at_least=2)
        if not self.pairs or any(len(each) != 2 for each in self.pairs):
            raise ValueError(
                "`pairs` must be pairs of places in the split, such as ((0, 1), (5, 7)), got "
                f"{self.pairs}."
            )

    def run(self, model: DiffusionODE, dataset: data.DatasetConfig) -> dict[str, Any]:
        """Interpolates and returns what it wrote to `summary.json`.

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
        chosen = encoder.check_indices(
            tuple(itertools.chain(*self.pairs)), split, "pairs", "--gin.PAIRS='((0, 1), (5, 7))'"
        )
        restored = run_inputs.load_params(
            model,
            split.image_shape,
            self.checkpoint_path,
            self.use_ema,
            self.partitioner.replicated,
        )
        print(
            f"Interpolating between {len(self.pairs)} pairs of images of {split.name} / "
            f"{split.split} with {restored.path}, step {restored.step}.",
            flush=True,
        )
        facts = self._facts(model, restored.params, split)
        loop = image_loop.ImageLoop(self._directory / PARTIAL, facts, len(self.pairs))
        with loop:
            found = self._strips(model, restored.params, split, dataset.batch_size, loop)
        summary = {
            **split.facts(),
            "pairs": [list(each) for each in self.pairs],
            "num_points": self.num_points,
            "checkpoint": str(restored.path),
            "step": restored.step,
            "parameters": "ema" if self.use_ema else "raw",
            "seed": self.seed,
            "round_trip": encoder.summarize_error(found["error"]),
            "nfe": float(np.mean(found["nfe"])),
            "wall_seconds": loop.seconds_before + time.monotonic() - began,
        }
        self._write(summary, found, split.images[chosen], model.encoding.levels)
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
        use = f"interpolate {dataset.mixture_or_task_name} / {dataset.split} with"
        return run_inputs.describe_use(model, partitioner, self.checkpoint_path, use)

    def _facts(
        self, model: DiffusionODE, params: types.Params, split: data.ImageSplit
    ) -> dict[str, Any]:
        """What decides the strips."""
        return run_inputs.result_facts(
            model,
            params,
            self.use_ema,
            dataset=str(split),
            dataset_sha256=split.fingerprint.sha256,
            conditioning_sha256=fingerprints.sha256(split.conditioning),
            method=self.method,
            pairs=self.pairs,
            num_points=self.num_points,
            seed=self.seed,
            solve_size=self.solve_size,
        )

    def _strips(
        self,
        model: DiffusionODE,
        params: types.Params,
        split: data.ImageSplit,
        batch_size: int,
        loop: image_loop.ImageLoop,
    ) -> dict[str, np.ndarray]:
        """Rows of the pairs, in their order."""

        def strip(params: types.Params, batch: types.Batch) -> Mapping[str, jax.Array]:
            return self._strip(model, params, batch)

        compiled = image_loop.compiled(strip, self.partitioner, self.solve_size)
        rows = self.partitioner.local_rows(batch_size)
        pairs = np.asarray(self.pairs)

        def batches(missing: np.ndarray) -> Iterator[types.Batch]:
            for chosen, _ in batch_lib.index_batches(missing, batch_size, rows):
                index = pairs[chosen]
                yield {
                    "image": split.images[index],
                    "conditioning": split.conditioning[index],
                    "index": index.astype(np.int32),
                }

        found = loop.run(
            SECTION,
            lambda batch: compiled(params, self.partitioner.put_batch(batch, batch_size)),
            batches,
            batch_size,
        )
        encoder.check_arrived(found.pop("success"), "pairs", loop)
        return found

    def _strip(
        self, model: DiffusionODE, params: types.Params, batch: types.Batch
    ) -> dict[str, jax.Array]:
        """What is written of pairs of images: `image` `[B, 2, H, W, C]`, and so on."""
        count = self.num_points
        ends = {name: _flat(each) for name, each in batch.items()}
        encoded = model.encode_fn(params, ends, jax.random.key(self.seed), self.method)
        noise = _grouped(encoded.noise, 2)
        told = batch["conditioning"]
        points = {
            "noise": _flat(latents.between(noise[:, 0], noise[:, 1], count)),
            # Of images that are told different things, what lies between is told what lies between.
            "conditioning": _flat(jnp.linspace(told[:, 0], told[:, 1], count, axis=1)),
        }
        drawn = model.decode_fn(params, points, self.method)
        arrived = drawn.success & jnp.isfinite(drawn.latent).all(axis=(1, 2, 3))
        dtype = np.min_scalar_type(model.encoding.levels - 1)
        return {
            "levels": _grouped(drawn.pixels.astype(dtype), count),
            "error": _grouped(encoded.error, 2),
            "nfe": _grouped(encoded.num_evaluations, 2).sum(axis=1)
            + _grouped(drawn.num_evaluations, count).sum(axis=1),
            "success": _grouped(encoded.success, 2).all(axis=1)
            & _grouped(arrived, count).all(axis=1),
        }

    def _write(
        self,
        summary: Mapping[str, Any],
        found: Mapping[str, np.ndarray],
        originals: np.ndarray,
        levels: int,
    ) -> None:
        if jax.process_index() != 0:
            return
        directory = self._directory
        arrays = {"pairs": np.asarray(self.pairs), **found}
        files.write_npz_atomically(directory / "interpolation.npz", arrays)
        ends = originals.reshape(len(self.pairs), 2, 1, *originals.shape[1:])
        rows = np.concatenate([ends[:, 0], found["levels"], ends[:, 1]], axis=1)
        columns = encoder.columns_for(rows[0])
        plots.image_grid(_flat(rows), levels, directory / "strip.png", columns)
        text = json.dumps(summary, indent=2, allow_nan=False) + "\n"
        files.write_atomically(directory / "summary.json", text)
        print(f"Wrote interpolation.npz and strip.png to {directory}.", flush=True)


def _flat(values: Any) -> Any:
    """`[B, n, ...]` as `[B n, ...]`."""
    return values.reshape(-1, *values.shape[2:])


def _grouped(values: jax.Array, count: int) -> jax.Array:
    """`[B n, ...]` as `[B, n, ...]`."""
    return values.reshape(-1, count, *values.shape[1:])
