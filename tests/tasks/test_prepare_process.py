"""The program as a process: early refusals, kills, signals, full disks, existing datasets."""

import argparse
import contextlib
import errno
import os
import pathlib
import re
import shutil
import signal
import stat
import subprocess
import sys
import time

import archives
import numpy as np
import pytest
from test_prepare import prepare, read, same_images

from idode_gin.feed import image_fingerprints
from idode_gin.reports import progress
from tasks.prepare import __main__ as program
from tasks.prepare import datasets, png, targets, writer
from tasks.prepare.refusals import TargetError

ROOT = pathlib.Path(__file__).parents[2]


def command(*arguments):
    return [sys.executable, "-m", "tasks.prepare", *map(str, arguments)]


def run(*arguments, **options):
    return subprocess.run(
        command(*arguments), cwd=ROOT, capture_output=True, text=True, check=False, **options
    )


def tree(folder):
    """Return path -> content of every file below a folder."""
    return {
        path.relative_to(folder): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


class Clock:
    """Stands for the `time` module; eleven seconds pass between two looks."""

    now = 0

    def monotonic(self):
        self.now += 11
        return self.now


@pytest.fixture
def cifar(tmp_path):
    images = archives.cifar10_python(tmp_path / "cifar.tar.gz", 53, 12)
    return images, [tmp_path / "cifar.tar.gz"]


# Before anything is written


def test_help_and_refusals_import_neither_tensorflow_nor_jax(tmp_path):
    code = (
        "import sys; sys.argv[0] = '-m'\n"  # as of `python -u -m tasks.prepare`
        "sys.orig_argv = ['python', '-u', '-m', 'tasks.prepare', *sys.argv[1:]]\n"
        "from tasks.prepare.__main__ import main\n"
        "try: code = main(sys.argv[1:])\n"
        "except SystemExit as exit: code = exit.code\n"
        "print([name for name in ('tensorflow', 'seqio', 'jax', 'tensorflow_datasets') "
        "if name in sys.modules], code)"
    )
    for arguments, expected in (
        (["--help"], "[] 0"),
        (["cifar11", "--source", "x"], "[] 2"),
        (["cifar10", "--source", str(tmp_path / "nope")], "[] 2"),
        (["image_folder", "--source", ".", "--name", "../x"], "[] 2"),
        (["mnist", "--source", ".", "--name", "mine"], "[] 2"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout.splitlines()[-1] == expected, done.stderr
    done = run("imagenet32_new", "--help")
    assert "imagenet64_old" in done.stdout


def test_the_default_data_dir_is_that_of_tfds(monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", "/somewhere")
    assert targets.default_data_dir() == pathlib.Path("/somewhere")
    monkeypatch.delenv("TFDS_DATA_DIR")
    assert targets.default_data_dir() == pathlib.Path.home() / "tensorflow_datasets"


# A dataset that exists


def test_a_finished_dataset_is_never_damaged(cifar, tmp_path, capsys, monkeypatch):
    images, sources = cifar
    folder = prepare("cifar10", sources, tmp_path / "data", "--allow_partial")
    before = tree(tmp_path / "data")
    prepare("cifar10", sources, tmp_path / "data", "--allow_partial", code=2)
    assert "is a finished dataset; it is left unchanged" in capsys.readouterr().err
    assert tree(tmp_path / "data") == before

    # Whatever goes wrong while it is being replaced:
    other = archives.cifar10_binary(tmp_path / "other.tar.gz", 40, 10, seed=5)
    encode, count = writer.png.encode, iter(range(1000))

    def failing(image):
        if next(count) == 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        return encode(image)

    monkeypatch.setattr(writer.png, "encode", failing)
    options = ["--allow_partial", "--overwrite"]
    prepare("cifar10", [tmp_path / "other.tar.gz"], tmp_path / "data", *options, code=2)
    assert "the disk is full" in capsys.readouterr().err
    assert tree(tmp_path / "data") == before

    prepare("cifar10", [tmp_path / "other.tar.gz"], tmp_path / "data", *options)
    assert same_images(read(folder, "train"), other["train"])
    assert not same_images(read(folder, "train"), images["train"])
    assert [each.name for each in (tmp_path / "data").iterdir()] == ["cifar10"]


@pytest.mark.parametrize("refused", ["folders", "files"])
def test_a_file_system_that_cannot_flush_folders(refused, tmp_path, monkeypatch):
    """Network file systems may refuse `fsync` of a folder; of a file, the data may be lost."""

    def flush(number):
        if stat.S_ISDIR(os.fstat(number).st_mode) == (refused == "folders"):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "file").touch()
    monkeypatch.setattr(os, "fsync", flush)
    if refused == "folders":
        targets._sync(tmp_path)
    else:
        with pytest.raises(OSError, match="Invalid argument"):
            targets._sync(tmp_path)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.EIO, "I/O error")])
