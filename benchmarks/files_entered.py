"""Files of this project that loading one batch of a dataset, or tracing one update, enters.

    python -m benchmarks.files_entered [--task digits | --step]

Counts the files of `idode_gin/` and `tasks/` of which a function runs between building a
`DatasetConfig` and the first batch of training; with `--step`, while `jax` traces one training step
of the tiny network (files of networks are left out). Running the top level of a module is not
counted as entering it.
"""

import argparse
import collections
import pathlib
import sys
import tempfile
import types
from collections.abc import Callable

ROOT = pathlib.Path(__file__).parents[1]
OURS = tuple(f"{ROOT / folder}/" for folder in ("idode_gin", "tasks"))


def files_entered(act: Callable[[], object]) -> dict[str, list[str]]:
    """Return the functions that `act` calls, by file, in the order of first calls."""
    called: dict[str, dict[str, None]] = collections.defaultdict(dict)

    def note(frame: types.FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        is_function = code.co_name != "<module>" and code.co_flags & 0x2  # not a class's body
        if event == "call" and is_function and code.co_filename.startswith(OURS):
            path = str(pathlib.Path(code.co_filename).relative_to(ROOT))
            called[path][code.co_qualname] = None

    sys.setprofile(note)
    try:
        act()
    finally:
        sys.setprofile(None)
    return {path: list(functions) for path, functions in called.items()}


def of_a_batch(task: str) -> dict[str, list[str]]:
    """Return the functions called to load the first batch of a task."""
    __import__("tasks")
    from idode_gin.feed import batches, data, loading

    def load() -> None:
        config = data.DatasetConfig(mixture_or_task_name=task, split="train", batch_size=32)
        batches.train_batch(loading.load_split(config), config, 0)

    return files_entered(load)


def of_a_step() -> dict[str, list[str]]:
    """Return the functions called to trace one training step, without those of the network."""
    sys.path.append(str(ROOT / "tests" / "support"))
    import tiny

    from idode_gin.devices import partitioning
    from idode_gin.runs import run_inputs

    with tempfile.TemporaryDirectory() as folder:
        trainer = tiny.trainer(pathlib.Path(folder))
        batch = run_inputs.blank_batch(tiny.model(), tiny.SHAPE, 4)
        program = trainer.program(tiny.model(), tiny.SHAPE, batch)
        sharding = dict.fromkeys(batch, trainer.partitioner.batch_sharding)
        placed = partitioning.abstract(batch, sharding)
        found = files_entered(lambda: program.step.lower(program.abstract_state, placed))
    return {path: each for path, each in found.items() if "/networks/" not in path}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="digits")
    parser.add_argument("--step", action="store_true")
    arguments = parser.parse_args()
    found = of_a_step() if arguments.step else of_a_batch(arguments.task)
    for path, functions in found.items():
        print(f"{path}: {', '.join(functions)}")
    print(f"{len(found)} files")


if __name__ == "__main__":
    main()
