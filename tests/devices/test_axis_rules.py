"""Rules: which axis of an array is split over which axis of the mesh."""

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import PartitionSpec as P

from idode_gin.devices import axis_rules
from idode_gin.networks.unet import UNet
from idode_gin.reports import fingerprints
from idode_gin.training import optimizers

SIZES = {"data": 2, "fsdp": 4, "model": 2}
CONV = ("kernel_height", "kernel_width", "channels_in", "hidden")


@pytest.mark.parametrize(
    ("names", "shape", "expected"),
    [
        (CONV, (3, 3, 8, 8), P(None, None, "fsdp", "model")),
        (CONV, (3, 3, 6, 8), P(None, None, None, ("model", "fsdp"))),
        (CONV, (3, 3, 6, 6), P(None, None, None, "model")),
        (("hidden",), (8,), P(("model", "fsdp"))),
        (("hidden",), (4,), P("model")),
        (("hidden", "channels"), (8, 8), P("model", "fsdp")),
        (("channels", "image"), (6, 3), P()),
        (("features", "channels"), (15, 8), P(None, "fsdp")),
        ((None, None), (8, 8), P()),
        ((), (), P()),
    ],
)
def test_default_rules(names, shape, expected):
    assert axis_rules.spec(names, shape, axis_rules.DEFAULT, SIZES) == expected


def test_first_rule_wins_and_none_ends_them():
    def spec(*rules):
        return axis_rules.spec(("a", "b"), (8, 8), rules, SIZES)

    assert spec(("a", "fsdp"), ("b", "fsdp")) == P("fsdp", None)
    assert spec(("b", "fsdp"), ("a", "fsdp")) == P(None, "fsdp")
    assert spec(("a", None), ("a", "fsdp"), ("b", "data")) == P(None, "data")
    assert spec(("a", ("data", "fsdp"))) == P(("data", "fsdp"), None)


def test_an_axis_of_size_one_splits_nothing():
    sizes = {"data": 8, "fsdp": 1, "model": 1}
    assert axis_rules.spec(CONV, (3, 3, 8, 7), axis_rules.DEFAULT, sizes) == P()


def test_channels_that_model_does_not_divide():
    with pytest.raises(ValueError, match=r"hidden=7 in x/y and model=2\. The next valid size is 8"):
        axis_rules.spec(CONV, (3, 3, 8, 7), axis_rules.DEFAULT, SIZES, "x/y")


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([("channels", "fdsp")], r"'fdsp'.*\('channels', 'fdsp'\).*Did you mean 'fsdp'"),
        ([("channels", ("data", "modle"))], "Did you mean 'model'"),
        ([("channels",)], "pairs"),
        ([(3, "data")], "pairs"),
        (["ab"], "pairs"),
    ],
)
def test_rules_that_are_none(rules, message):
    with pytest.raises(ValueError, match=message):
        axis_rules.check(rules)


def test_a_rule_for_an_axis_of_nothing():
    names = UNet(channels=8, groups=4, levels=0).logical_axes((4, 4, 3))
    axis_rules.check_names(axis_rules.DEFAULT, names)
    with pytest.raises(ValueError, match=r"'chanels'.*Did you mean 'channels'"):
        axis_rules.check_names([("chanels", "fsdp")], names)


def test_every_parameter_of_the_published_network_divides():
    network = UNet(channels=128, levels=2)
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), (32, 32, 3)))
    names = network.logical_axes((32, 32, 3))
    for fsdp in (2, 4, 8, 16):
        sizes = {"data": 1, "fsdp": fsdp, "model": 1}
        leaves = jax.tree_util.tree_leaves_with_path(shapes)
        whole = [
            fingerprints.path_name(path)
            for (path, leaf), each in zip(leaves, jax.tree.leaves(names), strict=True)
            if axis_rules.spec(tuple(each), leaf.shape, axis_rules.DEFAULT, sizes) == P()
        ]
        assert whole == ["conv_out/bias"]


PARAMS = {"a": {"kernel": jnp.zeros((4, 8)), "bias": jnp.zeros(8)}, "bias": jnp.zeros(3)}
MARKS = {"a": {"kernel": "A kernel", "bias": "A bias"}, "bias": "BIAS"}


def marks(transformation):
    state = transformation.init(PARAMS)
    found = axis_rules.like_parameters(state, PARAMS, "whole", MARKS)
    assert jax.tree.structure(found) == jax.tree.structure(state)
    return sorted(jax.tree.leaves(found))


@pytest.mark.parametrize(
    ("transformation", "copies"),
    [
        (optax.sgd(0.1), 0),
        (optax.sgd(0.1, momentum=0.9), 1),
        (optimizers.AdamW().build(), 2),
        (optimizers.AdamW(clip_norm=1.0, accumulation_steps=2).build(), 3),
        (optax.chain(optax.clip(1.0), optax.lion(0.1), optax.ema(0.9)), 2),
        (
            optax.multi_transform(
                {"x": optax.adam(0.1), "y": optax.sgd(0.1)},
                lambda params: jax.tree.map(lambda _: "x", params),
            ),
            2,
        ),
    ],
)
def test_what_an_optimizer_keeps_is_split_like_its_parameter(transformation, copies):
    found = marks(transformation)
    for mark in ("A kernel", "A bias", "BIAS"):
        assert found.count(mark) == copies
    assert all(mark == "whole" for mark in found if mark not in ("A kernel", "A bias", "BIAS"))


def test_factored_moments_stay_whole():
    state = optax.adafactor(0.1, min_dim_size_to_factor=2, momentum=None).init(PARAMS)
    found = axis_rules.like_parameters(state, PARAMS, "whole", MARKS)
    factored = [leaf for leaf in jax.tree.leaves(found) if leaf == "A kernel"]
    assert factored == []


def test_only_one_axis_is_kept():
    assert axis_rules.only("model", P(("model", "fsdp"), None, "data")) == P("model", None, None)
    assert axis_rules.only("model", P("fsdp", None)) == P()
