"""Sampling: images from noise, as an `.npz` that FID tools read and a grid to look at."""

import dataclasses
import json
import pathlib
import time
from typing import Any, final

import jax
import numpy as np

from idode_gin import checks, numerics, run_inputs, types
from idode_gin.models import DiffusionODE
from idode_gin.runtime import checkpoints, files, plots, preemption
from idode_gin.runtime.partitioning import PjitPartitioner
from idode_gin.runtime.preemption import StopRequest
from idode_gin.sampling import ODESampler, Samples


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler:
    """Draws images from a checkpoint and writes `samples.npz`, `grid.png` and `summary.json`.

    `samples.npz` holds `arr_0`, uint8 `[N, H, W, C]` over the full range 0 … 255, and `levels`, the
    integers 0 … V-1 the model speaks. Image i is a pure function of the parameters, `seed` and i.

    Args:
        output_dir: where the files go.
        checkpoint_path: a run directory (its latest checkpoint) or one `checkpoint_<step>` in it.
        ode_sampler: how noise becomes an image.
        num_samples: images to draw.
        batch_size: images at a time.
        grid_images: images in the grid, at most `num_samples`.
        conditioning: the values the network is conditioned on, K numbers.
        use_ema: sample from the averaged parameters rather than the last ones.
        seed: of the noise.
        solve_size: images that one solve works on, whatever the batch size, so that an image does
            not depend on it; see `Evaluator`.
        partitioner: devices.
    """

    output_dir: str
    checkpoint_path: str
    ode_sampler: ODESampler = dataclasses.field(default_factory=ODESampler)
    num_samples: int = 64
    batch_size: int = 64
    grid_images: int = 64
    conditioning: tuple[float, ...] = (0.0,)
    use_ema: bool = True
    seed: int = 0
    solve_size: int = 32
    partitioner: PjitPartitioner = dataclasses.field(default_factory=PjitPartitioner)

    def __post_init__(self) -> None:
        """Checks the counts."""
        for name in ("num_samples", "batch_size", "grid_images", "solve_size"):
            checks.check_positive(name, getattr(self, name))

    def run(self, model: DiffusionODE) -> dict[str, Any]:
        """Samples and returns what it wrote to `summary.json`.

        Raises:
            ValueError: if the model has no image shape, or for a checkpoint that is missing or of
                another architecture.
            checks.NonFiniteError: if a solve did not arrive.
            checks.Preempted: when asked to stop; no results are written.
        """
        if model.image_shape is None:
            raise ValueError("Sampling needs `DiffusionODE.image_shape`; bind IMAGE_SHAPE.")
        self.partitioner.check_batch_size("batch_size", self.batch_size)
        began = time.monotonic()
        checkpoint = str(checkpoints.find(self.checkpoint_path))
        params, step = run_inputs.load_params(model, model.image_shape, checkpoint, self.use_ema)
        print(
            f"Drawing {self.num_samples} images from {checkpoint}, step {step}.",
            flush=True,
        )
        pixels, evaluations = self._draw(model, params)
        summary = {
            "checkpoint": checkpoint,
            "step": step,
            "parameters": "ema" if self.use_ema else "raw",
            "num_samples": self.num_samples,
            "image_shape": list(model.image_shape),
            "levels": model.encoding.levels,
            "seed": self.seed,
            "nfe": float(np.mean(evaluations)),
            "wall_seconds": time.monotonic() - began,
        }
        self._write(summary, pixels, model.encoding.levels)
        return summary

    def _draw(self, model: DiffusionODE, params: types.Params) -> tuple[np.ndarray, np.ndarray]:
        """Pixels `[N, H, W, C]` and network evaluations `[N]`."""
        import tqdm

        def sample(params: types.Params, batch: types.Batch) -> Samples:
            return model.sample_fn(params, batch, jax.random.key(self.seed), self.ode_sampler)

        def sample_some(params: types.Params, batch: types.Batch) -> Samples:
            return numerics.map_chunks(lambda part: sample(params, part), batch, self.solve_size)

        per_device = self.partitioner.per_device(sample_some)
        compiled = jax.jit(per_device, out_shardings=self.partitioner.replicated)
        collected: list[Samples] = []
        starts = range(0, self.num_samples, self.batch_size)
        with StopRequest(preemption.RESULTS) as stop:
            for start in tqdm.tqdm(starts, unit="batch", disable=None):
                if stop.requested:
                    raise checks.Preempted(
                        f"Stopped by {stop.reason} while sampling; no results were written."
                    )
                batch = self._batch(start)
                collected.append(jax.device_get(compiled(params, batch)))
        merged = jax.tree.map(lambda *each: np.concatenate(each)[: self.num_samples], *collected)
        if not merged.success.all() or not np.isfinite(merged.latent).all():
            raise checks.NonFiniteError(
                f"{int((~merged.success).sum())} of {self.num_samples} samples did not reach the "
                "clean end. Raise the solver's max_steps or its tolerances."
            )
        return merged.pixels, merged.num_evaluations

    def _batch(self, start: int) -> types.Batch:
        index = start + self.partitioner.local_rows(self.batch_size).astype(np.int32)
        conditioning = np.tile(np.asarray(self.conditioning, np.float32), (len(index), 1))
        batch = {"index": index, "conditioning": conditioning}
        return self.partitioner.put_batch(batch, self.batch_size)

    def _write(self, summary: dict[str, Any], pixels: np.ndarray, levels: int) -> None:
        if jax.process_index() != 0:
            return
        directory = pathlib.Path(self.output_dir)
        arrays = {"arr_0": to_uint8(pixels, levels), "levels": pixels}
        files.write_npz_atomically(directory / "samples.npz", arrays)
        plots.image_grid(pixels[: self.grid_images], levels, directory / "grid.png")
        files.write_atomically(directory / "summary.json", json.dumps(summary, indent=2) + "\n")
        print(f"Wrote samples.npz and grid.png to {directory}.", flush=True)


def to_uint8(pixels: np.ndarray, levels: int) -> np.ndarray:
    """Levels 0 … V-1 stretched over 0 … 255; 8-bit images come back unchanged."""
    return np.round(pixels * (255 / (levels - 1))).astype(np.uint8)
