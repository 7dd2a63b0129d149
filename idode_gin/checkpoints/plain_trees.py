"""Trees as other programs save them with orbax: without our description and checksums."""

import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from idode_gin.checkpoints import files, names, orbax_logging
from idode_gin.checkpoints.meta import DamagedError


def read(folder: pathlib.Path) -> Any:
    """Return the tree that a folder holds, of NumPy arrays.

    Raises:
        DamagedError: if it cannot be read.
    """
    handler = ocp.PyTreeCheckpointHandler()
    try:
        with orbax_logging.silent_stragglers():
            found = handler.metadata(folder)
            tree = getattr(found, "tree", found)
            whole = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
            wanted = ocp.args.PyTreeRestore(item=tree, restore_args=whole)
            return handler.restore(folder, args=wanted)
    except Exception as error:  # orbax and tensorstore raise errors of many types
        reason = orbax_logging.reason(error)
        raise DamagedError(f"{folder} is damaged: it cannot be read ({reason}).") from error
    finally:
        handler.close()


def write(directory: pathlib.Path, step: int, name: str, tree: Any) -> pathlib.Path:
    """Write `checkpoint_<step>/<name>` in a run directory, and return the checkpoint's path.

    Raises:
        ValueError: for a path that orbax cannot write to, see `files.check_path`.
        OSError: if it cannot be written.
    """
    files.check_path(directory)
    options = ocp.CheckpointManagerOptions(step_prefix=names.PREFIX, max_to_keep=None)
    try:
        with ocp.CheckpointManager(directory.absolute(), options=options) as manager:
            saved = ocp.args.Composite(**{name: ocp.args.PyTreeSave(tree)})
            manager.save(step, args=saved, force=True)
    except Exception as error:  # orbax and tensorstore raise errors of many types
        reason = orbax_logging.reason(error)
        raise OSError(not_written(directory, reason)) from error
    return files.checkpoint_path(directory, step)


def not_written(directory: str | pathlib.Path, reason: str) -> str:
    """Return the message about a converted checkpoint that cannot be written."""
    return (
        f"{directory} must have room for the converted checkpoint, and cannot be written to "
        f"({reason}). Free space there and run the same command again, or give another --output."
    )
