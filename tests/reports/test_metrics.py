"""metrics.jsonl after kills and resumes, TensorBoard, means, progress, fingerprints, files."""

import errno
import hashlib
import io
import json
import os

import jax.numpy as jnp
import numpy as np
import pytest

from idode_gin.reports import files, fingerprints, metrics, progress
from idode_gin.runs import means as evaluation


def write_log(path, steps=(1, 2, 3)):
    log = metrics.MetricsLog(path, keep_up_to=-1)
    for step in steps:
        log.write(step, {"train/bpd": 1 / step, "time/wall_seconds": 0.1})
    return log


def test_rows_are_json_lines_and_come_back_exactly(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_log(path)
    lines = path.read_text().splitlines()
    assert [json.loads(line)["train/bpd"] for line in lines] == [1.0, 1 / 2, 1 / 3]
    assert lines[0].startswith('{"step": 1, ')
    assert metrics.read_rows(path)[2]["train/bpd"] == 1 / 3


def test_resuming_cuts_later_rows_and_keeps_the_others_byte_for_byte(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_log(path)
    kept = path.read_text().splitlines(keepends=True)[:2]
    log = metrics.MetricsLog(path, keep_up_to=2)
    assert path.read_text() == "".join(kept)
    assert log.row(2) == {"step": 2, "train/bpd": 0.5, "time/wall_seconds": 0.1}
    assert log.row(3) is None
    log.write(3, {"train/bpd": 7.0})
    assert [row["step"] for row in metrics.read_rows(path)] == [1, 2, 3]


def test_starting_anew_removes_every_row(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_log(path)
    assert metrics.MetricsLog(path, keep_up_to=-1).rows == []
    assert path.read_text() == ""


@pytest.mark.parametrize("cut", [1, 10, 40])
def test_a_torn_last_line_is_dropped(tmp_path, cut):
    path = tmp_path / "metrics.jsonl"
    write_log(path)
    path.write_bytes(path.read_bytes()[:-cut])
    assert [row["step"] for row in metrics.read_rows(path)] == [1, 2]
    metrics.MetricsLog(path, keep_up_to=5).write(3, {"train/bpd": 3.0})
    assert [row["step"] for row in metrics.read_rows(path)] == [1, 2, 3]


@pytest.mark.parametrize("line", ["not json", "[1, 2]", '{"stop": 1}', "3"])
def test_another_kind_of_line_is_an_error(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    write_log(path)
    path.write_text(line + "\n" + path.read_text())
    with pytest.raises(ValueError, match="Line 1 of .*not a row"):
        metrics.read_rows(path)


def test_no_nan_reaches_the_file(tmp_path):
    log = metrics.MetricsLog(tmp_path / "metrics.jsonl", keep_up_to=-1)
    with pytest.raises(ValueError, match="JSON"):
        log.write(1, {"train/bpd": float("nan")})


def test_without_a_path_nothing_is_written(tmp_path):
    log = metrics.MetricsLog(None, keep_up_to=-1)
    assert log.write(1, {"a": 1.0}) == {"step": 1, "a": 1.0}
    assert list(tmp_path.iterdir()) == []


def test_timings_are_kept_apart():
    row = {"step": 1, "train/bpd": 2.0, "time/wall_seconds": 3.0}
    assert metrics.reproducible(row) == {"step": 1, "train/bpd": 2.0}


def test_event_files_can_be_read_back(tmp_path):
    from tensorboard.backend.event_processing import event_accumulator

    board = metrics.TensorBoard(tmp_path, "digits")
    board.write(7, {"train/bpd": 1.5, "eval/bpd": 2.5, "time/step_seconds": 0.5})
    board.close()
    found = {}
    for folder in ("train", "training_eval/digits"):
        events = event_accumulator.EventAccumulator(
            str(tmp_path / folder), size_guidance={"tensors": 0}
        )
        events.Reload()
        found[folder] = set(events.Tags()["tensors"]) | set(events.Tags()["scalars"])
    assert found == {
        "train": {"train/bpd", "time/step_seconds"},
        "training_eval/digits": {"eval/bpd"},
    }


def batches_of(values, size):
    """The values in batches of `size`, the last one padded with nonsense."""
    for start in range(0, len(values), size):
        part = values[start : start + size]
        padding = size - len(part)
        yield {
            "value": np.concatenate([part, np.full(padding, 1e6)]),
        }


def test_means_over_a_split_do_not_depend_on_the_batch_size():
    values = np.random.default_rng(0).normal(size=23)
    found = []
    for size in (4, 7, 23, 30):
        means = evaluation.over_batches(
            lambda batch: {"bpd": jnp.asarray(batch["value"])}, batches_of(values, size), 23, bool
        )
        row = evaluation.row(means, 7)
        assert row["eval/images"] == 23
        found.append((row["eval/bpd"], row["eval/bpd_stderr"]))
    assert len(set(found)) == 1
    expected = np.asarray(values, np.float32)
    np.testing.assert_allclose(found[0][0], expected.mean(), rtol=1e-6)
    np.testing.assert_allclose(found[0][1], expected.std(ddof=1) / np.sqrt(23), rtol=1e-6)


def test_a_process_that_does_not_write_knows_the_rows(tmp_path):
    """Or the processes of a resumed run would not agree on what is left to compute."""
    path = tmp_path / "metrics.jsonl"
    metrics.MetricsLog(path, keep_up_to=9).write(5, {"train/bpd": 1.0})
    before = path.read_bytes()
    other = metrics.MetricsLog(path, keep_up_to=9, writes=False)
    assert other.row(5) == {"step": 5, "train/bpd": 1.0}
    other.write(6, {"train/bpd": 2.0})
    assert other.row(6) is not None
    assert path.read_bytes() == before


def test_a_single_image_has_no_standard_error():
    batch = {"bpd": np.asarray([2.0, 9.0])}
    values = evaluation.over_batches(lambda batch: batch, iter([batch]), 1, bool)
    assert evaluation.row(values, 7) == {"eval/bpd": 2.0, "eval/images": 1}


def test_evaluation_stops_when_asked():
    answers = iter([False, False, True])
    seen = []

    def evaluate(batch):
        seen.append(batch)
        return {"bpd": batch["value"]}

    batches = batches_of(np.ones(20), 4)
    stopped = evaluation.over_batches(evaluate, batches, 20, lambda: next(answers))
    assert stopped is None
    assert len(seen) == 2


def test_sha256_is_over_bytes_in_the_order_of_paths():
    tree = {"b": jnp.arange(3, dtype=jnp.int32), "a": {"x": jnp.float32(1.5)}}
    raw = np.float32(1.5).tobytes() + np.arange(3, dtype=np.int32).tobytes()
    assert fingerprints.sha256(tree) == hashlib.sha256(raw).hexdigest()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "uint8", "bool", "int32"])
def test_checksums_see_every_changed_or_moved_number(dtype):
    values = np.arange(12).reshape(3, 4) % 2
    tree = {"a": jnp.asarray(values, dtype), "b": jnp.ones(3)}
    before = np.asarray(fingerprints.checksums(tree))
    assert before.dtype == np.uint32
    assert before.shape == (2,)
    swapped = values.copy()
    swapped[0, [0, 1]] = swapped[0, [1, 0]]
    changed = values.copy()
    changed[2, 3] += 1 if changed[2, 3] == 0 else -1
    for other in (swapped, changed):
        after = np.asarray(fingerprints.checksums({**tree, "a": jnp.asarray(other, dtype)}))
        assert after[0] != before[0]
        assert after[1] == before[1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "uint8", "bool", "float64", "int64"])
def test_checksums_on_the_host_are_those_of_a_device(dtype, float64, monkeypatch):
    values = np.random.default_rng(0).normal(scale=40, size=(5, 7))
    tree = {"a": jnp.asarray(values, dtype), "b": jnp.asarray(values[0, 0], dtype)}
    on_host = fingerprints.checksums(tree), fingerprints.all_finite(tree)
    monkeypatch.setattr(fingerprints, "_is_on_host", lambda _: False)
    np.testing.assert_array_equal(fingerprints.checksums(tree), on_host[0])
    assert fingerprints.all_finite(tree) == on_host[1]


def test_checksums_of_double_precision(float64):
    tree = {"a": jnp.asarray([1.0, 2.0])}
    nudged = {"a": jnp.asarray([1.0, np.nextafter(2.0, 3.0)])}
    assert fingerprints.checksums(tree)[0] != fingerprints.checksums(nudged)[0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_all_finite(bad):
    tree = {"a": jnp.ones(3), "step": jnp.int32(3)}
    assert fingerprints.all_finite(tree)
    assert not fingerprints.all_finite({**tree, "b": jnp.asarray([0.0, bad])})


def test_files_are_replaced_whole(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    files.write_atomically(path, "first")
    files.write_atomically(path, "second")
    assert path.read_text() == "second"
    assert [each.name for each in path.parent.iterdir()] == ["a.txt"]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "folder" / "file"
    files.write_atomically(path, lambda file: file.write(b"first"))

    def half_written(file):
        file.write(b"sec")
        file.flush()
        assert path.read_bytes() == b"first"
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        files.write_atomically(path, half_written)
    assert path.read_bytes() == b"first"
    assert [each.name for each in path.parent.iterdir()] == ["file"]
    files.write_atomically(path, lambda file: file.write(b"third"))
    assert path.read_bytes() == b"third"
    assert [each.name for each in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_disk_that_refuses_leaves_the_old_file_and_is_named(tmp_path, monkeypatch, number):
    path = tmp_path / "a.txt"
    files.write_atomically(path, "first")

    def refuse(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    for write in (
        lambda: files.write_atomically(path, "second"),
        lambda: metrics.MetricsLog(path.with_name("b.txt"), keep_up_to=-1),
    ):
        with pytest.raises(
            OSError, match=rf"{os.strerror(number)}: '{tmp_path}/[ab].txt'"
        ) as error:
            write()
        assert error.value.errno == number
    assert path.read_text() == "first"
    assert [each.name for each in tmp_path.iterdir()] == ["a.txt"]


def test_a_row_that_does_not_fit_on_the_disk_names_its_file(tmp_path, monkeypatch):
    log = metrics.MetricsLog(tmp_path / "metrics.jsonl", keep_up_to=-1)

    def refuse(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match=r"No space left on device: '.*/metrics.jsonl'"):
        log.write(1, {})


def test_events_that_do_not_fit_on_the_disk(tmp_path, monkeypatch):
    from clu import metric_writers

    class Full:
        def __init__(self, folder):
            self.write_scalars = self.close = lambda *_: None

        def flush(self):
            raise RuntimeError("{{node}} events.v2;\nNo space left on device")

    monkeypatch.setattr(metric_writers, "SummaryWriter", Full)
    board = metrics.TensorBoard(tmp_path, None)
    board.write(1, {"eval/bpd": 1.0})  # no file for it
    with pytest.raises(OSError, match=rf"{tmp_path} cannot .*No space left.*tensorboard=False"):
        board.write(1, {"train/bpd": 1.0})


def test_events_that_cannot_be_created(tmp_path, monkeypatch):
    from clu import metric_writers

    def refuse(folder):
        raise RuntimeError(f"{folder}; Permission denied")

    monkeypatch.setattr(metric_writers, "SummaryWriter", refuse)
    with pytest.raises(OSError, match=rf"{tmp_path} cannot .*Permission denied.*tensorboard=False"):
        metrics.TensorBoard(tmp_path, None)


def test_no_two_writers_share_an_unfinished_file(tmp_path):
    """Processes in containers may all have the number 1, and a folder that machines share."""
    first, second = (files.partial_path(tmp_path / "a.npy") for _ in range(2))
    assert first != second
    assert {first.parent, second.parent} == {tmp_path}
    assert first.match(".a.npy.*.partial")


def test_archives_come_back(tmp_path):
    files.write_npz_atomically(tmp_path / "a.npz", {"x/y": np.arange(3)})
    with np.load(tmp_path / "a.npz") as archive:
        np.testing.assert_array_equal(archive["x/y"], np.arange(3))


class Clock:
    """Stands for the `time` module."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_plain_lines_come_now_and_then(clock, capsys):
    with progress.Progress(0, 1000, batch_size=8) as bar:
        bar.update(0, float("nan"))
        for step in range(1, 1001):
            clock.now += 0.1 if step > 1 else 60.0  # the first step compiles
            bar.update(step, 3.0)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "step 2/1000  3.0000 bpd  80 images/s  0:01:40 left"
    assert lines[-1] == "step 1000/1000  3.0000 bpd  80 images/s  0:00:00 left"
    assert 9 <= len(lines) <= 12


def test_a_terminal_gets_one_live_line(clock, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with progress.Progress(4, 10, batch_size=8) as bar:
        for step in range(5, 11):
            clock.now += 2.0
            bar.update(step, 3.25)
        bar.say("hello")
    shown = terminal.getvalue()
    assert "\n" not in shown.split("hello")[0].rstrip("\n")
    assert "10/10" in shown
    assert "3.2500 bpd, 4 images/s" in shown


def test_other_processes_show_nothing(clock, capsys):
    with progress.Progress(0, 2, batch_size=8, enabled=False) as bar:
        bar.say("hello")
        bar.update(1, 1.0)
        bar.update(2, 1.0)
    assert capsys.readouterr() == ("", "")
