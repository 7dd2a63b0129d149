"""Counts that need no device: arithmetic of a traced program, bytes of what it holds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from idode_gin.devices import accounting, flops, mesh, partitioning
from idode_gin.networks.unet import UNet

A, B = jnp.zeros((4, 8)), jnp.zeros((8, 16))
IMAGES, KERNEL = jnp.zeros((2, 5, 5, 3)), jnp.zeros((3, 3, 3, 4))


def convolve(images, kernel):
    return jax.lax.conv_general_dilated(
        images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


PRODUCT, CONVOLUTION = 2 * 4 * 8 * 16, 2 * (2 * 5 * 5) * 9 * 3 * 4


def squares(a, b):
    return jnp.sum((a @ b) ** 2)


@pytest.mark.parametrize(
    ("fn", "arguments", "expected"),
    [
        (jnp.matmul, (A, B), PRODUCT),
        (jax.jit(jnp.matmul), (A, B), PRODUCT),
        (jax.vmap(jnp.matmul), (jnp.zeros((7, 4, 8)), jnp.zeros((7, 8, 16))), 7 * PRODUCT),
        (jax.grad(squares), (A, B), 2 * PRODUCT),
        (jax.grad(squares, (0, 1)), (A, B), 3 * PRODUCT),
        (jax.grad(jax.checkpoint(squares), (0, 1)), (A, B), 4 * PRODUCT),
        (convolve, (IMAGES, KERNEL), CONVOLUTION),
        (jax.grad(lambda x, k: jnp.sum(convolve(x, k) ** 2), (0, 1)), (IMAGES, KERNEL), None),
        (lambda a, b: jax.lax.map(lambda row: row @ b, a), (A, B), PRODUCT),
        (lambda a, b: jax.lax.cond(True, lambda: a @ b, lambda: a[:, :1] @ b[:1]), (A, B), PRODUCT),
        (jnp.add, (A, A), 0),
    ],
)
def test_arithmetic_by_hand(fn, arguments, expected):
    assert flops.count(fn, *arguments) == (3 * CONVOLUTION if expected is None else expected)


def test_arithmetic_of_cudnns_attention(monkeypatch):
    """Two products, and four in the gradient, as in the formula."""
    found = "jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version"
    monkeypatch.setattr(found, lambda: 91000)
    query, keys = jnp.zeros((2, 6, 3, 8), jnp.bfloat16), jnp.zeros((2, 10, 3, 8), jnp.bfloat16)

    def total(query, key, value):
        y = jax.nn.dot_product_attention(query, key, value, implementation="cudnn")
        return jnp.sum(y.astype(jnp.float32))

    product = 2 * (2 * 3) * 6 * 10 * 8
    assert flops.count(total, query, keys, keys) == 2 * product
    assert flops.count(jax.grad(total), query, keys, keys) == 6 * product


def test_arithmetic_of_a_network_agrees_with_the_compilers_analysis():
    """Which adds elementwise work, and leaves out the padding of a convolution's edges."""
    network = UNet(channels=64, levels=1)
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), (32, 32, 3)))
    z = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    time, conditioning = (jax.ShapeDtypeStruct(s, np.float32) for s in ((1,), (1, 1)))
    ours = flops.count(network, shapes, z, time, conditioning)
    theirs = jax.jit(network).lower(shapes, z, time, conditioning).cost_analysis()["flops"]
    assert theirs == pytest.approx(ours, rel=0.06)


def test_bytes_on_a_device():
    places = mesh.abstract((1, 4, 1), (1, 1, 1))
    split = jax.ShapeDtypeStruct((8, 3), np.float32, sharding=NamedSharding(places, P("fsdp")))
    whole = jax.ShapeDtypeStruct((5,), np.int16)
    assert accounting.bytes_per_device({"a": split, "b": [whole]}) == 8 * 3 * 4 // 4 + 10


def test_what_a_gradient_keeps():
    """A chain of sines keeps a cosine for each; with checkpoints, only what goes in."""
    x = jax.ShapeDtypeStruct((1000,), np.float32)
    scale = jax.ShapeDtypeStruct((), np.float32)

    def chain(scale, x):
        for _ in range(10):
            x = jnp.sin(x * scale)
        return jnp.sum(x)

    kept = accounting.kept_bytes(chain, scale, x)
    # Of each link the cosine and what the scale multiplied.
    assert kept == pytest.approx(20 * 4000, rel=0.01)
    assert accounting.kept_bytes(jax.checkpoint(chain), scale, x) == pytest.approx(4000, rel=0.01)


def test_table_of_parameters():
    params = {"layer": {"kernel": jax.ShapeDtypeStruct((8, 4), np.float32)}}
    names = {"layer": {"kernel": P("channels", "hidden")}}
    partitioner = partitioning.PjitPartitioner(mesh_shape=(1, 2, 2)).without_devices()
    split = partitioning.abstract(params, partitioner.param_sharding(params, names))
    row = accounting.parameter_table(split, names).splitlines()[3]
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells == ["layer/kernel", "8, 4", "float32", "channels, hidden", "fsdp, model", "32"]
    assert accounting.parameter_table(params).endswith("Total: 32 parameters")


def test_memory_counts_gathered_parameters_where_they_are_split():
    params = {"kernel": jax.ShapeDtypeStruct((8, 4), np.float32)}
    names = {"kernel": P("channels", "hidden")}

    class State:
        pass

    for fsdp in (1, 2):
        partitioner = partitioning.PjitPartitioner(mesh_shape={"fsdp": fsdp}).without_devices()
        shardings = partitioner.param_sharding(params, names)
        state = State()
        state.params = state.ema = state.opt_state = partitioning.abstract(params, shardings)
        found = accounting.state_bytes(state, partitioner.as_used(shardings))
        assert found.get("parameters, gathered") == (128 if fsdp == 2 else None)
        assert found["parameters"] == 128 // fsdp
