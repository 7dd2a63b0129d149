"""Start the processes of one run on this machine, as a cluster does on several."""

import contextlib
import dataclasses
import json
import os
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from idode_gin import train as train_program
from idode_gin.checkpoints import meta, saving
from idode_gin.configs import building
from idode_gin.reports import metrics
from idode_gin.training import train_state

ROOT = pathlib.Path(__file__).parents[2]
HASHES = ("exit_reason", "step", "bpd", "params_sha256", "ema_sha256")
KEY_BIAS = "['attention']['key']['bias']"
TINY = [
    "--gin.TRAIN_STEPS=8",
    "--gin.BATCH_SIZE=16",
    "--gin.EVAL_PERIOD=4",
    "--gin.EVAL_STEPS=2",
    "--gin.CHECKPOINT_PERIOD=3",
    "--gin.LEARNING_RATE=0.1",
    "--gin.AdamW.eps=1.0",  # otherwise Adam turns the rounding error of a zero into a whole step
    "--gin.EMA_RATE=0.9",
    "--gin.Trainer.log_period=2",
    "--gin.Trainer.tensorboard=False",
    "--gin.UNet.channels=8",
    "--gin.UNet.levels=1",
    "--gin.UNet.groups=2",
]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


class Processes:
    """Processes of one command, started together; a context that kills what is left of them.

    Args:
        logs: folder for the output of each.
        command: arguments of `python`, the same for all.
        count: number of processes.
        devices: of each process.
        own: more arguments, for each process.
        folders: working directory of each process.
    """

    def __init__(
        self,
        logs: pathlib.Path,
        command: Sequence[str],
        count: int,
        devices: int = 1,
        *,
        own: Sequence[Sequence[str]] = (),
        folders: Sequence[pathlib.Path] = (),
    ) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self._logs = [logs / f"{index}.log" for index in range(count)]
        address = f"localhost:{free_port()}"
        self.all: list[subprocess.Popen] = []
        for index, log in enumerate(self._logs):
            flags = list(own[index]) if own else []
            if count > 1:
                flags += ["--multiprocess_gpu", f"--coordinator_address={address}"]
                flags += [f"--process_count={count}", f"--process_index={index}"]
            with log.open("w") as file:
                self.all.append(
                    subprocess.Popen(
                        [sys.executable, *command, *flags],
                        cwd=folders[index] if folders else ROOT,
                        stdout=file,
                        stderr=file,
                        env={
                            **os.environ,
                            "PYTHONPATH": str(ROOT),
                            "JAX_PLATFORMS": "cpu",
                            "JAX_NUM_CPU_DEVICES": str(devices),
                        },
                    )
                )

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        for each in self.all:
            each.kill()
            each.wait()

    def codes(self, timeout: float = 900) -> list[int]:
        deadline = time.monotonic() + timeout
        with contextlib.suppress(subprocess.TimeoutExpired):
            for each in self.all:
                each.wait(max(0.1, deadline - time.monotonic()))
        return [each.poll() if each.poll() is not None else -999 for each in self.all]

    def expect(self, code: int, timeout: float = 900) -> None:
        assert self.codes(timeout) == [code] * len(self.all), "\n".join(self.outputs())

    def outputs(self) -> list[str]:
        return [log.read_text() for log in self._logs]

    def wait_until(self, is_moment: Callable[[], bool], timeout: float = 900) -> None:
        deadline = time.monotonic() + timeout
        while not is_moment():
            assert time.monotonic() < deadline, "\n".join(self.outputs())
            assert all(each.poll() is None for each in self.all), "\n".join(self.outputs())
            time.sleep(0.005)


def train(folder: pathlib.Path, *settings: str) -> list[str]:
    """Return the command of a small training run."""
    file = ROOT / "gin_configs/experiments/digits.gin"
    binding = f"--gin.MODEL_DIR={str(folder)!r}"
    return ["-m", "idode_gin.train", f"--gin_file={file}", *TINY, *settings, binding]


