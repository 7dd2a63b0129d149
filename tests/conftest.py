"""Settings of every test: shapes checked, CPU only, compiled code kept between runs.

`_prepare` runs while this file is imported, before any test module imports jax or the library.
"""

import atexit
import contextlib
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Iterator

import pytest

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent


def _prepare() -> None:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".jax_cache"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ["IDODE_CACHE_DIR"] = tempfile.mkdtemp(prefix="idode_gin_tests_")
    atexit.register(shutil.rmtree, os.environ["IDODE_CACHE_DIR"], ignore_errors=True)
    import jaxtyping

    # Every annotation of the library is checked at every call, shapes included.
    jaxtyping.install_import_hook("idode_gin", "annotations.check")


_prepare()


SLOWEST_FIRST = ("end_to_end", "golden", "laws", "runtime", "configs")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, so that no worker is left with one when the others are done."""
    items.sort(key=lambda item: SLOWEST_FIRST.index(item.path.relative_to(HERE).parts[0]))


@pytest.fixture(autouse=True)
def _data_folders_of_its_own() -> Iterator[None]:
    """The data flags bind the whole process: what one test named, the next must not find."""
    before = list(sys.modules["seqio"].get_global_cache_dirs()) if "seqio" in sys.modules else []
    yield
    if (seqio := sys.modules.get("seqio")) is not None:
        seqio.set_tfds_data_dir_override(None)
        seqio.set_global_cache_dirs(before)


@contextlib.contextmanager
def _width(double: bool) -> Iterator[None]:
    import jax

    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", double)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


@pytest.fixture
def float64() -> Iterator[None]:
    """Runs a test with 64-bit numbers; jax keeps what it compiled for either width apart."""
    with _width(double=True):
        yield


@pytest.fixture
def float32() -> Iterator[None]:
    """Runs a test with 32-bit numbers, which matters only inside `float64`."""
    with _width(double=False):
        yield
