"""A bucket on this machine, for tests that are left out without the libraries."""

import importlib.util
import os

import pytest

from idode_gin.reports import paths

# Read when gcsfs is imported; otherwise it asks Google for the kind of a bucket.
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
collect_ignore_glob = (
    [] if all(map(importlib.util.find_spec, ("gcsfs", "gcp_storage_emulator"))) else ["test_*"]
)


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