def summary(folder: pathlib.Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def made(folder: pathlib.Path, steps: Sequence[int] = (1,), **changes: int) -> pathlib.Path:
    """Make a run directory of digits with random parameters, and return it.

    Args:
        folder: the run directory.
        steps: of its checkpoints.
        changes: to a UNet of a few parameters.
    """
    unet = {"channels": 8, "levels": 1, "groups": 2} | changes
    building.load_and_check(
        train_program.train,
        ["gin_configs/experiments/digits.gin"],
        [f"UNet.{name} = {value}" for name, value in unet.items()],
    )
    built = building.build(train_program.train)
    shapes = jax.eval_shape(lambda key: built["model"].init(key, (8, 8, 1)), jax.random.key(0))
    keep = saving.SaveCheckpointConfig(keep=len(steps))
    config = saving.CheckpointConfig(save=keep)
    with saving.Checkpoints(folder, config, {}) as saved:
        for step in steps:
            rng = np.random.default_rng(step)
            params = jax.tree.map(
                lambda leaf, rng=rng: jax.numpy.asarray(rng.normal(0, 0.1, leaf.shape), leaf.dtype),
                shapes,
            )
            state = train_state.create(params, built["optimizer"].build(), ["loss"])
            saved.save(dataclasses.replace(state, step=state.step + step))
    return folder


def params_of(folder: pathlib.Path, *, ema: bool = False) -> dict[str, np.ndarray]:
    """Return the last parameters of a run, or their moving average, by name."""
    path = saving.find(folder)
    abstract: dict = {}
    for name, (dtype, *shape) in meta.read_meta(path)["trees"]["ema" if ema else "params"].items():
        *parents, leaf = name.split("/")
        place = abstract
        for each in parents:
            place = place.setdefault(each, {})
        place[leaf] = jax.ShapeDtypeStruct(tuple(shape), dtype)
    restored = saving.restore_params(path, abstract, ema=ema).params
    return {
        jax.tree_util.keystr(where): np.asarray(leaf, np.float64)
        for where, leaf in jax.tree_util.tree_leaves_with_path(restored)
    }


def rows_of(folder: pathlib.Path) -> list[metrics.Row]:
    """Return the rows of a run, without their timings."""
    return [metrics.reproducible(row) for row in metrics.read_rows(folder / "metrics.jsonl")]


def assert_close(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Compare the parameters of two runs whose sums were taken in different orders."""
    assert expected.keys() == found.keys()
    for name in expected:
        size = np.linalg.norm(expected[name])
        if name.endswith(KEY_BIAS):  # cancels in the softmax: accumulated rounding
            size = np.linalg.norm(expected[name.replace("['key']", "['query']")])
            assert np.linalg.norm(expected[name]) <= 1e-5 * size, name
        error = np.linalg.norm(found[name] - expected[name])
        assert error <= 1e-5 * size, (name, error, size)


def assert_rows_close(found: list[metrics.Row], expected: list[metrics.Row], rtol: float) -> None:
    """Compare rows of two runs: same steps, nearly the same numbers, gaps in the same places."""
    assert [row["step"] for row in found] == [row["step"] for row in expected]
    for row, other in zip(found, expected, strict=True):
        assert row.keys() == other.keys()
        for name in row:
            one, two = np.asarray(row[name], np.float64), np.asarray(other[name], np.float64)
            message = f"{name} of step {row['step']}"
            np.testing.assert_allclose(one, two, rtol=rtol, err_msg=message)


@contextlib.contextmanager
def at_work(folder: pathlib.Path, count: int, devices: int, *settings: str) -> Iterator[Processes]:
    """A training run that has its first checkpoint."""
    command = train(folder, *settings)
    with Processes(folder.parent / f"{folder.name}_logs", command, count, devices) as started:
        started.wait_until(lambda: bool(saving.saved_steps(folder)))
        yield started
