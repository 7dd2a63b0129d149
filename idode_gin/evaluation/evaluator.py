"""Evaluation: bits per dim of every image of a split, exactly once, under several bounds."""

import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, final

import jax
import numpy as np

from idode_gin import checks, types
from idode_gin.checkpoints import saving
from idode_gin.checkpoints.saving import RestoredParams
from idode_gin.checkpoints.series import AbstractSeries
from idode_gin.devices.partitioning import PjitPartitioner
from idode_gin.evaluation import curve, pilot_run, results, scores, summary
from idode_gin.evaluation import histogram as histogram_lib
from idode_gin.evaluation import parity as parity_lib
from idode_gin.evaluation.summary import VARIATIONAL_BOUND
from idode_gin.feed import data, loading
from idode_gin.likelihood import pilot_grids
from idode_gin.likelihood.ode_likelihood import ODELikelihood
from idode_gin.likelihood.pilot import Pilot
from idode_gin.losses.base import AbstractBound
from idode_gin.losses.bound import VariationalBound
from idode_gin.losses.discrete_time import DiscreteTime
from idode_gin.models import DiffusionODE
from idode_gin.reports import progress
from idode_gin.reports.paths import LocalPath
from idode_gin.runs import descriptions, facts, image_loop, run_inputs


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Prepared:
    """Inputs shared by all checkpoints of an evaluation.

    `histogram` is bits per dim of the histogram baseline, `[N]`. `functions` compile once for all
    checkpoints; where gamma(t) is learned, `make` returns new ones for the model of each.
    """

    model: DiffusionODE
    split: data.ImageSplit
    batch_size: int
    config_sha256: str | None
    histogram: np.ndarray | None
    make: Callable[[DiffusionODE], "_Functions"]
    functions: "_Functions"

    def functions_at(self, params: types.Params) -> "_Functions":
        """Return the functions for the gamma(t) of these parameters."""
        here = self.model.at(params)
        return self.functions if here is self.model else self.make(here)


