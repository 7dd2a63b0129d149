"""A program that is killed with SIGKILL and started again ends as an undisturbed run does.

Bit for bit: parameters, their moving average, and every metric but the timings.
"""

import dataclasses
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from idode_gin import checks
from idode_gin.checkpoints import saving
from idode_gin.reports import metrics

ROOT = pathlib.Path(__file__).parent.parent.parent
STEPS = 24
PARTS = ("params/manifest.ocdbt", "ema/manifest.ocdbt", "training/manifest.ocdbt", "meta/metadata")
PLOTS = {"bpd.png", "loss_by_gamma.png"}
SETTINGS = [
    f"--gin.TRAIN_STEPS={STEPS}",
    "--gin.BATCH_SIZE=16",
    "--gin.EVAL_PERIOD=10",
    "--gin.EVAL_STEPS=2",
    "--gin.CHECKPOINT_PERIOD=4",
    "--gin.LEARNING_RATE=1e-3",
    "--gin.EMA_RATE=0.9",
    "--gin.Trainer.log_period=3",
    "--gin.Trainer.tensorboard=False",
    "--gin.UNet.channels=8",
    "--gin.UNet.levels=1",
    "--gin.UNet.groups=2",
]


@dataclasses.dataclass
class Run:
    """A run directory and the processes that train in it, one after the other."""

    folder: pathlib.Path
    more_settings: tuple[str, ...] = ()

    def start(self) -> subprocess.Popen:
        command = [sys.executable, "-m", "idode_gin.train"]
        command += [f"--gin_file={ROOT / 'gin_configs/experiments/digits.gin'}"]
        command += [*SETTINGS, *self.more_settings, f"--gin.MODEL_DIR={str(self.folder)!r}"]
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with open(self.folder.parent / f"{self.folder.name}.log", "a") as log:
            return subprocess.Popen(
                command,
                cwd=ROOT,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )

    def output(self) -> str:
        return (self.folder.parent / f"{self.folder.name}.log").read_text()

    def finish(self) -> None:
        code = self.start().wait(timeout=300)
        assert code == 0, self.output()

    def kill_when(self, is_moment: Callable[[], bool]) -> bool:
        """Start a process and kill it when `is_moment`; return False if it ended before."""
        process = self.start()
        try:
            while process.poll() is None:
                if is_moment():
                    # Stopped first, so that `is_moment` still holds when it is killed.
                    process.send_signal(signal.SIGSTOP)
                    if is_moment():
                        process.kill()
                        process.wait()
                        return True
                    process.send_signal(signal.SIGCONT)
                time.sleep(0.001)
            assert process.returncode == 0, self.output()
            return False
        finally:
            process.kill()
            process.wait()

    def saved_steps(self) -> list[int]:
        return saving.saved_steps(self.folder)

    def rows(self) -> list[metrics.Row]:
        read = metrics.read_rows(self.folder / "metrics.jsonl")
        return [metrics.reproducible(row) for row in read]

    def being_saved(self) -> list[str]:
        """Return the names of checkpoints that are being written."""
        if not self.folder.is_dir():
            return []
        names = os.listdir(self.folder)
        return [name for name in names if name.startswith("checkpoint_") and "tmp" in name]

    def plots(self) -> set[str]:
        return {each.name for each in (self.folder / "train").glob("*.png")}

    def outcome(self) -> tuple[dict, list[metrics.Row]]:
        """Return what must not depend on how often the run was killed."""
        summary = json.loads((self.folder / "summary.json").read_text())
        names = ("exit_reason", "step", "bpd", "bpd_stderr", "params_sha256", "ema_sha256")
        return {name: summary[name] for name in names}, self.rows()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    run = Run(tmp_path_factory.mktemp("undisturbed") / "run")
    run.finish()
    outcome = run.outcome()
    assert outcome[0]["step"] == STEPS
    steps = sorted({*range(3, STEPS + 1, 3), 10, 20, STEPS})
    assert [row["step"] for row in outcome[1]] == steps
    return run


