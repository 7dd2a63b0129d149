"""Chains of conversions between published checkpoints, ours and t5x's: every bit stays."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import states
import tiny
from flax import serialization

from idode_gin import checks
from idode_gin.checkpoints import meta, plain_trees, reading, restoring, saving
from idode_gin.checkpoints.config import RestoreCheckpointConfig
from idode_gin.interop import convert, official, rounding
from idode_gin.networks import stacking
from idode_gin.networks.unet import UNet
from idode_gin.reports import fingerprints
from idode_gin.runs import facts, run_inputs
from idode_gin.training import optimizers, train_state

STEP, SHAPE = 6, (8, 8, 3)
NETWORK = UNet(channels=32, levels=1, min_channels_per_group=1)


def random_like(tree, seed):
    """Return random float32 numbers of the same shapes."""
    generator = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: generator.normal(size=leaf.shape).astype(np.float32), tree)


def params_of(network, seed=0):
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), SHAPE))
    return random_like(shapes, seed)


def save_between_updates(folder, mini_step):
    """Save a run that accumulates two gradients, after `mini_step` of them."""
    optimizer = optimizers.AdamW(accumulation_steps=2).build()
    state = train_state.create(params_of(NETWORK), optimizer, [])
    waiting = state.opt_state._replace(mini_step=jnp.int32(mini_step))
    with saving.Checkpoints(folder, saving.CheckpointConfig(), {}) as saved:
        saved.save(dataclasses.replace(state, step=jnp.int32(STEP), opt_state=waiting))


def save_ours(folder, network=NETWORK, known=None):
    """Save a checkpoint whose leaves are all different; return its state."""
    params = params_of(network)
    state = train_state.create(params, optimizers.AdamW().build(), [])
    adam = state.opt_state[0]._replace(mu=params_of(network, 1), nu=params_of(network, 2))
    state = dataclasses.replace(
        state,
        step=jnp.int32(STEP),
        ema=params_of(network, 3),
        opt_state=(adam, *state.opt_state[1:]),
    )
    with saving.Checkpoints(folder, saving.CheckpointConfig(), known or {}) as saved:
        saved.save(state)
    return state


def save_published(folder):
    trees = [official.to_official(params_of(NETWORK, seed)) for seed in range(4)]
    adam = {"count": STEP, "mu": trees[2], "nu": trees[3]}
    content = {
        "step": STEP,
        "params": trees[0],
        "ema_params": trees[1],
        "opt_state": {"0": adam},
    }
    folder.mkdir()
    (folder / "ckpt-1.flax").write_bytes(serialization.msgpack_serialize(content))


def bits(tree):
    return {
        name: (np.asarray(leaf).dtype, np.asarray(leaf).tobytes())
        for name, leaf in fingerprints.paths_and_leaves(tree)
    }


def ours(folder):
    """Return the bits of every leaf of a checkpoint of ours but the metrics'."""
    found = saving.find(folder)
    description = meta.read_meta(found)
    leaves = {
        f"{part}/{name}": leaf
        for part in ("params", "ema", "training")
        for name, leaf in reading.read_leaves(found, description, part, {}).items()
    }
    metrics = ("training/window/", "training/guard/")
    return bits({name: each for name, each in leaves.items() if not name.startswith(metrics)})


def theirs(folder):
    return bits(plain_trees.read(saving.find(folder) / "state"))


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(ValueError, match="got 't5x_ema'. Did you mean 't5x-ema'"):
        convert.convert(tmp_path / "first", tmp_path / "t5x", to="t5x_ema")


@pytest.mark.full
def test_published_to_ours_to_t5x_to_ours(tmp_path):
    save_published(tmp_path / "published")
    convert.convert(tmp_path / "published", tmp_path / "first")
    convert.convert(tmp_path / "first", tmp_path / "t5x", to="t5x")
    convert.convert(tmp_path / "t5x", tmp_path / "second")
    convert.convert(tmp_path / "second", tmp_path / "t5x again", to="t5x")
    assert ours(tmp_path / "first") == ours(tmp_path / "second")
    assert theirs(tmp_path / "t5x") == theirs(tmp_path / "t5x again")
    assert len(ours(tmp_path / "first")) > 4 * 30
    expected = official.load_official_checkpoint(tmp_path / "published")
    assert bits({"ema": expected["ema_params"]}).items() <= ours(tmp_path / "second").items()


