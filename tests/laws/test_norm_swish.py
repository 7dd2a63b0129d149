"""The fused kernel against flax's layers, one after another; and where the U-Net uses it."""

import functools
import json
import re
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import linen as nn

from idode_gin.devices import partitioning
from idode_gin.losses.first_order import FirstOrder
from idode_gin.losses.second_order import SecondOrder
from idode_gin.losses.unweighted import Unweighted
from idode_gin.networks import blocks, norm_swish
from idode_gin.networks.unet import UNet
from idode_gin.runs import descriptions
from idode_gin.training import dry_run

from .test_networks import inputs, perturbed

GROUPS, RATE = 8, 0.25
CASES = {"one input": (1, False), "two inputs": (2, False), "shift and dropout": (1, True)}
SIZES = {"several programs": (2, 96, 64), "wide groups": (1, 32, 512), "few channels": (2, 16, 16)}

every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def arrays(case, size, dtype):
    """Inputs, scale, bias and shift, with means far from 0; and the mask of dropout."""
    (count, is_full), (batch, *_, channels) = case, size
    draw = functools.partial(np.random.default_rng(0).normal, size=None)
    xs = tuple(jnp.asarray(i + draw(size=size), dtype) for i in range(count))
    scale, bias = (jnp.asarray(draw(size=count * channels)) for _ in range(2))
    if not is_full:
        return (xs, scale, bias, None), None
    keep = jax.random.bernoulli(jax.random.key(0), 1 - RATE, size)
    return (xs, scale, bias, jnp.asarray(draw(size=(batch, channels)), dtype)), keep


def fused(keep, xs, scale, bias, shift, groups=GROUPS, interpret=True):
    keep = None if keep is None else keep.astype(jnp.uint8)
    settings = {"groups": groups, "shift": shift, "keep": keep, "rate": RATE}
    return norm_swish.norm_swish(xs, scale, bias, **settings, interpret=interpret)


def one_after_another(keep, xs, scale, bias, shift):
    x = jnp.concatenate(xs, axis=-1)
    x = x if shift is None else x + shift[:, None, :]
    norm = nn.GroupNorm(GROUPS, dtype=x.dtype)
    y = nn.swish(norm.apply({"params": {"scale": scale, "bias": bias}}, x))
    return y if keep is None else jnp.where(keep, y / (1 - RATE), 0)


@every_case
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
def test_value_and_gradient_are_those_of_separate_layers(case, size):
    with jax.enable_x64(True):
        given, keep = arrays(case, size, jnp.float64)
        expected = one_after_another(keep, *given)
        np.testing.assert_allclose(fused(keep, *given), expected, rtol=1e-11, atol=1e-12)

        def total(function, given):
            y = function(keep, *given)
            return jnp.sum(jnp.cos(jnp.arange(y.size)).reshape(y.shape) * y)

        found, expected = (
            jax.grad(functools.partial(total, each))(given) for each in (fused, one_after_another)
        )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-11 * float(jnp.abs(b).max())),
            found,
            expected,
        )


@every_case
def test_bfloat16_is_rounded_once(case):
    """Separate layers round after each; the kernel is at most half a unit from the exact value."""
    given, keep = arrays(case, SIZES["several programs"], jnp.bfloat16)
    exact = jax.tree.map(lambda each: each.astype(jnp.float32), given)
    expected = np.asarray(one_after_another(keep, *exact))
    half_a_unit = 2.0**-8 * np.abs(expected) * (1 + 1e-3) + 1e-5

    def errors(function):
        return np.abs(np.asarray(function(keep, *given), np.float32) - expected)

    assert (errors(fused) <= half_a_unit).all()
    assert (errors(one_after_another) > half_a_unit).any()


@every_case
def test_triton_takes_every_operation(case):
    """Compilation for a GPU begins without one; XLA's own part of it needs NVIDIA's libraries."""
    given, keep = arrays(case, (2, 1024, 128), jnp.bfloat16)

    def total(given):
        y = fused(keep, *given, groups=32, interpret=False)
        return jnp.sum(y.astype(jnp.float32))

    lowered = jax.jit(jax.grad(total)).trace(given).lower(lowering_platforms=("cuda",))
    assert len(re.findall(r"custom_call @\S*triton", lowered.as_text())) == 2


