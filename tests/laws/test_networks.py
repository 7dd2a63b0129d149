"""Laws of every network, and facts of the U-Net."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec
from scipy import special

from idode_gin.networks import base, blocks, embeddings, layers, stacking, unet
from idode_gin.networks.unet import UNet

TINY = {"channels": 8, "levels": 1, "groups": 4, "fourier_exponents": (1,)}

NETWORKS = {
    "plain": UNet(**TINY),
    "no fourier": UNet(**{**TINY, "fourier_exponents": ()}),
    "attention everywhere, two heads": UNet(**TINY, attention_everywhere=True, attention_heads=2),
    "three numbers of conditioning": UNet(**TINY, conditioning_size=3),
    "no levels": UNet(**{**TINY, "levels": 0}),
    "in loops": UNet(**TINY, scan=True, remat="full"),
}

SIZES = [(4, 4, 3), (3, 5, 3), (32, 16, 3)]

every_network = pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS.keys())


def shapes_of_parameters(network, image_shape):
    return jax.eval_shape(lambda: network.init(jax.random.key(0), image_shape))


def perturbed(network, image_shape):
    """Random parameters without zero leaves, drawn by NumPy to avoid compilation."""
    generator = np.random.default_rng(0)

    def draw(leaf):
        fan_in = max(1, int(np.prod(leaf.shape[:-1])))
        scale = fan_in**-0.5 if len(leaf.shape) > 1 else 0.1
        offset = 1.0 if len(leaf.shape) == 1 else 0.0
        return jnp.asarray(offset + scale * generator.normal(size=leaf.shape), leaf.dtype)

    return jax.tree.map(draw, shapes_of_parameters(network, image_shape))


def inputs(network, batch, image_shape):
    generator = np.random.default_rng(1)
    return (
        jnp.asarray(generator.normal(size=(batch, *image_shape)), jnp.float32),
        jnp.asarray(generator.uniform(size=batch), jnp.float32),
        jnp.asarray(generator.normal(size=(batch, network.conditioning_size)), jnp.float32),
    )


@every_network
@pytest.mark.parametrize("shape", [(4, 4, 3), (3, 5, 1), (1, 1, 2)])
def test_output_has_shape_and_dtype_of_latents(network, shape):
    params = shapes_of_parameters(network, shape)
    output = jax.eval_shape(network, params, *inputs(network, 2, shape))
    assert output.shape == (2, *shape)
    assert output.dtype == jnp.float32


@every_network
def test_parameters_do_not_depend_on_height_and_width(network):
    shapes = [shapes_of_parameters(network, size) for size in SIZES]
    assert shapes[0] == shapes[1] == shapes[2]
    output = jax.eval_shape(network, shapes[0], *inputs(network, 2, SIZES[1]))
    assert output.shape == (2, *SIZES[1])


@pytest.mark.full_cases(".*(no fourier|three numbers|attention everywhere|in loops).*", "plain")
@every_network
def test_initial_network_returns_its_input(network):
    params = network.init(jax.random.key(0), (4, 4, 3))
    z, time, conditioning = inputs(network, 2, (4, 4, 3))
    np.testing.assert_array_equal(jax.jit(network)(params, z, time, conditioning), z)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


@pytest.mark.full_cases(
    ".*(no fourier|three numbers|attention everywhere|in loops).*", "no (levels|fourier)"
)
@every_network
def test_an_image_does_not_see_its_batch(network):
    params = perturbed(network, (4, 4, 3))
    z, time, conditioning = inputs(network, 5, (4, 4, 3))
    apply = jax.jit(network)
    together = apply(params, z, time, conditioning)
    alone = apply(params, z[3:4], time[3:4], conditioning[3:4])
    others = apply(params, z.at[:3].mul(7.0), time.at[:3].set(0.5), conditioning)
    bound = 1e-6 * float(jnp.max(jnp.abs(alone)))
    np.testing.assert_allclose(together[3:4], alone, atol=bound, rtol=0)
    np.testing.assert_allclose(together[3:], others[3:], atol=bound, rtol=0)


@pytest.mark.full_cases(".*(no fourier|three numbers|attention everywhere|in loops).*")
@every_network
def test_time_and_conditioning_matter(network):
    params = perturbed(network, (4, 4, 3))
    z, time, conditioning = inputs(network, 2, (4, 4, 3))

    def total(time, conditioning):
        weights = jnp.arange(z.size).reshape(z.shape) % 7 - 3.0
        return jnp.sum(weights * network(params, z, time, conditioning))

    by_time, by_conditioning = jax.jit(jax.grad(total, (0, 1)))(time, conditioning)
    assert np.all(np.abs(by_time) > 1e-3)
    assert np.all(np.abs(by_conditioning) > 1e-5)


def test_one_channel_per_group_cannot_see_time():
    """Why `min_channels_per_group` is 2: the published flaw, reproduced on request."""
    network = UNet(**{**TINY, "groups": 8}, min_channels_per_group=1)
    params = perturbed(network, (4, 4, 3))
    z, time, conditioning = inputs(network, 2, (4, 4, 3))
    apply = jax.jit(network)
    here = apply(params, z, time, conditioning)
    there = apply(params, z, 1 - time, conditioning + 1)
    np.testing.assert_allclose(here, there, atol=1e-4)


@pytest.mark.full_cases("(three numbers|attention).*", "no (levels|fourier)", "in loops")
@every_network
def test_forward_and_reverse_derivatives_agree(network):
    params = perturbed(network, (3, 3, 2))
    z, time, conditioning = inputs(network, 2, (3, 3, 2))
    left, right = np.random.default_rng(9).normal(size=(2, *z.shape)).astype(np.float32)

    def fn(z):
        return network(params, z, time, conditioning)

    @jax.jit
    def products(z):
        _, pushed = jax.jvp(fn, (z,), (right,))
        (pulled,) = jax.vjp(fn, z)[1](left)
        return jnp.vdot(left, pushed), jnp.vdot(pulled, right)

    forward, reverse = products(z)
    assert abs(forward) > 0.1
    np.testing.assert_allclose(forward, reverse, rtol=1e-4)


def test_bfloat16_blocks_return_the_dtype_of_latents():
    params = perturbed(UNet(**TINY), (4, 4, 3))
    arguments = inputs(UNet(**TINY), 3, (4, 4, 3))
    exact = jax.jit(UNet(**TINY))(params, *arguments)
    coarse = jax.jit(UNet(**TINY, dtype="bfloat16"))(params, *arguments)
    assert coarse.dtype == jnp.float32
    error = float(jnp.max(jnp.abs(coarse - exact)) / jnp.max(jnp.abs(exact)))
    assert 1e-4 < error < 0.05
    fine = UNet(**TINY, dtype="bfloat16").in_full_precision()
    np.testing.assert_array_equal(jax.jit(fine)(params, *arguments), exact)
    named = [UNet(**TINY, dtype=dtype).coarse_dtype for dtype in (None, "float32", "float16")]
    assert named == [None, None, "float16"]
    shapes = shapes_of_parameters(UNet(**TINY, dtype="bfloat16"), (4, 4, 3))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}


@pytest.mark.full
def test_float64_throughout(float64):
    """A hidden cast to float32 would show as a difference quotient that stops converging."""
    network = NETWORKS["attention everywhere, two heads"]
    params = perturbed(network, (3, 3, 2))
    params = jax.tree.map(lambda leaf: leaf.astype("float64"), params)
    z, time, conditioning = (each.astype("float64") for each in inputs(network, 2, (3, 3, 2)))
    direction = jnp.asarray(np.random.default_rng(3).normal(size=z.shape))

    @jax.jit
    def fn(z, time):
        return network(params, z, time, conditioning)

    pair = (direction, jnp.ones_like(time))
    output, pushed = jax.jit(lambda z, time: jax.jvp(fn, (z, time), pair))(z, time)
    assert output.dtype == jnp.float64
    step = 1e-6
    ahead = fn(z + step * direction, time + step)
    behind = fn(z - step * direction, time - step)
    np.testing.assert_allclose((ahead - behind) / (2 * step), pushed, rtol=1e-5, atol=1e-5)


def test_bias_of_the_keys_of_attention_changes_nothing():
    """Softmax cancels it. Adam therefore moves it by rounding alone, otherwise on every mesh."""
    network = NETWORKS["plain"]
    params, arguments = perturbed(network, (4, 4, 3)), inputs(network, 2, (4, 4, 3))
    place = params["middle_0"]["attention"]["key"]
    apply = jax.jit(network)
    before = apply(params, *arguments)
    place["bias"] = place["bias"] + jnp.arange(place["bias"].size, dtype=jnp.float32)
    np.testing.assert_allclose(apply(params, *arguments), before, atol=1e-5)


@pytest.mark.parametrize("heads", [1, 3])
def test_attention_weighs_the_pixels_of_each_head_by_its_own_scaled_products(heads):
    channels = 6
    block = blocks.AttentionBlock(heads=heads, groups=2, dtype=None)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 2, channels)), jnp.float32)
    params = nn.unbox(block.init(jax.random.key(0), x))["params"]
    random = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype("float32"), params)
    found = block.apply({"params": params}, x) - x

    groups = np.asarray(x, float).reshape(2, 6, 2, channels // 2)
    mean, variance = (fn(groups, axis=(1, 3), keepdims=True) for fn in (np.mean, np.var))
    normed = ((groups - mean) / np.sqrt(variance + 1e-6)).reshape(2, 6, channels)
    normed = normed * params["norm"]["scale"] + params["norm"]["bias"]
    query, key, value = (
        normed @ params[name]["kernel"] + params[name]["bias"] for name in ("query", "key", "value")
    )
    size = channels // heads
    attended = np.zeros_like(value)
    for part in (slice(head * size, (head + 1) * size) for head in range(heads)):
        products = query[..., part] @ key[..., part].swapaxes(1, 2) / np.sqrt(size)
        attended[..., part] = special.softmax(products, axis=2) @ value[..., part]
    expected = attended @ params["out"]["kernel"] + params["out"]["bias"]
    np.testing.assert_allclose(found.reshape(2, 6, channels), expected, rtol=1e-4, atol=1e-4)


class TestDropout:
    network = UNet(**TINY, dropout_rate=0.5)

    def test_off_without_keys(self):
        params = perturbed(self.network, (4, 4, 3))
        arguments = inputs(self.network, 2, (4, 4, 3))
        np.testing.assert_array_equal(
            jax.jit(self.network)(params, *arguments), jax.jit(UNet(**TINY))(params, *arguments)
        )

    @pytest.mark.full
    def test_keyed_per_example(self):
        params = perturbed(self.network, (4, 4, 3))
        z, time, conditioning = inputs(self.network, 4, (4, 4, 3))
        keys = jax.random.split(jax.random.key(5), 4)
        apply = jax.jit(self.network)
        together = apply(params, z, time, conditioning, keys)
        again = [each[jnp.full(4, 2)] for each in (z, time, conditioning, keys)]
        alone = apply(params, *again)[:1]
        scale = float(jnp.max(jnp.abs(alone)))
        np.testing.assert_allclose(together[2:3], alone, atol=1e-6 * scale)
        other = apply(params, z, time, conditioning, keys.at[2].set(jax.random.key(6)))
        assert np.max(np.abs(other[2] - together[2])) > 1e-3 * scale
        np.testing.assert_allclose(other[3], together[3], atol=1e-6 * scale)

    def test_mask_differs_between_examples_and_keeps_the_mean(self):
        x = jnp.ones((2, 64, 64, 8))
        dropped = blocks.dropout(x, jax.random.split(jax.random.key(0), 2), 0.25)
        assert set(np.unique(dropped)) == {np.float32(0), np.float32(1 / 0.75)}
        assert abs(float(dropped.mean()) - 1) < 0.01
        assert np.any(dropped[0] != dropped[1])

    def test_every_block_has_its_own_mask(self):
        """With equal blocks and equal input, equal keys per block would give equal masks."""
        keys = jax.random.split(jax.random.key(0), 2)
        names = [(part, i) for part in ("down", "up", "middle") for i in range(3)]
        data = [jax.random.key_data(unet._keys_of_stage(keys, *name)) for name in names]
        assert len(np.unique(np.stack(data)[:, 0], axis=0)) == len(names)


def test_split_dense_is_the_layer_of_both_inputs_side_by_side():
    generator = np.random.default_rng(3)
    first, second = jnp.asarray(generator.normal(size=(2, 3, 2, 2, 4)), jnp.float32)
    layer = layers.SplitDense(5, ("channels_in", "channels"), jnp.float32)
    params = layers.unboxed(layer.init(jax.random.key(0), first, second))["params"]
    kernel, bias = (generator.normal(size=params[name].shape) for name in ("kernel", "bias"))
    found = layer.apply({"params": {"kernel": kernel, "bias": bias}}, first, second)
    joined = np.concatenate([first, second], axis=-1).astype(np.float64)
    expected = joined @ kernel + bias
    terms = np.abs(joined) @ np.abs(kernel) + np.abs(bias)
    # Each parameter and each of 8 products and 8 sums is rounded once to float32.
    np.testing.assert_array_less(np.abs(found - expected), 10 * 2.0**-24 * terms)
    dense = layers.dense(5, ("channels_in", "channels"), jnp.float32, "shortcut")
    whole = layers.unboxed(dense.init(jax.random.key(0), jnp.concatenate([first, second], -1)))
    jax.tree.map(np.testing.assert_array_equal, params, whole["params"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": 48, "groups": 32}, "next valid `channels` is 64"),
        ({"channels": 32, "groups": 32}, "min_channels_per_group=1"),
        ({"channels": 9, "groups": 3}, "must be even, got 9"),
        ({"channels": 2, "groups": 1}, "at least 4"),
        ({"attention_heads": 3}, "attention_heads"),
        ({"levels": -1}, "levels"),
        ({"fourier_exponents": (6, -1)}, "`fourier_exponents` must be an integer"),
        ({"fourier_exponents": (6, 130)}, "at most 32.*got 130"),
        ({"groups": 0}, "groups"),
        ({"dropout_rate": 1.0}, "dropout_rate"),
        ({"remat": "convolution"}, "Did you mean 'convolutions'"),
        ({"dtype": "int32"}, "floating-point"),
        ({"dtype": "brainfloat"}, "floating-point"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        UNet(**{"channels": 64, **arguments})


def test_wrong_conditioning():
    network = UNet(**TINY)
    params = shapes_of_parameters(network, (4, 4, 3))
    z, time, conditioning = inputs(network, 2, (4, 4, 3))
    with pytest.raises(ValueError, match="conditioning_size"):
        jax.eval_shape(network, params, z, time, jnp.tile(conditioning, 3))


class TestLoops:
    network = UNet(**{**TINY, "levels": 2})
    looped = dataclasses.replace(network, scan=True)

    @pytest.mark.parametrize(
        "dropout_rate", [0.0, pytest.param(0.5, marks=pytest.mark.full)], ids=["plain", "dropout"]
    )
    def test_equal_blocks_one_by_one(self, float64, dropout_rate):
        """Compare output, gradient and dropout masks, also with rematerialized blocks."""
        network, looped = (
            dataclasses.replace(each, dropout_rate=dropout_rate)
            for each in (self.network, self.looped)
        )
        params = perturbed(network, (4, 4, 3))
        params = jax.tree.map(lambda leaf: leaf.astype("float64"), params)
        arguments = [each.astype("float64") for each in inputs(network, 2, (4, 4, 3))]
        keys = jax.random.split(jax.random.key(5), 2)

        def value_and_grad(network, params):
            def total(params):
                return jnp.mean(network(params, *arguments, keys) ** 2)

            return jax.jit(jax.value_and_grad(total))(params)

        value, gradient = value_and_grad(network, params)
        loop_value, loop_gradient = value_and_grad(
            dataclasses.replace(looped, remat="convolutions"), stacking.stacked(params)
        )
        np.testing.assert_allclose(loop_value, value, rtol=1e-12)
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-12),
            stacking.unrolled(loop_gradient),
            gradient,
        )

    def test_there_and_back(self):
        params = perturbed(self.network, (4, 4, 3))
        stacked = stacking.stacked(params)
        shapes = shapes_of_parameters(self.looped, (4, 4, 3))
        assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(lambda each: each.shape, shapes)
        jax.tree.map(np.testing.assert_array_equal, stacking.unrolled(stacked), params)

    def test_more_than_nine_blocks_stay_in_order(self):
        names = [f"{part}_{i}" for i in range(11) for part in ("up", "down")]
        params = {name: {"a": jnp.full(1, int(name.split("_")[1]))} for name in names}
        np.testing.assert_array_equal(stacking.stacked(params)["up"]["a"][:, 0], np.arange(11))

    def test_parameters_of_the_other_form(self):
        for network, other in ((self.network, self.looped), (self.looped, self.network)):
            params = shapes_of_parameters(other, (4, 4, 3))
            with pytest.raises(ValueError, match=r"networks.stacking.(stacked|unrolled)\(params\)"):
                jax.eval_shape(network, params, *inputs(network, 2, (4, 4, 3)))


def mean_square(levels, **arguments):
    """Return the mean square output as a function of parameters, and the parameter shapes."""
    network = UNet(**{**TINY, "levels": levels}, **arguments)
    given = inputs(network, 16, (8, 8, 3))
    params = shapes_of_parameters(network, (8, 8, 3))
    return (lambda params: jnp.mean(network(params, *given) ** 2)), params


@pytest.mark.full_cases("False")
@pytest.mark.parametrize("scan", [False, True])
def test_what_the_gradient_keeps(scan):
    def kept(name):
        fn, params = mean_square(4, remat=name, scan=scan)
        pull = jax.eval_shape(lambda params: jax.vjp(fn, params)[1], params)
        return sum(leaf.size for leaf in jax.tree.leaves(pull))

    everything, full, convolutions = (kept(name) for name in (None, "full", "convolutions"))
    assert full < convolutions < 0.25 * everything


def test_a_program_in_loops_does_not_grow_with_depth():
    def length(levels):
        fn, params = mean_square(levels, scan=True)
        return len(jax.jit(jax.grad(fn)).lower(params).as_text())

    assert length(32) < 1.05 * length(4)


@pytest.mark.full
def test_compiled_memory_in_loops():
    """Only in loops: elsewhere the CPU compiler may move the recomputation."""

    def scratch(name):
        fn, params = mean_square(12, remat=name, scan=True)
        compiled = jax.jit(jax.grad(fn)).lower(params).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert scratch("full") < 0.6 * scratch(None)


@pytest.mark.parametrize("c", [128, 256])
def test_number_of_parameters(c):
    """Counted by hand from the description: one formula per layer."""
    levels, colours = 32, 3

    def block(inputs):
        shortcut = 0 if inputs == c else inputs * c + c
        norms = 2 * inputs + 2 * c
        return norms + 9 * inputs * c + c + 4 * c * c + 9 * c * c + c + shortcut

    embedding = (c + 1) * 4 * c + 4 * c + 16 * c * c + 4 * c
    ends = 9 * 5 * colours * c + c + 2 * c + 9 * c * colours + colours
    middle = 2 * block(c) + 2 * c + 4 * (c * c + c)
    count = embedding + ends + middle + levels * block(c) + (levels + 1) * block(2 * c)
    params = shapes_of_parameters(UNet(channels=c), (32, 32, colours))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count
    assert count == {128: 30_578_179, 256: 122_137_603}[c]


def test_timestep_embedding_by_numpy():
    time = np.array([0.0, 0.25, 1.0], np.float32)
    found = embeddings.timestep_embedding(jnp.asarray(time), 6)
    angles = 1000.0 * time[:, None].astype(float) * np.array([1.0, 1e-2, 1e-4])
    np.testing.assert_allclose(
        found, np.concatenate([np.sin(angles), np.cos(angles)], 1), atol=1e-4
    )


def test_fourier_features_by_numpy():
    z = np.random.default_rng(0).normal(size=(2, 3, 3, 2)).astype(np.float32)
    found = embeddings.fourier_features(jnp.asarray(z), (0, 7))
    columns = [2 * np.pi * 2.0**k * z[..., c].astype(float) for c in range(2) for k in (0, 7)]
    angles = np.stack(columns, -1)
    expected = np.concatenate([np.sin(angles), np.cos(angles)], -1)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    slope = jax.grad(lambda z: embeddings.fourier_features(z, (7,))[0, 0, 0, 0])(jnp.asarray(z))
    expected = 2 * np.pi * 128 * np.cos(2 * np.pi * 128 * float(z[0, 0, 0, 0]))
    np.testing.assert_allclose(slope[0, 0, 0, 0], expected, rtol=1e-3)


def flat(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


@every_network
def test_every_axis_has_a_name(network):
    names = flat(network.logical_axes((4, 4, 3)))
    shapes = flat(shapes_of_parameters(network, (4, 4, 3)))
    assert names.keys() == shapes.keys()
    for path, leaf in shapes.items():
        assert len(names[path]) == leaf.ndim == len(set(names[path]) - {None}), path
    described = re.findall(r"\w+", layers.__doc__)
    assert {name for each in names.values() for name in each} <= set(described)


def test_names_and_sizes_at_the_published_size():
    network = UNet(channels=128)
    names = flat(network.logical_axes((32, 32, 3)))
    shapes = flat(shapes_of_parameters(network, (32, 32, 3)))
    sizes = {}
    for path, leaf in shapes.items():
        for name, size in zip(names[path], leaf.shape, strict=True):
            sizes.setdefault(name, set()).add(size)
    assert sizes == {
        "kernel_height": {3},
        "kernel_width": {3},
        "features": {129, 15},
        "embedding_in": {512},
        "embedding": {512},
        "channels": {128},
        "channels_in": {128, 256},
        "hidden": {128},
        "heads": {128},
        "image": {3},
    }


def test_a_network_without_names_gives_none():
    class Nameless(base.AbstractNetwork):
        def init(self, key, image_shape):
            return {"a": jnp.zeros((2, 3)), "b": jnp.zeros(())}

        def __call__(self, params, z, time, conditioning, key=None):
            return z

    names = Nameless().logical_axes((4, 4, 1))
    assert names == {"a": PartitionSpec(None, None), "b": PartitionSpec()}
