"""Meshes: where rows and parameters go, and that neither changes what is computed."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import on_devices
import on_meshes
import pytest
import tiny

from idode_gin.checkpoints import saving
from idode_gin.devices import partitioning
from idode_gin.feed import batches
from idode_gin.networks import base
from idode_gin.reports import metrics

SUPPORT = pathlib.Path(__file__).parents[1] / "support"


def start(script, *arguments):
    """A script beside this file, in a process of its own."""
    command = [sys.executable, str(SUPPORT / f"{script}.py"), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(SUPPORT.parents[1])}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment)


def finish(process):
    """What it printed, once it has ended well."""
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    return output


def train_on(devices, model_dir, steps, mesh):
    """Trains in a process that sees that many devices; what it printed."""
    process = start("on_devices", "devices", devices, model_dir, steps, json.dumps(mesh))
    return json.loads(finish(process).splitlines()[-1])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same training: on one device, on four, and first on four and then on two.

    The four share the parameters, the two the channels: what one mesh saves another one reads.
    """
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        tiny.use_tiny_data(patch)
        on_devices.trainer(folder / "1", 6).run(tiny.model(), tiny.config(8), tiny.config(8))
    four = train_on(4, folder / "4 then 2", 4, {"data": 2, "fsdp": 2})
    shutil.copytree(folder / "4 then 2", folder / "4")
    train_on(2, folder / "4 then 2", 6, {"model": 2})
    return folder, four


@pytest.mark.full
def test_each_device_gets_equal_consecutive_rows(runs):
    _, four = runs
    assert four["devices"] == 4
    assert four["rows"] == [[0, 1], [2, 3], [4, 5], [6, 7]]


def parameters(path):
    shapes = jax.eval_shape(lambda: tiny.model().init(jax.random.key(0), tiny.SHAPE))
    return saving.restore_params(path, shapes, ema=False)[0]


def rows(folder):
    read = metrics.read_rows(folder / "metrics.jsonl")
    return {row["step"]: metrics.reproducible(row) for row in read}


@pytest.mark.full
@pytest.mark.parametrize(("name", "step"), [("4", 4), ("4 then 2", 6)])
def test_the_mesh_changes_nothing_that_a_run_leaves(runs, name, step):
    folder, _ = runs
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        parameters(folder / name / f"checkpoint_{step}"),
        parameters(folder / "1" / f"checkpoint_{step}"),
    )
    several, one = rows(folder / name), rows(folder / "1")
    assert step in several
    for at, row in several.items():
        for key in row.keys() & one[at].keys():
            # None, where a bin of gamma got no image, is not a number in both.
            found, expected = (np.asarray(each[key], float) for each in (row, one[at]))
            np.testing.assert_allclose(found, expected, rtol=1e-5, err_msg=key)


@pytest.mark.full
def test_model_info_says_what_is_split(runs):
    folder, _ = runs
    text = (folder / "4" / "model-info.txt").read_text()
    lines = {line.split("|")[1].strip(): line for line in text.splitlines() if "kernel" in line}
    cells = [cell.strip() for cell in lines["out/kernel"].split("|")[1:-1]]
    assert cells == ["out/kernel", "8, 32", "float32", "hidden, channels", "-, fsdp", "512"]


def assert_equal_to_one_device(network, found):
    """Relative to the largest number of each array, which is what float32 can promise."""
    one = on_meshes.steps(network, "1x1x1", 1)
    cases = {name.partition("/")[0] for name in found}
    assert len(found) == len(cases) * len(one)
    for name, array in found.items():
        expected = one[name.partition("/")[2]]
        if name.endswith("key/bias"):  # its true gradient is zero
            np.testing.assert_allclose(array, 0, atol=1e-6, err_msg=name)
            continue
        bound = 1e-5 * np.max(np.abs(expected))
        np.testing.assert_allclose(array, expected, rtol=0, atol=bound, err_msg=name)


def steps_on(folder, network, *cases):
    finish(start("on_meshes", "steps", folder / "steps.npz", network, *cases))
    with np.load(folder / "steps.npz") as file:
        return dict(file)