def test_killed_damaged_and_asked_to_stop(undisturbed, tmp_path):
    run = Run(tmp_path / "run")
    # Killed while a checkpoint is written and older ones exist; between two logs, since the period
    # of checkpoints is 4 and that of logs is 3.
    assert run.kill_when(lambda: run.being_saved() and len(run.saved_steps()) > 1)
    assert run.rows() != []
    assert run.plots() == PLOTS
    half_written = run.being_saved()
    assert half_written

    newest = saving.checkpoint_path(run.folder, run.saved_steps()[-1])
    for file in (newest / "params").rglob("*"):
        if file.is_file() and file.stat().st_size > 100:
            file.write_bytes(file.read_bytes()[:50])
    with open(run.folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 99, "train/bpd": 1.')

    shutil.rmtree(run.folder / "train")

    # Asked to stop once it has restored, before or while it compiles.
    (run.folder / "model-info.txt").unlink()
    process = run.start()
    while not (run.folder / "model-info.txt").exists():
        assert process.poll() is None, run.output()
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == checks.EXIT_PREEMPTED, run.output()
    assert f"{newest.name} to damaged_{newest.name}" in run.output()
    summary = json.loads((run.folder / "summary.json").read_text())
    assert summary["exit_reason"] == "preempted"
    assert summary["step"] == run.saved_steps()[-1] < STEPS
    assert run.plots() == PLOTS

    run.finish()
    assert run.outcome() == undisturbed.outcome()
    assert not any((run.folder / name).exists() for name in half_written)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(4))
def test_killed_at_random_moments(undisturbed, tmp_path, seed):
    """Delays count from when training is announced, so that most kills hit training."""
    moments = random.Random(seed)
    run = Run(tmp_path / "run")
    for _ in range(6):
        seen: list[float] = []
        pause = moments.uniform(0, 3)

        def is_moment(seen=seen, pause=pause) -> bool:
            if not seen and (run.folder / "model-info.txt").exists():
                seen.append(time.monotonic())
            return bool(seen) and time.monotonic() - seen[0] > pause

        (run.folder / "model-info.txt").unlink(missing_ok=True)
        if not run.kill_when(is_moment):
            break
    run.finish()
    assert run.outcome() == undisturbed.outcome()


@pytest.mark.full
def test_killed_while_an_old_checkpoint_is_deleted(undisturbed, tmp_path):
    """With every step saved and one checkpoint kept, there is always one to resume from."""
    settings = ("--gin.CHECKPOINT_PERIOD=1", "--gin.SaveCheckpointConfig.keep=1")
    run = Run(tmp_path / "run", settings)

    def is_being_deleted() -> bool:
        # Renamed before any of its files is deleted: under its name it is complete.
        paths = [saving.checkpoint_path(run.folder, step) for step in run.saved_steps()]
        assert all((path / part).exists() or not path.exists() for path in paths for part in PARTS)
        return any(run.folder.glob("deleted_*"))

    for _ in range(3):
        if not run.kill_when(is_being_deleted):
            break
        assert is_being_deleted()
    run.finish()
    assert run.outcome() == undisturbed.outcome()
    assert run.saved_steps() == [STEPS]
    assert not is_being_deleted()


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(
            ("sample", f"--gin_file={ROOT / 'gin_configs/samplers/ancestral.gin'}"), id="sample"
        ),
        pytest.param(
            ("eval", "--gin.LIKELIHOODS={}", "--gin.BOUND_TIMES=4000", "--gin.SOLVE_SIZE=4"),
            id="eval",
            marks=pytest.mark.full,
        ),
    ],
)
def test_stopped_while_long_batches_are_computed(settings, undisturbed, tmp_path):
    """XLA's threads would crash a process that ends before them, with exit code 139."""
    program, *bindings = settings
    output = f"--gin.{program.upper()}_OUTPUT_DIR={str(tmp_path / 'out')!r}"
    run = f"--gin.CHECKPOINT_PATH={str(undisturbed.folder)!r}"
    more = "--gin.NUM_SAMPLES=100000" if program == "sample" else "--gin.PILOT=None"
    command = [sys.executable, "-m", f"idode_gin.{program}", run, output, more, *bindings]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    printed = ""
    while not re.search(r"\d/\d+ images", printed):
        line = process.stdout.readline()
        assert line, printed
        printed += line
    process.send_signal(signal.SIGTERM)
    printed += process.communicate(timeout=60)[0]
    assert process.returncode == checks.EXIT_PREEMPTED, printed
    assert "Run the same command to resume" in printed
