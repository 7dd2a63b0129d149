"""A run in a bucket has the numbers and files of a run on a disk."""

import types

import numpy as np
import pytest
import tiny
import tiny_runs

from idode_gin.checkpoints import files, saving
from idode_gin.reports import buckets, fingerprints, metrics, paths
from idode_gin.runs import partial_results, run_inputs
from idode_gin.training import meters

TIMES = "_CHECKPOINT_METADATA"


@pytest.fixture(autouse=True)
def _tiny_data(monkeypatch):
    tiny.use_tiny_data(monkeypatch)


def test_train_fail_resume_and_read(bucket, tmp_path, monkeypatch):
    here, often = tmp_path / "run", {"keep": 1, "log_period": 1, "eval_period": 2}
    tiny_runs.run(here, 4, **often, tensorboard=True)
    tiny_runs.run(bucket, 2, **often)
    with monkeypatch.context() as patch:
        patch.setattr(buckets, "filesystem", _Broken)
        with pytest.raises(paths.StoreError, match=r"//bucket/.* cannot be reached: no route"):
            tiny_runs.run(bucket, 4, **often)  # neither from scratch, nor from a damaged one
    with monkeypatch.context() as patch:
        patch.setattr(buckets.BucketPath, "write_bytes", _failing(buckets.BucketPath.write_bytes))
        known = f"no route. checkpoint_2 of {bucket} is known to be complete"
        with pytest.raises(paths.StoreError, match=known):
            tiny_runs.run(bucket, 4, **often)
    assert [row["step"] for row in tiny_runs.rows(bucket)] == [1, 2]
    tiny_runs.run(bucket, 4, **often, tensorboard=True)
    assert tiny_runs.outcome(bucket) == tiny_runs.outcome(here)
    assert files.saved_steps(bucket) == [4]
    assert _names(bucket) == _names(here)
    assert list((bucket / "train").glob("events.out.tfevents.*"))
    abstract = run_inputs.param_shapes(tiny.model(), tiny.split().image_shape)
    ours, theirs = (saving.restore_params(str(each), abstract) for each in (bucket, here))
    assert ours.step == theirs.step == 4
    assert fingerprints.sha256(ours.params) == fingerprints.sha256(theirs.params)


def test_a_large_file_of_rows_is_uploaded_before_each_checkpoint(bucket, tmp_path, monkeypatch):
    """A run that dies leaves all rows before its last checkpoint; the others are written again."""
    monkeypatch.setattr(metrics, "SMALL", 0)
    here, often = tmp_path / "run", {"log_period": 1, "period": 2}
    tiny_runs.run(here, 5, **often)
    known, write, after_step = [], buckets.BucketPath.write_bytes, meters.Meters.after_step

    def seen(path, data):
        if path.name == "metrics.jsonl":
            known.append(data.count(b"\n"))
        return write(path, data)

    def dying(self, step, outputs):
        if step == 4:
            raise KeyboardInterrupt
        after_step(self, step, outputs)

    monkeypatch.setattr(buckets.BucketPath, "write_bytes", seen)
    with monkeypatch.context() as patch:
        patch.setattr(meters.Meters, "after_step", dying)
        with pytest.raises(KeyboardInterrupt):
            tiny_runs.run(bucket, 5, **often)
    assert known == [0, 1]
    assert files.saved_steps(bucket) == [2]
    known.clear()
    tiny_runs.run(bucket, 5, **often)
    assert known == [3, 4, 5]  # before steps 4 and 5 are saved, and at the end
    assert tiny_runs.outcome(bucket) == tiny_runs.outcome(here)


def test_rows_wait_for_an_upload_at_most_a_minute(bucket, monkeypatch):
    now = [0.0]
    clock = types.SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr(metrics, "time", clock)
    log = metrics.MetricsLog(bucket / "metrics.jsonl", keep_up_to=-1)
    log.write(1, {"a": 1.0})
    assert metrics.read_rows(bucket / "metrics.jsonl") == log.rows
    monkeypatch.setattr(metrics, "SMALL", 40)
    for now[0], number in ((1.0, 1), (59.0, 1), (60.0, 4), (119.0, 4), (120.0, 6)):
        log.write(len(log.rows) + 1, {"a": 1.0})
        assert len(metrics.read_rows(bucket / "metrics.jsonl")) == number