def test_parameters_do_not_depend_on_mesh_and_microbatches(tmp_path):
    found = steps_on(tmp_path, "affine", "8x1x1:1", "2x4x1:4", "2x2x2:2")
    assert_equal_to_one_device("affine", found)


@pytest.mark.full
@pytest.mark.parametrize("network", ["affine", "unet"])
def test_parameters_do_not_depend_on_any_mesh_and_microbatches(tmp_path, network):
    cases = [f"{mesh}:{parts}" for mesh in ("8x1x1", "2x4x1", "2x2x2") for parts in (1, 2, 4)]
    assert_equal_to_one_device(network, steps_on(tmp_path, network, *cases))


def test_bytes_on_a_device_fall_with_fsdp():
    """Of arrays that lie there; with Adam, clipping and accumulation, so five copies in all."""
    meshes = {fsdp: f"{8 // fsdp}x{fsdp}x1" for fsdp in (1, 2, 4, 8)}
    found = json.loads(finish(start("on_meshes", "bytes", *meshes.values(), "4x1x2")))
    whole = found[meshes[1]]
    for fsdp, mesh in meshes.items():
        for part, size in found[mesh].items():
            # All but the bias of the last layer and a few counters.
            assert whole[part] / fsdp <= size < whole[part] / fsdp + 64, (fsdp, part)
    assert whole["opt_state"] >= 3 * whole["params"]
    assert found["4x1x2"]["params"] < 0.7 * whole["params"]


@pytest.mark.full
@pytest.mark.parametrize("mesh", ["8x1x1", "2x2x1", "2x2x2"])
def test_scores_and_samples_do_not_depend_on_the_mesh(runs, tmp_path, monkeypatch, mesh):
    """A device has rounding of its own, and adaptive steps make it no larger than their error."""
    folder, _ = runs
    checkpoint = str(folder / "1" / "checkpoint_6")
    finish(start("on_meshes", "score", checkpoint, tmp_path / "mesh", mesh))
    tiny.use_tiny_data(monkeypatch)
    on_meshes.score(checkpoint, tmp_path / "one", "1x1x1")

    def read(which, name):
        with np.load(tmp_path / which / name) as file:
            return dict(file)

    several, one = (read(which, "eval/results.npz") for which in ("mesh", "one"))
    assert several.keys() == one.keys()
    np.testing.assert_array_equal(several["chosen/nfe"], one["chosen/nfe"])
    for name in ("adaptive/bpd", "chosen/bpd", "variational_bound/bpd"):
        assert len(several[name]) == 20
        np.testing.assert_allclose(several[name], one[name], atol=1e-5, err_msg=name)
    several, one = (read(which, "samples/samples.npz")["levels"] for which in ("mesh", "one"))
    assert len(several) == 9
    np.testing.assert_array_equal(several, one)


@pytest.mark.full
def test_two_processes_train_together_and_stop_together(runs, tmp_path):
    folder, _ = runs
    with socket.socket() as unused:
        unused.bind(("localhost", 0))
        port = unused.getsockname()[1]
    processes = [
        start("on_devices", "process", index, tmp_path, 10**6, 2, port) for index in range(2)
    ]
    try:
        while len(rows(tmp_path)) < 4:
            assert all(process.poll() is None for process in processes)
            time.sleep(0.05)
        processes[1].send_signal(signal.SIGTERM)  # one of them is told, both save and stop
        for process, reason in zip(processes, ("preemption", "SIGTERM"), strict=True):
            output, errors = process.communicate(timeout=120)
            assert process.returncode == 75, errors
            assert f"Stopped by {reason}" in output
    finally:
        for process in processes:
            process.kill()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["step"] == saving.saved_steps(tmp_path)[-1]
    together, one = rows(tmp_path), rows(folder / "1")
    for step in (3, 4):
        assert together[step].keys() == one[step].keys()
        for name in one[step]:  # a bin of gamma without an image has no loss
            found, expected = (np.asarray(each[step][name], float) for each in (together, one))
            np.testing.assert_allclose(found, expected, rtol=1e-5, err_msg=name)


