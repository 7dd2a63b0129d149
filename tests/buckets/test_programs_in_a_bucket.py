"""The programs, killed and started again, with everything in a bucket."""

import io
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.parse

import networks
import numpy as np
import pytest

import idode_gin
from idode_gin import checks
from idode_gin.checkpoints import files
from idode_gin.reports import metrics, paths

pytestmark = pytest.mark.full

ROOT = pathlib.Path(__file__).parents[2]
TRAIN = [
    f"--gin_file={ROOT / 'gin_configs/experiments/digits.gin'}",
    *("--gin.TRAIN_STEPS=12", "--gin.BATCH_SIZE=16", "--gin.EVAL_PERIOD=6", "--gin.EVAL_STEPS=2"),
    *("--gin.CHECKPOINT_PERIOD=4", "--gin.Trainer.log_period=3", "--gin.Trainer.gamma_bins=4"),
    *("--gin.UNet.channels=8", "--gin.UNet.levels=1", "--gin.UNet.groups=2"),
    *("--gin.SaveCheckpointConfig.keep=1", "--gin.SaveCheckpointConfig.keep_best=1"),
]
SECONDS = {"refused": 120, "silent": 420}
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
    wait_until(is_moment, [process])
    process.send_signal(signal.SIGKILL)
    process.communicate()


def wait_until(is_moment, processes):
    deadline = time.monotonic() + 300
    while not is_moment():
        ended = [each for each in processes if each.poll() is not None]
        assert not ended, ended[0].communicate()[0].decode()
        assert time.monotonic() < deadline
        time.sleep(0.05)


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


def test_two_processes_and_a_bad_network(network, root, tmp_path, monkeypatch):
    """All write checkpoints, the first alone all else; one is killed, and both resume."""
    here, there, known = tmp_path / "run", paths.of(f"{root}/run"), []
    end(two(here), 0)
    monkeypatch.setattr(network, "acknowledged", lambda *written: known.append(written))
    network.share = 0.03
    processes = two(there)
    wait_until(lambda: announced(known), processes)
    processes[1].send_signal(signal.SIGKILL)
    processes[0].communicate(timeout=200)
    before = announced(known)
    assert files.saved_steps(there) == before[-1:]
    began = end(two(there), 0)[0]
    network.share = 0.0
    assert f"checkpoint_{before[-1]}, step {before[-1]}, to step 12" in began
    assert sum(network.kinds.values()) >= 20
    assert len(network.kinds) == len(networks.KINDS), network.kinds
    assert rows(there) == rows(here)
    assert hashes(there) == hashes(here)
    assert files.saved_steps(there) == files.saved_steps(here)
    uploads = [upload for name, upload in known if name == "run/metrics.jsonl"]
    kept = [json.dumps(each) for each in rows(there)]
    lines = [line for each in uploads for line in each.splitlines() if b'"step": ' in line]
    assert len(lines) > len(kept)
    for line in lines:
        assert json.dumps(metrics.reproducible(json.loads(line))) in kept
    written = there / f"checkpoint_{files.saved_steps(there)[-1]}" / "params"
    assert {each.name for each in written.iterdir()} >= {"ocdbt.process_0", "ocdbt.process_1"}


def announced(known):
    """Return the steps whose checkpoints are known to be complete."""
    found = [re.fullmatch(r"run/checkpoint_(\d+)/commit_success.txt", name) for name, _ in known]
    return [int(each[1]) for each in found if each]


@pytest.mark.parametrize("gone", ["refused", "silent"])
@pytest.mark.parametrize("moment", ["a save", "a row", "a restore"])
def test_a_bucket_that_is_gone_for_good(gone, moment, network, root, monkeypatch):
    """A program ends in the time that the page of buckets states."""
    known, since, is_resumed = [], [], []

    def lose(is_moment):
        if is_moment and not since:
            since.append(time.monotonic())
            network.gone = gone

    def asked(command, path):
        name = urllib.parse.unquote(path)
        if moment == "a save":
            lose("checkpoint_8/params" in name and announced(known))
        elif moment == "a restore":
            lose(is_resumed and command == "GET" and "/params/" in name and "/d/" in name)

    def acknowledged(*written):
        known.append(written)
        if moment == "a row":
            lose([name for name, _ in known].count("run/metrics.jsonl") == 2)

    monkeypatch.setattr(network, "acknowledged", acknowledged)
    monkeypatch.setattr(network, "asked", asked)
    arguments = [*TRAIN, f"--gin.MODEL_DIR='{root}/run'"]
    if moment == "a restore":
        kill_when(lambda: announced(known), "train", *arguments)
        is_resumed.append(True)
    process = start("train", *arguments)
    output = process.communicate(timeout=500)[0].decode()
    took = time.monotonic() - since[0]
    assert process.returncode == checks.EXIT_BAD_INPUT, output
    assert "Traceback" not in output, output
    error = output[output.index("error: ") :]
    print(f"{moment}, {gone}: {took:.0f} s\n{error}")
    good = rf"(No checkpoint|checkpoint_\d+ of {root}/run) is known to be complete"
    assert re.search(good, error), output
    assert moment != "a save" or "checkpoint_4 of" in error
    assert took < SECONDS[gone]


def two(folder):
    with socket.socket() as probe:
        probe.bind(("", 0))
        address = f"--coordinator_address=localhost:{probe.getsockname()[1]}"
    joined = [*TRAIN, f"--gin.MODEL_DIR='{folder}'", "--multiprocess_gpu", address]
    return [start("train", *joined, "--process_count=2", f"--process_index={i}") for i in (0, 1)]


def end(processes, code):
    outputs = [each.communicate(timeout=400)[0].decode() for each in processes]
    assert [each.returncode for each in processes] == [code] * 2, "\n".join(outputs)
    return outputs


def hashes(folder):
    summary = json.loads((folder / "summary.json").read_text())
    return {name: summary[name] for name in ("bpd", "params_sha256", "ema_sha256")}


def rows(folder, name="metrics.jsonl"):
    return [metrics.reproducible(row) for row in metrics.read_rows(folder / name)]


def scores(folder):
    (found,) = (folder / "eval").iterdir()
    return found


def arrays(path):
    with np.load(io.BytesIO(path.read_bytes())) as archive:
        return {name: archive[name] for name in archive.files}