def test_a_resumed_run_deletes_nothing_but_unfinished_checkpoints(bucket, tmp_path):
    tiny_runs.run(bucket, 2, tensorboard=True)
    others = (
        *("train/bad_step_7.npz", "eval/digits_test/results.npz", "samples/0.png", "notes/a/b.txt"),
        *(f"tuned/checkpoint_3/{name}" for name in ("params/d/a", TIMES)),
        *("tuned/metrics.jsonl", "checkpoint_07/meta/metadata", "damaged_checkpoint_1/params/d/a"),
        *("checkpoint_500", "checkpoint_1000/checkpoint", "checkpoint_1000/target.dense/0.0"),
    )
    unfinished = {"checkpoint_9/params/d/a", f"checkpoint_9/{TIMES}", "checkpoint_8/ema/d/a"}
    for name in {*others, *unfinished}:
        (bucket / name).write_bytes(b"{}")
    before = bucket.objects().keys() - unfinished
    with pytest.raises(ValueError, match=r"it is not complete.* Saved steps beside it: \[2\]"):
        files.find(bucket / "checkpoint_9")
    tiny_runs.run(bucket, 4, keep=2)
    after = bucket.objects()
    assert before - after.keys() == set()
    assert {name.partition("/")[0] for name in after} >= {"checkpoint_2", "checkpoint_4", "eval"}
    assert not unfinished & after.keys()


def test_a_run_copied_without_the_marks_of_a_bucket_is_resumed(bucket, tmp_path):
    tiny_runs.run(tmp_path / "run", 2)
    for path in (tmp_path / "run").rglob("*"):
        if path.is_file() and path.name != files.COMMITTED:
            (bucket / path.relative_to(tmp_path / "run")).write_bytes(path.read_bytes())
    assert files.saved_steps(bucket) == [2]
    assert files.find(bucket / "checkpoint_2").name == "checkpoint_2"
    for directory in (bucket, tmp_path / "run"):
        tiny_runs.run(directory, 4)
    assert tiny_runs.outcome(bucket) == tiny_runs.outcome(tmp_path / "run")
    assert files.saved_steps(bucket) == [2, 4]


@pytest.mark.full
def test_damaged_and_unfinished_checkpoints(bucket, tmp_path):
    tiny_runs.run(tmp_path / "run", 6)
    tiny_runs.run(bucket, 6)
    largest = max(
        (bucket / "checkpoint_6/ema/d").iterdir(), key=lambda each: len(each.read_bytes())
    )
    content = np.frombuffer(largest.read_bytes(), np.uint8).copy()
    content[len(content) // 2 :] ^= 1
    largest.write_bytes(content.tobytes())
    for name in (TIMES, files.COMMITTED):  # as an interrupted deletion
        (bucket / "checkpoint_4" / name).unlink()
    assert files.saved_steps(bucket) == [2, 6]
    tiny_runs.run(bucket, 6)  # from step 2
    assert tiny_runs.outcome(bucket) == tiny_runs.outcome(tmp_path / "run")
    assert files.saved_steps(bucket) == [2, 4, 6]
    assert (bucket / "damaged_checkpoint_6" / "ema").is_dir()


def test_the_mark_of_a_folder_is_nothing_in_it(bucket):
    (bucket / "samples" / "00000.png").write_bytes(b"1")
    buckets.filesystem(bucket).pipe_file(f"{bucket}/samples/", b"")  # as consoles make it
    assert [each.name for each in (bucket / "samples").iterdir()] == ["00000.png"]
    assert (bucket / "samples").is_dir()


def test_partial_results(bucket):
    rows = {"bpd": np.arange(3.0)}
    before = partial_results.PartialResults(bucket / "partial", {"a": 1}, 5)
    before.add("bound", np.array([0, 2, 4]), rows)
    before.write()
    after = partial_results.PartialResults(bucket / "partial", {"a": 1}, 5)
    assert after.missing("bound").tolist() == [1, 3]
    with pytest.raises(ValueError, match="another computation"):
        partial_results.PartialResults(bucket / "partial", {"a": 2}, 5)
    after.remove()
    assert not (bucket / "partial").exists()


class _Broken:
    def __init__(self, path):
        pass

    def __getattr__(self, _):
        def fail(*_, **__):
            raise ConnectionError("no route")

        return fail


def _failing(write):
    def fail(path, data):
        if path.name == "metrics.jsonl" and b'"step": 3' in data:
            raise paths.StoreError("no route.")
        return write(path, data)

    return fail


def _names(folder):
    inside = [f"train/{each.name}" for each in (folder / "train").glob("*.png")]
    return {*inside, *(each.name for each in folder.iterdir())}
