"""Paths as users write them."""

import importlib
import pathlib
import typing

import pytest

from idode_gin.checkpoints import files as checkpoint_files
from idode_gin.checkpoints import series
from idode_gin.feed import image_cache
from idode_gin.interop import convert
from idode_gin.reports import paths


def test_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert paths.local("~/runs/a", "M") == str(tmp_path / "runs/a")
    assert paths.local("~", "M") == str(tmp_path)
    assert paths.local(pathlib.Path("~/b"), "M") == str(tmp_path / "b")


@pytest.mark.parametrize("path", ["", "runs/a", "/runs/a", "./~", "a~b", "a:b", "runs/a:/b", "1:/"])
def test_other_paths_are_kept(path):
    assert paths.local(path, "M") == path


@pytest.mark.parametrize("path", ["gs://b/a", "S3://b", "abfs+x://b", pathlib.Path("gs://b/a")])
def test_addresses_are_refused(path):
    with pytest.raises(ValueError, match="^M must be a path on this machine, got '"):
        paths.local(path, "M")


@pytest.mark.parametrize("path", ["s3:/b/Run", "S3://b/Run"])
def test_the_right_address_is_suggested(path):
    with pytest.raises(ValueError, match=r"Did you mean 's3://b/Run'\?"):
        paths.stored(path, "M")


def test_an_empty_path_is_not_the_current_folder():
    with pytest.raises(ValueError, match=r"^M must be a path, got an empty text\. .*'\.'"):
        paths.stored("", "M")


def test_without_a_home_folder(monkeypatch):
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda text: text)  # as for a user without an entry
    with pytest.raises(ValueError, match=r"there is no such home folder\. Set HOME"):
        paths.local("~/runs/a", "M")
    monkeypatch.delenv("IDODE_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with pytest.raises(ValueError, match=r"IDODE_CACHE_DIR sets, = '~/\.cache' .*Set HOME"):
        image_cache.default_directory()
    monkeypatch.setenv("IDODE_CACHE_DIR", "/somewhere")
    assert image_cache.default_directory() == pathlib.Path("/somewhere")


def test_marks_are_found_in_annotations():
    assert paths.reader(paths.LocalPath) is paths.local
    assert paths.reader(paths.LocalPath | None) is paths.local
    assert paths.reader(paths.StoredPath) is paths.stored
    assert paths.reader(paths.StoredPath | None) is paths.stored
    assert paths.reader(str | None) is None
    assert paths.reader(typing.Annotated[str, "another mark"]) is None


def test_python_functions_refuse_addresses():
    for call in (
        lambda: checkpoint_files.find("az://b/run"),
        lambda: series.Watch().check("az://b/run"),
        lambda: image_cache.load("gs://b", "name", "key", list, memory_map=False),
    ):
        with pytest.raises(ValueError, match="must be a path on this machine"):
            call()


def test_the_data_folder_of_the_environment(monkeypatch, capsys):
    prepare = importlib.import_module("tasks.prepare.__main__")
    monkeypatch.setenv("TFDS_DATA_DIR", "gs://b/data")
    assert prepare.main(["cifar10", "--source", "a"]) == 2
    assert "--tfds_data_dir sets, must be a path on this machine, got 'gs://b/data'" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("name", ["tmp", "~"])
def test_other_programs(name, tmp_path, monkeypatch, capsys):
    prepare = importlib.import_module("tasks.prepare.__main__")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    place = "gs://b/a" if name == "tmp" else "~/missing"
    said = "got 'gs:/" if name == "tmp" else str(tmp_path / "home" / "missing")
    assert convert.main(["--source", place, "--output", place]) == 2
    assert said in capsys.readouterr().err
    assert prepare.main(["cifar10", "--source", place]) == 2
    assert said in capsys.readouterr().err
    assert not [each for each in tmp_path.iterdir() if each.name != "home"]
