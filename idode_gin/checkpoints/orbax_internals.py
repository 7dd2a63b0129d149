"""The private names of orbax that are used here, for checkpoints in s3://.

tensorstore has a driver for S3. orbax 0.12 names a driver for gs:// and for disks alone, in
functions that it has no setting for.
"""

import functools
import importlib.metadata
import os
from typing import Any

from idode_gin.reports import s3

_SCHEME = "s3://"
_NORMALIZED = "s3:/"
"""Beginning of an address that went through orbax's `os.path.normpath`."""


def accept(path: str | os.PathLike[str]) -> None:
    """Let orbax write and read a checkpoint at `path`.

    Raises:
        ValueError: if it is in s3://, and the installed orbax has not the names that are replaced.
    """
    if os.fspath(path).startswith(_SCHEME):
        try:
            _accept_s3()
        except (ImportError, AttributeError) as error:
            version = importlib.metadata.version("orbax-checkpoint")
            raise ValueError(
                f"{path}: checkpoints in s3:// need orbax-checkpoint 0.12.8, this is {version} "
                f"({error}). Run pip install 'orbax-checkpoint==0.12.8', or use gs:// or a disk."
            ) from error


@functools.cache
def _accept_s3() -> None:
    """Replace what orbax knows of addresses: it treats s3:// as gs://, with the driver for S3."""
    from orbax.checkpoint._src.path import gcs_utils
    from orbax.checkpoint._src.serialization import tensorstore_utils

    spec_of_gcs, is_for_gcs = gcs_utils.get_kvstore_for_gcs, tensorstore_utils._use_gcs_driver
    prefixes = gcs_utils._GCS_PATH_PREFIX

    def spec_of(address: str) -> dict[str, Any]:
        return _spec(address) if address.startswith(_NORMALIZED) else spec_of_gcs(address)

    def has_driver(address: str) -> bool:
        return address.startswith(_NORMALIZED) or is_for_gcs(address)

    gcs_utils._GCS_PATH_PREFIX = (*prefixes, _SCHEME)
    gcs_utils.get_kvstore_for_gcs = spec_of
    tensorstore_utils._use_gcs_driver = has_driver


def _spec(address: str) -> dict[str, Any]:
    """Return tensorstore's description of a folder in S3."""
    bucket, _, key = address.removeprefix(_NORMALIZED).lstrip("/").partition("/")
    spec: dict[str, Any] = {"driver": "s3", "bucket": bucket, "path": key}
    if (other := s3.S3().endpoint()) is not None:
        spec |= {"endpoint": other[0].rstrip("/"), "aws_region": other[1]}
    if os.environ.get("AWS_ACCESS_KEY_ID"):  # other sources that are missing would be logged
        spec["aws_credentials"] = {"type": "environment"}
    return spec
