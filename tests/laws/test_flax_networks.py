"""A linen and an NNX module as a network."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from own_networks import (
    Flat,
    LinenNet,
    ListedNet,
    NNXNet,
    Normalized,
    NormalizedNNX,
)

from idode_gin.networks.flax_module import FlaxNetwork
from idode_gin.networks.unet import UNet

SHAPE = (4, 4, 1)
NETWORKS = {
    "linen": FlaxNetwork(module=LinenNet()),
    "nnx": FlaxNetwork(module=NNXNet),
    "nnx, by a function": FlaxNetwork(module=functools.partial(NNXNet, 6)),
    "nnx, in a list": FlaxNetwork(module=ListedNet),
}
every_network = pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS.keys())


def inputs(count=3, seed=0):
    generator = np.random.default_rng(seed)
    z = jnp.asarray(generator.normal(size=(count, *SHAPE)), jnp.float32)
    time = jnp.asarray(generator.uniform(size=count), jnp.float32)
    return z, time, jnp.zeros((count, 1))


@every_network
def test_a_function_of_parameters_and_each_image(network):
    params = network.init(jax.random.key(0), SHAPE)
    assert jax.tree.all(jax.tree.map(lambda leaf: leaf.dtype == jnp.float32, params))
    z, time, conditioning = inputs()
    call = jax.jit(network)
    output = call(params, z, time, conditioning)
    assert (output.shape, output.dtype) == (z.shape, z.dtype)
    np.testing.assert_array_equal(call(params, z, time, conditioning), output)
    np.testing.assert_array_equal(  # dropout is off
        call(params, z, time, conditioning, jax.random.split(jax.random.key(1), 3)), output
    )
    other = z.at[1:].set(0.0)
    np.testing.assert_allclose(call(params, other, time, conditioning)[0], output[0], atol=1e-6)
    gradient = jax.grad(lambda p: jnp.sum(network(p, z, time, conditioning) ** 2))(params)
    assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(gradient))


def test_linen_and_nnx_are_the_same_function_of_the_same_parameters():
    linen, nnx = NETWORKS["linen"], NETWORKS["nnx"]
    params = linen.init(jax.random.key(0), SHAPE)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(
        jnp.shape, nnx.init(jax.random.key(0), SHAPE)
    )
    np.testing.assert_allclose(linen(params, *inputs()), nnx(params, *inputs()), atol=1e-6)


def test_layers_in_a_list_keep_their_order():
    network = NETWORKS["nnx, in a list"]
    params = network.init(jax.random.key(0), SHAPE)
    assert set(params["layers"]) == {str(number) for number in range(11)}
    biases = {
        number: {"kernel": jnp.full((1, 1, 1, 1), 2.0), "bias": jnp.array([float(number)])}
        for number in params["layers"]
    }
    z, *rest = inputs()
    expected = z
    for number in range(11):
        expected = 2 * expected + number
    np.testing.assert_allclose(network({"layers": biases}, z, *rest), expected, rtol=1e-6)


@pytest.mark.parametrize("module", [Normalized(), NormalizedNNX])
def test_state_is_refused(module):
    with pytest.raises(ValueError, match="must be a function of its parameters"):
        FlaxNetwork(module=module).init(jax.random.key(0), SHAPE)


@pytest.mark.parametrize("module", [LinenNet, NNXNet(rngs=nnx.Rngs(0))])
def test_what_is_no_module(module):
    with pytest.raises(ValueError, match="`module` must be a linen module, such as"):
        FlaxNetwork(module=module)


def test_a_function_that_makes_no_module_is_refused():
    network = FlaxNetwork(module=lambda rngs: 3)
    with pytest.raises(
        ValueError, match=r"`module\(rngs=…\)` must be an instance of Module, got 3"
    ):
        network.init(jax.random.key(0), (4, 4, 1))


def test_another_shape_is_refused():
    network = FlaxNetwork(module=Flat())
    with pytest.raises(ValueError, match="must return one number for each of z"):
        network(network.init(jax.random.key(0), SHAPE), *inputs())


def test_coarse_arithmetic_of_a_linen_module_is_known():
    coarse = FlaxNetwork(module=LinenNet(dtype="bfloat16"))
    assert coarse.coarse_dtype == "bfloat16"
    assert coarse.in_full_precision() == NETWORKS["linen"]
    for each in NETWORKS.values():
        assert each.coarse_dtype is None
        assert each.in_full_precision() == each
    assert UNet().coarse_dtype is None
    assert dataclasses.replace(coarse, conditioning_size=2).coarse_dtype == "bfloat16"