ON_TWO_DEVICES = """
import json, re
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from idode_gin.networks import norm_swish

jax.config.update("jax_num_cpu_devices", 2)
mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
split, whole = (NamedSharding(mesh, PartitionSpec(*each)) for each in (("data",), ()))
x = np.random.default_rng(0).normal(size=(4, 32, 16)).astype(np.float32)

def total(x, scale, bias, groups=4):
    y = norm_swish.norm_swish((x,), scale, bias, groups=groups, interpret=True)
    return jnp.sum(jnp.cos(jnp.arange(y.size)).reshape(y.shape) * y)

step = jax.jit(jax.grad(total, (0, 1, 2)))
given = x, np.ones(16, np.float32), np.zeros(16, np.float32)
placed = [jax.device_put(each, where) for each, where in zip(given, (split, whole, whole))]
together = step(*placed)

def without_addresses(groups):
    lowered = jax.jit(lambda *given: total(*given, groups)).lower(*placed).as_text()
    return re.subn('backend_config = "[0-9]+"', "", lowered)

print(json.dumps({
    "alone": [np.asarray(each).tolist() for each in step(*given)],
    "together": [np.asarray(each).tolist() for each in together],
    "split": together[0].sharding.is_equivalent_to(split, 3),
    "programs": [without_addresses(groups) for groups in (4, 4, 2)],
    "gathers": len(re.findall("all-gather", step.lower(*placed).compile().as_text())),
}))
"""


def test_devices_share_a_batch_without_gathering_it():
    done = subprocess.run(
        [sys.executable, "-c", ON_TWO_DEVICES], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["split"]
    assert found["gathers"] == 0
    (four, addresses), again, (two, _) = found["programs"]
    assert addresses == 1
    assert again == [four, 1]
    assert two != four, "jax can leave addresses out of the key of its cache"
    for together, alone in zip(found["together"], found["alone"], strict=True):
        np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-5)


SMALL = {"channels": 16, "levels": 1, "groups": 4, "fourier_exponents": (), "fused": True}


@pytest.fixture
def on_gpu(monkeypatch):
    """The kernels as on a GPU, without one; calls of cuDNN's attention are counted."""
    calls, by_xla = [], jax.nn.dot_product_attention

    def attention(query, key, value, implementation):
        calls.append(implementation)
        return by_xla(query, key, value, implementation="xla")

    interpreted = functools.partial(norm_swish.norm_swish, interpret=True)
    monkeypatch.setattr(blocks, "compute_capability", lambda: 9.0)
    monkeypatch.setattr(norm_swish, "norm_swish", interpreted)
    monkeypatch.setattr(jax.nn, "dot_product_attention", attention)
    return calls


def is_fused(function, *given):
    return "custom_partitioning" in str(jax.make_jaxpr(function)(*given))


@pytest.mark.parametrize("scan", [False, pytest.param(True, marks=pytest.mark.full)])
def test_a_fused_network_has_the_same_value_gradient_and_dropout(scan, on_gpu):
    network = UNet(**SMALL, dropout_rate=0.5, scan=scan, attention_everywhere=True)
    shape = (4, 8, 3)
    params, given = perturbed(network, shape), inputs(network, 2, shape)
    with jax.enable_x64(True):
        params, given = jax.tree.map(lambda each: jnp.asarray(each, jnp.float64), (params, given))
        keys = jax.random.split(jax.random.key(0), 2)

        def total(function, params):
            y = function(params, *given, keys)
            return jnp.sum(jnp.cos(jnp.arange(y.size)).reshape(y.shape) * y)

        reverse, plain = (
            functools.partial(total, each) for each in (network.in_reverse_mode(), network)
        )
        assert is_fused(reverse, params)
        assert not is_fused(plain, params)
        found, expected = (jax.jit(jax.value_and_grad(each))(params) for each in (reverse, plain))
        largest = max(float(jnp.abs(each).max()) for each in jax.tree.leaves(expected))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12 * largest),
            found,
            expected,
        )
    assert not on_gpu, "float64 has no fused attention"


