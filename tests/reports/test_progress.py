"""Lines while a program works: none is silent for long, on a clock that only moves when told to."""

import contextlib
import io
import pathlib
import re
import sys
import threading

import jax
import numpy as np
import pytest
import tiny

from idode_gin import numerics
from idode_gin.checkpoints import saving
from idode_gin.dequantizers.truncated_normal import TruncatedNormal
from idode_gin.devices.partitioning import PjitPartitioner
from idode_gin.evaluation.evaluator import Evaluator
from idode_gin.evaluation.summary import VARIATIONAL_BOUND
from idode_gin.feed import loading
from idode_gin.generation.encoder import Encoder
from idode_gin.generation.interpolator import Interpolator
from idode_gin.generation.sampler import Sampler
from idode_gin.likelihood.ode_likelihood import ODELikelihood
from idode_gin.likelihood.pilot import Pilot
from idode_gin.likelihood.pilot_grids import Grids
from idode_gin.losses.bound import VariationalBound
from idode_gin.processes import joining
from idode_gin.reports import files, plots, progress
from idode_gin.runs import image_loop
from idode_gin.samplers.ode import ODESampler
from idode_gin.solvers.fixed_grid import FixedGrid
from idode_gin.trained import TrainedModel


class Clock:
    """Stands for the `time` module and for `print`: `lines` with their times."""

    def __init__(self):
        self.now, self.lines = 100.0, []

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        """Let seconds pass, in each of which the thread could print."""
        for _ in range(seconds):
            self.now += 1
            progress.beat()

    def print(self, text, flush=False, file=None):
        self.lines += [(self.now, line) for line in text.split("\n")]

    def said(self):
        return [line for _, line in self.lines]


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    monkeypatch.setattr("builtins.print", clock.print)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    return clock


@pytest.fixture
def slow(clock, monkeypatch):
    """Make every step of a program take long."""

    def slower(owner, name, seconds):
        original = getattr(owner, name)

        def slowly(*args, **kwargs):
            clock.sleep(seconds)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, slowly)

    tiny.use_tiny_data(monkeypatch)
    monkeypatch.setattr(
        saving,
        "restore_params",
        lambda path, abstract, **_: saving.RestoredParams(
            tiny.model().init(jax.random.key(0), tiny.SHAPE), 3, pathlib.Path(path), {}
        ),
    )
    monkeypatch.setattr(saving, "find", str)
    slower(loading, "load_split", 27)
    slower(saving, "restore_params", 25)
    slower(saving.Checkpoints, "restore", 23)
    slower(saving.Checkpoints, "save", 26)
    slower(numerics, "map_chunks", 33)  # while the function is traced
    slower(Grids, "_score", 31)  # likewise
    slower(jax, "device_get", 13)  # waits for a batch
    slower(files, "write_npz_atomically", 21)
    slower(plots, "save_figure", 11)
    slower(plots, "image_grid", 22)
    together = joining.together

    def slowly_together(jitted):
        run, times = together(jitted), iter([45])

        def called(*arguments):
            if not isinstance(jax.tree.leaves(arguments)[0], jax.core.Tracer):
                clock.sleep(next(times, 3))
            return run(*arguments)

        called.trace = jitted.trace
        return called

    monkeypatch.setattr(joining, "together", slowly_together)
    return clock


COMMON = {"output_dir": "out", "checkpoint_path": "made", "solve_size": 4}
BY_GRID = ODESampler(solver=FixedGrid(steps=2))


def evaluate():
    evaluator = Evaluator(
        likelihoods={"tn": ODELikelihood(dequantizer=TruncatedNormal())},
        variational_bound=VariationalBound(num_times=2),
        pilot=Pilot(num_images=2, tolerance=10.0),
        histogram_split="other",
        **COMMON,
    )
    evaluator.run(tiny.model(), tiny.config(4))


def sample():
    sampler = Sampler(method=BY_GRID, num_samples=12, batch_size=4, **COMMON)
    sampler.run(tiny.model(image_shape=tiny.SHAPE))


def encode():
    Encoder(method=BY_GRID, **COMMON).run(tiny.model(), tiny.config(4))


