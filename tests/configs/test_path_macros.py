"""Every macro and flag that takes a path, with every form that users write."""

import importlib
import os

import pytest
from gin import config

from idode_gin.configs import building, flags, from_training, gin_internals, loading
from idode_gin.configs.loading import ConfigError

TRAIN = "gin_configs/experiments/digits.gin"
IN_BUCKETS = {
    "train": ("MODEL_DIR", "INITIAL_CHECKPOINT_PATH", "COMPILATION_CACHE_DIR", "DATA_PATH"),
    "eval": ("CHECKPOINT_PATH", "EVAL_OUTPUT_DIR", "COMPILATION_CACHE_DIR", "DATA_PATH"),
    "sample": ("CHECKPOINT_PATH", "SAMPLE_OUTPUT_DIR", "COMPILATION_CACHE_DIR"),
    "encode": ("CHECKPOINT_PATH", "ENCODE_OUTPUT_DIR", "COMPILATION_CACHE_DIR", "DATA_PATH"),
    "interpolate": (
        *("CHECKPOINT_PATH", "INTERPOLATE_OUTPUT_DIR", "COMPILATION_CACHE_DIR", "DATA_PATH"),
    ),
}
FORMS = {
    "~/runs/a": "HOME/runs/a",
    "runs/a": "runs/a",
    "/runs/an a": "/runs/an a",
    "Läufe/Ω 1": "Läufe/Ω 1",
    "gs://bucket//Läufe/an a/": "gs://bucket/Läufe/an a",
    "s3://bucket//Läufe/an a/": "s3://bucket/Läufe/an a",
}
PACKAGES = {"gs://": "gcsfs", "s3://": "s3fs"}
EXTRA = {"gs://": "gcs", "s3://": "s3"}
REFUSED = ("s3a://bucket/a", "hdfs://a/b", "https://host/a", "gs:/bucket/a", "file:///a")


@pytest.fixture(autouse=True)
def _home(monkeypatch):
    monkeypatch.setenv("HOME", "HOME")


@pytest.fixture
def installed(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: name in PACKAGES.values() or find(name)
    )


def values(program, macros, path, **others):
    """Return what the macros are once the configuration is checked."""
    root = getattr(importlib.import_module(f"idode_gin.{program}"), ROOTS[program])
    bound = {**dict.fromkeys(macros, path), **others}
    building.load_and_check(root, [TRAIN], [f"{each} = {path!r}" for each, path in bound.items()])
    return {each: config.query_parameter(f"{each}/macro.value") for each in macros}


@pytest.mark.parametrize("program", IN_BUCKETS)
def test_every_macro_of_a_program_is_listed(program):
    values(program, IN_BUCKETS[program], "runs/a")
    macros = {scope for scope, selector in gin_internals.bindings if selector == loading.MACRO}
    found = {each for each in macros if each.endswith(("_DIR", "_PATH"))}
    assert found == {*IN_BUCKETS[program]}


ROOTS = {each.rpartition(".")[2]: each.rpartition(".")[2] for each in from_training.PROGRAMS}
ROOTS["eval"] = "evaluate"


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("program", IN_BUCKETS)
def test_macros_of_a_program(program):
    macros = IN_BUCKETS[program]
    for path, expected in FORMS.items():
        assert values(program, macros, path) == dict.fromkeys(macros, expected)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("program", IN_BUCKETS)
def test_addresses_that_are_refused(program):
    for path in REFUSED:
        with pytest.raises(ConfigError) as caught:
            values(program, IN_BUCKETS[program], path)
        for each in IN_BUCKETS[program]:
            assert f"{each} must be a path on this machine or in a bucket" in str(caught.value)


@pytest.mark.parametrize("scheme", PACKAGES)
def test_without_the_package(monkeypatch, scheme):
    find, package = importlib.util.find_spec, PACKAGES[scheme]
    without = lambda name: None if name == package else find(name)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", without)
    for program, macros in IN_BUCKETS.items():
        with pytest.raises(ConfigError) as caught:
            values(program, macros, f"{scheme}bucket/a")
        for each in macros:
            assert f"{each} = '{scheme}bucket/a' needs the package {package}" in str(caught.value)
        assert f"Run pip install -e '.[{EXTRA[scheme]}]' in the clone." in str(caught.value)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("flag", ["gin_file", "tfds_data_dir"])
def test_flags(flag):
    for path, expected in FORMS.items():
        assert flags.parse([f"--{flag}={path}"])[flag].value in (expected, [expected])
    for path in REFUSED:
        with pytest.raises(ConfigError, match=f"--{flag} must be a path on this machine"):
            flags.parse([f"--{flag}={path}"])
    assert not os.path.exists("HOME")


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("flag", ["gin_search_paths", "seqio_additional_cache_dirs"])
def test_flags_of_this_machine_alone(flag):
    for path in (*REFUSED, "gs://bucket/a", "s3://bucket/a"):
        with pytest.raises(ConfigError, match=f"--{flag} must be a path on this machine, got"):
            flags.parse([f"--{flag}={path}"])
