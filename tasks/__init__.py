"""Datasets as seqio tasks, one per file: importing this package registers them all.

To add a dataset, add a file `tasks/<dataset>.py` that registers a task of that name when it is
imported, with `register_images` for arrays or `support.registration.add_task` for other sources.
A file that registers tasks of other names lists them in `TASKS`. Folders hold no datasets:
`support` has what the tasks share, `formats` published facts, `prepare` the program.
A task yields a dict with "image", integers `[H, W, C]` in `0..V-1`, and optionally "conditioning",
`[K]`. Class labels come from the task's source, or from a feature "label", an integer; they are
read only for a model that is conditioned on classes. Registering reads, writes and downloads
nothing, so processes may do it concurrently.
"""

import importlib
import pkgutil
import sys
from collections.abc import Callable, Mapping, Sequence

import numpy as np


def register_images(
    name: str,
    split_sizes: Mapping[str, int],
    load_split: Callable[[str], np.ndarray],
    load_labels: Callable[[str], np.ndarray] | None = None,
    class_names: Sequence[str] = (),
) -> None:
    """Register a seqio task over images that fit in memory, unless there is one of that name.

    To replace it, as in a notebook, call `seqio.TaskRegistry.remove(name)` first.

    Args:
      name: the task's name.
      split_sizes: number of images of each split.
      load_split: split name -> images, uint8 `[N, H, W, C]`, always in the same order. Called when
        the task is read, not when it is registered.
      load_labels: split name -> class of each image, integers `[N]`; None: there are no labels.
      class_names: name of each class, by its number, for messages and summaries.

    Raises:
      ValueError: if the name is that of a dataset of this project. When the task is read, also if a
        split has another number of images.
    """
    is_ours = getattr(load_split, "__module__", "").startswith(f"{__name__}.")
    if name in _OURS and not is_ours:
        raise ValueError(f"{name!r} is a dataset of this project already. Choose another name.")
    from tasks.support import array_images, registration

    source = array_images.ArrayImages(split_sizes, load_split, load_labels, class_names=class_names)
    registration.add_task(name, source)


_OURS: set[str] = set()


def _register_all() -> None:
    for module in pkgutil.iter_modules(__path__):
        if not module.ispkg:
            found = importlib.import_module(f"{__name__}.{module.name}")
            _OURS.update(getattr(found, "TASKS", [module.name]))


# `python -m tasks.prepare` needs no task; without this it would wait seconds for seqio's import.
# While Python imports its package, "-m" stands for the program's name.
if sys.argv[:1] != ["-m"] or not sys.orig_argv[-len(sys.argv)].endswith("tasks.prepare"):
    _register_all()
