"""Compiled programs, kept on disk for the next process."""

import pathlib
import tempfile

import jax
from absl import logging
from jax.experimental.compilation_cache import compilation_cache as jax_cache


def use(folder: str | None) -> None:
    """Keeps compiled programs in `folder`, and takes from there what was compiled before.

    Processes may share it. A folder that is there but cannot be written is still read. A URL, such
    as gs://bucket/cache, is handed to jax unseen.

    Args:
        folder: made if it is not there. None leaves jax as it is: it then follows the environment
            variable JAX_COMPILATION_CACHE_DIR.

    Raises:
        ValueError: if `folder` cannot be made, or is no folder.
    """
    if folder is None:
        return
    if not folder:
        raise ValueError("The compilation cache must name a folder, got ''. None switches it off.")
    if "://" not in folder:
        folder = _ready(pathlib.Path(folder).expanduser().absolute())
    jax.config.update("jax_compilation_cache_dir", folder)
    jax_cache.reset_cache()  # jax looks at the setting once, when it first compiles


def _ready(path: pathlib.Path) -> str:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "it is a file" if path.is_file() else error.strerror
        raise ValueError(
            f"The compilation cache cannot be {str(path)!r}: {reason}. Bind another folder to "
            "COMPILATION_CACHE_DIR, or None for none."
        ) from error
    try:
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        logging.warning(
            "The compilation cache %s cannot be written (%s): what is there is used, what is "
            "compiled now is not kept. Bind another folder to COMPILATION_CACHE_DIR to keep it.",
            path,
            error.strerror,
        )
    return str(path)
