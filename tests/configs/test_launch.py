"""The files of `launch/`, run with fake SLURM, gcloud and Python that record calls."""

import importlib
import json
import os
import pathlib
import re
import shutil
import signal
import stat
import subprocess
import sys
import time

import pytest
import yaml
from absl.flags import FlagValues

from idode_gin.configs import building, flags

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
EXPERIMENT = "--gin_file=gin_configs/experiments/digits.gin"
MODEL_DIR = "--gin.MODEL_DIR='/shared/my runs/a'"
FUNCTIONS = {
    "train": "train",
    "eval": "evaluate",
    "sample": "sample",
    "encode": "encode",
    "interpolate": "interpolate",
}

# Records its arguments; what follows `-m` or srun's own options decides what it does then.
STAND_IN = f"""#!{sys.executable}
import json, os, sys, time
name, arguments = os.path.basename(sys.argv[0]), sys.argv[1:]
with open(os.environ["CALLS"], "a") as file:
    file.write(json.dumps([name, *arguments]) + "\\n")
if name == "srun":
    while arguments[0].startswith("--"):
        del arguments[0]
    os.execvp(arguments[0], arguments)
if name == "gcloud":
    command = next(each for each in arguments if each.startswith("--command="))
    os.execvp("bash", ["bash", "-c", command.removeprefix("--command=")])
if name == "python":
    time.sleep(float(os.environ.get("SECONDS_TO_RUN", "0")))
    sys.exit(int(os.environ.get("CODE", "0")))
"""


