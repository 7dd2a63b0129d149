"""Laws of trace noise: its reported size, and the bias of a logarithm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from idode_gin.likelihood import ode_likelihood
from idode_gin.solvers.divergence import Exact, Hutchinson, OrthogonalHutchinson
from idode_gin.solvers.probes import Gaussian

from . import toys

SHAPE, DIMS, MANY = (3, 2, 1), 6, 20_000
pytestmark = pytest.mark.usefixtures("float64")


def estimates_of(divergence, count=MANY):
    """Estimates of one trace, each with probes of its own; and that trace."""
    matrix = np.random.default_rng(0).normal(size=(DIMS, DIMS))

    def linear(x):
        return (x.reshape(-1, DIMS) @ matrix.T).reshape(x.shape)

    @jax.jit
    def run(keys):
        probes = divergence.draw(keys, SHAPE)
        return divergence.value_and_traces(linear, jnp.zeros((count, *SHAPE)), probes)[1]

    return run(toys.keys_of(1, count)), np.trace(matrix)


@pytest.mark.parametrize(
    "divergence",
    [
        Hutchinson(num_probes=3),
        Hutchinson(num_probes=3, probe=Gaussian()),
        OrthogonalHutchinson(num_probes=3),
    ],
)
def test_the_variance_it_tells_is_the_variance_it_has(divergence):
    estimates, trace = estimates_of(divergence)
    means = np.asarray(jnp.mean(estimates, axis=1))
    toys.assert_mean(means, trace, at_most=0.05)
    told = np.asarray(divergence.variance_of_mean(estimates, DIMS))
    assert np.mean(told) == pytest.approx(np.var(means), rel=0.06)


def test_right_angles_take_noise_away_and_all_of_it_at_the_end():
    plain, _ = estimates_of(Hutchinson(num_probes=4, probe=Gaussian()))
    frame, trace = estimates_of(OrthogonalHutchinson(num_probes=4))
    assert np.var(jnp.mean(frame, 1)) < 0.6 * np.var(jnp.mean(plain, 1))
    whole, _ = estimates_of(OrthogonalHutchinson(num_probes=DIMS), 10)
    np.testing.assert_allclose(jnp.mean(whole, axis=1), trace, rtol=1e-9)


def test_probes_and_their_opposites_say_the_same():
    """Antithetic pairs therefore do not reduce the variance."""
    probes = Hutchinson(num_probes=2).draw(toys.keys_of(0, 1), SHAPE)
    x = jnp.ones((1, *SHAPE))
    one, other = (
        Hutchinson().value_and_traces(lambda x: jnp.sin(x) * jnp.sum(x), x, each)[1]
        for each in (probes, -probes)
    )
    np.testing.assert_allclose(one, other, rtol=1e-12)


def test_one_probe_cannot_tell_and_an_exact_trace_has_no_noise():
    ones = jnp.ones((2, 1))
    assert np.all(np.isnan(Hutchinson().variance_of_mean(ones, DIMS)))
    np.testing.assert_array_equal(Exact().variance_of_mean(ones, DIMS), 0)


def test_more_probes_than_dimensions_are_refused():
    with pytest.raises(ValueError, match="num_probes=7 for images of 6 values"):
        OrthogonalHutchinson(num_probes=7).draw(toys.keys_of(0, 1), SHAPE)


@pytest.mark.parametrize("common", [0.0, 0.6])
def test_noise_of_importance_weights_is_as_large_as_told(common):
    """log 1/K sum exp(l_k + noise) is too large on average, by what the draws do not share."""
    clean = jnp.asarray([0.0, -0.5, 0.3, -2.0])[:, None, None]  # draws, images, probes
    keys, shape = jax.random.split(jax.random.key(0)), (4, 200_000, 3)
    own = jax.random.normal(keys[0], shape)
    noise = 0.5 * own + common * jax.random.normal(keys[1], (1, *shape[1:]))
    weights = jnp.mean(clean + noise, axis=2)
    rise = jax.nn.logsumexp(weights, axis=0) - jax.nn.logsumexp(clean[..., 0], axis=0)
    divergence = Hutchinson(num_probes=3)
    repeated = [each[None] for each in (weights, noise)]
    told = ode_likelihood.trace_noise(*repeated, divergence, DIMS)
    sd, bias, found = (np.asarray(each) for each in (*told, rise))
    assert np.mean(found) == pytest.approx(np.mean(bias), rel=0.1)
    assert np.std(found) == pytest.approx(np.sqrt(np.mean(sd**2)), rel=0.03)


def test_a_single_sample_has_no_bias_and_the_noise_of_a_mean():
    weights = jnp.zeros((3, 1, 50_000))
    noise = jax.random.normal(jax.random.key(0), (*weights.shape, 2))
    told = ode_likelihood.trace_noise(weights, noise, Hutchinson(), DIMS)
    sd, bias = (np.asarray(each) for each in told)
    np.testing.assert_array_equal(bias, 0)
    spread = np.std(np.mean(np.asarray(noise), axis=(0, 1, 3)))
    assert np.sqrt(np.mean(sd**2)) == pytest.approx(spread, rel=0.03)
