"""Evaluation: bits per dim of every image of a split, exactly once, under several bounds."""

import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any, final

import jax
import numpy as np

from idode_gin import checks, types
from idode_gin.checkpoints import saving
from idode_gin.checkpoints.saving import RestoredParams
from idode_gin.checkpoints.series import AbstractSeries
from idode_gin.devices.partitioning import PjitPartitioner
from idode_gin.evaluation import histogram as histogram_lib
from idode_gin.evaluation import parity as parity_lib
from idode_gin.evaluation import pilot_run, results, watch
from idode_gin.evaluation import scores as eval_scores
from idode_gin.evaluation.results import VARIATIONAL_BOUND, Scores, SolverError
from idode_gin.feed import batches as batch_lib
from idode_gin.feed import data, loading
from idode_gin.likelihood import pilot_grids
from idode_gin.likelihood.ode_likelihood import ODELikelihood
from idode_gin.likelihood.pilot import Pilot
from idode_gin.losses.base import AbstractBound
from idode_gin.losses.bound import VariationalBound
from idode_gin.models import DiffusionODE
from idode_gin.reports import fingerprints
from idode_gin.runs import image_loop, run_inputs

PARTIAL = "partial_results"
"""The folder, in the output directory, of scores that are there before all are."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Shared:
    """What all checkpoints of one evaluation share: images, and functions compiled once.

    Args:
        model: what was trained.
        split: the images.
        batch_size: images at a time.
        histogram: bits per dim to beat, `[N]`.
        scorer: see `eval_scores.scorers`.
        integrand: see `eval_scores.integrand`.
        pilot: see `eval_pilot.runner`; None for no measurement.
        config_sha256: of the configuration, if there is one.
    """

    model: DiffusionODE
    split: data.ImageSplit
    batch_size: int
    histogram: np.ndarray | None
    scorer: Callable[[str, ODELikelihood | None], image_loop.Compute]
    integrand: Callable[[types.Params], tuple[np.ndarray, np.ndarray]]
    pilot: pilot_run.Run | None
    config_sha256: str | None


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Scores checkpoints on one split: one row per image, a summary with errors, and pictures.

    `results.npz` and `results.parquet` have the values of `eval_scores`; `summary.json`, which is
    written last, those of `eval_results.summarize`.

    Every figure of an image is a pure function of the parameters, the image, its place in the split
    and `seed`: batch size, order and neighbours do not matter, not in one bit. Other devices, or
    CPU devices of another number of threads, round otherwise, and adaptive steps may then differ:
    by no more than the solver's own error.

    Scores are kept as they come, in `partial_results/`: stopped anywhere, even killed, and run
    again, an evaluation goes on with the images that have none and ends in the same files. One
    that is finished is done anew; of a series of checkpoints, only what was not finished is.

    Args:
        output_dir: where the files go.
        checkpoint_path: a run directory (its latest checkpoint) or one `checkpoint_<step>` in it.
        likelihoods: ODE likelihoods by the name they have in the results.
        variational_bound: the bound that needs no ODE.
        checkpoints: which of the run directory are scored, each into `step_<step>/`, with a curve
            over them; None scores the one that `checkpoint_path` stands for.
        histogram_split: split on which the histogram to beat is fitted; None for no histogram.
        use_ema: score the averaged parameters rather than the last ones.
        seed: of dequantization noise and probes.
        solve_size: images that one solve works on, whatever the batch size. A float32 network
            rounds a little differently for each number of images, and adaptive steps can make of
            that a difference as large as the solver's own error.
        partitioner: devices. Each has images of its own and all parameters, whatever the mesh:
            solves of different length cannot wait for each other's parts of them.
        parity: another program, whose figures are told beside ours.
        pilot: measures every likelihood's solver error on a few images, and chooses the solver of
            those that have none; None for no measurement.
    """

    output_dir: str
    checkpoint_path: str
    likelihoods: dict[str, ODELikelihood]
    variational_bound: AbstractBound = dataclasses.field(default_factory=VariationalBound)
    checkpoints: AbstractSeries | None = None
    histogram_split: str | None = "train"
    use_ema: bool = True
    seed: int = 0
    solve_size: int = 32
    partitioner: PjitPartitioner = dataclasses.field(default_factory=PjitPartitioner)
    parity: parity_lib.AbstractParity | None = None
    pilot: Pilot | None = None

    def __post_init__(self) -> None:
        """Checks the names of the likelihoods, and that each has a solver or will be given one."""
        checks.check_positive("solve_size", self.solve_size)
        for each in self.likelihoods.values():
            checks.check_lanes_fit(each.lanes, self.solve_size)
        undecided = [name for name, each in self.likelihoods.items() if each.solver is None]
        if undecided and self.pilot is None:
            raise ValueError(
                f"Without a `pilot` every likelihood needs a `solver`, but {undecided} have none. "
                "Bind PILOT = @pilot.Pilot(), or a SOLVER."
            )
        results.check_names(list(self.likelihoods), results.TAKEN)

    def check_path(self) -> None:
        """Raises ValueError unless there are checkpoints, or may be where they are waited for."""
        if self.checkpoints is None:
            saving.find(self.checkpoint_path)
        else:
            self.checkpoints.check(self.checkpoint_path)

    def run(
        self, model: DiffusionODE, dataset: data.DatasetConfig, config_sha256: str | None = None
    ) -> dict[str, Any]:
        """Evaluates and returns what it wrote to `summary.json`; of a series, its `curve`.

        Args:
            model: what was trained.
            dataset: the images.
            config_sha256: of the configuration, for the summary.

        Raises:
            ValueError: for an unknown task or split, images that do not fit the model, or a
                checkpoint that is missing or of another architecture.
            checks.NonFiniteError: if an image's figure is not finite or a solve did not arrive.
            checks.Preempted: when asked to stop; the next `run` goes on from there.
        """
        self.partitioner.check_batch_size("batch_size", dataset.batch_size, per_device=True)
        self.check_path()  # before images are read
        split = run_inputs.load(dataset, model)

        def load(path: str | pathlib.Path) -> RestoredParams:
            return run_inputs.load_params(
                model, split.image_shape, str(path), self.use_ema, self.partitioner.replicated
            )

        restored = load(self.checkpoint_path) if self.checkpoints is None else None
        shared = _Shared(
            model=model,
            split=split,
            batch_size=dataset.batch_size,
            histogram=self._histogram(dataset, split, model.encoding.levels),
            scorer=eval_scores.scorers(
                model,
                self.variational_bound,
                self.seed,
                self.partitioner,
                self.solve_size,
                self.parity,
            ),
            integrand=eval_scores.integrand(model, split, self.seed, self.solve_size),
            pilot=None
            if self.pilot is None
            else pilot_run.runner(
                self.pilot, model, split, functools.partial(eval_scores.key_of, self.seed)
            ),
            config_sha256=config_sha256,
        )
        if restored is not None:
            return self._evaluate(shared, restored, self._directory, {})
        assert self.checkpoints is not None
        return watch.score_each(
            self.checkpoints,
            self.checkpoint_path,
            self._directory,
            self._settings(shared),
            load,
            lambda restored, folder, more: self._evaluate(shared, restored, folder, more),
        )

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
        which = "" if self.checkpoints is None else f" {self.checkpoints.words}"
        use = f"score {dataset.mixture_or_task_name} / {dataset.split} with{which}"
        return run_inputs.describe_use(model, partitioner, self.checkpoint_path, use)

    def _evaluate(
        self,
        shared: _Shared,
        restored: RestoredParams,
        directory: pathlib.Path,
        more: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Scores one checkpoint into `directory`; its summary, which has `more` as well."""
        began, split, params = time.monotonic(), shared.split, restored.params
        print(
            f"Scoring {split.num_images} images of {split.name} / {split.split} with "
            f"{restored.path}, step {restored.step}, {self._parameters} parameters.",
            flush=True,
        )
        chosen = self._chosen(shared, params)
        estimators = {name: each for name, (each, _) in chosen.items()}
        facts = self._facts(shared.model, params, split, estimators)
        digest = run_inputs.digest_name(self.use_ema)
        loop = image_loop.ImageLoop(directory / PARTIAL, facts, split.num_images)
        scores = {}
        with loop:
            for name in (VARIATIONAL_BOUND, *estimators):
                scorer = shared.scorer(name, estimators.get(name))
                scores[name] = self._score(name, scorer, params, shared, loop)
        summary = {
            **split.facts(),
            "levels": shared.model.encoding.levels,
            "checkpoint": str(restored.path),
            **more,
            "step": restored.step,
            "parameters": self._parameters,
            digest: facts[digest],
            "config_sha256": shared.config_sha256,
            "seed": self.seed,
            "solve_size": self.solve_size,
            "histogram_bpd": None if shared.histogram is None else float(np.mean(shared.histogram)),
            VARIATIONAL_BOUND: results.summarize(scores[VARIATIONAL_BOUND]),
        }
        results.check_names(list(estimators), [*summary, "wall_seconds"])
        for name, (estimator, error) in chosen.items():
            summary[name] = results.summarize(
                scores[name], num_repeats=estimator.num_repeats, solver_error=error
            )
        if self.parity is not None:
            summary["parity"] = self.parity.summarize(scores)
        summary["wall_seconds"] = loop.seconds_before + time.monotonic() - began
        if jax.process_index() == 0:
            integrand = functools.partial(shared.integrand, params)
            results.write(directory, summary, scores, shared.histogram, split, integrand)
        loop.remove()
        print(results.table(summary, shared.histogram), flush=True)
        if self.parity is not None:
            print(parity_lib.table(summary["parity"], self.parity.legend), flush=True)
        return summary

    @property
    def _parameters(self) -> str:
        return "ema" if self.use_ema else "raw"

    def _chosen(
        self, shared: _Shared, params: types.Params
    ) -> dict[str, tuple[ODELikelihood, SolverError | None]]:
        """Each likelihood with the solver it is scored with, and what that one's error is."""
        if shared.pilot is None:
            if (coarse := pilot_grids.coarse_arithmetic(shared.model)) is not None:
                print(
                    f"Without PILOT nobody knows how much {coarse} moves the figures by.",
                    flush=True,
                )
            return {name: (each, None) for name, each in self.likelihoods.items()}
        chosen: dict[str, tuple[ODELikelihood, SolverError | None]] = {}
        for name, each in self.likelihoods.items():
            estimator, report = shared.pilot(params, name, each)
            chosen[name] = (estimator, {**report._asdict(), "is_within": report.is_within})
            said = pilot_run.in_words(report)
            if each.solver is None and self.pilot is not None:
                said += pilot_run.warning(estimator, self.pilot)
            print(f"{name}: {said}", flush=True)
        return chosen

    def _score(
        self,
        name: str,
        scorer: image_loop.Compute,
        params: types.Params,
        shared: _Shared,
        loop: image_loop.ImageLoop,
    ) -> Scores:
        """Scores of all images in the order of the split, float64 `[N]` each."""
        size = shared.batch_size
        rows = self.partitioner.local_rows(size)
        found = loop.run(
            name,
            lambda batch: scorer(params, self.partitioner.put_batch(batch, size)),
            lambda index: batch_lib.eval_batches(shared.split, size, rows, index),
            size,
        )
        scores = {key: np.asarray(each, np.float64) for key, each in found.items()}
        try:
            results.check_scores(name, scores)
        except checks.NonFiniteError:
            loop.remove()  # they would be no better the next time
            raise
        return scores

    def _facts(
        self,
        model: DiffusionODE,
        params: types.Params,
        split: data.ImageSplit,
        estimators: Mapping[str, ODELikelihood],
    ) -> dict[str, Any]:
        """What decides the scores."""
        likelihoods = {f"likelihoods.{name}": each for name, each in estimators.items()}
        return run_inputs.result_facts(
            model,
            params,
            self.use_ema,
            dataset=str(split),
            dataset_sha256=split.fingerprint.sha256,
            conditioning_sha256=fingerprints.sha256(split.conditioning),
            seed=self.seed,
            solve_size=self.solve_size,
            variational_bound=self.variational_bound,
            parity=self.parity,
            **likelihoods,
        )

    def _settings(self, shared: _Shared) -> dict[str, Any]:
        """What decides the scores, and is the same for all checkpoints of a series."""
        facts = self._facts(shared.model, {}, shared.split, self.likelihoods)
        del facts[run_inputs.digest_name(self.use_ema)]
        run_dir = str(pathlib.Path(self.checkpoint_path).absolute())
        return {**facts, "run": run_dir, "parameters": self._parameters}

    def _histogram(
        self, dataset: data.DatasetConfig, split: data.ImageSplit, levels: int
    ) -> np.ndarray | None:
        if self.histogram_split is None:
            return None
        train = loading.load_split(
            dataclasses.replace(dataset, split=self.histogram_split, fingerprint=None)
        )
        return histogram_lib.HistogramModel.fit(train.images, levels).bits_per_dim(split.images)
