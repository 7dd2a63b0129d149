"""Buckets of two stores on this machine, for tests that are left out without the libraries."""

import contextlib
import importlib
import importlib.util
import os
import random

import pytest

from idode_gin.reports import paths

# Read when gcsfs is imported; otherwise it asks Google for the kind of a bucket.
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
_NEEDED = {"gcs": ("gcsfs", "gcp_storage_emulator"), "moto_s3": ("s3fs", "moto", "flask_cors")}
STORES = [name for name, needed in _NEEDED.items() if all(map(importlib.util.find_spec, needed))]
collect_ignore_glob = [] if STORES else ["test_*"]


@pytest.fixture(scope="module", params=STORES)
def store(request):
    """The module of an emulator."""
    return importlib.import_module(request.param)


@pytest.fixture(scope="module")
def address(store):
    with store.running() as found, _used(store, found):
        yield found


@contextlib.contextmanager
def _used(store, address):
    """Let the client libraries speak to the emulator at an address."""
    import fsspec

    kind = fsspec.get_filesystem_class(store.PROTOCOL)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in store.variables(address).items():
            patch.setenv(name, value)
        _forget(kind)
        yield
        _forget(kind)


def _forget(kind):
    from etils.epath import backend

    kind.clear_instance_cache()
    backend.fsspec_backend._get_filesystem.cache_clear()  # has the address of the last emulator


@pytest.fixture
def network(store):
    """Return the network before an emulator of the test's own."""
    import networks

    found = networks.Network(random.Random(3))
    with store.running() as target, networks.between(found, target) as own, _used(store, own):
        yield found


@pytest.fixture
def root(store):
    """The address of the emulator's bucket."""
    return f"{store.SCHEME}{store.BUCKET}"


@pytest.fixture
def bucket(address, root, request):
    """A folder of its own, with a space and a letter outside ASCII in its name."""
    return paths.of(f"{root}/{request.node.name.partition('[')[0]} é")
