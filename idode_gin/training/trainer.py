"""The training loop."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any, final

import jax
import optax

from idode_gin import checks, numerics, types
from idode_gin.checkpoints import steps_left
from idode_gin.checkpoints.saving import CheckpointConfig, Checkpoints
from idode_gin.devices.partitioning import PjitPartitioner
from idode_gin.feed import batches as batch_lib
from idode_gin.feed import data
from idode_gin.models import DiffusionODE
from idode_gin.processes import exchange
from idode_gin.processes.preemption import StopRequest, nothing_lost
from idode_gin.reports import metrics, paths, progress
from idode_gin.reports.paths import StoredPath
from idode_gin.reports.wandb_writer import WandB
from idode_gin.runs import descriptions, resuming, run_inputs, run_lock
from idode_gin.runs import facts as facts_lib
from idode_gin.training import (
    dry_run,
    early_stopping,
    guards,
    idle_settings,
    profiling,
    programs,
    replays,
    throughput,
    train_step,
    validation,
)
from idode_gin.training.early_stopping import EarlyStopping
from idode_gin.training.meters import Meters
from idode_gin.training.optimizers import AdamW
from idode_gin.training.reporter import Reporter, Saver, open_writers
from idode_gin.training.setup import Setup, Start, images_of, resume_or_begin
from idode_gin.training.validation import Validation


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Trainer:
    """Trains a model and writes a run directory.

        checkpoint_<step>/       parameters, EMA, optimizer state
        metrics.jsonl            a row per log and evaluation; bits per dimension
        summary.json             the outcome: see `run`
        model-info.txt           the model and its parameters
        train/, training_eval/   TensorBoard events, plots

    A run is a pure function of its configuration: interrupted anywhere, even killed while it
    saves, and started again, it ends with the same parameters and metrics, bit for bit (except
    fields named `time/…`), on a backend whose kernels are deterministic.

    Args:
        model_dir: run directory.
        train_steps: step at which training ends, counted from zero, resumed or not.
        optimizer: an `AdamW`, or any optax transformation.
        checkpoints: when to save, what to restore.
        partitioner: places arrays on devices.
        eval_period: steps between evaluations of the variational bound with the EMA parameters;
            None evaluates at the end only.
        eval_steps: batches of one evaluation, of images spread evenly over the split; None takes
            every image once.
        run_eval_before_training: evaluate what a run starts from, as a row of its own.
        early_stopping: rule that ends a run whose evaluations no longer improve; None for no rule.
        log_period: steps between logs, and the window of logged means.
        seed: seed of initial parameters and of all noise; the order of images has its own seed.
        num_microbatches: parts that a batch is processed in, to save memory.
        ema_rate: decay of the moving average of the parameters, in [0, 1).
        ema_warmup: use min(ema_rate, (1 + n) / (10 + n)) after n updates, so that the average of a
            short run does not consist of initial parameters.
        tensorboard: whether to write event files.
        wandb: Weights & Biases settings; None logs nothing there.
        non_finite: rule for a step whose loss or gradient is not finite: `guards.Stop` or
            `guards.Skip`.
        loss_spike: rule for a step whose loss jumps; None for no rule.
        gamma_bins: bins of gamma that the loss is logged in; 0 for none.
        peak_flops: peak operations per second of one device, {kind: {dtype: number}}, added to
            `throughput.PEAK_FLOPS`; without an entry the share of the peak is not logged.
        profile: steps to trace into train/profile.
        replay: path of a train/bad_step_<step>.npz to examine instead of training: see `replays`.

    Raises:
        ValueError: if a number is out of range.
    """

    model_dir: StoredPath
    train_steps: int
    optimizer: AdamW | optax.GradientTransformation = AdamW()
    checkpoints: CheckpointConfig = CheckpointConfig()
    partitioner: PjitPartitioner = PjitPartitioner()
    eval_period: int | None = 1000
    eval_steps: int | None = None
    run_eval_before_training: bool = False
    early_stopping: EarlyStopping | None = None
    log_period: int = 100
    seed: int = 0
    num_microbatches: int = 1
    ema_rate: float = 0.9999
    ema_warmup: bool = False
    tensorboard: bool = True
    wandb: WandB | None = None
    non_finite: guards.Rule = guards.Stop()
    loss_spike: guards.LossSpike | None = None
    gamma_bins: int = 16
    peak_flops: Mapping[str, Mapping[str, float]] | None = None
    profile: profiling.ProfileWindow | None = None
    replay: StoredPath | None = None

    def __post_init__(self) -> None:
        checks.check_count("train_steps", self.train_steps)
        checks.check_seed("seed", self.seed)
        for name in ("eval_period", "eval_steps"):
            if (value := getattr(self, name)) is not None:
                checks.check_count(name, value)
        if not self.model_dir:
            raise ValueError("`model_dir` must name a directory, got an empty string.")
        self._update()
        throughput.check_peak_flops(self.peak_flops)
        if self.profile is not None:
            self.profile.check(self.train_steps, self.model_dir)

    def run(
        self,
        model: DiffusionODE,
        train_dataset: data.DatasetConfig,
        eval_dataset: data.DatasetConfig | None = None,
        *,
        begin: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    ) -> dict[str, Any]:
        """Train up to `train_steps`, from the state that the run directory holds.

        Without an `eval_dataset` nothing is evaluated. `begin` makes a context around the run,
        entered after `check_start` and before images are loaded; what it yields, if anything, is
        called before the first step, when nothing can refuse to train.

        Returns:
            The content of summary.json: `exit_reason`, `step`, `bpd` (variational bound of the EMA
            parameters on the evaluation split, bits per dimension) and its `bpd_stderr`,
            `params_sha256` and `ema_sha256` (see `fingerprints.sha256`), `num_params`,
            `checkpoint`; of this process `images_per_second` (training alone, compilation left
            out), `flops_per_step`, `flops_share` and `wall_seconds`; of all processes so far
            `seconds` by phase and `goodput` (see `throughput.Clock`).

        Raises:
            ValueError: for images, batch sizes or checkpoints that do not fit.
            checks.NonFiniteError: if training diverges, by `non_finite` or `loss_spike`. The
                checkpoints do not change; the step's batch is in train/bad_step_<step>.npz.
            checks.Preempted: when asked to stop, once the state is saved.
        """
        began = time.monotonic()
        self._check(train_dataset, eval_dataset)
        if self.replay:
            setup, parts = self._setup(model, train_dataset, None), self.num_microbatches
            return replays.replay(self.replay, setup, self.checkpoints, self.seed, parts)
        self.check_start(model)
        with begin() as settled, StopRequest() as stop:
            with stop.with_last_words(nothing_lost, saves=False):
                setup = self._setup(model, train_dataset, eval_dataset)
            return self._run(dataclasses.replace(setup, settled=settled), stop, began)

    def _run(self, setup: Setup, stop: StopRequest, began: float) -> dict[str, Any]:
        """Open everything that a run writes to, train, and return the summary."""
        with contextlib.ExitStack() as stack:
            is_first = jax.process_index() == 0
            stack.enter_context(run_lock.held(setup.directory, is_first=is_first))
            saved = Checkpoints(
                setup.directory, self.checkpoints, setup.facts, lambda step: log.evaluated(step)
            )
            stack.enter_context(saved)
            with stop.with_last_words(nothing_lost, saves=False):
                with progress.phase("restoring or initializing the state"):
                    start = resume_or_begin(setup, saved)
                log = metrics.MetricsLog(
                    setup.directory / "metrics.jsonl",
                    keep_up_to=start.step if start.is_resumed else -1,
                    writes=is_first,
                    shared=exchange.from_first,
                )
                meters = Meters(setup, start, log, began, self.peak_flops, self.profile)
            writers = open_writers(setup, tensorboard=self.tensorboard, wandb=self.wandb)
            for writer in writers:
                stack.callback(writer.close)
            say = stack.enter_context(meters).bar.say
            watch = guards.Watch(self._update().rules, say=say)
            saver = Saver(checkpoints=saved, watch=watch, meters=meters, state=start.state)
            stack.callback(saver.wait)
            reporter = Reporter(
                setup=setup,
                log=log,
                writers=writers,
                meters=meters,
                saver=saver,
                validation=Validation(
                    setup=setup,
                    first=None if start.has_trained else start.step,
                    period=self.eval_period,
                    batches=self.eval_steps,
                    early_stopping=self.early_stopping,
                    stop=stop,
                    say=say,
                ),
                optimizer=self.optimizer,
                log_period=self.log_period,
            )
            reporter.announce(start)
            try:
                reason = self._train(setup, start, stop, saver, reporter)
            except checks.NonFiniteError as error:
                reporter.fail(error, self.seed)
            return reporter.finish(reason)

    def _train(
        self, setup: Setup, start: Start, stop: StopRequest, saver: Saver, reporter: Reporter
    ) -> str:
        """Train from `start` to the last step, and return the reason of the end."""
        state, last, meters, watch = start.state, self.train_steps, reporter.meters, saver.watch
        if start.has_trained:
            reporter.report(start.step)  # a row that the process before this one did not write
        elif self.run_eval_before_training:
            reporter.report(start.step, log_due=False)
        batches = map(setup.train.train_batch, range(start.step, last))
        with contextlib.closing(batch_lib.prefetch(batches)) as ready:
            if stop.requested:
                raise checks.Preempted(reporter.save_and_summarize(stop.reason))
            if reporter.ends_early(start.step):
                return early_stopping.REASON
            reporter.begin(start.step)
            for step in range(start.step + 1, last + 1):
                with meters.clock.inside("data"):
                    batch = next(ready)
                meters.profiler.before(step - 1)
                if step == start.step + 1:
                    state, health = reporter.first_update(state, batch, stop)
                else:
                    state, health = setup.program.step(state, batch)
                saver.state = state
                watch.push(step, health)
                meters.after_step(step, health)
                is_asked = stop.requested
                # Before the row, which the next process recomputes if this one is killed here.
                if saver.checkpoints.is_due(step) or step == last or is_asked:
                    saver.save()
                if not is_asked:
                    reporter.report(step)
                meters.bar.update(watch.step, watch.loss)
                if is_asked or stop.requested:
                    raise checks.Preempted(reporter.save_and_summarize(stop.reason))
                if reporter.ends_early(step):
                    saver.save()
                    return early_stopping.REASON
        return "done"

    def check_start(self, model: DiffusionODE) -> None:
        """Check what training starts from, from the descriptions of checkpoints alone.

        Raises:
            ValueError: if the run directory holds a run of another model, or one whose checkpoints
                are gone; there is no checkpoint to start from, or a warm start would begin where
                training ends.
        """
        resuming.check_begun(self.model_dir, model, self.checkpoints.restore)
        steps_left.check(self.model_dir, self.checkpoints.restore, self.train_steps)

    def dry_run(
        self,
        model: DiffusionODE,
        train_dataset: data.DatasetConfig,
        eval_dataset: data.DatasetConfig | None = None,
        *,
        full: bool = False,
    ) -> str:
        """Check everything that needs no computation, and return a description of the run.

        Traces the update and the evaluation with shapes alone, on a mesh whose devices need not
        exist. Reads no images and writes nothing. `full` lists all parameters.

        Raises:
            ValueError: for batch sizes, shapes or checkpoints that do not fit, or a model that
                does not declare the shape of its images.
        """
        there = dataclasses.replace(self, partitioner=self.partitioner.without_devices())
        there._check(train_dataset, eval_dataset)
        there.check_start(model)
        shape, size = descriptions.shape_for_dry_run(model), train_dataset.batch_size
        traced = dry_run.traced_once(model)
        program = there.program(traced, shape, run_inputs.blank_batch(model, shape, size))
        settings = self.settings(model, train_dataset)
        plan = Checkpoints(self.model_dir, self.checkpoints, settings).plan(program.abstract_state)
        done = steps_left.instead(self.model_dir, self.train_steps)
        done = done or early_stopping.instead(self.early_stopping, self.model_dir)
        warned = resuming.changed_since(self.model_dir, settings, is_done=done is not None)
        warned += self._warnings(model)
        warnings = "".join(f"WARNING: {each}\n" for each in warned)
        parts = self.num_microbatches
        text = dry_run.describe(model, traced, program, there.partitioner, size, parts, full=full)
        goal = dry_run.goal(
            train_dataset,
            eval_dataset,
            num_classes=model.num_classes,
            steps=self.train_steps,
            early_stopping=self.early_stopping,
            eval_period=self.eval_period,
            save_period=self.checkpoints.save.period,
            directory=self.model_dir,
        )
        return f"{text}{goal}{warnings}{done or f'Would train {plan}.'}"

    def settings(self, model: DiffusionODE, dataset: data.DatasetConfig) -> dict[str, Any]:
        """Return the facts that checkpoints keep of the configuration; compared on resume."""
        return {
            **facts_lib.described("model", model),
            "dataset_seed": dataset.seed,
            "shuffle": dataset.shuffle,
            "batch_size": dataset.batch_size,
            "seed": self.seed,
            "random_numbers": numerics.random_numbers(),
            "ema_rate": self.ema_rate,
            "ema_warmup": self.ema_warmup,
            "num_microbatches": self.num_microbatches,
            **facts_lib.described("optimizer", self.optimizer),
            **facts_lib.described("non_finite", self.non_finite),
            **facts_lib.described("loss_spike", self.loss_spike),
        }

    def program(
        self, model: DiffusionODE, image_shape: tuple[int, int, int], batch: types.Batch
    ) -> programs.Program:
        """Return the compiled functions of the run, for images and batches of these shapes."""
        is_adamw = isinstance(self.optimizer, AdamW)
        return programs.build(
            model=model,
            image_shape=image_shape,
            batch=batch,
            transformation=self.optimizer.build() if is_adamw else self.optimizer,
            update=self._update(model),
            seed=self.seed,
            partitioner=self.partitioner,
        )

    def _update(self, model: DiffusionODE | None = None) -> train_step.UpdateConfig:
        """Return settings of one update; without a model, those that need none."""
        low, high = (0.0, 1.0) if model is None else (model.end.gamma_number, model.gamma_max)
        return train_step.UpdateConfig(
            ema_rate=self.ema_rate,
            ema_warmup=self.ema_warmup,
            log_period=self.log_period,
            num_microbatches=self.num_microbatches,
            update_period=getattr(self.optimizer, "accumulation_steps", 1),
            rules=guards.Guards(non_finite=self.non_finite, loss_spike=self.loss_spike),
            gamma_bins=train_step.GammaBins(number=self.gamma_bins, low=low, high=high),
            adaptation=None if model is None else model.adaptation,
        )

    def _setup(
        self,
        model: DiffusionODE,
        train_dataset: data.DatasetConfig,
        eval_dataset: data.DatasetConfig | None,
    ) -> Setup:
        """Load the images and build the compiled functions."""
        train, held_out, facts = images_of(model, self.partitioner, train_dataset, eval_dataset)
        size, shape = train_dataset.batch_size, train.split.image_shape
        facts |= self.settings(model, train_dataset)
        return Setup(
            directory=paths.of(self.model_dir).absolute(),
            model=model,
            train=train,
            eval=held_out,
            program=self.program(model, shape, run_inputs.blank_batch(model, shape, size)),
            facts=facts,
            train_steps=self.train_steps,
            warnings=self._warnings(model),
        )

    def _warnings(self, model: DiffusionODE) -> list[str]:
        """Return a line for each setting that has no effect."""
        return idle_settings.lines(model, self.optimizer, self.checkpoints.save, self.train_steps)

    def _check(
        self, train_dataset: data.DatasetConfig, eval_dataset: data.DatasetConfig | None
    ) -> None:
        """Raise ValueError if batch sizes or evaluations do not fit the rest."""
        check = self.partitioner.check_batch_size
        check("batch_size", train_dataset.batch_size, self.num_microbatches)
        if eval_dataset is not None:
            check("batch_size of evaluation", eval_dataset.batch_size)
        evaluates, before = eval_dataset is not None, self.run_eval_before_training
        rule, period = self.early_stopping, self.eval_period
        validation.check_wanted(rule, period, evaluates, before, self.train_steps)
        self.checkpoints.save.check_best(
            evaluates=evaluates, eval_period=self.eval_period, last_step=self.train_steps
        )