class _Functions(NamedTuple):
    """Functions of the parameters, for one gamma(t)."""

    pilot: pilot_run.Run | None
    scorer: Callable[[str, scores.Scored], image_loop.Compute]
    integrand: Callable[[types.Params], tuple[np.ndarray, np.ndarray, int]]


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Scores checkpoints on one split: one row per image, a summary with errors, and plots.

    `results.npz` and `results.parquet` hold the values listed in `evaluation.scores`;
    `summary.json`, which is written last, those of `evaluation.summary.summarize`.

    Every value of an image is a pure function of the parameters, the image, its place in the split
    and `seed`. It is the same, bit for bit, for every batch size, order and set of neighbours.
    Different hardware, or another number of CPU threads, rounds differently, and adaptive steps may
    then differ: by no more than the solver's own error.

    Scores are saved in `partial_results/` while they are computed. An evaluation that was stopped,
    or even killed, resumes with the images that have no scores, and ends in the same files. Running
    a finished one again recomputes everything; for a series of checkpoints, only what was not
    finished.

    Args:
        output_dir: where the files are written.
        checkpoint_path: a run directory (its newest checkpoint) or one `checkpoint_<step>` in it.
        likelihoods: ODE likelihoods by their name in the results.
        variational_bound: the bound that needs no ODE.
        discrete_steps: numbers of steps T. For each, the bound of the chain of T steps is scored as
            `discrete_time_T`, with the noise of `variational_bound` and as many evaluations (or T),
            and the gap between the two is reported.
        checkpoints: which checkpoints of the run directory to score, each into `step_<step>/`, with
            a curve over them; None scores the one at `checkpoint_path`.
        histogram_split: split that the histogram baseline is fitted on; None for no baseline.
        use_ema: score the averaged parameters rather than the last ones.
        seed: of dequantization noise and probes.
        solve_size: images per solve, whatever the batch size. A float32 network rounds slightly
            differently for each number of images, and adaptive steps can amplify that to the
            solver's own error.
        partitioner: devices. Each one solves its own images with a copy of all parameters, whatever
            the mesh, because solves of different length cannot wait for each other.
        parity: another program, whose figures are reported beside ours.
        pilot: measures every likelihood's solver error on a few images, and chooses the solver of
            those without one; None measures nothing.
    """

    output_dir: LocalPath
    checkpoint_path: LocalPath
    likelihoods: dict[str, ODELikelihood]
    variational_bound: AbstractBound = dataclasses.field(default_factory=VariationalBound)
    discrete_steps: tuple[int, ...] = ()
    checkpoints: AbstractSeries | None = None
    histogram_split: str | None = "train"
    use_ema: bool = True
    seed: int = 0
    solve_size: int = 32
    partitioner: PjitPartitioner = dataclasses.field(default_factory=PjitPartitioner)
    parity: parity_lib.AbstractParity | None = None
    pilot: Pilot | None = None

    def __post_init__(self) -> None:
        """Check the names of the likelihoods, and that each one has or will get a solver."""
        checks.check_positive("solve_size", self.solve_size)
        for each in self.likelihoods.values():
            checks.check_lanes_fit(each.lanes, self.solve_size)
        undecided = [name for name, each in self.likelihoods.items() if each.solver is None]
        if undecided and self.pilot is None:
            raise ValueError(
                f"Without a `pilot` every likelihood needs a `solver`, but {undecided} have none. "
                "Bind PILOT = @pilot.Pilot(), or a SOLVER."
            )
        results.check_names(list(self.likelihoods), [*results.TAKEN, *self._discrete])

    @property
    def _discrete(self) -> dict[str, AbstractBound]:
        """The bounds in discrete time, by name."""
        times = self.variational_bound.num_evaluations()
        return {
            f"{summary.DISCRETE_TIME}{steps}": DiscreteTime(
                steps=steps, num_times=min(steps, times)
            )
            for steps in self.discrete_steps
        }

    def check_path(self) -> None:
        """Raise ValueError if there is no checkpoint; a series may wait for its first one."""
        if self.checkpoints is None:
            saving.find(self.checkpoint_path)
        else:
            self.checkpoints.check(self.checkpoint_path)

    def dry_run(self, model: DiffusionODE, dataset: data.DatasetConfig) -> str:
        """Describe what `run` would do: see `descriptions.describe_use`."""
        which = "" if self.checkpoints is None else f" {self.checkpoints.words}"
        use = f"score {dataset.mixture_or_task_name} / {dataset.split} with{which}"
        return descriptions.describe_use(
            model, self.partitioner, dataset.batch_size, self.checkpoint_path, use
        )

    def run(
        self, model: DiffusionODE, dataset: data.DatasetConfig, config_sha256: str | None = None
    ) -> dict[str, Any]:
        """Evaluate; return the contents of `summary.json`, or the `curve` of a series.

        `config_sha256` is the digest of the configuration, for the summary.

        Raises:
            ValueError: for an unknown task or split, images that do not fit the model, or a
                checkpoint that is missing or belongs to another architecture.
            checks.NonFiniteError: if a score is not finite or a solve failed.
            checks.Preempted: when asked to stop; the next `run` resumes.
        """
        self.partitioner.check_batch_size("batch_size", dataset.batch_size, per_device=True)
        self.check_path()  # before images are read
        split = run_inputs.load(dataset, model)

        def load(path: str | pathlib.Path) -> RestoredParams:
            return run_inputs.load_params(
                model, split.image_shape, str(path), self.use_ema, self.partitioner.replicated
            )

        restored = load(self.checkpoint_path) if self.checkpoints is None else None
        prepared = self._prepared(model, dataset, split, config_sha256)
        directory = pathlib.Path(self.output_dir)
        if restored is not None:
            return self._score(prepared, restored, directory, {})
        assert self.checkpoints is not None
        return curve.score_each(
            self.checkpoints,
            self.checkpoint_path,
            directory,
            self._series_facts(prepared),
            load,
            lambda restored, folder, more: self._score(prepared, restored, folder, more),
        )

    def _prepared(
        self,
        model: DiffusionODE,
        dataset: data.DatasetConfig,
        split: data.ImageSplit,
        config_sha256: str | None,
    ) -> _Prepared:
        histogram = None
        if self.histogram_split is not None:
            with progress.phase(f"fitting a histogram to {self.histogram_split}"):
                fitted_on = loading.load_split(
                    dataclasses.replace(dataset, split=self.histogram_split, fingerprint=None)
                )
                histogram = histogram_lib.bits_per_dim(
                    fitted_on.images, split.images, model.encoding.levels
                )
        coarse = pilot_grids.coarse_arithmetic(model)
        if self.pilot is None and coarse is not None:
            print(f"PILOT is None, so the error caused by {coarse} is not measured.", flush=True)

        def make(model: DiffusionODE) -> _Functions:
            key_of = functools.partial(scores.key_of, self.seed)
            bound, devices, size = self.variational_bound, self.partitioner, self.solve_size
            return _Functions(
                self.pilot and pilot_run.runner(self.pilot, model, split, key_of),
                scores.scorers(model, bound, self.seed, devices, size, self.parity),
                scores.integrand(model, split, self.seed, size),
            )

        return _Prepared(
            model=model,
            split=split,
            batch_size=dataset.batch_size,
            config_sha256=config_sha256,
            histogram=histogram,
            make=make,
            functions=make(model),
        )

    def _score(
        self,
        prepared: _Prepared,
        restored: RestoredParams,
        directory: pathlib.Path,
        more: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Score one checkpoint into `directory`; return its summary, which includes `more`."""
        began, split, params = time.monotonic(), prepared.split, restored.params
        used = facts.checkpoint_used(restored, self.use_ema)
        print(
            f"Scoring {split.num_images} images of {split.name} / {split.split} with "
            f"{restored.path}, step {restored.step}, {used['parameters']} parameters.",
            flush=True,
        )
        asked = facts.result_facts(prepared.model, params, self, split)
        known = asked | facts.described("pilot", self.pilot)
        kept = pilot_run.Kept(directory / image_loop.FOLDER, known)
        functions = prepared.functions_at(params)
        chosen = pilot_run.choose(functions.pilot, params, self.likelihoods, kept)
        estimators = {name: each.estimator for name, each in chosen.items()}
        known = facts.result_facts(prepared.model, params, self, split, likelihoods=estimators)
        digest = facts.digest_name(self.use_ema)
        head = {
            **split.facts(),
            "levels": prepared.model.encoding.levels,
            **used,
            **more,
            digest: known[digest],
            "config_sha256": prepared.config_sha256,
            "seed": self.seed,
            "solve_size": self.solve_size,
        }
        results.check_names(list(chosen), [*head, *summary.TAKEN])
        with image_loop.opened(
            directory, known, split.num_images, self.partitioner, prepared.batch_size
        ) as loop:
            scored = {VARIATIONAL_BOUND: None, **self._discrete, **estimators}
            found = {
                name: scores.score_split(name, functions.scorer(name, each), params, split, loop)
                for name, each in scored.items()
            }
        bound, histogram = self.variational_bound, prepared.histogram
        whole = summary.assemble(head, found, chosen, bound, histogram, self.parity, self._discrete)
        whole |= loop.cost_since(began)
        if jax.process_index() == 0:
            integrand = functools.partial(functions.integrand, params)
            results.write(directory, whole, found, histogram, split, integrand)
        loop.kept.remove()
        print(summary.table(whole, histogram), flush=True)
        if self.parity is not None:
            print(parity_lib.table(whole["parity"], self.parity.legend), flush=True)
        return whole

    def _series_facts(self, prepared: _Prepared) -> dict[str, Any]:
        """Return everything that the scores of all checkpoints of a series depend on."""
        found = facts.result_facts(prepared.model, {}, self, prepared.split)
        del found[facts.digest_name(self.use_ema)]
        run_dir = str(pathlib.Path(self.checkpoint_path).absolute())
        return {**found, "run": run_dir, "parameters": "ema" if self.use_ema else "raw"}
