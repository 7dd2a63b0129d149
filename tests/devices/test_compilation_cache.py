"""The folder that keeps compiled programs."""

import logging
import tempfile

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache as jax_cache

from idode_gin.devices import compilation_cache


@pytest.fixture(autouse=True)
def _as_it_was():
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    jax_cache.reset_cache()


def compile_one(number):
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    return jax.jit(lambda x: x * number + jnp.sin(x)).lower(1.0).compile()


def test_programs_are_kept_there(tmp_path):
    compile_one(3)  # jax has looked at its setting by now
    folder = tmp_path / "some" / "cache"
    compilation_cache.use(str(folder))
    compile_one(5)
    assert list(folder.iterdir())


def test_none_changes_nothing(tmp_path):
    compilation_cache.use(str(tmp_path))
    compilation_cache.use(None)
    assert jax.config.jax_compilation_cache_dir == str(tmp_path)


def test_a_bucket_is_handed_on(monkeypatch):
    monkeypatch.setattr("idode_gin.reports.buckets.importlib.util.find_spec", lambda _: True)
    compilation_cache.use("gs://bucket/cache")
    assert jax.config.jax_compilation_cache_dir == "gs://bucket/cache"


@pytest.mark.parametrize(
    ("name", "message"), [("file", "it is a file"), ("file/below", "Not a directory")]
)
def test_no_folder(tmp_path, name, message):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=f"{message}.*COMPILATION_CACHE_DIR"):
        compilation_cache.use(str(tmp_path / name))
    with pytest.raises(ValueError, match="None switches it off"):
        compilation_cache.use("")


def test_a_folder_that_is_only_read(tmp_path, monkeypatch, caplog):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with caplog.at_level(logging.WARNING, logger="absl"):
        compilation_cache.use(str(tmp_path))
    assert jax.config.jax_compilation_cache_dir == str(tmp_path)
    assert "is not writable (Permission denied)" in caplog.text
