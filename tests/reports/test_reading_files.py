"""A file that cannot be read is not taken for one that is not there."""

import errno
import os
import pathlib

import pytest

from idode_gin.evaluation import cost, curve, earlier_results, pilot_run
from idode_gin.reports import files, paths
from idode_gin.runs import output_folders, partial_results

FAILURES = [
    PermissionError(errno.EACCES, os.strerror(errno.EACCES)),
    OSError(errno.EIO, os.strerror(errno.EIO)),
    OSError(errno.ESTALE, os.strerror(errno.ESTALE)),
    paths.StoreError("gs://bucket/run cannot be reached."),
]
READERS = {
    "summary.json": lambda folder: earlier_results.are_in(folder),
    "step_2/summary.json": lambda folder: curve.curve(folder),
    "series.json": lambda folder: curve._check_settings(folder / "series.json", {"seed": 2}),
    "config.gin": lambda folder: output_folders.owner(folder),
    "pilot_tn.json": lambda folder: pilot_run.Kept(folder, {}).read("tn"),
    "more_facts.json": lambda folder: resumed(folder),
    "cost/summary.json": lambda folder: cost.compared_with_training(folder / "cost"),
}


def resumed(folder):
    kept = partial_results.PartialResults(folder, {}, 1)
    kept._section("bound").done[:] = True
    kept.require({"grid": 3})


@pytest.mark.parametrize("error", FAILURES, ids=repr)
@pytest.mark.parametrize("name", READERS)
def test_a_failed_read_raises_and_changes_nothing(name, error, tmp_path, monkeypatch):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text('{"seed": 1}')
    read = READERS[name]

    def fail(*_, **__):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "read_bytes", fail)
        patch.setattr(pathlib.Path, "read_text", fail)
        with pytest.raises(OSError, match=r"denied|error|Stale|reached") as raised:
            read(tmp_path)
    assert raised.value is error
    assert path.read_text() == '{"seed": 1}'


@pytest.mark.parametrize("content", [None, "", "{", "3", "[1, 2]", "\x80"])
def test_what_is_no_object_is_none(content, tmp_path):
    path = tmp_path / "summary.json"
    if content is not None:
        path.write_text(content, encoding="latin-1")
    assert files.read_json(path) is None


def test_an_object_is_read(tmp_path):
    files.write_json_atomically(tmp_path / "a.json", {"é": [1]})
    assert files.read_json(tmp_path / "a.json") == {"é": [1]}
    assert files.read_json(tmp_path / "a.json" / "b") is None


def test_side_by_side_keeps_the_order_and_stops_early():
    seen = []

    def work(item):
        seen.append(item)
        return -item

    assert list(files.side_by_side(work, range(1000))) == [-item for item in range(1000)]
    seen.clear()
    found = files.side_by_side(work, range(1000))
    assert next(found) == 0
    found.close()
    assert len(seen) <= 128
    with pytest.raises(ZeroDivisionError):
        list(files.side_by_side(lambda item: 1 / item, [1, 0]))
