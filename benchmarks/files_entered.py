"""Files of this project that loading one batch of a dataset enters.

    python -m benchmarks.files_entered [--task digits]

Counts the files of `idode_gin/` and `tasks/` of which a function runs between building a
`DatasetConfig` and the first batch of training. Datasets are registered before that, by
`import tasks`; running the top level of a module is not counted as entering it.
"""

import argparse
import collections
import pathlib
import sys
import types
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
OURS = tuple(f"{ROOT / folder}/" for folder in ("idode_gin", "tasks"))


def files_entered(task: str) -> dict[str, list[str]]:
    """Return the functions called, by file, in the order of first calls."""
    __import__("tasks")
    from idode_gin.feed import batches, data, loading

    called: dict[str, dict[str, None]] = collections.defaultdict(dict)

    def note(frame: types.FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        is_function = code.co_name != "<module>" and code.co_flags & 0x2  # not a class's body
        if event == "call" and is_function and code.co_filename.startswith(OURS):
            path = str(pathlib.Path(code.co_filename).relative_to(ROOT))
            called[path][code.co_qualname] = None

    sys.setprofile(note)
    try:
        config = data.DatasetConfig(mixture_or_task_name=task, split="train", batch_size=32)
        batches.train_batch(loading.load_split(config), config, 0)
    finally:
        sys.setprofile(None)
    return {path: list(functions) for path, functions in called.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="digits")
    found = files_entered(parser.parse_args().task)
    for path, functions in found.items():
        print(f"{path}: {', '.join(functions)}")
    print(f"{len(found)} files")


if __name__ == "__main__":
    main()