class Calls:
    """Run a script in an environment where every program it calls is a fake."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._log, programs = folder / "calls", folder / "programs"
        programs.mkdir()
        for name in ("srun", "scontrol", "gcloud", "python"):
            (programs / name).write_text(STAND_IN)
            (programs / name).chmod(0o755)
        self.environment = {
            **os.environ,
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "CALLS": str(self._log),
            "PYTHON": str(programs / "python"),
            "SLURM_JOB_ID": "77",
        }

    def start(self, *command: str, **variables: str) -> subprocess.Popen:
        self._log.write_text("")
        return subprocess.Popen(
            ["bash", *command],
            cwd=ROOT,
            env=self.environment | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *command: str, **variables: str) -> int:
        process = self.start(*command, **variables)
        self.output, _ = process.communicate(timeout=60)
        return process.returncode

    def of(self, name: str) -> list[list[str]]:
        calls = [json.loads(line) for line in self._log.read_text().splitlines()]
        return [arguments for called, *arguments in calls if called == name]


@pytest.fixture
def calls(tmp_path: pathlib.Path) -> Calls:
    return Calls(tmp_path)


def accepted(arguments: list[str]) -> tuple[str, FlagValues]:
    """Return the program that Python runs, and its flags, checked as the program checks them."""
    option, module, *rest = arguments
    assert option == "-m"
    options = flags.parse(rest)
    name = module.removeprefix("idode_gin.")
    root = getattr(importlib.import_module(module), FUNCTIONS[name])
    building.load_and_check(root, options.gin_file, options.gin_bindings)
    return name, options


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda each: each.name)
def test_scripts_are_bash(script: pathlib.Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert script.read_text().startswith("#!/usr/bin/env bash\n")
    assert "\r" not in script.read_text()
    assert script.suffix == ".sbatch" or script.stat().st_mode & stat.S_IXUSR
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", str(script)], check=True)


@pytest.mark.parametrize(
    ("code", "leaves_with", "requeued"),
    [(0, 0, 0), (75, 0, 1), (2, 2, 0), (3, 3, 0), (143, 143, 0)],
)
@pytest.mark.parametrize("layout", ["node", "gpu"])
def test_slurm_queues_again_what_was_stopped(calls, layout, code, leaves_with, requeued) -> None:
    script = f"launch/slurm_{layout}.sbatch"
    assert calls.run(script, "train", EXPERIMENT, MODEL_DIR, CODE=str(code)) == leaves_with
    assert calls.of("scontrol") == [["requeue", "77"]] * requeued
    (step,) = calls.of("srun")
    assert not any(each.startswith("--cpus-per-task") for each in step)
    assert "--kill-on-bad-exit=0" in step  # the first to be done must not have the others killed
    assert "--wait=900" in step  # SLURM notices a lost node sooner, and requeues the job
    (arguments,) = calls.of("python")
    name, options = accepted(arguments)
    assert name == "train"
    assert options.multiprocess_gpu
    assert options.gin_bindings == [MODEL_DIR.removeprefix("--gin.")]
    assert options.local_device_ids == (["all"] if layout == "node" else None)
    assert options.coordinator_address is options.process_count is options.process_index is None


@pytest.mark.parametrize("layout", ["node", "gpu"])
def test_slurm_tasks_keep_their_cpus(calls, layout) -> None:
    """srun of SLURM 22.05 to 23.02 does not take them from the job."""
    script = f"launch/slurm_{layout}.sbatch"
    assert calls.run(script, "train", EXPERIMENT, MODEL_DIR, SLURM_CPUS_PER_TASK="6") == 0
    (step,) = calls.of("srun")
    assert "--cpus-per-task=6" in step


def test_a_task_of_a_job_array_is_requeued_alone(calls) -> None:
    task = {"SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": "3"}
    assert calls.run("launch/requeue.sh", "python", CODE="75", **task) == 0
    assert calls.of("scontrol") == [["requeue", "77_3"]]


def test_a_requeue_that_is_refused_shows(calls, tmp_path: pathlib.Path) -> None:
    (tmp_path / "programs" / "scontrol").write_text("#!/bin/sh\nexit 1\n")
    assert calls.run("launch/requeue.sh", "python", CODE="75") == 75


@pytest.mark.parametrize("layout", ["node", "gpu"])
def test_slurm_directives(layout) -> None:
    text = (LAUNCH / f"slurm_{layout}.sbatch").read_text()
    given = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", text, re.MULTILINE))
    assert given["signal"] == "TERM@120"  # to the tasks; with `B:` it would go to the script
    assert "requeue" in given
    assert given["open-mode"] == "append"
    tasks = {"node": "1", "gpu": given["gpus-per-node"]}
    assert given["ntasks-per-node"] == tasks[layout]
    directives_end = max(found.end() for found in re.finditer(r"^#SBATCH", text, re.MULTILINE))
    assert "\nset -" not in text[:directives_end]  # sbatch stops reading at the first command


def test_one_process_on_one_host(calls) -> None:
    assert calls.run("launch/one_host.sh", "train", EXPERIMENT, MODEL_DIR, CODE="75") == 75
    (arguments,) = calls.of("python")
    name, options = accepted(arguments)
    assert (name, options.multiprocess_gpu) == ("train", False)


@pytest.mark.parametrize("program", list(FUNCTIONS)[1:])
@pytest.mark.parametrize("script", ["one_host.sh", "slurm_node.sbatch"])
def test_every_program_is_started(calls, script, program) -> None:
    given = [f"--gin_file=gin_configs/experiments/digits_{program}.gin"]
    if program == "eval":
        given.append("--gin_file=gin_configs/checkpoints/watch.gin")
    assert calls.run(f"launch/{script}", program, *given) == 0
    (arguments,) = calls.of("python")
    name, options = accepted(arguments)
    assert name == program
    assert [f"--gin_file={each}" for each in options.gin_file] == given


def test_several_processes_on_one_host(calls) -> None:
    assert calls.run("launch/one_host.sh", "train", EXPERIMENT, PROCESSES="3", CODE="2") == 2
    found = [accepted(arguments)[1] for arguments in calls.of("python")]
    assert sorted(each.process_index for each in found) == [0, 1, 2]
    assert {each.process_count for each in found} == {3}
    assert len({each.coordinator_address for each in found}) == 1
    assert all(each.local_device_ids == [str(each.process_index)] for each in found)
    assert all(each.multiprocess_gpu for each in found)


@pytest.mark.parametrize("count", ["0", "", "two", "-1"])
def test_one_host_needs_a_number_of_processes(calls, count) -> None:
    """None would be started, and the exit code would say that all is done."""
    code = calls.run("launch/one_host.sh", "train", EXPERIMENT, PROCESSES=count)
    assert code == (2 if count else 0)
    assert len(calls.of("python")) == (0 if count else 1)


def test_one_host_passes_a_signal_on(calls) -> None:
    started = calls.start(
        "launch/one_host.sh", "train", EXPERIMENT, PROCESSES="2", SECONDS_TO_RUN="60"
    )
    while len(calls.of("python")) < 2:
        assert started.poll() is None
        time.sleep(0.01)
    started.send_signal(signal.SIGTERM)
    assert started.wait(timeout=20) == 128 + signal.SIGTERM


def test_tpu_pod(calls) -> None:
    variables = {"TPU": "pod", "ZONE": "zone", "FOLDER": "."}
    assert calls.run("launch/tpu_pod.sh", "sample", *sample_flags(), **variables) == 0
    (command,) = calls.of("gcloud")
    assert command[:5] == ["compute", "tpus", "tpu-vm", "ssh", "pod"]
    assert {"--zone=zone", "--worker=all"} <= set(command)
    (arguments,) = calls.of("python")
    name, options = accepted(arguments)
    assert name == "sample"
    assert options.multiprocess_gpu
    assert options.gin_bindings == [each.removeprefix("--gin.") for each in sample_flags()[1:]]


def sample_flags() -> list[str]:
    return [
        "--gin_file=gin_configs/experiments/digits_sample.gin",
        "--gin.CHECKPOINT_PATH='/a b'",
        "--gin.SAMPLE_OUTPUT_DIR='$HOME; ls'",
    ]


@pytest.mark.parametrize("script", [each.name for each in SCRIPTS if each.name != "requeue.sh"])
def test_what_is_missing_is_said(calls, script) -> None:
    assert calls.run(f"launch/{script}") != 0
    assert f"launch/{script} {'|'.join(FUNCTIONS)} " in calls.output


def test_job_set(calls) -> None:
    job_set = yaml.safe_load((LAUNCH / "jobset.yaml").read_text())
    (workers,) = job_set["spec"]["replicatedJobs"]
    job = workers["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["restartPolicy"] == "Never"  # else Kubernetes takes no podFailurePolicy
    assert job["completionMode"] == "Indexed"

    actions = {}
    for rule in job["podFailurePolicy"]["rules"]:
        on_codes = rule.get("onExitCodes", {"values": ()})
        assert on_codes.get("containerName", container["name"]) == container["name"]
        actions |= dict.fromkeys(on_codes["values"], rule["action"])
    assert actions == {2: "FailJob", 3: "FailJob", 75: "Ignore"}
    (rule,) = job_set["spec"]["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    # JobSet's validation of a rule's name; another one is refused when it is applied.
    assert re.fullmatch(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"])

    assert container["command"] == ["bash", "-c"]
    assert calls.run("-c", *container["args"], JOB_COMPLETION_INDEX="1") == 0
    (arguments,) = calls.of("python")
    name, options = accepted(arguments)
    assert name == "train"
    assert options.process_index == 1
    assert options.process_count == job["parallelism"] == job["completions"]
    host = f"{job_set['metadata']['name']}-{workers['name']}-0-0.{job_set['metadata']['name']}"
    assert options.coordinator_address.rpartition(":")[0] == host
    mounted = {each["name"] for each in container["volumeMounts"]}
    assert mounted == {each["name"] for each in pod["volumes"]}


def test_dockerfile() -> None:
    lines = (LAUNCH / "Dockerfile").read_text().splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line and line[0].isalpha()]
    kinds = [kind for kind, _ in steps]
    assert kinds.index("USER") < kinds.index("ENTRYPOINT")
    copied = [each for kind, rest in steps if kind == "COPY" for each in rest.split()[:-1]]
    assert {"setup.py", "README.md", "idode_gin", "gin_configs", "tasks"} <= set(copied)
    assert all((ROOT / each).exists() for each in copied)
    (extras,) = [rest.partition("=")[2] for kind, rest in steps if kind == "ARG"]
    assert f'"{extras}": [' in (ROOT / "setup.py").read_text()
    version = re.search(r"python:3\.(\d+)-slim", "\n".join(lines))
    assert version
    assert 11 <= int(version[1]) <= 13


def test_readme_names_every_file() -> None:
    text = (LAUNCH / "README.md").read_text()
    for file in LAUNCH.iterdir():
        assert f"`{file.name}`" in text or file.name == "README.md", file.name
