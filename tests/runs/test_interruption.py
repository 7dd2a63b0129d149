"""Evaluation and sampling: the checkpoint they take, and how they stop and resume."""

import io
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time

import interrupted
import jax
import numpy as np
import pytest
import tiny

from idode_gin import checks
from idode_gin.checkpoints import saving
from idode_gin.devices import backends
from idode_gin.evaluation import results
from idode_gin.evaluation.evaluator import Evaluator
from idode_gin.feed import loading
from idode_gin.generation.sampler import Sampler
from idode_gin.losses.bound import VariationalBound
from idode_gin.processes import preemption
from idode_gin.reports import plots
from idode_gin.runs import partial_results
from idode_gin.samplers.ode import ODESampler
from idode_gin.solvers.fixed_grid import FixedGrid
from idode_gin.training import train_state


@pytest.fixture
def run_dir(tmp_path):
    """A run directory with checkpoints of two steps."""
    transformation = tiny.trainer(tmp_path).optimizer.build()
    params = tiny.model().init(jax.random.key(0), tiny.SHAPE)
    folder = tmp_path / "run"
    with saving.Checkpoints(folder, saving.CheckpointConfig(), {}) as saved:
        for step in (2, 4):
            state = train_state.create(params, transformation, ["loss"])
            saved.save(state.__class__(**{**vars(state), "step": state.step + step}))
    return folder


def evaluate(path, output):
    evaluator = Evaluator(
        output_dir=str(output),
        checkpoint_path=str(path),
        likelihoods={},
        variational_bound=VariationalBound(num_times=2),
    )
    return evaluator.run(tiny.model(), tiny.config(8))


def sample(path, output):
    sampler = Sampler(
        output_dir=str(output),
        checkpoint_path=str(path),
        method=ODESampler(solver=FixedGrid(steps=2)),
        num_samples=4,
        batch_size=4,
    )
    return sampler.run(tiny.model(image_shape=tiny.SHAPE))


@pytest.fixture(params=[evaluate, sample])
def program(request, monkeypatch):
    tiny.use_tiny_data(monkeypatch)
    monkeypatch.setattr(plots, "image_grid", lambda *_: None)
    monkeypatch.setattr(results, "draw", lambda *_: None)
    return request.param


def test_the_summary_names_the_checkpoint(program, run_dir, tmp_path):
    for path, step in [(run_dir, 4), (run_dir / "checkpoint_2", 2)]:
        summary = program(path, tmp_path / "out")
        assert (summary["step"], summary["checkpoint"]) == (
            step,
            str(run_dir / f"checkpoint_{step}"),
        )
        assert summary["devices"] == backends.facts()
        assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary


def test_a_missing_checkpoint_raises_before_data_are_read(program, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "load_split", lambda _: pytest.fail("read data first"))
    with pytest.raises(ValueError, match="there is no such directory"):
        program(tmp_path / "nowhere", tmp_path / "out")


def test_asked_to_stop(program, run_dir, tmp_path, monkeypatch, capfd):
    enter = preemption.StopRequest.__enter__

    def asking(stop):
        enter(stop)
        os.kill(os.getpid(), signal.SIGTERM)
        while not stop.requested:
            pass
        return stop

    monkeypatch.setattr(preemption.StopRequest, "__enter__", asking)
    with pytest.raises(checks.Preempted, match="Stopped by SIGTERM after 0 of .* same command"):
        program(run_dir, tmp_path / "out")
    assert not (tmp_path / "out").exists()


KINDS = {
    "evaluate": (interrupted.evaluate, "results.npz"),
    "sample": (interrupted.sample, "samples.npz"),
}
AT_A_TIME = {"evaluate": 2, "sample": 6}
"""Images of a batch if five are asked for: one solve of two, and whole solves."""
PARTIAL = "partial_results"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Results of an evaluation and of sampling that are not interrupted."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        interrupted.prepare(patch.setattr)
        for name, (run, file) in KINDS.items():
            folder = tmp_path_factory.mktemp(name)
            summary = run(folder, 8)
            found[name] = (folder / file).read_bytes(), summary
            assert json.loads((folder / "summary.json").read_text()) == summary
            assert not (folder / PARTIAL).exists()
    return found