@pytest.mark.parametrize("scan", [False, True])
def test_ours_to_published_to_ours(tmp_path, scan):
    state = save_ours(tmp_path / "ours", dataclasses.replace(NETWORK, levels=2, scan=scan))
    convert.convert(tmp_path / "ours", tmp_path / "published", to="published")
    convert.convert(tmp_path / "published", tmp_path / "back")
    found = official.load_official_checkpoint(tmp_path / "published")
    (adam, *_), moments = state.opt_state, found["opt_state"]
    for tree, theirs in (
        (state.params, found["params"]),
        (state.ema, found["ema_params"]),
        (adam.mu, moments["mu"]),
        (adam.nu, moments["nu"]),
    ):
        assert bits(stacking.unrolled(tree) if scan else tree) == bits(theirs)
    assert found["step"] == STEP
    assert bits({"ema": found["ema_params"]}).items() <= ours(tmp_path / "back").items()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("groups", 16),
        ("attention_heads", 2),
        ("time_embedding_scale", 50.0),
        ("fourier_exponents", (5, 6)),
    ],
)
def test_a_network_that_the_published_program_computes_otherwise(tmp_path, capsys, name, value):
    """Its parameters have the shapes of a published one."""
    network = dataclasses.replace(NETWORK, **{name: value})
    save_ours(tmp_path / "ours", network, facts.described("model.network", network))
    command = [f"--source={tmp_path / 'ours'}", f"--output={tmp_path / 'new'}", "--to=published"]
    assert convert.main(command) == checks.EXIT_BAD_INPUT
    assert f"it has no model.network.{name} = {value}." in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_converted_checkpoint_knows_its_network(tmp_path):
    save_published(tmp_path / "published")
    convert.convert(tmp_path / "published", tmp_path / "ours")
    known = meta.read_meta(saving.find(tmp_path / "ours"))["facts"]
    model = tiny.model(network=NETWORK)
    assert facts.changed_meaning(known, model) == []
    other = tiny.model(network=dataclasses.replace(NETWORK, fourier_exponents=(5, 6)))
    (sentence,) = facts.changed_meaning(known, other)
    assert "fourier_exponents was (6, 7) and is now (5, 6)" in sentence
    free = dataclasses.replace(NETWORK, dropout_rate=0.1, scan=True, min_channels_per_group=1)
    assert facts.changed_meaning(known, tiny.model(network=free)) == []


def test_an_average_of_other_shapes_is_not_written():
    params, wide = (params_of(dataclasses.replace(NETWORK, channels=each)) for each in (32, 64))
    trees = {"params": params, "ema": wide, "mu": params, "nu": params}
    with pytest.raises(ValueError, match="must have the shapes of the parameters"):
        official.serialized(step=1, count=1, **trees)


def test_what_the_published_program_has_no_place_for(tmp_path, capsys):
    def assert_refused(source, words, *more):
        command = ["--source", str(tmp_path / source), "--output", str(tmp_path / "new"), *more]
        assert convert.main([*command, "--to=published"]) == checks.EXIT_BAD_INPUT
        assert words in capsys.readouterr().err
        assert not (tmp_path / "new").exists()

    save_ours(tmp_path / "ours")
    convert.convert(tmp_path / "ours", tmp_path / "small", dtype="bfloat16")
    assert_refused("small", "the state of the optimizer in")
    assert_refused("ours", "published program has float32", "--dtype=bfloat16")
    assert_refused("nowhere", "nowhere")
    save_ours(tmp_path / "classes", dataclasses.replace(NETWORK, num_classes=3))
    assert_refused("classes", "do not fit the network: `score_model/dense0/kernel` of shape")
    save_between_updates(tmp_path / "between", 1)
    assert_refused("between", "must not stand between two updates")
    save_between_updates(tmp_path / "whole", 0)
    convert.convert(tmp_path / "whole", tmp_path / "of whole", to="published")
    convert.convert(tmp_path / "ours", tmp_path / "theirs", to="published")
    with pytest.raises(ValueError, match=r"already contains ckpt-1\.flax. Use another folder"):
        convert.convert(tmp_path / "ours", tmp_path / "theirs", to="published")


def test_without_an_average(tmp_path):
    """The average starts at the parameters, and is part of the checkpoint from then on."""
    params = states.state_of(STEP).params
    tree = {"target": params, "state": {"step": np.int32(STEP), "param_states": {}}}
    plain_trees.write(tmp_path / "t5x", STEP, "state", tree)
    convert.convert(tmp_path / "t5x", tmp_path / "first")
    found = ours(tmp_path / "first")
    for part in ("params", "ema"):
        assert bits({part: params}).items() <= found.items()
    convert.convert(tmp_path / "first", tmp_path / "t5x again", to="t5x")
    convert.convert(tmp_path / "t5x again", tmp_path / "second")
    assert ours(tmp_path / "second") == found


