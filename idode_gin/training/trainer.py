"""The training loop: steps, logs, evaluations, checkpoints, and the files of a run directory."""

import contextlib
import dataclasses
import itertools
import pathlib
import time
from collections.abc import Mapping
from typing import Any, NoReturn, final

import jax
import optax

from idode_gin import checks, types
from idode_gin.checkpoints import steps_left
from idode_gin.checkpoints.saving import CheckpointConfig, Checkpoints, Restored
from idode_gin.devices import accounting, flops, partitioning
from idode_gin.devices import mesh as mesh_lib
from idode_gin.devices.partitioning import PjitPartitioner
from idode_gin.feed import batches as batch_lib
from idode_gin.feed import data
from idode_gin.models import DiffusionODE
from idode_gin.processes.preemption import StopRequest
from idode_gin.reports import progress
from idode_gin.reports.wandb_writer import WandB
from idode_gin.runs import descriptions, resuming, run_inputs, run_lock
from idode_gin.runs import facts as facts_lib
from idode_gin.runs import means as evaluation
from idode_gin.training import (
    bad_steps,
    guards,
    profiling,
    programs,
    replays,
    run_outputs,
    throughput,
    train_step,
)
from idode_gin.training.optimizers import AdamW
from idode_gin.types import TrainState


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Trainer:
    """Trains a model and leaves a run directory behind.

        checkpoint_<step>/       parameters, EMA, optimizer state
        metrics.jsonl            a row per log and evaluation; bits per dimension
        summary.json             the outcome, see `run`
        model-info.txt           the model and its parameters
        train/, training_eval/   TensorBoard events, curves as PNG

    A run is a pure function of its configuration: stopped anywhere, even killed while it saves, and
    started again, it ends with the same parameters and the same metrics, bit for bit (all but the
    fields named `time/…`), on a backend whose kernels are deterministic.

    Args:
        model_dir: the run directory.
        train_steps: step at which training ends, counted from zero, resumed or not.
        optimizer: an `AdamW`, or any optax transformation.
        checkpoints: when to save, what to restore.
        partitioner: devices.
        eval_period: steps between evaluations of the variational bound with the EMA parameters;
            None evaluates at the end only.
        eval_steps: batches of one evaluation; None takes every image of the split once.
        log_period: steps between logs, and the window that logged means are over.
        seed: of initial parameters and of all noise; the order of images has a seed of its own.
        num_microbatches: parts a batch is worked through in, to save memory.
        ema_rate: of the moving average of the parameters, in [0, 1).
        tensorboard: write event files.
        wandb: log to Weights & Biases as well.
        non_finite: what becomes of a step whose loss or gradient is not finite: `guards.Stop` or
            `guards.Skip`.
        loss_spike: what becomes of one whose loss jumps; None lets it be.
        gamma_bins: bins of gamma that the loss is logged in; 0 switches them off.
        peak_flops: operations a second of one device, {kind: {dtype: number}}, added to
            `throughput.PEAK_FLOPS`; without an entry no share of the peak is logged.
        profile: steps to trace into train/profile.
        replay: a train/bad_step_<step>.npz to examine, instead of training: see `replays`.

    Raises:
        ValueError: if a number is out of range.
    """

    model_dir: str
    train_steps: int
    optimizer: AdamW | optax.GradientTransformation = AdamW()
    checkpoints: CheckpointConfig = CheckpointConfig()
    partitioner: PjitPartitioner = PjitPartitioner()
    eval_period: int | None = 1000
    eval_steps: int | None = None
    log_period: int = 100
    seed: int = 0
    num_microbatches: int = 1
    ema_rate: float = 0.9999
    tensorboard: bool = True
    wandb: WandB | None = None
    non_finite: guards.Rule = guards.Stop()
    loss_spike: guards.LossSpike | None = None
    gamma_bins: int = 16
    peak_flops: Mapping[str, Mapping[str, float]] | None = None
    profile: profiling.ProfileWindow | None = None
    replay: str | None = None

    def __post_init__(self) -> None:
        for name in ("train_steps", "log_period", "num_microbatches"):
            checks.check_positive(name, getattr(self, name))
        for name in ("eval_period", "eval_steps"):
            if (value := getattr(self, name)) is not None:
                checks.check_positive(name, value)
        if not 0 <= self.ema_rate < 1:
            raise ValueError(f"`ema_rate` must be in [0, 1), got ema_rate={self.ema_rate}.")
        if not self.model_dir:
            raise ValueError("`model_dir` must name a directory, got an empty string.")
        checks.check_integer("gamma_bins", self.gamma_bins, at_least=0)
        throughput.check_peak_flops(self.peak_flops)
        if self.profile is not None:
            self.profile.check(self.train_steps)

    def run(
        self,
        model: DiffusionODE,
        train_dataset: data.DatasetConfig,
        eval_dataset: data.DatasetConfig | None = None,
    ) -> dict[str, Any]:
        """Trains up to `train_steps`, from wherever the run directory says it had come.

        Returns:
            What summary.json holds: `exit_reason`, `step`, `bpd` (variational bound of the EMA
            parameters on the evaluation split, bits per dimension) and its `bpd_stderr`,
            `params_sha256` and `ema_sha256` (see `fingerprints.sha256`), `num_params`,
            `checkpoint`; of this process `images_per_second` (training alone, compilation left
            out), `flops_per_step`, `flops_share` and `wall_seconds`; and of all processes so far
            `seconds` by phase and `goodput` (see `throughput.Clock`).

        Raises:
            ValueError: for images, batch sizes or checkpoints that do not fit.
            checks.NonFiniteError: if training diverges, by `non_finite` or `loss_spike`. The
                checkpoints stay as they were; the step's batch lies in train/bad_step_<step>.npz.
            checks.Preempted: when asked to stop, once the state is saved.
        """
        self._check_batch_sizes(train_dataset, eval_dataset)
        if self.replay:
            return self._replay(model, train_dataset)
        self._check_best(eval_dataset)
        self.check_start(model)
        with StopRequest() as stop, contextlib.ExitStack() as stack:
            return _Run(self, model, train_dataset, eval_dataset, stop, stack).run()

    def check_start(self, model: DiffusionODE) -> None:
        """Checks what training starts from, as far as descriptions of checkpoints tell.

        Raises:
            ValueError: if the run directory holds a run of another model, there is no checkpoint
                to start from, or a warm start would begin where training ends.
        """
        resuming.check_begun(self.model_dir, model)
        steps_left.check(self.model_dir, self.checkpoints.restore, self.train_steps)

    def dry_run(
        self,
        model: DiffusionODE,
        train_dataset: data.DatasetConfig,
        eval_dataset: data.DatasetConfig | None = None,
    ) -> str:
        """Checks all that can be checked without computing, and describes the run in words.

        Traces the update and the evaluation with shapes alone, on a mesh whose devices need not
        be there. Reads no images and writes nothing.

        Raises:
            ValueError: for batch sizes, shapes or checkpoints that do not fit, or a model that
                does not say the shape of its images.
        """
        partitioner = self.partitioner.without_devices()
        self = dataclasses.replace(self, partitioner=partitioner)
        self._check_batch_sizes(train_dataset, eval_dataset)
        self._check_best(eval_dataset)
        self.check_start(model)
        shape, size = descriptions.shape_for_dry_run(model), train_dataset.batch_size
        batch = run_inputs.blank_batch(model, shape, size)
        program = self.program(model, shape, batch)
        state = program.abstract_state
        step = jax.make_jaxpr(program.step)(state, batch)
        jax.eval_shape(program.evaluate, state.params, batch)
        plan = Checkpoints(self.model_dir, self.checkpoints, {}).plan(state)
        part = size // partitioner.batch_parts // self.num_microbatches
        kept = accounting.kept_bytes(
            lambda params, batch, key: model.loss_fn(params, batch, key, size)[0],
            state.params,
            run_inputs.blank_batch(model, shape, part),
            jax.random.key(self.seed),
        )
        shardings = jax.tree.map(lambda leaf: leaf.sharding, state.params)
        memory = accounting.state_bytes(state, partitioner.as_used(shardings))
        is_split = partitioner.mesh.shape[mesh_lib.MODEL] > 1
        memory[f"activations, {'at most' if is_split else 'estimated'}"] = kept
        caveat = "Activations are not divided by `model`, which splits some of them.\n"
        changes = resuming.changed_since(self.model_dir, self.settings(model, train_dataset))
        told = "".join(f"WARNING: {each}\n" for each in changes)
        done = steps_left.instead(self.model_dir, self.train_steps)
        return (
            f"{descriptions.describe(model, state.params, program.logical_axes)}\n"
            f"Mesh: {partitioner.shown}.\n"
            f"Batch: {size} images of {shape}, {part} on a device at a time.\n"
            f"On each device:\n{accounting.memory_table(memory)}\n"
            f"{caveat if is_split else ''}"
            f"FLOPs of a step, over all devices: {flops.of_jaxpr(step.jaxpr):.4g}.\n"
            f"{told}{done or f'Would train {plan}.'}"
        )

    def settings(self, model: DiffusionODE, dataset: data.DatasetConfig) -> dict[str, Any]:
        """What a run directory remembers of the configuration, and compares when it is resumed."""
        return {
            **facts_lib.described("model", model),
            "dataset_seed": dataset.seed,
            "shuffle": dataset.shuffle,
            "batch_size": dataset.batch_size,
            "seed": self.seed,
            "ema_rate": self.ema_rate,
            "num_microbatches": self.num_microbatches,
            **facts_lib.described("optimizer", self.optimizer),
            **facts_lib.described("non_finite", self.non_finite),
            **facts_lib.described("loss_spike", self.loss_spike),
        }

    @property
    def transformation(self) -> optax.GradientTransformation:
        """The optimizer as optax knows it."""
        return self.optimizer.build() if isinstance(self.optimizer, AdamW) else self.optimizer

    def program(
        self, model: DiffusionODE, image_shape: tuple[int, int, int], batch: types.Batch
    ) -> programs.Program:
        """The compiled functions of the run, for images and batches of these shapes."""
        optimizer = self.optimizer
        return programs.build(
            lambda key: model.init(key, image_shape),
            model.loss_fn,
            model.eval_fn,
            self.transformation,
            batch=batch,
            seed=self.seed,
            ema_rate=self.ema_rate,
            log_period=self.log_period,
            num_microbatches=self.num_microbatches,
            update_period=getattr(optimizer, "accumulation_steps", 1),
            partitioner=self.partitioner,
            logical_axes=model.logical_axes(image_shape),
            rules=self.rules,
            gamma_bins=train_step.GammaBins(
                number=self.gamma_bins, low=model.time.gamma_min, high=model.time.gamma_max
            ),
        )

    @property
    def rules(self) -> guards.Guards:
        """The rules for bad steps."""
        return guards.Guards(non_finite=self.non_finite, loss_spike=self.loss_spike)

    def _replay(self, model: DiffusionODE, dataset: data.DatasetConfig) -> dict[str, Any]:
        assert self.replay
        split = run_inputs.load(dataset, model)
        batch = run_inputs.blank_batch(model, split.image_shape, dataset.batch_size)
        return replays.replay(
            self.replay,
            self.program(model, split.image_shape, batch),
            model.loss_fn,
            split,
            dataset,
            directory=pathlib.Path(self.model_dir).absolute(),
            config=self.checkpoints,
            partitioner=self.partitioner,
            seed=self.seed,
            num_microbatches=self.num_microbatches,
        )

    def _check_batch_sizes(
        self, train_dataset: data.DatasetConfig, eval_dataset: data.DatasetConfig | None
    ) -> None:
        check = self.partitioner.check_batch_size
        check("batch_size", train_dataset.batch_size, self.num_microbatches)
        if eval_dataset is not None:
            check("batch_size of evaluation", eval_dataset.batch_size)

    def _check_best(self, eval_dataset: data.DatasetConfig | None) -> None:
        self.checkpoints.save.check_best(
            evaluates=eval_dataset is not None,
            eval_period=self.eval_period,
            last_step=self.train_steps,
        )


