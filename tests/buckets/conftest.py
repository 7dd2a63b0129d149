"""A bucket on this machine, for tests that skip themselves without the libraries."""

import pytest

from idode_gin.reports import paths


@pytest.fixture(scope="module")
def address():
    import fsspec
    import gcs

    with pytest.MonkeyPatch.context() as patch, gcs.running() as found:
        for name, value in gcs.variables(found).items():
            patch.setenv(name, value)
        fsspec.get_filesystem_class("gcs").clear_instance_cache()
        yield found
        fsspec.get_filesystem_class("gcs").clear_instance_cache()


@pytest.fixture
def bucket(address, request):
    """A folder of its own, with a space and a letter outside ASCII in its name."""
    return paths.of(f"gs://bucket/{request.node.name.partition('[')[0]} é")