def interpolate():
    pairs = ((0, 1), (2, 3))
    interpolator = Interpolator(method=BY_GRID, pairs=pairs, **{**COMMON, "solve_size": 1})
    interpolator.run(tiny.model(), tiny.config(1))


def in_python():
    model = tiny.model(image_shape=tiny.SHAPE)
    params = model.init(jax.random.key(0), tiny.SHAPE)
    trained = TrainedModel(model=model, params=params, partitioner=PjitPartitioner())
    images = tiny.split().images
    trained.bits_per_dim(np.concatenate([images] * 8), tolerance=10.0)
    progress.say("Between two calls a script prints for itself.")
    trained.sample(3, method=BY_GRID)
    progress.say("Likewise.")
    noise = trained.encode(images[:3], method=BY_GRID)
    progress.say("Likewise.")
    trained.decode(noise, method=BY_GRID)


def train():
    trainer = tiny.trainer("run", 30)
    trainer.run(tiny.model(), tiny.config(), tiny.config(8))


@pytest.mark.parametrize(
    ("program", "phases"),
    [
        (
            evaluate,
            [
                r"reading tiny / train: 0:00:\d\d so far",
                r"restoring the parameters in made: 0:00:\d\d so far",
                r"fitting a histogram to other: 0:00:\d\d so far",
                r"pilot of tn, grid of 8 steps \(compiling first\): 0:00:\d\d so far",
                r"scoring variational_bound, compiling: 0:00:\d\d so far",
                r"scoring tn: 12/20 images, 0:00:\d\d left",
                r"writing results to out: 0:00:\d\d so far",
                r"plotting: 0:00:\d\d so far",
            ],
        ),
        (sample, [r"drawing samples: 4/12 images, 0:\d\d:\d\d left", r"writing samples.npz and"]),
        (encode, [r"encoding latents: 8/20 images", r"encoding latents, compiling: "]),
        (interpolate, [r"interpolating strips: 1/2 pairs", r"writing interpolation.npz"]),
        (
            in_python,
            [
                r"pilot of truncated_normal, grid of 8 steps \(compiling first\): ",
                r"scoring truncated_normal: 64/160 images, 0:00:\d\d left",
                r"drawing samples, compiling: ",
                r"encoding images, compiling: ",
                r"decoding latents: ",
            ],
        ),
        (
            train,
            [
                r"restoring or initializing the state: ",
                r"compiling the update: 0:00:20 so far",
                r"step \d+/30  \d\.\d{4} bpd  \d+ images/s  0:\d\d:\d\d left",
                r"saving the state of step 2: ",
                r"evaluating after step 4, first batch: ",
                r"plotting: ",
            ],
        ),
    ],
)
def test_no_program_is_silent_for_long(program, phases, slow, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    began = slow.now
    with contextlib.nullcontext() if program is in_python else progress.phase("program"):
        program()
    times = [began, *(when for when, _ in slow.lines), slow.now]
    gaps = [later - sooner for sooner, later in zip(times, times[1:], strict=False)]
    assert max(gaps) <= progress.LINE_PERIOD, slow.lines
    reported = [when for when, line in slow.lines if re.search(r" (so far|left)$", line)]
    assert len(set(reported)) == len(reported) >= 10
    for each in phases:
        assert any(re.match(each, line) for line in slow.said()), (each, slow.said())
    assert not progress._heart._phases


def test_the_time_left_is_at_the_mean_pace_without_compilation(clock):
    with progress.phase("scoring tn", 10) as scoring:
        with progress.phase("compiling"):
            clock.sleep(25)
        for _ in range(10):
            clock.sleep(6)
            scoring.advance()
    assert clock.said() == [
        "scoring tn, compiling: 0:00:10 so far",
        "scoring tn, compiling: 0:00:20 so far",
        "scoring tn: 0/10 images, 0:00:30 so far",
        "scoring tn: 2/10 images, 0:00:45 left",
        "scoring tn: 4/10 images, 0:00:35 left",
        "scoring tn: 5/10 images, 0:00:25 left",
        "scoring tn: 7/10 images, 0:00:15 left",
        "scoring tn: 9/10 images, 0:00:05 left",
    ]


def test_the_time_left_counts_down_between_batches(clock, monkeypatch):
    """The first batch, which compiles, sets no pace once there is a second one."""
    monkeypatch.setattr(progress, "LINE_PERIOD", 1.0)
    with progress.phase("scoring", 200) as scoring:
        for seconds in (40, 20, 20, 31, 20):  # the fourth is slow
            clock.sleep(seconds)
            scoring.advance(40)
    left = [60 * int(line[-10:-8]) + int(line[-7:-5]) for line in clock.said() if " left" in line]
    rises = [i for i in range(1, len(left)) if left[i] > left[i - 1]]
    assert left[:3] == [159, 158, 157]
    assert left[20] == 59
    assert rises == [71]  # after the slow batch, by no more than its delay
    assert left[71] - left[70] == 3


def test_short_phases_in_a_row_are_reported_together(clock):
    with progress.phase("program"):
        for number in range(10):
            with progress.phase(f"part {number}"):
                clock.sleep(4)
    assert [when - 100 for when, _ in clock.lines] == [10, 20, 30, 40]


def test_resumed_images_do_not_count_in_the_mean(clock):
    with progress.phase("scoring", 100, done=90) as scoring:
        clock.sleep(7)
        scoring.advance(5)
        clock.sleep(3)
    assert clock.said() == ["scoring: 95/100 images, 0:00:04 left"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_or_a_signal_ends_the_lines(error, clock):
    with pytest.raises(error), progress.phase("outer", 3), progress.phase("inner"):
        raise error
    clock.sleep(60)
    assert clock.said() == []
    assert not progress._heart._phases


def test_other_processes_say_nothing(clock, monkeypatch):
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with progress.phase("scoring", 3) as scoring:
        clock.sleep(60)
        scoring.advance()
    assert clock.said() == []


def test_a_thread_prints_while_the_program_waits_and_ends_with_it(monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE_PERIOD", 0.02)
    printed, say = threading.Event(), progress._heart.say

    def seen(text):
        say(text)
        printed.set()

    monkeypatch.setattr(progress._heart, "say", seen)
    with progress.phase("compiling"):
        assert printed.wait(10)
        thread = progress._heart._thread
    thread.join(10)
    assert not thread.is_alive()
    assert capsys.readouterr().out.startswith("compiling: 0:00:00 so far\n")


def test_a_closed_output_ends_the_thread_alone(monkeypatch):
    def closed(*_, **__):
        raise BrokenPipeError

    monkeypatch.setattr(progress, "LINE_PERIOD", 0.02)
    monkeypatch.setattr(progress._heart, "say", closed)
    with progress.phase("compiling"):
        thread = progress._heart._thread
        thread.join(10)
        assert not thread.is_alive()


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_shows_a_bar_where_there_is_a_total(clock, monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with progress.phase("scoring", 8) as scoring:
        scoring.advance(4)
        clock.sleep(30)
    assert "scoring" in terminal.getvalue()
    assert "4/8" in terminal.getvalue()
    assert clock.said() == []


def stop(*_):
    raise KeyboardInterrupt


def evaluate_until_the_pilot_is_over(monkeypatch):
    run = image_loop.ImageLoop.run

    def stop_at_a_likelihood(loop, section, *more):
        return run(loop, section, *more) if section == VARIATIONAL_BOUND else stop()

    with monkeypatch.context() as patch:
        patch.setattr(image_loop.ImageLoop, "run", stop_at_a_likelihood)
        with pytest.raises(KeyboardInterrupt):
            evaluate()


@pytest.mark.parametrize("content", [b"", b"{", b"[[1], null]", b"7"])
def test_a_damaged_outcome_of_a_pilot_is_measured_again(content, slow, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    evaluate_until_the_pilot_is_over(monkeypatch)
    (kept,) = (tmp_path / "out" / "partial_results").glob("pilot_*.json")
    kept.write_bytes(content)
    evaluate()
    assert not any("Measured before" in line for line in slow.said())


def test_a_pilot_is_kept_when_its_evaluation_stops(slow, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    evaluate_until_the_pilot_is_over(monkeypatch)
    monkeypatch.setattr(Grids, "__call__", stop)
    evaluate()
    assert any("Measured before the evaluation was interrupted." in line for line in slow.said())
    assert not (tmp_path / "out" / "partial_results").exists()