def test_batch_size_must_suit_the_devices():
    partitioner = partitioning.PjitPartitioner()
    assert partitioner.mesh.shape == {"data": 1, "fsdp": 1, "model": 1}
    partitioner.check_batch_size("batch_size", 6)
    partitioner.check_batch_size("batch_size", 6, num_microbatches=3)
    with pytest.raises(ValueError, match=r"batch_size=6.*num_microbatches=4.*next valid.*8"):
        partitioner.check_batch_size("batch_size", 6, num_microbatches=4)
    with pytest.raises(ValueError, match="greater than zero"):
        partitioner.check_batch_size("batch_size", 0)


@pytest.mark.parametrize(
    ("mesh_shape", "arguments", "message"),
    [
        ({"data": 2, "fsdp": 4}, {}, r"`data \* fsdp`, got rows=12 and data \* fsdp=8.*is 16"),
        ({"data": 2}, {"num_microbatches": 8}, r"`data \* num_microbatches`.*=16"),
        ({"data": 4, "model": 2}, {}, None),
    ],
)
def test_batch_size_must_suit_the_mesh(mesh_shape, arguments, message):
    partitioner = partitioning.PjitPartitioner(mesh_shape=mesh_shape).without_devices()
    if message is None:
        partitioner.check_batch_size("rows", 12, **arguments)
        return
    with pytest.raises(ValueError, match=message):
        partitioner.check_batch_size("rows", 12, **arguments)


@pytest.mark.parametrize(
    ("mesh_shape", "batch_size", "solve_size", "rounded"),
    [
        ({"data": 2}, 16, 32, 64),  # 8 images on a device would be padded to 32
        ({"data": 2}, 64, 32, 64),
        ({"data": 2}, 65, 32, 128),
        ({"data": 1, "model": 3}, 1, 1, 3),
        ({"data": 2, "fsdp": 2, "model": 2}, 9, 4, 32),
    ],
)
def test_a_batch_of_solves_is_rounded_up(mesh_shape, batch_size, solve_size, rounded):
    partitioner = partitioning.PjitPartitioner(mesh_shape=mesh_shape).without_devices()
    assert partitioner.rounded_up(batch_size, solve_size) == rounded


def test_a_mesh_that_the_devices_do_not_fill():
    with pytest.raises(ValueError, match=r"fsdp=4 .* = 4 and 1 devices"):
        partitioning.PjitPartitioner(mesh_shape={"fsdp": 4}).batch_sharding.mesh.size  # noqa: B018


def test_a_model_axis_that_splits_nothing(caplog):
    class Nameless(tiny.AffineNetwork):
        logical_axes = base.AbstractNetwork.logical_axes

    names = Nameless().logical_axes(tiny.SHAPE)
    params = jax.eval_shape(lambda: Nameless().init(jax.random.key(0), tiny.SHAPE))
    with pytest.raises(ValueError, match="got 2: these devices would all do the same work"):
        partitioning.PjitPartitioner(num_partitions=2).without_devices().param_sharding(
            params, names
        )
    fsdp = partitioning.PjitPartitioner(mesh_shape={"fsdp": 2}).without_devices()
    assert all(
        each.is_fully_replicated for each in jax.tree.leaves(fsdp.param_sharding(params, names))
    )
    assert "They replicate all parameters" in caplog.text


def test_state_is_whole_without_names_and_batches_are_not():
    partitioner = partitioning.PjitPartitioner()
    shardings = partitioner.state_sharding({"a": 1, "b": [2, 3]})
    assert jax.tree.structure(shardings) == jax.tree.structure({"a": 0, "b": [0, 0]})
    assert all(each.is_fully_replicated for each in jax.tree.leaves(shardings))
    assert partitioner.batch_sharding.spec[0] == ("data", "fsdp")


def test_dtypes_of_a_batch_are_kept():
    batch = batches.train_batch(tiny.split(), tiny.config(4), 0)
    placed = partitioning.PjitPartitioner().put_batch(batch, 4)
    assert {name: array.dtype for name, array in placed.items()} == {
        name: array.dtype for name, array in batch.items()
    }
