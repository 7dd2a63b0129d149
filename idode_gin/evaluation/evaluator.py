"""Evaluation: bits per dim of every image of a split, exactly once, under several bounds."""

import dataclasses
import functools
import math
import pathlib
import time
from collections.abc import Mapping
from typing import Any, final

import jax
import numpy as np

from idode_gin import checks, types
from idode_gin.checkpoints import names, saving
from idode_gin.checkpoints.saving import RestoredParams
from idode_gin.checkpoints.series import AbstractSeries
from idode_gin.devices.partitioning import PjitPartitioner
from idode_gin.evaluation import classification as classification_lib
from idode_gin.evaluation import (
    cost,
    curve,
    earlier_results,
    pilot_run,
    pixel_keys,
    results,
    scores,
    summary,
)
from idode_gin.evaluation import histogram as histogram_lib
from idode_gin.evaluation import parity as parity_lib
from idode_gin.evaluation.classification import Classification
from idode_gin.evaluation.prepared import Computed, Functions, Prepared
from idode_gin.evaluation.summary import VARIATIONAL_BOUND, Scores
from idode_gin.feed import data
from idode_gin.likelihood import pilot_grids
from idode_gin.likelihood.ode_likelihood import ODELikelihood
from idode_gin.likelihood.pilot import Pilot
from idode_gin.losses.base import AbstractBound
from idode_gin.losses.bound import VariationalBound
from idode_gin.models import DiffusionODE
from idode_gin.reports import paths
from idode_gin.reports.paths import StoredPath
from idode_gin.runs import descriptions, facts, image_loop, run_inputs
from idode_gin.time_samplers.discrete_steps import DiscreteSteps


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
        histogram_split: split that the histogram baseline is fitted on; None for no baseline. It is
            left out if that split holds the images that are scored.
        use_ema: score the averaged parameters rather than the last ones.
        seed: of dequantization noise and probes.
        noise_by_pixels: draw the noise of an image by a hash of its pixels instead of its place in
            the split. Its score then is the same in every split, and in t5x's programs.
        solve_size: images per solve. Every device solves so many at a time, whatever the batch size
            of the dataset. A float32 network rounds slightly
            differently for each number of images, and adaptive steps can amplify that to the
            solver's own error.
        partitioner: devices. Each one solves its own images with a copy of all parameters, whatever
            the mesh, because solves of different length cannot wait for each other.
        parity: another program, whose figures are reported beside ours.
        pilot: measures every likelihood's solver error on a few images, and chooses the solver of
            those without one; None measures nothing.
        classification: of images by their likelihood under every class, if the model is conditioned
            on classes; None for none.
    """

    output_dir: StoredPath
    checkpoint_path: StoredPath
    likelihoods: dict[str, ODELikelihood]
    variational_bound: AbstractBound = dataclasses.field(default_factory=VariationalBound)
    discrete_steps: tuple[int, ...] = ()
    checkpoints: AbstractSeries | None = None
    histogram_split: str | None = "train"
    use_ema: bool = True
    seed: int = 0
    noise_by_pixels: bool = False
    solve_size: int = 32
    partitioner: PjitPartitioner = dataclasses.field(default_factory=PjitPartitioner)
    parity: parity_lib.AbstractParity | None = None
    pilot: Pilot | None = None
    classification: Classification | None = None

    def __post_init__(self) -> None:
        """Check the names of the likelihoods, and that each one has or will get a solver."""
        checks.check_count("solve_size", self.solve_size)
        checks.check_seed("seed", self.seed)
        for each in self.likelihoods.values():
            checks.check_lanes_fit(each.lanes, self.solve_size)
        run = paths.of(self.checkpoint_path)
        if self.checkpoints is not None and names.is_checkpoint(run.name):
            raise ValueError(
                f"A series of checkpoints requires a run directory, got `checkpoint_path` = {run}. "
                f"Name {run.parent}, or score this checkpoint alone by `checkpoints` = None."
            )
        undecided = [name for name, each in self.likelihoods.items() if each.solver is None]
        if undecided and self.pilot is None:
            raise ValueError(
                f"Without a `pilot` every likelihood needs a `solver`, but {undecided} have none. "
                "Bind PILOT = @pilot.Pilot(), or a SOLVER."
            )
        results.check_names(list(self.likelihoods), [*results.TAKEN, *self._discrete])
        if self.classification is not None:
            self.classification.check([VARIATIONAL_BOUND, *self.likelihoods])

    @property
    def _discrete(self) -> dict[str, AbstractBound]:
        """The bounds in discrete time, by name."""
        times = self.variational_bound.num_evaluations()
        return {
            f"{summary.DISCRETE_TIME}{steps}": VariationalBound(
                num_times=min(steps, times), time_sampler=DiscreteSteps(steps=steps)
            )
            for steps in self.discrete_steps
        }

    def check_path(self) -> None:
        """Raise ValueError if there is no checkpoint; a series may wait for its first one."""
        if self.checkpoints is None:
            saving.find(self.checkpoint_path)
        else:
            self.checkpoints.check(self.checkpoint_path)

    def check_output(
        self, model: DiffusionODE, dataset: data.DatasetConfig, split: data.ImageSplit | None = None
    ) -> None:
        """Raise ValueError if `output_dir` holds finished results of another evaluation.

        Those of the same one, and of other checkpoints of the same run, will be replaced. With a
        `split`, the images count too.
        """
        settings = None if self.checkpoints else self._settings(model, dataset, split)
        earlier_results.check(paths.of(self.output_dir), settings)

    def check_results(self, model: DiffusionODE, dataset: data.DatasetConfig) -> None:
        """Check the output folder as `check_output` does; compare finished results' images too."""
        self.check_output(model, dataset)
        if self.checkpoints is None and earlier_results.are_in(paths.of(self.output_dir)):
            self.check_output(model, dataset, run_inputs.load(dataset, model))

    def dry_run(
        self, model: DiffusionODE, dataset: data.DatasetConfig, *, full: bool = False
    ) -> str:
        """Describe what `run` would do: see `descriptions.describe_use`."""
        self.check_output(model, dataset)
        which = "" if self.checkpoints is None else f" {self.checkpoints.words}"
        use = f"score {dataset.mixture_or_task_name} / {dataset.split} with{which}"
        cost_of = functools.partial(self._cost, model)
        return descriptions.describe_use(
            self, model, 1, use, dataset=dataset, full=full, cost=cost_of
        )

    def _cost(self, model: DiffusionODE, operations: float, *checkpoint: Any) -> str:
        bounds = {VARIATIONAL_BOUND: self.variational_bound, **self._discrete}
        times = {name: each.num_evaluations() for name, each in bounds.items()}
        count = 0 if self.pilot is None else self.pilot.num_images
        dims, by = math.prod(descriptions.shape_for_dry_run(model)), None
        if self.classification is not None and model.num_classes:
            by = (self.classification.by, model.num_classes)
        given = times, self.likelihoods, count, operations, *checkpoint
        return cost.in_words(*given, dims=dims, classified=by, parity=self.parity)

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
        self.check_path()  # before images are read
        self.check_output(model, dataset)
        split = run_inputs.load(dataset, model)
        self.check_output(model, dataset, split)

        def load(path: str | pathlib.Path) -> RestoredParams:
            return run_inputs.load_params(
                model, split.image_shape, str(path), self.use_ema, self.partitioner.replicated
            )

        restored = load(self.checkpoint_path) if self.checkpoints is None else None
        prepared = self._prepared(model, dataset, split, config_sha256)
        directory = paths.of(self.output_dir)
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
    ) -> Prepared:
        histogram, levels = None, model.encoding.levels
        if self.histogram_split is not None:
            histogram = histogram_lib.baseline(dataset, self.histogram_split, split, levels)
        coarse = pilot_grids.coarse_arithmetic(model)
        if coarse is not None and (self.pilot is None or not self.likelihoods):
            why = "PILOT is None" if self.pilot is None else "LIKELIHOODS is empty"
            print(f"{why}, so the error caused by {coarse} is not measured.", flush=True)
        if self.classification is not None and model.num_classes:
            self.classification.check_prior(model.num_classes)

        def make(model: DiffusionODE) -> Functions:
            key_of = functools.partial(scores.key_of, self.seed)
            bound, devices, size = self.variational_bound, self.partitioner, self.solve_size
            classifier, count = None, model.num_classes
            keyed = pixel_keys.by_pixels if self.noise_by_pixels else lambda compute: compute
            indexed = pixel_keys.indexed if self.noise_by_pixels else None

            def of_classes(compute: image_loop.Compute) -> image_loop.Compute:
                return keyed(classification_lib.of_all_classes(compute, num_classes=count))

            if self.classification is not None and count:
                classifier = scores.scorers(model, bound, self.seed, devices, size, wrap=of_classes)
            return Functions(
                pilot=self.pilot
                and pilot_run.runner(self.pilot, model, split, key_of, size, indexed),
                scorer=scores.scorers(model, bound, self.seed, devices, size, self.parity, keyed),
                classifier=classifier,
                integrand=scores.integrand(model, split, self.seed, size),
            )

        return Prepared(
            model=model,
            split=split,
            # One solve a device, as in Python: XLA may round otherwise in a loop of several.
            batch_size=self.partitioner.rounded_up(1, self.solve_size),
            config_sha256=config_sha256,
            settings=self._settings(model, dataset, split),
            histogram=histogram,
            make=make,
            functions=make(model),
        )

    def _score(
        self,
        prepared: Prepared,
        restored: RestoredParams,
        directory: pathlib.Path,
        more: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Score one checkpoint into `directory`; return its summary, which includes `more`."""
        began, split, params = time.monotonic(), prepared.split, restored.params
        used = facts.checkpoint_used(restored, self.use_ema)
        print(
            f"Scoring {split.how_many} images of {split.name} / {split.split} with "
            f"{restored.path}, step {restored.step}, {used['parameters']} parameters."
            f"{split.classes and chr(10)}{split.classes}",
            flush=True,
        )
        run_inputs.warn_of_classes(split, restored)
        earlier_results.announce(directory)
        known = facts.result_facts(prepared.model, params, self, split)
        functions = prepared.functions_at(params)
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
        results.check_names(list(self.likelihoods), [*head, *summary.TAKEN])
        done = self._computed(prepared, functions, params, directory, known)
        bound, histogram = self.variational_bound, prepared.histogram
        whole = summary.assemble(
            head, done.scores, done.chosen, bound, histogram, self.parity, self._discrete
        )
        if done.classified:
            whole[summary.CLASSIFICATION] = done.classified
        whole |= done.loop.cost_since(began)
        if jax.process_index() == 0:
            integrand = functools.partial(functions.integrand, params)
            earlier_results.replace(directory, prepared.settings)
            results.write(directory, whole, done.scores, histogram, split, integrand, done.classes)
        done.loop.kept.remove()
        print(summary.table(whole, histogram), flush=True)
        if self.parity is not None:
            found = whole["parity"]
            print(parity_lib.table(found, self.parity.legend(found)), flush=True)
        return whole

    def _computed(
        self,
        prepared: Prepared,
        functions: Functions,
        params: types.Params,
        directory: pathlib.Path,
        known: Mapping[str, Any],
    ) -> Computed:
        """Score all images under every bound, after pilots where a likelihood needs one."""

        def score(name: str, bound: scores.Scored, loop: image_loop.ImageLoop) -> Scores:
            return scores.score_split(
                name, functions.scorer(name, bound), params, prepared.split, loop
            )

        of_pilot = {**known, **facts.described("pilot", self.pilot)}
        kept = pilot_run.Kept(directory / image_loop.FOLDER, of_pilot)

        def choose() -> dict[str, pilot_run.Chosen]:
            return pilot_run.choose(functions.pilot, params, self.likelihoods, kept)

        # Bounds without a pilot come first, before the pilots compile; but a pilot may refuse
        # coarse arithmetic, and with it every score.
        is_coarse = pilot_grids.coarse_arithmetic(prepared.model) is not None
        chosen = choose() if is_coarse else None
        with image_loop.opened(
            directory, known, prepared.split.num_images, self.partitioner, prepared.batch_size
        ) as loop:
            bounds = {VARIATIONAL_BOUND: None, **self._discrete}
            found = {name: score(name, each, loop) for name, each in bounds.items()}
        chosen = choose() if chosen is None else chosen
        estimators = {name: each.estimator for name, each in chosen.items()}
        if functions.pilot is not None:
            solvers = {name: facts.shortened(each) for name, each in estimators.items()}
            loop.kept.require(solvers, unless_in=bounds)
        with image_loop.reopened(loop) as loop:
            found |= {name: score(name, each, loop) for name, each in estimators.items()}
            classified: dict[str, Any] = {}
            classes: dict[str, np.ndarray] = {}
            setting = self.classification
            if setting is not None and functions.classifier is not None:
                scorer = functions.classifier(setting.by, estimators.get(setting.by))
                classified, classes = classification_lib.classify(
                    setting, scorer, params, prepared.split, loop
                )
        return Computed(found, chosen, classified, classes, loop)

    def _settings(
        self, model: DiffusionODE, dataset: data.DatasetConfig, split: data.ImageSplit | None
    ) -> dict[str, Any]:
        """Return what makes an evaluation another one, beside the checkpoint in its run."""
        found = facts.result_facts(model, {}, self, split) | facts.described("pilot", self.pilot)
        del found[facts.digest_name(self.use_ema)], found["code_sha256"]
        checkpoint = paths.of(self.checkpoint_path).absolute()
        is_step = names.is_checkpoint(checkpoint.name)
        return {
            **found,
            "likelihoods": sorted(self.likelihoods),
            "data": f"{dataset.mixture_or_task_name} / {dataset.split}",
            "num_images": dataset.num_images,
            "run": str(checkpoint.parent if is_step else checkpoint),
            "parameters": "ema" if self.use_ema else "raw",
        }

    def _series_facts(self, prepared: Prepared) -> dict[str, Any]:
        """Return everything that the scores of all checkpoints of a series depend on."""
        found = facts.result_facts(prepared.model, {}, self, prepared.split)
        found |= facts.described("pilot", self.pilot)
        del found[facts.digest_name(self.use_ema)]
        run_dir = str(paths.of(self.checkpoint_path).absolute())
        return {**found, "run": run_dir, "parameters": "ema" if self.use_ema else "raw"}