class _Run:
    """One process's part of a run."""

    def __init__(
        self,
        trainer: Trainer,
        model: DiffusionODE,
        train_dataset: data.DatasetConfig,
        eval_dataset: data.DatasetConfig | None,
        stop: StopRequest,
        stack: contextlib.ExitStack,
    ) -> None:
        self._began = time.monotonic()
        self._trainer, self._model, self._stop = trainer, model, stop
        self._dataset, self._eval_dataset = train_dataset, eval_dataset
        self._directory = pathlib.Path(trainer.model_dir).absolute()
        self._split = run_inputs.load(train_dataset, model)
        self._eval_split = None if eval_dataset is None else run_inputs.load(eval_dataset, model)
        run_inputs.check_same_shape(self._split, self._eval_split)
        self._rows = trainer.partitioner.local_rows(train_dataset.batch_size)
        shape = self._split.image_shape
        batch = run_inputs.blank_batch(model, shape, train_dataset.batch_size)
        self._program = trainer.program(model, shape, batch)
        dtype = getattr(model.network, "dtype", None) or "float32"
        self._meter = throughput.Meter(
            train_dataset.batch_size,
            trainer.partitioner.mesh.size,
            self._count_flops(batch),
            throughput.peak_flops(jax.devices()[0].device_kind, dtype, trainer.peak_flops),
        )

        facts = {
            **trainer.settings(model, train_dataset),
            **facts_lib.image_facts(self._split, self._eval_split),
        }
        stack.enter_context(run_lock.held(self._directory, is_first=jax.process_index() == 0))
        self._saved = stack.enter_context(
            Checkpoints(self._directory, trainer.checkpoints, facts, self._bpd)
        )
        self._state, restored = self._saved.restore(
            self._program.abstract_state, self._program.init, trainer.transformation.init
        )
        self._start = int(self._state.step)
        self._is_resumed = restored is not None and restored.path.parent == self._directory
        if restored is not None and self._is_resumed:
            resuming.check_resumed(self._directory, restored.facts, facts)
        elif restored is not None:  # maybe not the checkpoint that was looked at before
            steps_left.check_step(restored.path, self._start, trainer.train_steps)
            resuming.warn_of_meaning(restored.path, restored.facts, facts)

        self._outputs = run_outputs.RunDirectory(
            self._directory,
            keep_up_to=self._start if self._is_resumed else -1,
            tensorboard=trainer.tensorboard,
            eval_name=None if self._eval_split is None else self._eval_split.name,
            wandb=trainer.wandb,
            facts=facts,
        )
        stack.callback(self._outputs.close)
        log = self._outputs.log
        self._clock = throughput.Clock(self._began, log.rows, log.dropped)
        self._stopwatch = progress.Stopwatch(train_dataset.batch_size)
        self._bar = stack.enter_context(
            progress.Progress(
                self._start,
                trainer.train_steps,
                train_dataset.batch_size,
                enabled=jax.process_index() == 0,
            )
        )
        self._watch = guards.Watch(trainer.rules, say=self._bar.say)
        folder = self._directory / "train" / "profile"
        self._profiler = profiling.Profiler(trainer.profile, folder, self._bar.say)
        stack.callback(self._profiler.close)
        self._announce(restored)

    def run(self) -> dict[str, Any]:
        """Trains to the end and returns the summary."""
        try:
            self._train()
        except checks.NonFiniteError as error:
            self._fail(error)
        summary = self._write_summary("done")
        split, dataset = self._split, self._dataset
        if self._eval_split is not None and self._eval_dataset is not None:
            split, dataset = self._eval_split, self._eval_dataset
        ema = self._trainer.partitioner.whole(self._state.ema)
        self._outputs.plot(self._model, ema, split, dataset)
        return summary

    def _count_flops(self, batch: types.Batch) -> float:
        """Operations of one step, from shapes; placed as in training, so that it traces no more."""
        sharding = dict.fromkeys(batch, self._trainer.partitioner.batch_sharding)
        placed = partitioning.abstract(batch, sharding)
        return flops.count(self._program.step, self._program.abstract_state, placed)

    def _announce(self, restored: Restored | None) -> None:
        """Says where training starts from."""
        text = descriptions.describe(self._model, self._state.params, self._program.logical_axes)
        self._outputs.write_text("model-info.txt", text)
        last = self._trainer.train_steps
        if self._start >= last:
            self._bar.say(steps_left.nothing(self._directory, self._start, last))
            return
        source = "scratch" if restored is None else f"{restored.path}, step {self._start},"
        self._bar.say(f"Training from {source} to step {last} in {self._directory}.")
        if restored is not None and restored.report is not None:
            self._bar.say("Of that checkpoint\n" + restored.report.partition("\n\n")[0])
            text = f"Warm start from {restored.path}.\n{restored.report}"
            self._outputs.write_text("warm-start.txt", text)

    def _train(self) -> None:
        step, last = self._start, self._trainer.train_steps
        if self._is_resumed:
            self._report(step)  # a row that the process before this one did not get to write
        batches = (self._batch(each) for each in range(step, last))
        with contextlib.closing(batch_lib.prefetch(batches)) as ready:
            self._leave_if(self._stop.requested)
            self._profiler.begin(step)
            for batch in self._clock.waiting_for(ready):
                self._profiler.before(step)
                self._state, health = self._step(step, batch)
                step += 1
                self._watch.push(step, health)
                self._profiler.after(step, health)
                self._stopwatch.after_first(step, health)
                self._clock.enter("train")
                is_asked = self._stop.stop_at(step)
                # Saved before the row is written: whatever a kill leaves out of the row, the next
                # process computes again from the state.
                if self._saved.is_due(step) or step == last or is_asked:
                    self._save()
                if not is_asked:
                    self._report(step)
                self._bar.update(self._watch.step, self._watch.loss)
                self._leave_if(is_asked or self._stop.requested)

    def _step(self, step: int, batch: types.Batch) -> tuple[TrainState, train_step.Health]:
        if step > self._start:
            return self._program.step(self._state, batch)
        with self._stop.with_nothing_to_save(self._said_before_first_step):
            if jax.process_count() > 1:
                self._compile_evaluation()
            return self._program.step(self._state, batch)

    def _compile_evaluation(self) -> None:
        """While there is nothing to save: several processes cannot save in mid-compilation."""
        if self._eval_split is None or self._eval_dataset is None:
            return
        size, partitioner = self._eval_dataset.batch_size, self._trainer.partitioner
        batches = batch_lib.eval_batches(self._eval_split, size, partitioner.local_rows(size))
        batch = partitioner.put_batch(next(iter(batches)), size)
        jax.block_until_ready(self._program.evaluate(self._state.ema, batch))

    def _said_before_first_step(self, reason: str) -> str:
        return (
            f"Stopped by {reason} before step {self._start + 1} of {self._trainer.train_steps} was "
            "compiled. Nothing is lost: the same command goes on from there."
        )

    def _batch(self, step: int) -> types.Batch:
        batch = batch_lib.train_batch(self._split, self._dataset, step, self._rows)
        return self._trainer.partitioner.put_batch(batch, self._dataset.batch_size)

    def _bpd(self, step: int) -> float | None:
        return (self._outputs.log.row(step) or {}).get("eval/bpd")

    def _save(self) -> None:
        self._watch.drain()
        with self._clock.inside("checkpoint"):
            self._saved.save(self._state)

    def _report(self, step: int) -> None:
        """Writes the row of this step, if one is due and was not written already."""
        trainer, is_last = self._trainer, step == self._trainer.train_steps
        log_due = is_last or step % trainer.log_period == 0
        period = trainer.eval_period
        eval_due = self._eval_split is not None and (
            is_last or (period is not None and step % period == 0)
        )
        if step == 0 or not (log_due or eval_due) or self._outputs.log.row(step) is not None:
            return
        self._watch.drain()
        timing = self._stopwatch.lap(step)
        timing |= self._meter.rates(timing.get("time/step_seconds"))
        row: dict[str, Any] = {}
        if log_due:
            row = run_outputs.train_row(self._state, trainer.optimizer)
        if eval_due:
            with self._clock.inside("eval"):
                evaluated = self._evaluate(step)
            if evaluated is None:
                return
            row |= evaluated
        timing |= self._clock.lap() | throughput.timed(throughput.peak_bytes())
        timing["time/wall_seconds"] = time.monotonic() - self._began
        self._outputs.write_row(step, row | timing)
        self._stopwatch.resume(step)

    def _evaluate(self, step: int) -> dict[str, float] | None:
        """The variational bound of the EMA parameters; None if asked to stop meanwhile."""
        assert self._eval_split is not None
        assert self._eval_dataset is not None
        ema, partitioner = self._state.ema, self._trainer.partitioner
        size = self._eval_dataset.batch_size
        batches = batch_lib.eval_batches(self._eval_split, size, partitioner.local_rows(size))
        with self._stop.with_last_words(self._said_once_saved):
            found = evaluation.over_batches(
                lambda batch: self._program.evaluate(ema, partitioner.put_batch(batch, size)),
                itertools.islice(batches, self._trainer.eval_steps),
                self._eval_split.num_images,
                lambda: self._stop.requested,
            )
        if found is None:
            return None
        row = evaluation.row(found, step)
        self._bar.say(
            f"step {step}: {row['eval/bpd']:.4f} ± {row.get('eval/bpd_stderr', float('nan')):.4f} "
            f"bits per dimension on {row['eval/images']} images of {self._eval_split.name}, "
            f"{self._eval_split.split} (variational bound, EMA parameters)"
        )
        return row

    def _leave_if(self, is_asked: bool) -> None:
        if is_asked:
            raise checks.Preempted(self._said_once_saved(self._stop.reason))

    def _said_once_saved(self, reason: str) -> str:
        self._save()
        summary = self._write_summary("preempted")
        return (
            f"Stopped by {reason} after step {summary['step']} of {self._trainer.train_steps}. "
            f"Saved {summary['checkpoint']}: the same command goes on from there."
        )

    def _fail(self, error: checks.NonFiniteError) -> NoReturn:
        is_spike = isinstance(error, checks.LossSpikeError)
        reason = "loss_spike" if is_spike else "non_finite"
        good, step = self._write_summary(reason, str(error))["checkpoint"], self._watch.bad_step
        advice = run_outputs.advice(good, self._watch.would_skip)
        if step is None:  # not a step of training, but an evaluation
            raise type(error)(f"{error} {advice}") from error
        path = self._directory / "train" / f"bad_step_{step}.npz"
        if jax.process_index() == 0:
            bad_steps.BadStep(
                step=step - 1,
                seed=self._trainer.seed,
                batch=batch_lib.train_batch(self._split, self._dataset, step - 1),
                health=self._watch.health,
            ).write(path)
        command = replays.command(self._directory, path)
        raise type(error)(f"{error} {advice} To examine its batch: {command}") from error

    def _write_summary(self, exit_reason: str, error: str | None = None) -> dict[str, Any]:
        is_finite = exit_reason in ("done", "preempted")
        self._clock.lap()
        state, step = self._state, int(self._state.step)
        if not is_finite:  # the step that was seen not to be, not those already under way
            step = self._watch.step or step
        row = self._outputs.log.row(step) or {}
        path = self._saved.last_good()
        summary = {
            "exit_reason": exit_reason,
            "error": error,
            "step": step,
            "train_steps": self._trainer.train_steps,
            "bpd": row.get("eval/bpd"),
            "bpd_stderr": row.get("eval/bpd_stderr"),
            "bpd_of": "variational bound of the EMA parameters on the evaluation split, bits/dim",
            **run_outputs.outcome(state, self._trainer.partitioner.whole, is_finite=is_finite),
            "images_per_second": self._stopwatch.images_per_second(),
            "flops_per_step": self._meter.flops,
            "flops_share": self._meter.share(self._stopwatch.images_per_second()),
            "seconds": self._clock.seconds,
            "goodput": self._clock.goodput,
            **throughput.peak_bytes(),
            "wall_seconds": time.monotonic() - self._began,
            "checkpoint": None if path is None else str(path),
            "data": self._split.facts(),
            "eval_data": None if self._eval_split is None else self._eval_split.facts(),
        }
        self._outputs.write_summary(summary)
        return summary
