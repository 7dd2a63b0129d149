"""Settings of every test: shapes checked, CPU only, compiled code kept between runs.

`_prepare` runs while this file is imported, before any test module imports jax or the library.
"""

import os
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent


def _prepare() -> None:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".jax_cache"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import jaxtyping

    # Every annotation of the library is checked at every call, shapes included.
    jaxtyping.install_import_hook("idode_gin", "annotations.check")


_prepare()


@pytest.fixture
def float64():
    """Runs a test with 64-bit numbers; jax keeps what it compiled for either width apart."""
    import jax

    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)
