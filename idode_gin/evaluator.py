"""Evaluation: bits per dim of every image of a split, exactly once, under several bounds."""

import dataclasses
import json
import pathlib
import time
import zlib
from collections.abc import Mapping
from typing import Any, final

import jax
import numpy as np

from idode_gin import baselines, checks, image_loop, run_inputs, types
from idode_gin.likelihood import ImageLikelihood, ODELikelihood
from idode_gin.losses.base import AbstractBound
from idode_gin.losses.bound import VariationalBound
from idode_gin.models import DiffusionODE
from idode_gin.runtime import batches as batch_lib
from idode_gin.runtime import checkpoints, data, evaluation, files, fingerprints, loading
from idode_gin.runtime.partitioning import PjitPartitioner

VARIATIONAL_BOUND = "variational_bound"
PARTIAL = "partial_results"
"""The folder, in the output directory, of scores that are there before all are."""
_SHOWN_DIGITS = 12
Scores = dict[str, np.ndarray]
Scorer = image_loop.Compute


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Scores a checkpoint on one split and writes a table, `summary.json` and `results.npz`.

    Every figure of an image is a pure function of the parameters, the image, its place in the split
    and `seed`: batch size, order and neighbours do not matter, not in one bit. Other devices, or
    CPU devices of another number of threads, round otherwise, and adaptive steps may then differ:
    by no more than the solver's own error.

    Scores are kept as they come, in `partial_results/`: stopped anywhere, even killed, and run
    again, an evaluation goes on with the images that have none and ends in the same `results.npz`.
    One that is finished is done anew.

    Args:
        output_dir: where the files go.
        checkpoint_path: a run directory (its latest checkpoint) or one `checkpoint_<step>` in it.
        likelihoods: ODE likelihoods by the name they have in the results.
        variational_bound: the bound that needs no ODE.
        histogram_split: split on which the histogram to beat is fitted; None for no histogram.
        use_ema: score the averaged parameters rather than the last ones.
        seed: of dequantization noise and probes.
        solve_size: images that one solve works on, whatever the batch size. A float32 network
            rounds a little differently for each number of images, and adaptive steps can make of
            that a difference as large as the solver's own error.
        partitioner: devices. Each has images of its own and all parameters, whatever the mesh:
            solves of different length cannot wait for each other's parts of them.
    """

    output_dir: str
    checkpoint_path: str
    likelihoods: dict[str, ODELikelihood]
    variational_bound: AbstractBound = dataclasses.field(default_factory=VariationalBound)
    histogram_split: str | None = "train"
    use_ema: bool = True
    seed: int = 0
    solve_size: int = 32
    partitioner: PjitPartitioner = dataclasses.field(default_factory=PjitPartitioner)

    def __post_init__(self) -> None:
        """Checks the names of the likelihoods."""
        checks.check_positive("solve_size", self.solve_size)
        if VARIATIONAL_BOUND in self.likelihoods:
            raise ValueError(
                f"`likelihoods` cannot use the name {VARIATIONAL_BOUND!r}: it is taken."
            )

    def run(self, model: DiffusionODE, dataset: data.DatasetConfig) -> dict[str, Any]:
        """Evaluates and returns what it wrote to `summary.json`.

        Raises:
            ValueError: for an unknown task or split, images that do not fit the model, or a
                checkpoint that is missing or of another architecture.
            checks.NonFiniteError: if an image's figure is not finite or a solve did not arrive.
            checks.Preempted: when asked to stop; the next `run` goes on from there.
        """
        self.partitioner.check_batch_size("batch_size", dataset.batch_size, per_device=True)
        began = time.monotonic()
        checkpoints.find(self.checkpoint_path)  # before images are read
        split = run_inputs.load(dataset, model)
        restored = run_inputs.load_params(
            model,
            split.image_shape,
            self.checkpoint_path,
            self.use_ema,
            self.partitioner.replicated,
        )
        params, step, checkpoint = restored.params, restored.step, str(restored.path)
        print(
            f"Scoring {split.num_images} images of {split.name} / {split.split} with "
            f"{checkpoint}, step {step}, {'EMA' if self.use_ema else 'raw'} parameters.",
            flush=True,
        )
        facts = self._facts(model, params, split)
        loop = image_loop.ImageLoop(self._directory / PARTIAL, facts, split.num_images)
        histogram = self._histogram(dataset, split, model.encoding.levels)
        scores = {}
        with loop:
            for name, scorer in self._scorers(model).items():
                scores[name] = self._score(name, scorer, params, split, dataset.batch_size, loop)
        summary = {
            **split.facts(),
            "levels": model.encoding.levels,
            "checkpoint": checkpoint,
            "step": step,
            "parameters": "ema" if self.use_ema else "raw",
            "params_sha256": facts["params_sha256"],
            "seed": self.seed,
            "solve_size": self.solve_size,
            "histogram_bpd": None if histogram is None else float(np.mean(histogram)),
            **{name: _summarize(each) for name, each in scores.items()},
            "wall_seconds": loop.seconds_before + time.monotonic() - began,
        }
        self._write(summary, scores, histogram)
        loop.remove()
        print(table(summary, histogram), flush=True)
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
        use = f"score {dataset.mixture_or_task_name} / {dataset.split} with"
        return run_inputs.describe_use(model, partitioner, self.checkpoint_path, use)

    def _scorers(self, model: DiffusionODE) -> dict[str, Scorer]:
        """One compiled function `(params, batch) -> scores [B]` per bound."""

        def bound(params: types.Params, batch: types.Batch) -> Mapping[str, jax.Array]:
            key = _key(self.seed, VARIATIONAL_BOUND)
            parts = model.bound_fn(params, batch, key, self.variational_bound)
            evaluations = np.full(batch["index"].shape, self.variational_bound.num_evaluations())
            return {**parts, "nfe": jax.numpy.asarray(evaluations)}

        def ode(name: str, estimator: ODELikelihood) -> Scorer:
            def score(params: types.Params, batch: types.Batch) -> Mapping[str, jax.Array]:
                found: ImageLikelihood = model.likelihood_fn(
                    params, batch, _key(self.seed, name), estimator
                )
                dims = int(np.prod(batch["image"].shape[1:]))
                return {
                    "bpd": found.bits_per_dim(dims),
                    "nfe": found.num_evaluations,
                    "success": found.success,
                }

            return score

        scorers: dict[str, Scorer] = {VARIATIONAL_BOUND: bound}
        scorers |= {name: ode(name, each) for name, each in self.likelihoods.items()}
        return {
            name: image_loop.compiled(each, self.partitioner, self.solve_size)
            for name, each in scorers.items()
        }

    def _score(
        self,
        name: str,
        scorer: Scorer,
        params: types.Params,
        split: data.ImageSplit,
        batch_size: int,
        loop: image_loop.ImageLoop,
    ) -> Scores:
        """Scores of all images in the order of the split, float64 `[N]` each."""
        rows = self.partitioner.local_rows(batch_size)
        found = loop.run(
            name,
            lambda batch: scorer(params, self.partitioner.put_batch(batch, batch_size)),
            lambda index: batch_lib.eval_batches(split, batch_size, rows, index),
            batch_size,
        )
        scores = {key: np.asarray(each, np.float64) for key, each in found.items()}
        try:
            _check_scores(name, scores)
        except checks.NonFiniteError:
            loop.remove()  # they would be no better the next time
            raise
        return scores

    def _facts(
        self, model: DiffusionODE, params: types.Params, split: data.ImageSplit
    ) -> dict[str, Any]:
        """What decides the scores."""
        likelihoods = {f"likelihoods.{name}": each for name, each in self.likelihoods.items()}
        return run_inputs.result_facts(
            model,
            params,
            dataset=str(split),
            dataset_sha256=split.fingerprint.sha256,
            conditioning_sha256=fingerprints.sha256(split.conditioning),
            seed=self.seed,
            solve_size=self.solve_size,
            variational_bound=self.variational_bound,
            **likelihoods,
        )

    def _histogram(
        self, dataset: data.DatasetConfig, split: data.ImageSplit, levels: int
    ) -> np.ndarray | None:
        if self.histogram_split is None:
            return None
        train = loading.load_split(
            dataclasses.replace(dataset, split=self.histogram_split, fingerprint=None)
        )
        return baselines.HistogramModel.fit(train.images, levels).bits_per_dim(split.images)

    def _write(
        self, summary: Mapping[str, Any], scores: dict[str, Scores], histogram: np.ndarray | None
    ) -> None:
        if jax.process_index() != 0:
            return
        arrays = {f"{name}/{key}": v for name, each in scores.items() for key, v in each.items()}
        if histogram is not None:
            arrays["histogram/bpd"] = histogram
        directory = self._directory
        files.write_npz_atomically(directory / "results.npz", arrays)
        files.write_atomically(directory / "table.txt", table(summary, histogram) + "\n")
        text = json.dumps(summary, indent=2, allow_nan=False) + "\n"
        files.write_atomically(directory / "summary.json", text)


def table(summary: Mapping[str, Any], histogram: np.ndarray | None = None) -> str:
    """The results as text: which pixels of which dataset, then one line per bound."""
    variant = f", {summary['variant']}" if summary["variant"] else ""
    lines = [
        f"{summary['dataset']}{variant} / {summary['split']}: {summary['num_images']} images of "
        f"{'x'.join(str(each) for each in summary['image_shape'])}, {summary['levels']} levels, "
        f"sha256 {summary['sha256'][:_SHOWN_DIGITS]}, step {summary['step']}",
        f"{'bound':<20}{'bpd':>10}{'std. error':>12}{'NFE':>8}",
    ]
    for name, each in summary.items():
        if isinstance(each, Mapping):
            lines.append(
                f"{name:<20}{each['mean']:>10.4f}{_shown(each['stderr'])}{each['nfe']:>8.0f}"
            )
    if histogram is not None:
        error = evaluation.standard_error(histogram)
        lines.append(f"{'histogram':<20}{np.mean(histogram):>10.4f}{_shown(error)}{'-':>8}")
    return "\n".join(lines)


def _shown(error: float | None) -> str:
    return f"{'-':>12}" if error is None else f"{error:>12.4f}"


def _summarize(scores: Scores) -> dict[str, float | None]:
    found: dict[str, float | None] = {
        "mean": float(np.mean(scores["bpd"])),
        "stderr": evaluation.standard_error(scores["bpd"]),
        "nfe": float(np.mean(scores["nfe"])),
    }
    parts = set(scores) - {"bpd", "nfe", "success"}
    return found | {part: float(np.mean(scores[part])) for part in sorted(parts)}


def _check_scores(name: str, scores: Scores) -> None:
    failed = ~np.isfinite(scores["bpd"]) | (scores.get("success", np.ones(1)) == 0)
    if failed.any():
        first = np.flatnonzero(failed)
        raise checks.NonFiniteError(
            f"{name}: {first.size} of {failed.size} images have no finite bits per dim, the first "
            f"at index {first[0]}. The solver did not reach the end within its step limit, or the "
            "network gave NaN. Raise the solver's max_steps or its tolerances, or evaluate an "
            "earlier checkpoint."
        )


def _key(seed: int, name: str) -> jax.Array:
    """A key of this bound's own, so that adding a bound does not change the others."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
