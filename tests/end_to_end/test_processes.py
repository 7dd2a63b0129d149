"""Several processes compute what one does, stop together, and resume together.

Real processes on this machine, connected by gloo.
"""

import functools
import json
import os
import pathlib
import re
import resource
import signal

import numpy as np
import put_batches
import pytest
import several
from several import HASHES, ROOT, Processes, params_of, rows_of, summary, train

from idode_gin import checks
from idode_gin.checkpoints import saving
from idode_gin.feed import batches
from idode_gin.processes import failures

LAYOUTS = [(1, 4), (2, 2), (4, 1)]


def landed(folder: pathlib.Path, count: int, devices: int) -> dict[tuple[int, int], str]:
    """Return digests of what is on the devices, by step and position in the global batch."""
    command = [str(ROOT / "tests/end_to_end/put_batches.py")]
    found: dict[tuple[int, int], str] = {}
    with Processes(folder, command, count, devices) as started:
        started.expect(0)
        for output in started.outputs():
            for line in re.findall(r"\[\d+, \d+, \"\w+\"\]", output):
                step, position, digest = json.loads(line)
                assert (step, position) not in found
                found[step, position] = digest
    return found


def expected_batches(first: int = 0) -> dict[tuple[int, int], str]:
    """Return the same without devices or processes."""
    split, config = put_batches.dataset()
    return {
        (step, place): put_batches.digest(batches.train_batch(split, config, step), place)
        for step in range(first, put_batches.STEPS)
        for place in range(config.batch_size)
    }


def test_batches_are_those_of_one_process(tmp_path):
    assert landed(tmp_path, 2, 2) == expected_batches()


@pytest.mark.full
@pytest.mark.parametrize(
    ("count", "devices", "ahead", "first"), [(1, 4, 2, 0), (4, 1, 1, 0), (2, 4, 4, 3), (2, 1, 2, 2)]
)
def test_batches_do_not_depend_on_anything(tmp_path, monkeypatch, count, devices, ahead, first):
    monkeypatch.setenv("AHEAD", str(ahead))
    monkeypatch.setenv("FIRST_STEP", str(first))
    assert landed(tmp_path, count, devices) == expected_batches(first)


