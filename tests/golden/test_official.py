"""Reading and writing published parameters, checkpoints and configurations."""

import jax
import numpy as np
import pytest
from flax import serialization

from idode_gin.interop import official
from idode_gin.losses.second_order import SecondOrder
from idode_gin.parameterizations.noise import Noise
from idode_gin.schedules.straight_path import StraightPath
from idode_gin.time_samplers.closed_form_importance import VPVelocityImportance
from idode_gin.time_samplers.importance import Importance
from idode_gin.time_samplers.quantiles.independent import Independent
from idode_gin.time_samplers.uniform import Uniform

from . import cases, official_config

CHECKPOINTS = pytest.mark.parametrize("name", cases.of_kind("ckpt"))


def published_tree(**changes):
    """A small published tree of zeros, flat, with leaves replaced, or removed by None."""
    network = official_config.network_of(SMALL)
    ours = jax.eval_shape(lambda: network.init(jax.random.key(0), (8, 8, 3)))
    shapes = {
        "/".join(path): leaf.shape
        for path, leaf in official.flatten(official.to_official(ours)).items()
    }
    tree = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()} | changes
    return {name: leaf for name, leaf in tree.items() if leaf is not None}


SMALL = {
    "sm_n_embd": 32,
    "sm_n_layer": 2,
    "sm_pdrop": 0.1,
    "with_fourier_features": False,
    "with_attention": True,
}


def test_sizes_are_read_off_the_tree():
    network = official.network_of(published_tree())
    assert (network.channels, network.levels) == (32, 2)
    assert network.fourier_exponents == ()
    assert network.attention_everywhere


def test_every_wrong_leaf_is_named():
    tree = published_tree(
        **{
            "score_model/up.block_1/conv2/bias": None,
            "score_model/mid.attn_1/q/kernel": np.zeros((32, 31)),
            "score_model/down.block_7/conv1/bias": np.zeros(32),
        }
    )
    with pytest.raises(ValueError, match="do not fit") as error:
        official.from_official(tree, official_config.network_of(SMALL))
    assert "missing `score_model/up.block_1/conv2/bias`" in str(error.value)
    assert "unexpected `score_model/down.block_7/conv1/bias`" in str(error.value)
    assert "`score_model/mid.attn_1/q/kernel` of shape (32, 31)" in str(error.value)
    assert "(32, 32)" in str(error.value)


@pytest.mark.parametrize("name", ["conv_in/kernel", "conv_out/bias"])
def test_leaves_that_tell_sizes_are_needed(name):
    with pytest.raises(ValueError, match=name):
        official.from_official(published_tree(**{f"score_model/{name}": None}))


def test_unusual_fourier_features_are_refused():
    tree = published_tree(**{"score_model/conv_in/kernel": np.zeros((3, 3, 9, 32))})
    with pytest.raises(ValueError, match="takes 9 channels"):
        official.network_of(tree)


@pytest.mark.parametrize(
    "name", ["encoder/kernel", "score_model/down.block_x/conv1/bias", "score_model/mid.attn_1/z/b"]
)
def test_names_of_no_published_leaf(name):
    with pytest.raises(ValueError, match=f"unexpected `{name}`"):
        official.from_official(published_tree(**{name: np.zeros(32)}))


def test_our_leaves_without_counterpart():
    with pytest.raises(ValueError, match="`down_0/gate/kernel` has no counterpart"):
        official.to_official({"down_0": {"gate": {"kernel": np.zeros(3)}}})


