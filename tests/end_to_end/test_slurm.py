"""The SLURM launch files under a real SLURM: two nodes on this machine, with a tiny model."""

import pathlib
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence

import pytest
import several
import slurm

from idode_gin.checkpoints import saving

NOT_INSTALLED = ", ".join(slurm.missing())
pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(bool(NOT_INSTALLED), reason=f"not installed: {NOT_INSTALLED}"),
]
NODE, GPU = "launch/slurm_node.sbatch", "launch/slurm_gpu.sbatch"
OFTEN = ["--gin.CHECKPOINT_PERIOD=50"]
FOREVER = [*OFTEN, "--gin.TRAIN_STEPS=1000000", "--gin.EVAL_PERIOD=1000000"]

STAND_IN = """#!/usr/bin/env bash
# In place of Python. Task 1 of the array is stopped in its first run.
echo "$SLURM_ARRAY_TASK_ID: $*" >> "${0%/*}/runs"
if [[ $SLURM_ARRAY_TASK_ID == 1 && -z ${SLURM_RESTART_COUNT:-} ]]; then exit 75; fi
"""
ARRAY = """#!/usr/bin/env bash
#SBATCH --array=0-1
{directives}
exec bash {script} train --gin.RANDOM_SEED="$SLURM_ARRAY_TASK_ID"
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[slurm.Cluster]:
    folder = pathlib.Path(tempfile.mkdtemp(prefix="slurm"))
    with slurm.Cluster(folder) as cluster:
        yield cluster
    shutil.rmtree(folder)


class Job:
    """A training run on CPUs, submitted with a launch file."""

    def __init__(
        self,
        cluster: slurm.Cluster,
        folder: pathlib.Path,
        options: Sequence[str],
        settings: Sequence[str],
    ) -> None:
        self._cluster, self.folder, self._log = cluster, folder / "run", folder / "log"
        _, _, *arguments = several.train(self.folder, *settings)
        on_cpus = ["--gpus-per-node=0", "--cpus-per-task=1", f"--output={self._log}"]
        self.number = cluster.submit(*on_cpus, *options, "train", *arguments)

    def __getitem__(self, name: str) -> str:
        return self._cluster.job(self.number)[name]

    @property
    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def until_saved(self) -> None:
        self._cluster.until(lambda: bool(saving.saved_steps(self.folder)))

    def until_resumed(self) -> None:
        self._cluster.until(lambda: f"Training from {self.folder}/checkpoint_" in self.log)


@pytest.fixture
def submit(
    cluster: slurm.Cluster, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Job]]:
    monkeypatch.chdir(several.ROOT)
    cluster.environment["PYTHONPATH"] = str(several.ROOT)
    cluster.environment["PYTHON"] = sys.executable
    cluster.environment["JAX_NUM_CPU_DEVICES"] = "1"
    yield lambda *options, settings=(): Job(cluster, tmp_path, options, settings)
    cluster.end_jobs()


def test_a_job_that_is_asked_to_stop_is_requeued_and_resumes(cluster, submit) -> None:
    settings = [*OFTEN, "--gin.TRAIN_STEPS=300", "--gin.EVAL_PERIOD=300"]
    job = submit("--ntasks-per-node=1", GPU, settings=settings)
    job.until_saved()
    cluster("scancel", "--signal=TERM", job.number)
    cluster.start_again(job.number)
    cluster.until(lambda: job["JobState"] not in ("PENDING", "RUNNING", "COMPLETING"))
    assert (job["JobState"], job["Restarts"], job["ExitCode"]) == ("COMPLETED", "1", "0:0"), job.log
    assert job.log.count("SIGTERM: stopping after this step") == 2  # once in each process
    assert f"Stopped and saved. Requeued: job {job.number}, restart 1." in job.log
    assert f"Training from {job.folder}/checkpoint_" in job.log
    assert several.summary(job.folder)["step"] == 300


def test_the_time_limit_is_a_request_to_stop(cluster, submit) -> None:
    job = submit("--time=3", "--signal=TERM@60", NODE, settings=FOREVER)
    cluster.start_again(job.number)
    job.until_resumed()
    assert "Stopped by SIGTERM" in job.log
    assert "Requeued" in job.log


@pytest.mark.parametrize("node", [1, 0])
def test_a_lost_node(cluster, submit, node) -> None:
    job = submit(NODE, settings=FOREVER)
    job.until_saved()
    cluster.lose_node(slurm.NODES[node])
    cluster.until(lambda: job["Restarts"] == "1")
    cluster.start_node(slurm.NODES[node])
    cluster.start_again(job.number)
    job.until_resumed()
    assert "Stopped and saved" not in job.log


def test_an_error_is_not_requeued(cluster, submit) -> None:
    job = submit(NODE, settings=["--gin.TRAIN_STEPS=-1"])
    cluster.until(lambda: job["JobState"] == "FAILED")
    assert (job["Restarts"], job["ExitCode"]) == ("0", "2:0")
    assert "TRAIN_STEPS" in job.log


def test_one_task_of_a_job_array_is_requeued_alone(cluster, submit, tmp_path) -> None:
    text = (several.ROOT / NODE).read_text()
    directives = "\n".join(re.findall("^#SBATCH .*", text, re.MULTILINE))
    array, stand_in = tmp_path / "array.sbatch", tmp_path / "python"
    array.write_text(ARRAY.format(directives=directives, script=NODE))
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    cluster.environment["PYTHON"] = str(stand_in)
    logs = f"--output={tmp_path}/%A_%a.log"
    number = cluster.submit("--gpus-per-node=0", "--cpus-per-task=1", logs, str(array))
    cluster.start_again(f"{number}_1")
    cluster.until(lambda: cluster.job(f"{number}_1")["JobState"] == "COMPLETED")
    assert cluster.job(f"{number}_0")["JobState"] == "COMPLETED"
    assert cluster.job(f"{number}_0")["Restarts"] == "0"
    assert f"Requeued: job {number}_1, restart 1." in (tmp_path / f"{number}_1.log").read_text()
    tasks = [line.partition(":")[0] for line in (tmp_path / "runs").read_text().splitlines()]
    assert sorted(tasks) == ["0", "0", "1", "1", "1", "1"]  # two nodes each