def test_processes_that_differ_stop_with_the_difference(tmp_path):
    folder = tmp_path / "run"
    own = [[], ["--gin.TRAIN_STEPS=7"]]
    with Processes(tmp_path / "logs", train(folder), 2, own=own) as started:
        started.expect(checks.EXIT_BAD_INPUT, timeout=120)
    zero, one = started.outputs()
    assert "\n  process 1 has TRAIN_STEPS = 7, process 0 has 8\n" in zero
    assert one.startswith("process 1: error: The processes do not agree on configuration and code:")
    assert all(line.startswith("process 1: ") for line in one.splitlines())
    assert "Traceback" not in zero + one
    assert not folder.exists()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the run directory of a training in a layout; each is trained once."""

    @functools.cache
    def run_directory(count: int, devices: int) -> pathlib.Path:
        folder = tmp_path_factory.mktemp("trained") / f"run_{count}x{devices}"
        with Processes(folder.parent / "logs", train(folder), count, devices) as started:
            started.expect(0)
        return folder

    return run_directory


@pytest.mark.full
@pytest.mark.parametrize("layout", LAYOUTS[1:])
def test_trains_as_one_process_does(trained, layout):
    alone, together = trained(*LAYOUTS[0]), trained(*layout)
    rows, others = rows_of(alone), rows_of(together)
    assert [row["step"] for row in rows] == [2, 4, 6, 8]
    several.assert_rows_close(others, rows, rtol=1e-6)
    several.assert_close(params_of(together), params_of(alone))


@pytest.mark.full
def test_killed_together_and_resumed(trained, tmp_path):
    folder = tmp_path / "run"
    with several.at_work(folder, 2, 2) as started:
        started.kill()
    with Processes(tmp_path / "logs", train(folder), 2, 2) as started:
        started.expect(0)
    undisturbed = trained(2, 2)
    expected, found = summary(undisturbed), summary(folder)
    assert {name: found[name] for name in HASHES} == {name: expected[name] for name in HASHES}
    assert rows_of(folder) == rows_of(undisturbed)


@pytest.mark.full
@pytest.mark.parametrize(("number", "to"), [(signal.SIGTERM, 1), (signal.SIGINT, 0)])
def test_one_is_asked_and_all_stop_saved(tmp_path, number, to):
    folder = tmp_path / "run"
    many = "--gin.TRAIN_STEPS=5000"
    with several.at_work(folder, 2, 2, many) as started:
        started.all[to].send_signal(number)
        started.expect(checks.EXIT_PREEMPTED, timeout=60)
    found = summary(folder)
    assert found["exit_reason"] == "preempted"
    stopped_at = found["step"]
    assert saving.saved_steps(folder)[-1] == stopped_at
    last = f"--gin.TRAIN_STEPS={stopped_at + 6}"
    with Processes(tmp_path / "logs", train(folder, last), 2, 2) as started:
        started.expect(0)
    steps = [row["step"] for row in rows_of(folder)]
    assert steps == sorted(set(steps))
    assert steps[-1] == stopped_at + 6


@pytest.mark.full
def test_one_that_fails_takes_the_others_along(tmp_path):
    """Process 1 does not find the images that process 0 has; both report which one and why."""
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), dtype=np.uint8)
    np.savez(folders[0] / "images.npz", train=images, validation=images, test=images)
    command = image_npz(tmp_path / "run")
    with Processes(tmp_path / "logs", command, 2, folders=folders) as started:
        started.expect(checks.EXIT_BAD_INPUT, timeout=120)
    zero, one = started.outputs()
    assert "images.npz" in one
    assert "stopped: process 1 failed: " in zero
    images[7] += 1
    np.savez(folders[1] / "images.npz", train=images, validation=images, test=images)
    with Processes(tmp_path / "logs", command, 2, folders=folders) as started:
        started.expect(checks.EXIT_BAD_INPUT, timeout=120)
    zero, one = started.outputs()
    assert "The processes do not agree on the data, Split 'train' of 'image_npz':" in zero
    assert "process 1 has sha256 = " in zero


def image_npz(folder: pathlib.Path) -> list[str]:
    command = train(folder, "--gin.DATA_PATH='images.npz'", "--gin.IMAGE_SHAPE=(8, 8, 1)")
    file = f"--gin_file={ROOT / 'gin_configs/experiments/image_npz.gin'}"
    return [file if each.startswith("--gin_file=") else each for each in command]


@pytest.mark.full
def test_run_directory_must_be_shared(tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    command = train(pathlib.Path("run"))
    with Processes(tmp_path / "logs", command, 2, folders=folders) as started:
        started.expect(checks.EXIT_BAD_INPUT, timeout=120)
    found = "MODEL_DIR must be a directory that all processes share"
    assert all(found in output for output in started.outputs())
    assert not (folders[1] / "run").exists()


@pytest.mark.full
@pytest.mark.parametrize("victim", [0, 1])
def test_killed_one_ends_the_others(tmp_path, victim):
    with several.at_work(tmp_path / "run", 2, 1, "--gin.TRAIN_STEPS=50000") as started:
        started.all[victim].kill()
        code = started.codes(timeout=15)[1 - victim]
        output = started.outputs()[1 - victim]
    assert f"stopped: process {victim} failed: it ended without a message" in output
    if victim == 0:  # jax may abort just after the message
        assert code not in (0, checks.EXIT_PREEMPTED, -999)
    else:
        assert code == failures.EXIT_LOST
        assert "stack trace" not in output


@pytest.mark.full
@pytest.mark.parametrize("victim", [0, 1])
def test_killed_before_jax_connects_one_ends_the_others(tmp_path, victim):
    """Process `victim` has met the others and then waits, as for a slow device."""
    stuck = (
        "import sys, time, jax\nfrom idode_gin.configs import programs\n"
        "def wait(**given):\n    print('waiting', file=sys.stderr)\n    time.sleep(99)\n"
        f"if sys.argv[-1].endswith('={victim}'):\n    jax.distributed.initialize = wait\n"
        "sys.exit(programs.run('idode_gin.train', 'train', ''))\n"
    )
    command = ["-c", stuck, *train(tmp_path / "run")[2:]]
    with Processes(tmp_path / "logs", command, 2) as started:
        started.wait_until(lambda: "waiting" in started.outputs()[victim], timeout=120)
        started.all[victim].kill()
        code = started.codes(timeout=15)[1 - victim]
        output = started.outputs()[1 - victim]
    assert code == failures.EXIT_LOST, output
    assert f"stopped: process {victim} failed: it ended without a message" in output


@pytest.mark.full
@pytest.mark.parametrize("victim", [0, 1])
def test_one_that_cannot_write_its_part_ends_the_others(tmp_path, victim):
    folder, limit = tmp_path / "run", (64 << 10, 64 << 10)  # its log is shorter, its part longer
    settings = "--gin.TRAIN_STEPS=50000", "--gin.UNet.channels=64"
    with several.at_work(folder, 2, 1, *settings) as started:
        resource.prlimit(started.all[victim].pid, resource.RLIMIT_FSIZE, limit)
        started.expect(checks.EXIT_BAD_INPUT, timeout=120)
        output = started.outputs()[victim]
    step = re.search(r"The checkpoint of step (\d+) could not be", output)
    assert step is not None, output
    assert saving.saved_steps(folder)[-1] < int(step[1])
    assert "Traceback" not in output


@pytest.mark.full
def test_asked_twice_one_ends_at_once_and_the_others_with_it(tmp_path):
    with several.at_work(tmp_path / "run", 2, 1, "--gin.TRAIN_STEPS=50000") as started:
        started.all[1].send_signal(signal.SIGTERM)
        started.wait_until(lambda: "Again to stop at once" in started.outputs()[1])
        started.all[1].send_signal(signal.SIGTERM)
        codes = started.codes(timeout=15)
    assert codes[1] in (128 + signal.SIGTERM, checks.EXIT_PREEMPTED)  # or it was done before that
    assert codes[0] not in (0, -999)


@pytest.mark.full
def test_the_evaluation_is_compiled_while_there_is_nothing_to_save(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_LOG_COMPILES", "1")
    with Processes(tmp_path / "logs", train(tmp_path / "run"), 2) as started:
        started.expect(0)
    said, done = started.outputs()[0], "Finished XLA compilation of jit({})".format  # it alone logs
    assert said.index(done("evaluate")) < said.index(done("train_step"))


@pytest.mark.full
@pytest.mark.parametrize("asked", [0, 1])
def test_asked_in_the_first_compilation_all_leave_within_seconds(tmp_path, asked):
    """The compilation is long: nothing is cached, and there are many blocks."""
    folder = tmp_path / "run"
    command = train(
        folder, "--gin.UNet.levels=24", f"--gin.COMPILATION_CACHE_DIR={str(tmp_path / 'cache')!r}"
    )
    with Processes(tmp_path / "logs", command, 2) as started:
        started.wait_until(lambda: "Training from scratch" in started.outputs()[0])
        started.all[asked].send_signal(signal.SIGTERM)
        started.expect(checks.EXIT_PREEMPTED, timeout=30)
    said = "Stopped by SIGTERM before step 1 of 8 was compiled. Nothing is lost"
    assert all(said in output for output in started.outputs())
    assert saving.saved_steps(folder) == []


@pytest.mark.full
@pytest.mark.parametrize("mesh", ["{'data': 2}", "{'fsdp': 2}"])
def test_a_bad_step_is_left_by_one_and_replayed_by_all(tmp_path, mesh):
    folder = tmp_path / "run"
    settings = ["--gin.LEARNING_RATE=1e30", "--gin.Trainer.num_microbatches=2"]
    settings += ["--gin.AdamW.warmup_steps=3", "--gin.Trainer.log_period=1"]  # rows, which it plots
    command = train(folder, f"--gin.MESH_SHAPE={mesh}", *settings)
    with Processes(tmp_path / "logs", command, 2) as started:
        started.expect(checks.EXIT_NON_FINITE)
    (path,) = (folder / "train").glob("bad_step_*.npz")
    assert summary(folder)["exit_reason"] == "non_finite"
    assert (folder / "train" / "bpd.png").exists()
    replaying = [*command, f"--gin.Trainer.replay={str(path)!r}"]
    with Processes(tmp_path / "logs", replaying, 2) as started:
        started.expect(0)  # the gradient was finite, and the parameters after the update not
        zero, one = started.outputs()
    assert f"replayed with the batch of {path}:" in zero
    assert "Traceback" not in one
    replayed = re.search(r"\n  loss (\S+), mean over the batch\n", zero)
    seen = re.search(r"in the run itself: loss (\S+), .* after the update inf\n", zero)
    np.testing.assert_allclose(float(replayed[1]), float(seen[1]), rtol=1e-5)


def test_nobody_to_meet(tmp_path):
    """The others or process 0 do not come: one line, in time."""
    address = f"--coordinator_address=localhost:{several.free_port()}"
    flags = ["--multiprocess_gpu", address, "--process_count=2", "--initialization_timeout=1"]
    for index, found in [(0, "Of 2 processes, 1 did not reach process 0"), (1, "could not reach")]:
        command = [*train(tmp_path / "run"), *flags, f"--process_index={index}"]
        with Processes(tmp_path / "logs", command, 1) as started:
            started.expect(checks.EXIT_BAD_INPUT, timeout=120)
        (output,) = started.outputs()
        assert found in output
        assert len(output.splitlines()) == 2  # the line, and how to trace it
    assert os.listdir(tmp_path) == ["logs"]