@pytest.fixture(params=KINDS)
def kind(request, monkeypatch):
    interrupted.prepare(monkeypatch.setattr)
    return request.param


def is_same(found, expected):
    changing = ("wall_seconds",)
    left, right = (
        {k: v for k, v in each.items() if k not in changing} for each in (found, expected)
    )
    return left == right


def test_stopped_in_the_middle_and_resumed(kind, undisturbed, tmp_path, monkeypatch, capfd):
    run, file = KINDS[kind]
    add, sections, polls = partial_results.PartialResults.add, [], itertools.count()

    def counting(kept, section, index, rows):
        add(kept, section, index, rows)
        sections.extend([(section, each) for each in index])

    monkeypatch.setattr(partial_results.PartialResults, "add", counting)
    requested = preemption.StopRequest.requested.fget
    with monkeypatch.context() as patch:

        def asking(stop):
            if next(polls) == 5:
                os.kill(os.getpid(), signal.SIGTERM)
                while not requested(stop):
                    time.sleep(0.001)
            return requested(stop)

        patch.setattr(preemption.StopRequest, "requested", property(asking))
        done = 3 * AT_A_TIME[kind]  # two batches are in flight, and three have landed
        with pytest.raises(checks.Preempted, match=rf"after {done} of 41 images of .*resume"):
            run(tmp_path, 5)
    assert not (tmp_path / file).exists()
    capfd.readouterr()
    summary = run(tmp_path, 7)
    assert f"Resuming from {done} of 41 images" in capfd.readouterr().out
    assert (tmp_path / file).read_bytes() == undisturbed[kind][0]
    assert is_same(summary, undisturbed[kind][1])
    assert not (tmp_path / PARTIAL).exists()
    assert len(sections) == len(set(sections))  # no image twice


def test_the_summary_of_samples_names_the_training_data(undisturbed):
    summary = undisturbed["sample"][1]
    assert summary["trained_on"] == {"dataset": "made", "dataset_sha256": "12"}


def test_failed_solves_are_not_kept(kind, tmp_path, monkeypatch):
    run, file = KINDS[kind]
    rows = partial_results.PartialResults.rows

    def failed(kept, *which):
        return rows(kept, *which) | {"success": np.arange(interrupted.NUMBER) % 3 > 0}

    monkeypatch.setattr(partial_results.PartialResults, "rows", failed)
    with pytest.raises(checks.NonFiniteError, match="14 of 41"):
        run(tmp_path, 8)
    assert not list(tmp_path.iterdir())


def test_values_are_kept_after_any_other_error(kind, tmp_path, monkeypatch):
    run, _ = KINDS[kind]
    monkeypatch.setattr(partial_results, "WRITE_PERIOD", 3600.0)
    monkeypatch.setattr(partial_results.PartialResults, "rows", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, 8)
    assert len(list((tmp_path / PARTIAL).glob("part_*"))) == 1


