"""The programs, killed and started again, with everything in a bucket."""

import io
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

import idode_gin
from idode_gin.checkpoints import files
from idode_gin.reports import metrics

pytestmark = pytest.mark.full

ROOT = pathlib.Path(__file__).parents[2]
TRAIN = [
    f"--gin_file={ROOT / 'gin_configs/experiments/digits.gin'}",
    *("--gin.TRAIN_STEPS=12", "--gin.BATCH_SIZE=16", "--gin.EVAL_PERIOD=6", "--gin.EVAL_STEPS=2"),
    *("--gin.CHECKPOINT_PERIOD=4", "--gin.Trainer.log_period=3", "--gin.Trainer.gamma_bins=4"),
    *("--gin.UNet.channels=8", "--gin.UNet.levels=1", "--gin.UNet.groups=2"),
    *("--gin.SaveCheckpointConfig.keep=1", "--gin.SaveCheckpointConfig.keep_best=1"),
]
SCORE = [
    *("--gin.EVAL_SPLIT='validation'", "--gin.BATCH_SIZE=16", "--gin.PILOT=None"),
    f"--gin_file={ROOT / 'gin_configs/solvers/dormand_prince.gin'}",
]


def start(program, *arguments):
    command = [sys.executable, "-m", f"idode_gin.{program}", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def finish(program, *arguments):
    process = start(program, *arguments)
    output = process.communicate(timeout=400)[0].decode()
    assert process.returncode == 0, output
    return output


def kill_when(is_moment, program, *arguments):
    process = start(program, *arguments)
    deadline = time.monotonic() + 300
    while not is_moment():
        assert process.poll() is None, process.communicate()[0].decode()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_train_kill_resume_evaluate_sample_and_load(bucket, tmp_path):
    here = tmp_path / "run"
    finish("train", *TRAIN, f"--gin.MODEL_DIR='{here}'")
    there = f"--gin.MODEL_DIR='{bucket}'"
    kill_when(lambda: files.saved_steps(bucket), "train", *TRAIN, there)
    assert "Nothing left to train" not in finish("train", *TRAIN, there)
    assert rows(bucket) == rows(here)
    assert files.saved_steps(bucket) == files.saved_steps(here)
    for folder in (here, bucket):
        run = f"--gin.CHECKPOINT_PATH='{folder}'"
        if folder == bucket:
            kill_when((bucket / "eval").exists, "eval", run, *SCORE)
        finish("eval", run, *SCORE)
        finish("sample", run, "--gin.NUM_SAMPLES=2", "--gin.BATCH_SIZE=2")
        finish("report", str(folder))
        finetune = f"--gin.MODEL_DIR='{folder}/tuned'", f"--gin.INITIAL_CHECKPOINT_PATH='{folder}'"
        finish("train", *TRAIN, *finetune, "--gin.RestoreCheckpointConfig.step='reset'")
    for name in ("tuned/metrics.jsonl", "metrics.jsonl"):
        assert rows(bucket, name) == rows(here, name)
    for name in ("results.npz", "samples.npz"):
        of = (lambda each: each / "samples") if name == "samples.npz" else scores
        found, expected = (arrays(of(each) / name) for each in (bucket, here))
        assert found.keys() == expected.keys()
        for key in found:
            np.testing.assert_array_equal(found[key], expected[key])
    images = np.zeros((2, 8, 8, 1), np.uint8)
    models = [idode_gin.load(str(each)) for each in (bucket, here)]
    assert models[0].step == models[1].step
    first, second = (each.log_prob(images) for each in models)
    np.testing.assert_array_equal(first, second)


def test_two_processes(bucket, tmp_path):
    """All write checkpoints, the first alone all else; one is killed, and both resume."""
    here = tmp_path / "run"
    end(two(here), 0)
    processes = two(bucket)
    deadline = time.monotonic() + 300
    while not files.saved_steps(bucket):
        assert time.monotonic() < deadline
        assert all(each.poll() is None for each in processes), end(processes, 0)
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGKILL)
    processes[0].communicate(timeout=120)
    end(two(bucket), 0)
    assert rows(bucket) == rows(here)
    assert files.saved_steps(bucket) == files.saved_steps(here)
    written = bucket / f"checkpoint_{files.saved_steps(bucket)[-1]}" / "params"
    assert {each.name for each in written.iterdir()} >= {"ocdbt.process_0", "ocdbt.process_1"}


def two(folder):
    with socket.socket() as probe:
        probe.bind(("", 0))
        address = f"--coordinator_address=localhost:{probe.getsockname()[1]}"
    joined = [*TRAIN, f"--gin.MODEL_DIR='{folder}'", "--multiprocess_gpu", address]
    return [start("train", *joined, "--process_count=2", f"--process_index={i}") for i in (0, 1)]


def end(processes, code):
    outputs = [each.communicate(timeout=400)[0].decode() for each in processes]
    assert [each.returncode for each in processes] == [code] * 2, "\n".join(outputs)


def rows(folder, name="metrics.jsonl"):
    return [metrics.reproducible(row) for row in metrics.read_rows(folder / name)]


def scores(folder):
    (found,) = (folder / "eval").iterdir()
    return found


def arrays(path):
    with np.load(io.BytesIO(path.read_bytes())) as archive:
        return {name: archive[name] for name in archive.files}
