"""Settings of every test: shapes checked, CPU only, compiled quickly and kept between runs.

`_prepare` runs while this file is imported, before any test module imports jax or the library.
"""

import atexit
import contextlib
import functools
import gc
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import pytest

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent

QUICK_TO_COMPILE = (
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1 "
    "--xla_backend_optimization_level=0"
)
"""The same programs in a third of the time, of which most of a test is made. The last bit of a
number may depend on its place in an array then: a test that fails by it alone is marked
`compiled_as_users`. `make test-full` compiles golden cases and laws as users do."""


def _xla_knows(flags: str) -> bool:
    """Another release may not: there a process with them ends at once."""
    start = [sys.executable, "-c", "import jax; jax.devices()"]
    environment = {**os.environ, "XLA_FLAGS": flags}
    return subprocess.run(start, env=environment, capture_output=True).returncode == 0


def _prepare() -> None:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".jax_cache"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if "XLA_FLAGS" not in os.environ:
        os.environ["XLA_FLAGS"] = QUICK_TO_COMPILE if _xla_knows(QUICK_TO_COMPILE) else ""
    os.environ["IDODE_CACHE_DIR"] = tempfile.mkdtemp(prefix="idode_gin_tests_")
    atexit.register(shutil.rmtree, os.environ["IDODE_CACHE_DIR"], ignore_errors=True)
    import jaxtyping

    # Every annotation of the library is checked at every call, shapes included.
    jaxtyping.install_import_hook("idode_gin", "annotations.check")


_prepare()


WAITS = pathlib.Path("buckets/test_gone_buckets.py")
"""Half an hour that needs no core: it begins before all others."""
SLOWEST_FIRST = (
    "end_to_end",
    "golden",
    "laws",
    "training",
    "evaluation",
    "checkpoints",
    "buckets",
    "feed",
    "tasks",
    "processes",
    "devices",
    "generation",
    "runs",
    "interop",
    "reports",
    "mutation",
    "configs",
)


def _place(item: pytest.Item) -> tuple[bool, int]:
    path = item.path.relative_to(HERE)
    return path != WAITS, SLOWEST_FIRST.index(path.parts[0])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the cases of `full_cases`, and sort long files first to keep every worker busy.

    Raises:
        pytest.UsageError: if a pattern of `full_cases` matches no case of its test.
    """
    items.sort(key=_place)
    matched: dict[tuple[str, str], bool] = {}
    for item in items:
        function, _, case = item.nodeid.removesuffix("]").partition("[")
        for marker in item.iter_markers("full_cases"):
            for pattern in marker.args:
                is_match = re.fullmatch(pattern, case) is not None
                matched[function, pattern] = matched.get((function, pattern), False) or is_match
                if is_match:
                    item.add_marker(pytest.mark.full)
    stale = [each for each, is_found in matched.items() if not is_found]
    is_whole = [pathlib.Path(each).resolve() for each in config.args] == [HERE.resolve()]
    if is_whole and stale and "IDODE_GOLDENS" not in os.environ:
        raise pytest.UsageError(f"Patterns of `full_cases` that match no case: {stale}.")


def pytest_collection_finish() -> None:
    """Leave what was imported out of every later collection, and all out of that at the end."""
    gc.freeze()
    atexit.register(gc.freeze)


@functools.cache
def _as_users(function: str) -> str:
    """Run all cases of a test in a process that compiles as users do; return what failed, or ""."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-m", "not full", function]
    environment = {**os.environ, "XLA_FLAGS": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    return done.stdout + done.stderr if done.returncode else ""


def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run the tests marked `compiled_as_users` where the flags are those of users."""
    is_marked = pyfuncitem.get_closest_marker("compiled_as_users") is not None
    if not is_marked or os.environ["XLA_FLAGS"] != QUICK_TO_COMPILE:
        return None
    if failed := _as_users(pyfuncitem.nodeid.partition("[")[0]):
        pytest.fail(failed, pytrace=False)
    return True


@pytest.fixture(autouse=True)
def _data_folders_of_its_own() -> Iterator[None]:
    """The data flags bind the whole process: what one test named, the next must not find."""
    before = list(sys.modules["seqio"].get_global_cache_dirs()) if "seqio" in sys.modules else []
    yield
    if (seqio := sys.modules.get("seqio")) is not None:
        seqio.set_tfds_data_dir_override(None)
        seqio.set_global_cache_dirs(before)


@pytest.fixture(autouse=True)
def _configuration_of_its_own() -> Iterator[None]:
    """gin's bindings are of the whole process: a later test would write them to its folder."""
    yield
    if (gin := sys.modules.get("gin.config")) is not None:
        gin.clear_config()


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