def test_attention_in_bfloat16_is_that_of_the_plain_block(on_gpu):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 4, 16)), jnp.bfloat16)
    sizes = {"heads": 2, "groups": 4, "dtype": jnp.bfloat16}
    plain, fused = (blocks.AttentionBlock(**sizes, fused=each) for each in (False, True))
    params = plain.init(jax.random.key(0), x)["params"]
    params["out"]["kernel"] = jax.random.normal(jax.random.key(1), (16, 16))
    expected, found = (each.apply({"params": params}, x) for each in (plain, fused))
    assert on_gpu == ["cudnn"]
    assert not blocks.cudnn_takes(20)
    assert not blocks.cudnn_takes(264)
    np.testing.assert_allclose(
        np.asarray(found, float), np.asarray(expected, float), atol=0.05, rtol=0.05
    )


def test_without_a_gpu_nothing_changes():
    network = UNet(**SMALL)
    given = (perturbed(network, (4, 4, 3)), *inputs(network, 2, (4, 4, 3)))
    assert not is_fused(network.in_reverse_mode(), *given)
    (warning,) = descriptions.warnings(tiny.model(network=network))
    assert "`UNet.fused` has no effect on this device: it needs an NVIDIA" in warning


@pytest.mark.parametrize(("found", "expected"), [("9.0", 9.0), ("12.1", 12.1), ("gfx942", 0.0)])
def test_compute_capability_is_that_of_nvidia(found, expected, monkeypatch):
    device = types.SimpleNamespace(compute_capability=found)
    monkeypatch.setattr(jax, "devices", lambda: [device])
    assert blocks.compute_capability() == expected


@pytest.mark.parametrize(
    ("loss", "expected"), [(FirstOrder(), True), (Unweighted(), True), (SecondOrder(), False)]
)
def test_kernels_run_where_no_forward_mode_derivative_is_taken(loss, expected, on_gpu):
    model = tiny.model(network=UNet(**SMALL), loss=loss)
    params = model.init(jax.random.key(0), (4, 4, 1))
    batch = {
        "image": jnp.zeros((2, 4, 4, 1), jnp.uint8),
        "conditioning": jnp.zeros((2, 1)),
        "position": jnp.arange(2),
    }
    step = jax.grad(lambda params: model.loss_fn(params, batch, jax.random.key(0))[0])
    assert is_fused(step, params) == expected
    warnings = descriptions.warnings(model)
    assert any("the loss may take forward-mode" in each for each in warnings) != expected
    field = model.field(params, batch["conditioning"])
    assert not is_fused(field.output, jnp.zeros((2, 4, 4, 1)), jnp.zeros(2))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"groups": 1}, "even `groups`"),
        ({"channels": 24}, "a power of two"),
        ({"channels": 8}, "a multiple of 16, got channels=8 and groups=4. Set fused=False"),
        ({"channels": 2048, "groups": 2}, "a power of two up to 256"),
    ],
)
def test_sizes_that_the_kernels_do_not_take_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        UNet(**{**SMALL, **sizes})


def test_a_shift_of_two_inputs_is_refused():
    x = jnp.zeros((1, 16, 16))
    parameters = jnp.zeros(32), jnp.zeros(32)
    with pytest.raises(ValueError, match="`shift` and `keep` need a single input, got two"):
        norm_swish.norm_swish((x, x), *parameters, groups=4, shift=x[:, 0])


def test_a_mesh_that_splits_channels_is_refused(tmp_path):
    trainer = tiny.trainer(
        tmp_path, 1, partitioner=partitioning.PjitPartitioner(mesh_shape={"model": 2})
    )
    model = tiny.model(network=UNet(**SMALL), image_shape=tiny.SHAPE)
    with pytest.raises(ValueError, match="all channels of an image on one device, got a mesh"):
        trainer.dry_run(model, tiny.config(8))


def test_a_dry_run_traces_what_the_run_computes(on_gpu):
    network = UNet(**SMALL)
    model = dry_run.traced_once(tiny.model(network=network))
    given = (perturbed(network, (4, 4, 3)), *inputs(network, 2, (4, 4, 3)))
    assert is_fused(model.network.in_reverse_mode(), *given)
    assert not is_fused(model.network, *given)


def test_images_of_an_odd_size_are_refused(on_gpu):
    network = UNet(**SMALL)
    given = (perturbed(network, (3, 5, 3)), *inputs(network, 1, (3, 5, 3)))
    with pytest.raises(ValueError, match="a multiple of 16, got 15 pixels. Set fused=False"):
        network.in_reverse_mode()(*given)
