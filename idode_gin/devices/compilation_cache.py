"""Keep compiled programs on disk for later processes."""

import pathlib
import tempfile

import jax
from absl import logging
from jax.experimental.compilation_cache import compilation_cache as jax_cache

from idode_gin.reports import paths


def use(folder: str | None) -> None:
    """Store compiled programs in `folder` and reuse those already there.

    Processes may share it. An existing folder that is not writable is still read. One in a
    bucket is passed to jax, which reports what it cannot read or write there.

    Args:
        folder: created if missing. None keeps jax's setting, which follows the environment variable
            JAX_COMPILATION_CACHE_DIR.

    Raises:
        ValueError: if `folder` cannot be created, is not a folder, or is at an address that
            `paths.stored` refuses.
    """
    if folder is None:
        return
    if not folder:
        raise ValueError("The compilation cache must name a folder, got ''. None switches it off.")
    folder = paths.stored(folder, "COMPILATION_CACHE_DIR")
    if not paths.in_bucket(folder):
        folder = _ready(pathlib.Path(folder).absolute())
    jax.config.update("jax_compilation_cache_dir", folder)
    jax_cache.reset_cache()  # jax reads the setting once, at its first compilation


def _ready(path: pathlib.Path) -> str:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "it is a file" if path.is_file() else error.strerror
        raise ValueError(
            f"The compilation cache cannot be {str(path)!r}: {reason}. Bind another folder to "
            "COMPILATION_CACHE_DIR, or None to switch it off."
        ) from error
    try:
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        logging.warning(
            "The compilation cache %s is not writable (%s): its programs are used, new ones are "
            "not stored. Bind a writable folder to COMPILATION_CACHE_DIR to store them.",
            path,
            error.strerror,
        )
    return str(path)
