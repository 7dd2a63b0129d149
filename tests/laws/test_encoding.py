"""Laws of the encoding of pixels and its decoder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from idode_gin.encoding import Encoding

LEVELS = pytest.mark.parametrize("levels", [2, 3, 17, 256])
pytestmark = pytest.mark.usefixtures("float64")


def every_level(levels):
    return jnp.arange(levels).reshape(1, -1, 1, 1)


@LEVELS
def test_decode_inverts_encode(levels):
    encoding, x = Encoding(levels=levels), every_level(levels)
    np.testing.assert_array_equal(encoding.decode(encoding.encode(x)), x)
    assert encoding.decode(encoding.encode(x)).dtype == jnp.int32


@LEVELS
def test_centres_cover_the_interval_evenly(levels):
    f = np.ravel(Encoding(levels=levels).encode(every_level(levels)))
    np.testing.assert_allclose(np.diff(f), 2 / levels, rtol=1e-12)
    np.testing.assert_allclose([f[0] - 1 / levels, f[-1] + 1 / levels], [-1, 1], rtol=1e-12)


@LEVELS
def test_bins_reach_half_a_width_around_their_centres(levels):
    encoding, x = Encoding(levels=levels), every_level(levels)
    for side in (-0.999, 0.999):
        np.testing.assert_array_equal(encoding.decode(encoding.encode(x) + side / levels), x)
    beyond = encoding.decode(encoding.encode(x) + 1.001 / levels)
    np.testing.assert_array_equal(np.ravel(beyond), np.minimum(np.arange(levels) + 1, levels - 1))
    far = encoding.decode(jnp.asarray([-7.0, -1.0, 1.0, 7.0]).reshape(1, 4, 1, 1))
    np.testing.assert_array_equal(np.ravel(far), [0, 0, levels - 1, levels - 1])


@LEVELS
def test_the_decoder_is_a_distribution_over_levels(levels):
    encoding = Encoding(levels=levels)
    y = 1.3 * jax.random.normal(jax.random.key(0), (5, 2, 3, 1))
    gamma = jnp.asarray(-2 * np.log(levels))
    log_probs = np.asarray(encoding.level_log_probs(y, gamma))
    assert log_probs.shape == (5, 2, 3, 1, levels)
    np.testing.assert_allclose(np.exp(log_probs).sum(-1), 1, rtol=1e-12)
    np.testing.assert_array_equal(encoding.decode(y), log_probs.argmax(-1))


@LEVELS
def test_log_prob_sums_the_levels_of_the_image(levels):
    encoding = Encoding(levels=levels)
    y = jax.random.normal(jax.random.key(0), (5, 2, 3, 1))
    x = jax.random.randint(jax.random.key(1), y.shape, 0, levels)
    gamma = jnp.asarray(-2 * np.log(2 * levels))
    log_probs = np.asarray(encoding.level_log_probs(y, gamma))
    at_x = np.take_along_axis(log_probs, np.asarray(x)[..., None], -1)
    np.testing.assert_allclose(encoding.log_prob(x, y, gamma), at_x.sum((1, 2, 3, 4)), rtol=1e-12)


def test_the_decoder_is_bayes_rule_for_equal_levels():
    """P(level | y) is proportional to N(y; centre, e^gamma), summed here by hand."""
    y, gamma = np.asarray([-0.9, 0.1, 0.45]), -1.7
    centres = np.asarray([-3 / 4, -1 / 4, 1 / 4, 3 / 4])
    joint = np.exp(-((y[:, None] - centres) ** 2) / (2 * np.exp(gamma)))
    expected = np.log(joint / joint.sum(-1, keepdims=True))
    found = Encoding(levels=4).level_log_probs(
        jnp.asarray(y).reshape(1, 3, 1, 1), jnp.asarray(gamma)
    )
    np.testing.assert_allclose(np.reshape(found, (3, 4)), expected, rtol=1e-12)


def test_bytes_are_not_cut():
    x = jnp.asarray([0, 127, 128, 255], jnp.uint8).reshape(1, 4, 1, 1)
    f = np.ravel(Encoding(levels=256).encode(x))
    np.testing.assert_allclose(f, [-255 / 256, -1 / 256, 1 / 256, 255 / 256], rtol=1e-12)


@pytest.mark.parametrize("levels", [1, 0, -3, True])
def test_levels_are_an_integer_from_two(levels):
    with pytest.raises(ValueError, match=f"levels={levels}"):
        Encoding(levels=levels)


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 0), (1, 8, 8, 1)])
def test_images_have_height_width_and_channels(shape):
    with pytest.raises(ValueError, match="got"):
        Encoding().check(shape)


def around_the_levels(levels):
    """Return values of y on, between and beyond the levels, `[1, 240, 1, 1]`."""
    near = Encoding(levels=levels).encode(every_level(levels)).ravel()
    picked = near[np.linspace(0, levels - 1, 60).astype(int)]
    parts = (picked, picked + 0.9 / levels, 1.5 * picked, jnp.full(60, 3.0))
    return jnp.concatenate(parts).reshape(1, -1, 1, 1)


@pytest.mark.parametrize("levels", [512, 513, 1000, 1537, 4096])
@pytest.mark.parametrize("bins", [0.2, 1, 8, 26, 28, 60, 4000])
def test_many_levels_are_summed_in_parts(levels, bins):
    """For noise of a standard deviation of so many bins: up to 26, of levels near y alone."""
    encoding, y = Encoding(levels=levels), around_the_levels(levels)
    x, gamma = encoding.decode(y[:, ::-1]), jnp.asarray(2 * np.log(2 * bins / levels))

    def in_parts(y, gamma):
        return encoding.log_prob(x, y, gamma)[0]

    def whole(y, gamma):
        log_probs = encoding.level_log_probs(y, gamma)
        return jnp.take_along_axis(log_probs, x[..., None], axis=-1).sum()

    found = jax.value_and_grad(in_parts, (0, 1))(y, gamma)
    expected = jax.value_and_grad(whole, (0, 1))(y, gamma)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-13)
    for actual, wanted in zip(found[1], expected[1], strict=True):
        rounding = 1e-12 * np.abs(wanted).max()  # of the largest terms, which cancel far from y
        np.testing.assert_allclose(actual, wanted, rtol=1e-10, atol=rounding)


def decoder_bytes(levels, gamma):
    encoding, y = Encoding(levels=levels), jnp.zeros((2, 5, 4, 3))
    compiled = jax.jit(encoding.log_prob).lower(y.astype(int), y, jnp.asarray(gamma)).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("levels", [5_000, 65_536])
def test_memory_of_the_decoder_is_that_of_the_levels_at_once(levels):
    counted = 8 * Encoding(levels=levels).levels_at_once * (2 * 5 * 4 * 3)
    for gamma in (-2 * np.log(3 * levels), 0.0):
        assert decoder_bytes(levels, gamma) <= 1.1 * counted
    assert Encoding(levels=300).levels_at_once == 300
    assert decoder_bytes(300, 0.0) <= 1.1 * 8 * 300 * (2 * 5 * 4 * 3)