@pytest.mark.full
@pytest.mark.parametrize("scan", [False, True])
def test_stacked_blocks(tmp_path, scan):
    """A run of the other kind then starts from the result as from the original."""
    here, there = (dataclasses.replace(NETWORK, levels=2, scan=each) for each in (scan, not scan))
    save_ours(tmp_path / "first", here)
    convert.convert(tmp_path / "first", tmp_path / "t5x", to="t5x")
    convert.convert(tmp_path / "t5x", tmp_path / "second")
    assert ours(tmp_path / "first") == ours(tmp_path / "second")

    def fresh():
        shapes = jax.eval_shape(lambda: there.init(jax.random.key(0), SHAPE))
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return train_state.create(zeros, optimizers.AdamW().build(), [])

    wanted = states.abstract_of(jax.eval_shape(fresh))
    new = restoring.Fresh(state=fresh, optimizer=None)
    original, other = (
        restoring.start(
            saving.find(tmp_path / name), wanted, RestoreCheckpointConfig(path="unread"), new, {}
        ).state
        for name in ("first", "second")
    )
    assert bits(original.params) == bits(other.params)
    assert bits(original.opt_state) == bits(other.opt_state)


def test_t5x_parameters_in_bfloat16_stay_what_they_are(tmp_path):
    states.save(tmp_path / "ours", STEP)
    convert.convert(tmp_path / "ours", tmp_path / "t5x", to="t5x", dtype="bfloat16")
    leaves = theirs(tmp_path / "t5x")
    exact = states.state_of(STEP)
    expected = bits({"target": rounding.rounded(exact.params, "bfloat16")})
    average = bits({"state": {"param_states": {"1": {"ema": exact.ema}}}})
    assert (expected | average).items() <= leaves.items()
    convert.convert(tmp_path / "t5x", tmp_path / "second")
    convert.convert(tmp_path / "second", tmp_path / "again", to="t5x")
    assert theirs(tmp_path / "again") == leaves
    with pytest.raises(ValueError, match="a copy with parameters rounded to bfloat16"):
        states.restore(tmp_path / "second")


def test_a_smaller_copy_is_read_as_float32_and_says_so(tmp_path, capsys):
    states.save(tmp_path / "ours", STEP)
    command = [f"--source={tmp_path / 'ours'}", f"--output={tmp_path / 'small'}"]
    assert convert.main([*command, "--dtype=bfloat16"]) == 0
    params = states.state_of(STEP).ema
    shapes = jax.eval_shape(lambda: params)
    found = saving.restore_params(tmp_path / "small", shapes)
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32), params)
    assert bits(found.params) == bits(rounded)
    assert facts.checkpoint_used(found, use_ema=True)["rounded_to"] == "bfloat16"
    assert convert.main(command[:1] + [f"--output={tmp_path / 'no'}"]) == checks.EXIT_BAD_INPUT
    assert "holds checkpoints of this library already" in capsys.readouterr().err


def test_a_run_cannot_resume_from_a_smaller_copy(tmp_path):
    states.save(tmp_path / "ours", STEP)
    convert.convert(tmp_path / "ours", tmp_path / "run", dtype="float16")
    with pytest.raises(ValueError, match="rounded to float16.*optimizer = 'reset'"):
        states.restore(tmp_path / "run")
    path = str(tmp_path / "run")
    state, _ = states.restore(tmp_path / "new", path=path, optimizer="reset", step="reset")
    expected = states.state_of(STEP).params["hidden"]["kernel"].astype(np.float16)
    np.testing.assert_array_equal(state.params["hidden"]["kernel"], expected.astype(np.float32))


def test_parameters_of_gamma_are_not_rounded_and_large_ones_are_refused():
    tree = {"time_schedule": {"slope": np.float32(0.1)}, "kernel": np.float32(0.1)}
    found = rounding.rounded(tree, "bfloat16")
    assert found["time_schedule"]["slope"] == np.float32(0.1)
    assert found["kernel"] == jnp.bfloat16(0.1)
    with pytest.raises(ValueError, match="`kernel` must have finite values in float16"):
        rounding.rounded({"kernel": np.float32(1e6)}, "float16")


def test_loading_a_smaller_copy_warns(tmp_path, caplog):
    states.save(tmp_path / "ours", STEP)
    convert.convert(tmp_path / "ours", tmp_path / "small", dtype="bfloat16")
    run_inputs.load_params(tiny.model(), tiny.SHAPE, str(tmp_path / "small"), use_ema=True)
    assert "a copy with parameters rounded to bfloat16" in caplog.text
