"""Laws of every trace method and of every distribution of probes."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from idode_gin.solvers import probes as probe_lib
from idode_gin.solvers.divergence import AbstractDivergence, Exact, Hutchinson, jvp_each

from . import discovery, toys

EACH = discovery.each("divergence", AbstractDivergence)
EACH_PROBE = discovery.each("probe", probe_lib.AbstractProbe)
SHAPE = (2, 2, 1)
DIMS = 4
BATCH = 3
pytestmark = pytest.mark.usefixtures("float64")


def function(x):
    """A small network: every output depends on every pixel of its own image."""
    params = toys.TinyNetwork().init(jax.random.key(1), SHAPE)
    rest = jnp.arange(x.shape[0]) / 7.0
    return toys.TinyNetwork()(params, x, rest, jnp.ones((x.shape[0], 1)))


def points():
    return jax.random.normal(jax.random.key(0), (BATCH, *SHAPE))


def jacobians(x):
    """`[B, d, d]` by reverse mode, image by image."""
    whole = jax.jacrev(function)(x).reshape(BATCH, DIMS, BATCH, DIMS)
    assert np.all(np.asarray(whole)[0, :, 1] == 0)
    return np.asarray(whole)[np.arange(BATCH), :, np.arange(BATCH)]


def every_sign():
    """All 2^d Rademacher probes, the same for every image: `[2^d, B, ...]`."""
    signs = jnp.asarray(list(itertools.product([-1.0, 1.0], repeat=DIMS))).reshape(-1, 1, *SHAPE)
    return jnp.broadcast_to(signs, (signs.shape[0], BATCH, *SHAPE))


@EACH
def test_the_value_comes_along(divergence):
    x = points()
    probes = divergence.draw(toys.keys_of(0, BATCH), SHAPE)
    value, trace = divergence.value_and_trace(function, x, probes)
    np.testing.assert_allclose(value, function(x), rtol=1e-12)
    assert trace.shape == (BATCH,)


@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_exact_equals_the_trace_of_the_jacobian(chunk):
    divergence, x = Exact(chunk=chunk), points()
    probes = divergence.draw(toys.keys_of(0, BATCH), SHAPE)
    _, trace = divergence.value_and_trace(function, x, probes)
    np.testing.assert_allclose(trace, np.trace(jacobians(x), axis1=1, axis2=2), rtol=1e-10)


def test_the_mean_over_all_signs_is_exact():
    x = points()
    _, trace = Hutchinson().value_and_trace(function, x, every_sign())
    np.testing.assert_allclose(trace, np.trace(jacobians(x), axis1=1, axis2=2), rtol=1e-10)


@EACH_PROBE
def test_forward_mode_equals_reverse_mode(probe):
    """v^T J v for given probes, with J by reverse mode."""
    divergence, x = Hutchinson(num_probes=2, probe=probe), points()
    probes = divergence.draw(toys.keys_of(0, BATCH), SHAPE)
    _, trace = divergence.value_and_trace(function, x, probes)
    _, pull = jax.vjp(function, x)
    expected = [jnp.sum(pull(v)[0] * v, axis=(1, 2, 3)) for v in probes]
    np.testing.assert_allclose(trace, np.mean(expected, axis=0), rtol=1e-10)


@EACH_PROBE
def test_estimates_are_unbiased(probe):
    x = points()
    divergence = Hutchinson(num_probes=1, probe=probe)

    def once(key):
        probes = divergence.draw(jax.random.split(key, BATCH), SHAPE)
        return divergence.value_and_trace(function, x, probes)[1]

    found = np.asarray(jax.jit(jax.vmap(once))(toys.keys_of(4, 20_000)))
    expected = np.trace(jacobians(x), axis1=1, axis2=2)
    for place in range(BATCH):
        toys.assert_mean(found[:, place], expected[place], at_most=0.1)


@EACH_PROBE
def test_probes_have_no_mean_and_unit_covariance(probe):
    drawn = jax.vmap(lambda key: probe.sample(key, (3,)))(toys.keys_of(0, 40_000))
    assert drawn.dtype == jnp.float64
    np.testing.assert_allclose(np.mean(drawn, axis=0), 0, atol=0.02)
    np.testing.assert_allclose(np.cov(np.asarray(drawn).T), np.eye(3), atol=0.04)


@EACH
def test_draws_depend_on_the_image_key_alone(divergence):
    whole = divergence.draw(toys.keys_of(0, BATCH), SHAPE)
    alone = divergence.draw(toys.keys_of(0, BATCH)[1:2], SHAPE)
    np.testing.assert_array_equal(alone[:, 0], whole[:, 1])
    assert whole.shape[1:] == (BATCH, *SHAPE)


def test_hutchinson_draws_its_probes():
    assert Hutchinson(num_probes=3).draw(toys.keys_of(0, BATCH), SHAPE).shape[0] == 3


def test_pushing_several_vectors_at_once():
    x, vectors = points(), every_sign()[:3]
    value, pushed = jvp_each(function, x, vectors)
    np.testing.assert_allclose(value, function(x), rtol=1e-12)
    expected = np.einsum("bij,nbj->nbi", jacobians(x), np.reshape(vectors, (3, BATCH, DIMS)))
    np.testing.assert_allclose(np.reshape(pushed, (3, BATCH, DIMS)), expected, rtol=1e-10)


@pytest.mark.parametrize("make", [lambda: Exact(chunk=0), lambda: Hutchinson(num_probes=0)])
def test_arguments_must_be_positive(make):
    with pytest.raises(ValueError, match="greater than zero"):
        make()
