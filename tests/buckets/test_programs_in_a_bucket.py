"""The programs, killed and started again, with everything in a bucket."""

import io
import json
import signal
import socket

import networks
import numpy as np
import pytest
from bucket_programs import ROOT, TRAIN, announced, kill_when, start, wait_until

import idode_gin
from idode_gin.checkpoints import files
from idode_gin.reports import metrics, paths

pytestmark = pytest.mark.full

SCORE = [
    *("--gin.EVAL_SPLIT='validation'", "--gin.BATCH_SIZE=16", "--gin.PILOT=None"),
    f"--gin_file={ROOT / 'gin_configs/solvers/dormand_prince.gin'}",
]


def finish(program, *arguments):
    process = start(program, *arguments)
    output = process.communicate(timeout=400)[0].decode()
    assert process.returncode == 0, output
    return output


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
