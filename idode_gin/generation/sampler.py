"""Sampling: images from noise, as an `.npz` that FID tools read and a grid to look at."""

import dataclasses
import json
import pathlib
import time
from collections.abc import Iterator
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np

from idode_gin import checks, types
from idode_gin.devices.partitioning import PjitPartitioner
from idode_gin.feed import batches as batch_lib
from idode_gin.models import DiffusionODE
from idode_gin.reports import files, plots
from idode_gin.runs import image_loop, means, run_inputs
from idode_gin.samplers.base import AbstractSampler
from idode_gin.samplers.ode import ODESampler
from idode_gin.solvers.divergence import AbstractDivergence, Hutchinson

PARTIAL = "partial_results"
"""The folder, in the output directory, of samples that are there before all are."""
SECTION = "samples"


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler:
    """Draws images from a checkpoint and writes `samples.npz`, `grid.png` and `summary.json`.

    `samples.npz` holds `arr_0`, uint8 `[N, H, W, C]` over the full range 0 … 255, and `levels`, the
    integers 0 … V-1 the model speaks. Image i is a pure function of the parameters, `seed` and i.
    With `return_log_prob` it also holds `latent`, float `[N, H, W, C]`, z at the clean end before
    it is rounded to levels, and `log_p` `[N]`, its log-density under the ODE in nats, of which
    the last digit may differ with the batch size.
    Images are kept as they come, in `partial_results/`: stopped anywhere, even killed, and run
    again, sampling goes on from there and ends in the same files.

    Args:
        output_dir: where the files go.
        checkpoint_path: a run directory (its latest checkpoint) or one `checkpoint_<step>` in it.
        method: how noise becomes an image.
        num_samples: images to draw.
        batch_size: images at a time.
        grid_images: images in the grid, at most `num_samples`.
        conditioning: the values the network is conditioned on, K numbers.
        use_ema: sample from the averaged parameters rather than the last ones.
        seed: of the noise.
        return_log_prob: give the log-density of each image's latent, too, from the same solve.
        divergence: how the trace is taken for that; each image has its own probes.
        solve_size: images that one solve works on, whatever the batch size, so that an image does
            not depend on it; see `Evaluator`.
        partitioner: devices; each has all parameters, as in `Evaluator`.
    """

    output_dir: str
    checkpoint_path: str
    method: AbstractSampler = dataclasses.field(default_factory=ODESampler)
    num_samples: int = 64
    batch_size: int = 64
    grid_images: int = 64
    conditioning: tuple[float, ...] = (0.0,)
    use_ema: bool = True
    seed: int = 0
    return_log_prob: bool = False
    divergence: AbstractDivergence = dataclasses.field(default_factory=Hutchinson)
    solve_size: int = 32
    partitioner: PjitPartitioner = dataclasses.field(default_factory=PjitPartitioner)

    def __post_init__(self) -> None:
        """Checks the counts, and that there is a density if one is asked for."""
        for name in ("num_samples", "batch_size", "grid_images", "solve_size"):
            checks.check_positive(name, getattr(self, name))
        checks.check_lanes_fit(getattr(self.method, "lanes", None), self.solve_size)
        self._method()  # raises where there is no density to return

    def run(self, model: DiffusionODE) -> dict[str, Any]:
        """Samples and returns what it wrote to `summary.json`.

        Raises:
            ValueError: if the model has no image shape, or for a checkpoint that is missing or of
                another architecture.
            checks.NonFiniteError: if a solve did not arrive.
            checks.Preempted: when asked to stop; the next `run` goes on from there.
        """
        if model.image_shape is None:
            raise ValueError("Sampling needs `DiffusionODE.image_shape`; bind IMAGE_SHAPE.")
        self.partitioner.check_batch_size("batch_size", self.batch_size, per_device=True)
        began = time.monotonic()
        restored = run_inputs.load_params(
            model,
            model.image_shape,
            self.checkpoint_path,
            self.use_ema,
            self.partitioner.replicated,
        )
        params, step, checkpoint = restored.params, restored.step, str(restored.path)
        print(
            f"Drawing {self.num_samples} images from {checkpoint}, step {step}.",
            flush=True,
        )
        loop = image_loop.ImageLoop(
            self._directory / PARTIAL, self._facts(model, params), self.num_samples
        )
        with loop:
            drawn = self._draw(model, params, loop)
        summary = {
            "checkpoint": checkpoint,
            "step": step,
            "parameters": "ema" if self.use_ema else "raw",
            "trained_on": run_inputs.trained_on(restored.facts),
            "num_samples": self.num_samples,
            "image_shape": list(model.image_shape),
            "levels": model.encoding.levels,
            "seed": self.seed,
            "sampler": type(self.method).__name__,
            "nfe": float(np.mean(drawn["nfe"])),
            **({"log_p": _summarize(drawn["log_p"])} if self.return_log_prob else {}),
            "wall_seconds": loop.seconds_before + time.monotonic() - began,
        }
        self._write(summary, drawn, model.encoding.levels)
        loop.remove()
        return summary

    @property
    def _directory(self) -> pathlib.Path:
        return pathlib.Path(self.output_dir)

    def dry_run(self, model: DiffusionODE) -> str:
        """What `run` would do, in words, on devices that need not be there.

        Raises:
            ValueError: for a batch size that does not suit the mesh, or a model without a shape.
        """
        partitioner = self.partitioner.without_devices()
        partitioner.check_batch_size("batch_size", self.batch_size, per_device=True)
        use = f"draw {self.num_samples} images with"
        return run_inputs.describe_use(model, partitioner, self.checkpoint_path, use)

    def _facts(self, model: DiffusionODE, params: types.Params) -> dict[str, Any]:
        """What decides the samples."""
        return run_inputs.result_facts(
            model,
            params,
            self.use_ema,
            method=self._method(),
            num_samples=self.num_samples,
            conditioning=self.conditioning,
            seed=self.seed,
            solve_size=self.solve_size,
        )

    def _draw(
        self, model: DiffusionODE, params: types.Params, loop: image_loop.ImageLoop
    ) -> dict[str, np.ndarray]:
        """Per sample: `pixels` `[N, H, W, C]`, network evaluations `nfe` and `success` `[N]`.

        And `log_p` `[N]` and `latent` `[N, H, W, C]`, if asked for.
        """
        method = self._method()
        dtype = np.min_scalar_type(model.encoding.levels - 1)

        def sample(params: types.Params, batch: types.Batch) -> dict[str, jax.Array]:
            found = model.sample_fn(params, batch, jax.random.key(self.seed), method)
            is_finite = jnp.isfinite(found.latent).all(axis=(1, 2, 3))
            values = {
                "pixels": found.pixels.astype(dtype),
                "nfe": found.num_evaluations,
                "success": found.success & is_finite,
            }
            if found.log_p is not None:
                values |= {"log_p": found.log_p, "latent": found.latent}
                values["success"] &= jnp.isfinite(found.log_p)
            return values

        compiled = image_loop.compiled(sample, self.partitioner, self.solve_size)
        drawn = loop.run(
            SECTION, lambda batch: compiled(params, batch), self._batches, self.batch_size
        )
        failed = int((~drawn["success"]).sum())
        if failed:
            loop.remove()  # they would be no better the next time
            raise checks.NonFiniteError(
                f"{failed} of {self.num_samples} samples did not reach the clean end. Raise the "
                "solver's max_steps or its tolerances."
            )
        return drawn

    def _batches(self, index: np.ndarray) -> Iterator[types.Batch]:
        """Batches of the samples `index`, in that order, the last filled up with sample 0."""
        rows = self.partitioner.local_rows(self.batch_size)
        conditioning = np.tile(np.asarray(self.conditioning, np.float32), (len(rows), 1))
        for chosen, _ in batch_lib.index_batches(index, self.batch_size, rows):
            batch = {"index": chosen.astype(np.int32), "conditioning": conditioning}
            yield self.partitioner.put_batch(batch, self.batch_size)

    def _method(self) -> AbstractSampler:
        return self.method.with_log_prob(self.divergence) if self.return_log_prob else self.method

    def _write(self, summary: dict[str, Any], drawn: dict[str, np.ndarray], levels: int) -> None:
        if jax.process_index() != 0:
            return
        directory, pixels = self._directory, drawn["pixels"]
        arrays = {"arr_0": to_uint8(pixels, levels), "levels": pixels}
        arrays |= {name: drawn[name] for name in ("log_p", "latent") if name in drawn}
        files.write_npz_atomically(directory / "samples.npz", arrays)
        plots.image_grid(pixels[: self.grid_images], levels, directory / "grid.png")
        files.write_atomically(directory / "summary.json", json.dumps(summary, indent=2) + "\n")
        print(f"Wrote samples.npz and grid.png to {directory}.", flush=True)


def to_uint8(pixels: np.ndarray, levels: int) -> np.ndarray:
    """Levels 0 … V-1 stretched over 0 … 255; 8-bit images come back unchanged."""
    return np.round(np.arange(levels) * (255 / (levels - 1))).astype(np.uint8)[pixels]


def _summarize(log_p: np.ndarray) -> dict[str, Any]:
    """Mean over images, with its standard error, nats."""
    values = log_p.astype(np.float64)
    return {"mean": float(np.mean(values)), "stderr": means.standard_error(values)}
