"""Programs on a run in a bucket: started, and killed at a moment."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[2]
TRAIN = [
    f"--gin_file={ROOT / 'gin_configs/experiments/digits.gin'}",
    *("--gin.TRAIN_STEPS=12", "--gin.BATCH_SIZE=16", "--gin.EVAL_PERIOD=6", "--gin.EVAL_STEPS=2"),
    *("--gin.CHECKPOINT_PERIOD=4", "--gin.Trainer.log_period=3", "--gin.Trainer.gamma_bins=4"),
    *("--gin.UNet.channels=8", "--gin.UNet.levels=1", "--gin.UNet.groups=2"),
    *("--gin.SaveCheckpointConfig.keep=1", "--gin.SaveCheckpointConfig.keep_best=1"),
]


def start(program, *arguments):
    command = [sys.executable, "-m", f"idode_gin.{program}", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def kill_when(is_moment, program, *arguments):
    process = start(program, *arguments)
    wait_until(is_moment, [process])
    process.send_signal(signal.SIGKILL)
    process.communicate()


def wait_until(is_moment, processes):
    deadline = time.monotonic() + 300
    while not is_moment():
        ended = [each for each in processes if each.poll() is not None]
        assert not ended, ended[0].communicate()[0].decode()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def announced(known):
    """Return the steps whose checkpoints are known to be complete."""
    found = [re.fullmatch(r"run/checkpoint_(\d+)/commit_success.txt", name) for name, _ in known]
    return [int(each[1]) for each in found if each]
