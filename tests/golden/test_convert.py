"""Conversion of a published checkpoint, and a run that starts from the result."""

import copy

import jax
import numpy as np
import pytest
from flax import serialization

from idode_gin.checkpoints import saving
from idode_gin.devices import partitioning
from idode_gin.interop import convert, official
from idode_gin.networks import unet
from idode_gin.training import optimizers, train_state

from . import cases


@pytest.mark.full
@pytest.mark.parametrize("name", cases.of_kind("ckpt")[:1])
def test_a_run_starts_from_a_published_checkpoint(name, tmp_path, capsys):
    folder = cases.unpack_checkpoint(cases.load(name), tmp_path)
    command = ["--source", str(folder), "--output", str(tmp_path / "ours")]
    assert convert.main(command) == 0
    published = official.load_official_checkpoint(folder)
    path = tmp_path / "ours" / f"checkpoint_{published['step']}"
    assert f"Wrote {path}" in capsys.readouterr().out

    def fresh():
        params = jax.tree.map(np.zeros_like, published["params"])
        return train_state.create(params, optimizers.AdamW().build(), ["loss"])

    shapes = jax.eval_shape(fresh)
    wanted = partitioning.abstract(shapes, partitioning.PjitPartitioner().state_sharding(shapes))
    restore = saving.RestoreCheckpointConfig(path=str(tmp_path / "ours"))
    config = saving.CheckpointConfig(restore=restore)
    state, _ = saving.Checkpoints(tmp_path / "run", config, {}).restore(wanted, fresh)
    adam, _, schedule = state.opt_state
    expected = published["opt_state"]
    for found, want in (
        (state.params, published["params"]),
        (state.ema, published["ema_params"]),
        (adam.mu, expected["mu"]),
        (adam.nu, expected["nu"]),
    ):
        jax.tree.map(np.testing.assert_array_equal, found, want)
    assert int(state.step) == published["step"]
    assert int(adam.count) == int(schedule.count) == expected["count"]


@pytest.mark.parametrize("name", cases.of_kind("ckpt")[:1])
def test_a_published_checkpoint_returns_unchanged(name, tmp_path):
    """The file that the published program wrote: the same tree, dtypes and bits."""
    folder = cases.unpack_checkpoint(cases.load(name), tmp_path)
    convert.convert(folder, tmp_path / "ours")
    written = convert.convert(tmp_path / "ours", tmp_path / "back", to="published")
    (original,) = folder.glob("ckpt-*.flax")
    here, there = (serialization.msgpack_restore(each.read_bytes()) for each in (written, original))
    assert jax.tree.structure(here) == jax.tree.structure(there)
    assert len(jax.tree.leaves(here)) > 4 * 30
    jax.tree.map(assert_same_bits, here, there)


def assert_same_bits(found, expected):
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert found.tobytes() == expected.tobytes()


def test_what_cannot_be_converted(tmp_path, capsys):
    command = ["--source", str(tmp_path), "--output", str(tmp_path / "ours")]
    assert convert.main(command) == 2
    assert "No published checkpoint" in capsys.readouterr().err
    (tmp_path / "ours" / "checkpoint_3").mkdir(parents=True)
    assert convert.main(command) == 2
    assert "already contains checkpoints (steps [3])" in capsys.readouterr().err


def with_leaf(tree, change):
    """Change the last leaf of a nested tree."""
    name = sorted(tree)[-1]
    if isinstance(tree[name], dict):
        with_leaf(tree[name], change)
    else:
        tree[name] = change(tree[name])


def spoilt(value):
    """Return a change of a leaf: one number of it becomes `value`."""

    def change(leaf):
        leaf = np.array(leaf)
        leaf.flat[0] = value
        return leaf

    return change


STEPS = [None, [3], 2**40, -5, 2.5, "7", True, np.zeros(2, np.int32)]
TREES = [None, [1.0], 3, "params", np.ones(3, np.float32)]
LEAVES = {
    "a word": lambda leaf: "bias",
    "a number": lambda leaf: 0.5,
    "none": lambda leaf: None,
    "a list": lambda leaf: leaf.tolist(),
    "a scalar": lambda leaf: np.float32(1.0),
    "an array without axes": lambda leaf: np.array(1.0, np.float32),
    "complex": lambda leaf: leaf.astype(np.complex64),
    "integers": lambda leaf: leaf.astype(np.int32),
    "truth values": lambda leaf: leaf > 0,
    "not a number": spoilt(np.nan),
    "infinite": spoilt(-np.inf),
    "beyond single precision": lambda leaf: np.full(leaf.shape, 1e300),
    "another shape": lambda leaf: np.zeros((7, *leaf.shape), leaf.dtype),
}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The content of a small published checkpoint."""
    network = unet.UNet(channels=32, levels=1, min_channels_per_group=1)
    params = jax.tree.map(
        lambda leaf: np.full(leaf.shape, 0.5, np.float32),
        jax.eval_shape(lambda: network.init(jax.random.key(0), (8, 8, 3))),
    )
    tree = official.to_official(params)
    adam = {"count": 6, "mu": tree, "nu": tree}
    return {"step": 6, "params": tree, "ema_params": tree, "opt_state": {"0": adam}}


def converted(content, tmp_path):
    file = tmp_path / "ckpt-1.flax"
    file.write_bytes(serialization.msgpack_serialize(content))
    return convert.main(["--source", str(file), "--output", str(tmp_path / "ours")])


def assert_refused(content, tmp_path, capsys, *words):
    assert converted(content, tmp_path) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert all(word in errors for word in words)
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize("step", STEPS, ids=repr)
@pytest.mark.parametrize("name", ["step", "count"])
def test_a_step_that_is_none_is_refused(published, name, step, tmp_path, capsys):
    content = copy.deepcopy(published)
    (content if name == "step" else content["opt_state"]["0"])[name] = step
    assert_refused(content, tmp_path, capsys, f"`{name}`", "a whole number of steps")


@pytest.mark.parametrize("tree", TREES, ids=repr)
@pytest.mark.parametrize("name", ["params", "ema_params", "mu", "nu"])
def test_a_tree_that_is_none_is_refused(published, name, tree, tmp_path, capsys):
    content = copy.deepcopy(published)
    (content["opt_state"]["0"] if name in ("mu", "nu") else content)[name] = tree
    assert_refused(content, tmp_path, capsys, f"`{name}` is of type {type(tree).__name__}")


@pytest.mark.parametrize("leaf", LEAVES)
@pytest.mark.parametrize("name", ["params", "ema_params", "mu", "nu"])
def test_a_leaf_that_is_no_array_of_parameters_is_refused(published, name, leaf, tmp_path, capsys):
    content = copy.deepcopy(published)
    with_leaf((content["opt_state"]["0"] if name in ("mu", "nu") else content)[name], LEAVES[leaf])
    assert_refused(content, tmp_path, capsys)


def test_the_content_that_was_spoilt_is_converted(published, tmp_path, capsys):
    assert converted(published, tmp_path) == 0
    assert (tmp_path / "ours" / "checkpoint_6").is_dir()
