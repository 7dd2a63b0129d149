"""A bucket on this machine, for tests that are left out without the libraries."""

import contextlib
import importlib.util
import os
import random

import pytest

from idode_gin.reports import paths

# Read when gcsfs is imported; otherwise it asks Google for the kind of a bucket.
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
collect_ignore_glob = (
    [] if all(map(importlib.util.find_spec, ("gcsfs", "gcp_storage_emulator"))) else ["test_*"]
)


@pytest.fixture(scope="module")
def address():
    import gcs

    with gcs.running() as found, _used(found):
        yield found


@contextlib.contextmanager
def _used(address):
    """Let the client libraries speak to the emulator at an address."""
    import fsspec
    import gcs

    with pytest.MonkeyPatch.context() as patch:
        for name, value in gcs.variables(address).items():
            patch.setenv(name, value)
        fsspec.get_filesystem_class("gcs").clear_instance_cache()
        yield
        fsspec.get_filesystem_class("gcs").clear_instance_cache()


@pytest.fixture
def network():
    """Return the network before an emulator of the test's own."""
    import gcs
    import networks

    found = networks.Network(random.Random(3))
    with gcs.running() as target, networks.between(found, target) as own, _used(own):
        yield found


@pytest.fixture
def bucket(address, request):
    """A folder of its own, with a space and a letter outside ASCII in its name."""
    return paths.of(f"gs://bucket/{request.node.name.partition('[')[0]} é")
