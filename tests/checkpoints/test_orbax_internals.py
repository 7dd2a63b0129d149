"""Checkpoints in s3:// stand on names of orbax; without them the refusal names versions."""

import importlib.metadata
import pathlib

import pytest

from idode_gin.checkpoints import orbax_internals

VERSION = importlib.metadata.version("orbax-checkpoint")


def test_orbax_has_its_private_names() -> None:
    from orbax.checkpoint._src.path import gcs_utils
    from orbax.checkpoint._src.serialization import tensorstore_utils

    found = (
        (gcs_utils, "_GCS_PATH_PREFIX"),
        (gcs_utils, "get_kvstore_for_gcs"),
        (tensorstore_utils, "_use_gcs_driver"),
    )
    for module, name in found:
        assert hasattr(module, name), f"orbax-checkpoint {VERSION} lacks {name}"


def test_another_orbax_is_refused(monkeypatch) -> None:
    from orbax.checkpoint._src.path import gcs_utils

    orbax_internals._accept_s3.cache_clear()
    monkeypatch.delattr(gcs_utils, "get_kvstore_for_gcs")
    with pytest.raises(
        ValueError, match=rf"s3://b/run.* need orbax-checkpoint .* this is {VERSION}"
    ):
        orbax_internals.accept("s3://b/run")
    orbax_internals.accept("gs://b/run")
    orbax_internals.accept(pathlib.Path("/b/run"))