def test_the_swap_is_undone_when_it_fails(error, tmp_path, monkeypatch):
    final = tmp_path / "cifar10" / "3.0.2"
    final.mkdir(parents=True)
    (final / "old").touch()
    rename = pathlib.Path.rename

    def failing(path, target):
        if path.name == "3.0.2" and path != final:
            raise error
        return rename(path, target)

    monkeypatch.setattr(pathlib.Path, "rename", failing)
    with (
        pytest.raises((KeyboardInterrupt, TargetError)),
        targets.staged(tmp_path, "cifar10/3.0.2", overwrite=True) as aside,
    ):
        (aside / "cifar10/3.0.2").mkdir(parents=True)
    assert tree(tmp_path) == {pathlib.Path("cifar10/3.0.2/old"): b""}


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path):
    aside = tmp_path / ".preparing.cifar10.3.0.2"
    (aside / "replaced").mkdir(parents=True)
    (aside / "replaced" / "old").touch()
    (aside / "cifar10" / "3.0.2").mkdir(parents=True)
    with (
        pytest.raises(TargetError, match="exists"),
        targets.staged(tmp_path, "cifar10/3.0.2", overwrite=False),
    ):
        raise AssertionError("the old dataset is there")
    assert tree(tmp_path) == {pathlib.Path("cifar10/3.0.2/old"): b""}


def test_what_a_killed_process_left_counts_as_free(tmp_path, monkeypatch):
    aside = tmp_path / "data" / ".preparing.cifar10.3.0.2"
    (aside / "cifar10").mkdir(parents=True)
    (aside / "replaced").mkdir()
    for name in ("cifar10/half", "replaced/old"):
        (aside / name).write_bytes(bytes(600))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: _usage(1000))
    targets.check_free(tmp_path / "data", "cifar10/3.0.2", 1600)
    with pytest.raises(TargetError, match="may need"):
        targets.check_free(tmp_path / "data", "cifar10/3.0.2", 1601)


def test_two_processes_do_not_write_one_dataset(tmp_path):
    with (
        targets.staged(tmp_path, "a/1.0.0", overwrite=False) as aside,
    ):
        with (
            pytest.raises(TargetError, match="Another process"),
            targets.staged(tmp_path, "a/1.0.0", overwrite=False),
        ):
            raise AssertionError("two at a time")
        with targets.staged(tmp_path, "b/1.0.0", overwrite=False) as other:
            (other / "b/1.0.0").mkdir(parents=True)
        (aside / "a/1.0.0").mkdir(parents=True)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a", "b"]


# Disks


def test_free_disk_is_checked_first(cifar, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: _usage(1000))
    prepare("cifar10", cifar[1], tmp_path / "data", code=2)
    assert "may need 0.2 GB" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def _usage(free):
    return shutil._ntuple_diskusage(free, 0, free)


@pytest.mark.parametrize("kind", ["tensorflow", "oserror", "late"])
def test_a_full_disk(kind, cifar, tmp_path, capsys, monkeypatch):
    import tensorflow as tf

    text = "No space left on device"
    full = {
        "tensorflow": tf.errors.ResourceExhaustedError(None, None, text),
        "oserror": OSError(errno.ENOSPC, text),
        "late": OSError(errno.ENOSPC, text),
    }[kind]

    def fail(*arguments, **options):
        raise full

    if kind == "late":
        monkeypatch.setattr(pathlib.Path, "write_text", fail)
    else:
        monkeypatch.setattr(tf.io.TFRecordWriter, "write", fail)
    prepare("cifar10", cifar[1], tmp_path / "data", "--allow_partial", code=2)
    assert "the disk is full" in capsys.readouterr().err
    assert list((tmp_path / "data").iterdir()) == []


def test_a_disk_that_is_really_full(cifar, tmp_path, capsys):
    (tmp_path / "disk").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(tmp_path / "disk")]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small disk; test_a_full_disk raises the errors instead")
    try:
        prepare("cifar10", cifar[1], tmp_path / "disk/data", "--allow_partial", code=2)
        assert "the disk is full" in capsys.readouterr().err
        assert list((tmp_path / "disk/data").iterdir()) == []
        archives.authors_tfrecords(tmp_path, 53, 12)
        options = ["--allow_partial"]
        prepare("imagenet32_new", [tmp_path], tmp_path / "disk/data", *options, code=2)
        assert "free" in capsys.readouterr().err
    finally:
        subprocess.run(["umount", str(tmp_path / "disk")], check=True)


