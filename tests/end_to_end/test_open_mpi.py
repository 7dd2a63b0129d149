"""A real Open MPI starts two processes; it and the programs end together."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

import pytest
import several

from idode_gin.checkpoints import saving

MPIRUN = shutil.which("mpirun")
pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(MPIRUN is None, reason="not installed: mpirun"),
]
# Records a rank's process and exit code, also where mpirun sends signals.
RANK = """
trap : TERM USR1
"$@" &
echo $! > "pid-$OMPI_COMM_WORLD_RANK"
while kill -0 $! 2> /dev/null; do wait $!; code=$?; done
echo "$code" > "code-$OMPI_COMM_WORLD_RANK"
exit "$code"
"""


class Run:
    """Two ranks that train, in a folder; a context that ends what is left of them."""

    def __init__(self, folder: pathlib.Path, settings: Sequence[str] = ()) -> None:
        self.folder = folder / "run"
        self._folder = folder
        command = [*several.train(self.folder, *settings), "--multiprocess_gpu"]
        mpirun = ["mpirun", "-n", "2", "--oversubscribe"]
        if os.getuid() == 0:
            mpirun.append("--allow-run-as-root")
        environment = {**os.environ, "PYTHONPATH": str(several.ROOT), "JAX_NUM_CPU_DEVICES": "1"}
        with (folder / "log").open("w") as log:
            self.mpirun = subprocess.Popen(
                [*mpirun, "bash", "-c", RANK, "rank", sys.executable, *command],
                cwd=folder,
                env=environment,
                stdout=log,
                stderr=log,
            )

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        self.mpirun.terminate()
        self.mpirun.wait()

    def number(self, name: str) -> int:
        return int((self._folder / name).read_text())

    @property
    def log(self) -> str:
        return (self._folder / "log").read_text()

    def until_saved(self) -> None:
        deadline = time.monotonic() + 600
        while not saving.saved_steps(self.folder):
            assert time.monotonic() < deadline, self.log
            assert self.mpirun.poll() is None, self.log
            time.sleep(0.05)


FOREVER = ["--gin.CHECKPOINT_PERIOD=50", "--gin.TRAIN_STEPS=1000000", "--gin.EVAL_PERIOD=1000000"]


def test_ranks_find_each_other_and_finish(tmp_path: pathlib.Path) -> None:
    with Run(tmp_path) as run:
        assert run.mpirun.wait(600) == 0, run.log
        assert several.summary(run.folder)["step"] == 8
        assert "Expected number of connected peer ranks is : 1" in run.log


@pytest.mark.parametrize("killed", [1, 0])
def test_a_rank_is_killed(tmp_path: pathlib.Path, killed: int) -> None:
    with Run(tmp_path, FOREVER) as run:
        run.until_saved()
        os.kill(run.number(f"pid-{killed}"), signal.SIGKILL)
        assert run.mpirun.wait(600) != 0
        expected = {1} if killed else {1, 134}  # jax may be the first to notice
        assert run.number(f"code-{1 - killed}") in expected, run.log
        assert f"stopped: process {killed} failed: it ended without a message" in run.log


def test_a_signal_to_mpirun_saves(tmp_path: pathlib.Path) -> None:
    with Run(tmp_path, FOREVER) as run:
        run.until_saved()
        run.mpirun.send_signal(signal.SIGUSR1)
        assert run.mpirun.wait(600) == 75, run.log
        assert [run.number(f"code-{rank}") for rank in (0, 1)] == [75, 75], run.log
        assert f"Saved {run.folder}/checkpoint_" in run.log