@CHECKPOINTS
def test_checkpoint(name, tmp_path):
    case = cases.load(name)
    folder = cases.unpack_checkpoint(case, tmp_path)
    state = official.load_official_checkpoint(folder)
    assert state["step"] == int(case.f64["state_step"])
    assert state["opt_state"]["count"] == int(case.f64["adam_count"])
    assert state["network"] == official_config.network_of(case.model)
    expected = jax.tree.structure(cases.params(case))
    moments = state["opt_state"]
    for tree in (state["params"], state["ema_params"], moments["mu"], moments["nu"]):
        assert jax.tree.structure(tree) == expected
    moved = jax.tree.map(
        lambda new, old: np.max(np.abs(new - old)), state["params"], cases.params(case)
    )
    # No entry of a leaf moves further than the leaf; float32 rounds parameters themselves.
    size = max(float(np.max(np.abs(leaf))) for leaf in jax.tree.leaves(cases.params(case)))
    farthest = float(np.max(case.f64["delta_norm"][-1])) + np.finfo(np.float32).eps * size
    assert max(jax.tree.leaves(moved)) <= farthest
    assert all(np.all(leaf >= 0) for leaf in jax.tree.leaves(moments["nu"]))
    file = next(folder.glob("*.flax"))
    again = official.load_official_checkpoint(file)
    jax.tree.map(np.testing.assert_array_equal, again["params"], state["params"])


@CHECKPOINTS
def test_newest_checkpoint_of_a_folder(name, tmp_path):
    case = cases.load(name)
    folder = cases.unpack_checkpoint(case, tmp_path)
    (folder / "ckpt-0.flax").write_bytes(b"old")
    (folder / "ckpt-10.flax").write_bytes(next(folder.glob("ckpt-1.flax")).read_bytes())
    (folder / "ckpt-1.flax").write_bytes(b"old")
    assert official.load_official_checkpoint(folder)["step"] == int(case.f64["state_step"])


def test_no_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="No published checkpoint"):
        official.load_official_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="No published checkpoint"):
        official.load_official_checkpoint(tmp_path / "ckpt-9.flax")


@CHECKPOINTS
def test_damaged_checkpoint(name, tmp_path):
    file = next(cases.unpack_checkpoint(cases.load(name), tmp_path).glob("*.flax"))
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"old", b""):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged|not a published"):
            official.load_official_checkpoint(file)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n",
            "text that begins with 'v",
        ),
        (b"<!DOCTYPE html>\n", "text that begins with '<!DOCTYPE html>"),
        (b"", "its 0 bytes cannot be read, so it is damaged"),
        (b"\x80\x02}q\x00", "its 5 bytes cannot be read, so it is damaged"),
        (b"7", "opt_state'], and holds 55"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_described(tmp_path, content, said):
    file = tmp_path / "ckpt-1.flax"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"is not a published checkpoint, .* Download") as caught:
        official.load_official_checkpoint(file)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_msgpack_file(tmp_path):
    file = tmp_path / "ckpt-1.flax"
    file.write_bytes(serialization.msgpack_serialize({"step": np.zeros(()), "weights": {}}))
    with pytest.raises(ValueError, match="'params', 'ema_params', 'opt_state'"):
        official.load_official_checkpoint(file)


MODEL = {
    **SMALL,
    "gamma_type": "fixed",
    "gamma_min": -13.3,
    "gamma_max": 5.0,
    "sm_n_timesteps": 0,
    "schedule": "SP",
    "velocity": True,
    "importance": True,
    "second_order": True,
    "antithetic_time_sampling": False,
    "vocab_size": 256,
    "dequantization": "tn",
}


def test_configuration():
    model = official_config.model_of(MODEL)
    assert isinstance(model.schedule, StraightPath)
    assert isinstance(model.loss, SecondOrder)
    assert isinstance(model.time_sampler, Importance)
    assert isinstance(model.time_sampler.quantiles, Independent)
    assert model.network.dropout_rate == 0.1
    plain = official_config.model_of({**MODEL, "schedule": "VP"})
    assert isinstance(plain.time_sampler, VPVelocityImportance)
    noise = official_config.model_of({**MODEL, "velocity": False, "importance": False})
    assert isinstance(noise.parameterization, Noise)
    assert isinstance(noise.time_sampler, Uniform)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gamma_type": "learnable_nnet"}, "gamma_type"),
        ({"sm_n_timesteps": 1000}, "sm_n_timesteps"),
        ({"schedule": "VE"}, "Unknown `schedule` 'VE'"),
    ],
)
def test_configurations_beyond_the_paper(change, message):
    with pytest.raises(ValueError, match=message):
        official_config.model_of({**MODEL, **change})
    with pytest.raises(ValueError, match="dequantization"):
        official_config.dequantizer_of({**MODEL, "dequantization": "x"})
