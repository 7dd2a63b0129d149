"""Datasets as seqio tasks, one per file: importing this package registers them all.

To add a dataset, add a file `tasks/<dataset>.py` that registers a task of that name when it is
imported, with `register_images` for arrays or `support.registration.add_task` for any other source.
A file that registers others lists them in `TASKS`. It is found by itself; folders in this one are
not datasets, but what datasets share.
A task yields a dict with "image", integers `[H, W, C]` in `0..V-1`, and optionally "conditioning",
`[K]`. Registering reads, writes and downloads nothing: any number of processes may do it at once.
"""

import importlib
import pkgutil
import sys
from collections.abc import Callable, Mapping

import numpy as np


def register_images(
    name: str, split_sizes: Mapping[str, int], load_split: Callable[[str], np.ndarray]
) -> None:
    """Registers a seqio task over images that fit in memory; does nothing when it is known already.

    Args:
      name: the task's name.
      split_sizes: how many images each split holds.
      load_split: split name -> images, uint8 `[N, H, W, C]`, always in the same order. Called when
        the task is read, never when it is registered.
    """
    from tasks.support import arrays, registration

    registration.add_task(name, arrays.ArrayImages(split_sizes, load_split))


def _register_all() -> None:
    for module in pkgutil.iter_modules(__path__):
        if not module.ispkg:
            importlib.import_module(f"{__name__}.{module.name}")


# `python -m tasks.prepare` opens no task, and answers before seqio would be imported.
if "tasks.prepare" not in sys.orig_argv[1:3]:
    _register_all()
