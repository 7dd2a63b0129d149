"""Paths that gin files bind: `~` is expanded, addresses are refused."""

import pathlib
import re

import bindable
import pytest
import toy_files
import toy_program
from gin import config

from idode_gin.configs import building, value_types
from idode_gin.configs.loading import ConfigError


@pytest.mark.parametrize("folder", ["'~/runs/b'", "%ELSEWHERE"])
def test_home_folder_in_a_path(
    tmp_path: pathlib.Path, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/my/home")
    more = "ELSEWHERE = '~/runs/b'\n" * folder.startswith("%")
    toy_files.load(tmp_path, f"{more}FOLDER = {folder}\ntoy.Wheel.name = '~/kept'")
    arguments = building.build(toy_program.main)
    assert arguments["folder"] == "/my/home/runs/b"
    assert arguments["wheel"].name == "~/kept"
    assert "'/my/home/runs/b'" in config.config_str()


def test_address_in_a_path(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConfigError) as caught:
        toy_files.load(tmp_path, "", ["main.folder = 'gs://b/a'"])
    found = str(caught.value)
    assert found.startswith("main.folder must be a path on this machine, got 'gs://b/a'. ")
    assert found.endswith("[--gin.main.folder='gs://b/a']")


def test_parameters_named_like_paths_are_marked_as_paths() -> None:
    not_marked = {
        f"{bindable.name(target)}.{parameter}"
        for target in bindable.targets()
        for parameter, each in value_types.parameters(target).items()
        if re.search(r"(^|_)(dir|path|folder|file|replay)$", parameter) and not each.read_path
    }
    assert not_marked == set()