def test_no_permission(cifar, tmp_path, capsys, monkeypatch):
    # Root may do everything, so the errors of the operating system are simulated.
    def fail(*arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "mkdir", fail)
        prepare("cifar10", cifar[1], tmp_path / "data", "--allow_partial", code=2)
    assert "cannot be written to: Permission denied" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: False)
        prepare("cifar10", cifar[1], tmp_path / "data", "--allow_partial", code=2)
    assert "no permission" in capsys.readouterr().err
    (tmp_path / "file").touch()
    prepare("cifar10", cifar[1], tmp_path / "file", "--allow_partial", code=2)
    assert "cannot be written to" in capsys.readouterr().err
    assert (tmp_path / "file").read_bytes() == b""


# Kills and signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("when", [0, 30, 60])
def test_asked_to_stop(when, number, cifar, tmp_path, capsys, monkeypatch):
    encode, count = writer.png.encode, iter(range(1000))

    def encode_and_be_asked(image):
        if next(count) == when:
            os.kill(os.getpid(), number)
        return encode(image)

    before = signal.getsignal(number)
    monkeypatch.setattr(writer.png, "encode", encode_and_be_asked)
    prepare("cifar10", cifar[1], tmp_path / "data", "--allow_partial", code=75)
    assert "nothing was left behind" in capsys.readouterr().err
    assert list((tmp_path / "data").iterdir()) == []
    assert signal.getsignal(number) == before


def test_a_request_that_python_drops_still_counts(cifar, tmp_path, capsys, monkeypatch):
    """It drops what a handler raises while it collects garbage."""
    encode = writer.png.encode

    def encode_and_be_asked(image):
        monkeypatch.setattr(writer.png, "encode", encode)
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        return encode(image)

    monkeypatch.setattr(writer.png, "encode", encode_and_be_asked)
    prepare("cifar10", cifar[1], tmp_path / "data", "--allow_partial", code=75)
    assert "nothing was left behind" in capsys.readouterr().err
    assert list((tmp_path / "data").iterdir()) == []
    prepare("cifar10", cifar[1], tmp_path / "data", "--allow_partial")


@pytest.mark.full_cases("9")
@pytest.mark.parametrize(
    "number",
    [
        signal.SIGKILL,
        pytest.param(signal.SIGTERM, marks=pytest.mark.full),
        pytest.param(signal.SIGINT, marks=pytest.mark.full),
    ],
)
def test_stopped_half_way(number, tmp_path, capfd):
    images = archives.cifar10_python(tmp_path / "c.tar.gz", 6000, 12)
    data = tmp_path / "data"
    options = ["cifar10", "--source", tmp_path / "c.tar.gz", "--allow_partial"]
    process = subprocess.Popen(command(*options, "--tfds_data_dir", data), cwd=ROOT)
    aside = data / ".preparing.cifar10.3.0.2"
    deadline = time.monotonic() + 120
    while not list(aside.glob("cifar10/*3.0.2*")):
        assert process.poll() is None, "the program ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(number)
    code = process.wait(60)
    left = tree(data)
    assert not (data / "cifar10").exists()
    if number == signal.SIGKILL:
        assert code == -signal.SIGKILL
        assert left
        # Nothing that TFDS would take for a dataset.
        import tensorflow_datasets as tfds

        with pytest.raises(tfds.core.registered.DatasetNotFoundError):
            tfds.builder("nothing/here", data_dir=str(data))
        assert not list(data.glob("[!.]*"))
    else:
        assert code == 75
        assert left == {}
        assert "nothing was left behind" in capfd.readouterr().err
    if number == signal.SIGKILL:
        folder = prepare("cifar10", [tmp_path / "c.tar.gz"], data, "--allow_partial")
        assert same_images(read(folder, "train"), images["train"])
        assert [each.name for each in data.iterdir()] == ["cifar10"]


# What it says


@pytest.mark.parametrize("splits", [["train", "validation"], ["train"], ["validation"]])
def test_a_command_is_printed_for_what_is_there(splits, tmp_path, capsys):
    image = np.zeros((1, 32, 32, 3), np.uint8)
    found = {each: image_fingerprints.fingerprint(image) for each in splits}
    options = argparse.Namespace(dataset="imagenet32_old", allow_partial=True)
    program._report(options, tmp_path, datasets.DATASETS["imagenet32_old"], found, 0)
    printed = capsys.readouterr().out
    assert ("idode_gin.train" in printed) == ("train" in splits)
    assert ("train_eval_dataset_cfg=None" in printed) == (splits == ["train"])


def test_lines_tell_how_far_it_is_and_are_the_only_ones(cifar, tmp_path, monkeypatch, capsys):
    encode = png.encode

    def slowly(image):
        progress.beat()
        return encode(image)

    monkeypatch.setattr(progress, "time", Clock())
    monkeypatch.setattr(png, "encode", slowly)
    prepare("cifar10", cifar[1], tmp_path / "data", "--allow_partial")
    printed = capsys.readouterr().out
    for split, number in (("train", 53), ("test", 12)):
        assert len(re.findall(rf"^writing {split}: ", printed, re.M)) >= number
    assert "Downloading" not in printed