def test_resuming_with_another_seed_raises(kind, tmp_path, monkeypatch):
    run, _ = KINDS[kind]
    with monkeypatch.context() as patch:
        patch.setattr(partial_results.PartialResults, "rows", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(tmp_path, 8)
    assert (tmp_path / PARTIAL).is_dir()
    with pytest.raises(ValueError, match=r"seed was 0 and is now 1.*or remove .*partial_results"):
        run(tmp_path, 8, seed=1)


def start(kind, folder, batch_size, *process):
    arguments = [kind, folder, batch_size, *process]
    return subprocess.Popen(
        [sys.executable, interrupted.__file__, *map(str, arguments)],
        cwd=interrupted.ROOT,
        env={**os.environ, "PYTHONPATH": str(interrupted.ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def interrupt(kind, folder, batch_size, number, parts):
    """Send a signal after `parts` more parts; return False if the process finished before."""
    partial = folder / PARTIAL
    process = start(kind, folder, batch_size)
    try:
        before = len(list(partial.glob("part_*")))
        while process.poll() is None and len(list(partial.glob("part_*"))) < before + parts:
            time.sleep(0.001)
        process.send_signal(number)
        output, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode in (0, -signal.SIGKILL), output
    return process.returncode != 0


@pytest.mark.compiled_as_users
def test_killed_and_resumed_with_another_batch_size(undisturbed, tmp_path, monkeypatch):
    assert interrupt("evaluate", tmp_path, 2, signal.SIGKILL, 25)  # in the second bound
    assert not (tmp_path / "results.npz").exists()
    interrupted.prepare(monkeypatch.setattr)
    summary = interrupted.evaluate(tmp_path, 8)
    assert (tmp_path / "results.npz").read_bytes() == undisturbed["evaluate"][0]
    assert is_same(summary, undisturbed["evaluate"][1])


@pytest.mark.full
@pytest.mark.parametrize("seed", range(2))
def test_killed_repeatedly(kind, undisturbed, tmp_path, seed):
    run, file = KINDS[kind]
    moments = random.Random(seed)
    for _ in range(5):
        size, parts = moments.randint(1, 4), moments.randint(0, 8)
        if not interrupt(kind, tmp_path, size, signal.SIGKILL, parts):
            break
        if moments.random() < 0.5 and (damaged := list((tmp_path / PARTIAL).glob("part_*"))):
            path = moments.choice(damaged)
            path.write_bytes(path.read_bytes()[: moments.randint(0, 99)])
    else:
        run(tmp_path, 8)
    assert (tmp_path / file).read_bytes() == undisturbed[kind][0]
    assert not (tmp_path / PARTIAL).exists()


def together(kind, folder, batch_size):
    with socket.socket() as unused:
        unused.bind(("localhost", 0))
        port = unused.getsockname()[1]
    return [start(kind, folder, batch_size, index, 2, port) for index in range(2)]


def ended(processes):
    try:
        outputs = [process.communicate(timeout=300)[0] for process in processes]
        return outputs, [process.returncode for process in processes]
    finally:
        for process in processes:
            process.kill()


@pytest.mark.full
def test_two_processes_stop_and_resume_together(kind, undisturbed, tmp_path):
    run, file = KINDS[kind]
    for number in (signal.SIGKILL, signal.SIGTERM):
        before = len(list((tmp_path / PARTIAL).glob("part_*")))
        processes = together(kind, tmp_path, 2)
        while len(list((tmp_path / PARTIAL).glob("part_*"))) < before + 2:  # of 11 in a section
            assert all(process.poll() is None for process in processes)
            time.sleep(0.001)
        processes[1].send_signal(number)
        if number == signal.SIGKILL:
            processes[0].kill()
        outputs, codes = ended(processes)
        assert codes == ([75, 75] if number == signal.SIGTERM else [-9, -9]), outputs
    assert "Stopped by preemption after" in outputs[0]
    facts = tmp_path / PARTIAL / "facts.json"
    text = facts.read_text()
    facts.write_text(text.replace('"seed": 0', '"seed": 1'))
    outputs, codes = ended(together(kind, tmp_path, 4))
    assert codes == [2, 2], outputs
    assert all("seed was 1 and is now 0" in each for each in outputs)
    facts.write_text(text)
    outputs, codes = ended(together(kind, tmp_path, 4))
    assert codes == [0, 0], outputs
    assert "Resuming from" in outputs[0]
    with np.load(tmp_path / file) as found, np.load(io.BytesIO(undisturbed[kind][0])) as expected:
        for name in expected.files:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-5)
    assert not (tmp_path / PARTIAL).exists()


@pytest.mark.full
def test_memory_does_not_grow_with_the_split(tmp_path):
    """Beside the scores: a 32 x 32 colour image has 3072 bytes."""
    most = []
    for number in (8192, 81920):
        process = start("memory", tmp_path / str(number), number)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
        most.append(int(output.splitlines()[-1]))
    assert (most[1] - most[0]) / (81920 - 8192) < 200
