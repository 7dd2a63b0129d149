"""`likelihood.log_prob`: fields in closed form, and errors for wrong arguments."""

import inspect
import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from idode_gin import likelihood
from idode_gin.parameterizations.velocity import Velocity
from idode_gin.schedules.straight_path import StraightPath
from idode_gin.schedules.variance_preserving import VariancePreserving
from idode_gin.solvers.adams import Adams
from idode_gin.solvers.adaptive import DormandPrince
from idode_gin.solvers.fixed_grid import FixedGrid

pytestmark = pytest.mark.usefixtures("float64")
AS_USERS_CALL_IT = inspect.unwrap(likelihood.log_prob)
"""Without the checks of annotations, which production does not have."""


def key():
    return jax.random.key(0)


def half(z, gamma, *args):
    return z / 2


def test_it_is_exact_and_differentiates():
    """Data N(0, 4) of any shape: log p(x), and its gradient -x / 4."""
    schedule = VariancePreserving()

    def noise_hat(z, gamma, std):
        alpha, sigma = schedule.alpha(gamma)[:, None], schedule.sigma(gamma)[:, None]
        return sigma * z / ((alpha * std[:, None]) ** 2 + sigma**2)

    x = jax.random.normal(jax.random.key(1), (4, 3))
    std = jnp.full(4, 2.0)

    @jax.jit
    def log_p(x):
        return likelihood.log_prob(
            noise_hat, x, jax.random.key(0), args=(std,), gamma_min=-14.0, gamma_max=14.0,
            solver=Adams(steps=200),
        )  # fmt: skip

    expected = -0.5 * np.sum((x / 2) ** 2 + np.log(2 * np.pi * 4), axis=1)
    np.testing.assert_allclose(log_p(x), expected, atol=1e-4)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(log_p(x))))(x)
    np.testing.assert_allclose(gradient, -x / 4, atol=1e-4)


@pytest.mark.parametrize("solver", [Adams, FixedGrid])
def test_in_reverse_mode_a_step_keeps_less_than_one_layer_of_the_network(solver):
    """The memory of a gradient grows with the steps, by less than a hidden layer each."""
    batch, width, hidden = 16, 4, 4096
    inner = jax.random.normal(key(), (width, hidden)) / hidden
    x = jax.random.normal(key(), (batch, width))

    def field(z, gamma):
        return 0.5 * z + jnp.tanh(z @ inner) @ inner.T

    def memory(steps):
        def value(x):
            return jnp.sum(likelihood.log_prob(field, x, key(), solver=solver(steps=steps)))

        return jax.jit(jax.grad(value)).lower(x).compile().memory_analysis().temp_size_in_bytes

    layer = batch * hidden * x.dtype.itemsize
    assert 0 < memory(40) - memory(8) < 32 * layer


def test_adaptive_steps_differentiate_forward_and_say_so_in_reverse():
    """Data N(0, 4): the derivative with respect to the standard deviation, also by jacfwd."""
    schedule, x = VariancePreserving(), jnp.asarray([[0.0, 1.0], [3.0, -2.0]])

    def log_p(x, std):
        def noise_hat(z, gamma):
            alpha, sigma = schedule.alpha(gamma)[:, None], schedule.sigma(gamma)[:, None]
            return sigma * z / ((alpha * std) ** 2 + sigma**2)

        return likelihood.log_prob(
            noise_hat, x, key(), gamma_min=-14.0, gamma_max=14.0,
            solver=DormandPrince(rtol=1e-6, atol=1e-6),
        )  # fmt: skip

    slope = jax.jit(jax.jacfwd(lambda std: log_p(x, std)))(2.0)
    np.testing.assert_allclose(slope, (x**2 / 8 - 1 / 2).sum(1), atol=1e-4)
    with pytest.raises(ValueError, match="DormandPrince cannot .* reverse mode.*Adams.*jacfwd"):
        jax.grad(lambda std: jax.jit(log_p)(x, std).sum())(2.0)


def test_a_solve_that_does_not_arrive_has_no_figure():
    found = likelihood.log_prob(
        half, jnp.ones((2, 3)), jax.random.key(0), solver=DormandPrince(max_steps=2)
    )
    assert found.shape == (2,)
    assert np.all(np.isnan(found))


def test_what_the_noise_end_leaves_out_is_as_documented():
    """Data N(0, 4): the error is close to, and at most, e^{-gamma_max} |x|^2 / 2 per example."""
    schedule, std, x = VariancePreserving(), 2.0, jnp.asarray([[0.0], [6.0]])

    def noise_hat(z, gamma):
        alpha, sigma = schedule.alpha(gamma)[:, None], schedule.sigma(gamma)[:, None]
        return sigma * z / ((alpha * std) ** 2 + sigma**2)

    expected = -0.5 * (x[:, 0] ** 2 / std**2 + np.log(2 * np.pi * std**2))
    for gamma_max in (5.0, 8.0):
        found = likelihood.log_prob(
            noise_hat, x, key(), gamma_max=gamma_max, solver=Adams(steps=400)
        )
        off = np.exp(-gamma_max) * 36 / 2
        assert 0.5 * off < np.abs(found - expected)[1] < off


def test_a_velocity_of_flow_matching_is_scored_as_documented():
    """Data N(0, 4) with z = (1 - t) x + t eps and v = E[eps - x | z]."""

    def v(z, t):
        signal, noise = (1 - t)[:, None], t[:, None]
        return (noise - 4 * signal) * z / (4 * signal**2 + noise**2)

    def field(z, gamma):
        return v(z, jax.nn.sigmoid(gamma / 2)) / math.sqrt(2)

    x, (low, high) = jnp.asarray([[0.0], [3.0]]), (-14.0, 14.0)
    found = likelihood.log_prob(
        field, x, key(), schedule=StraightPath(), parameterization=Velocity(),
        gamma_min=low, gamma_max=high, solver=Adams(steps=400),
    )  # fmt: skip
    expected = -0.5 * (x[:, 0] ** 2 / 4 + np.log(2 * np.pi * 4))
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_it_refuses_an_output_of_another_shape():
    with pytest.raises(ValueError, match=r"one value for each input value.*\[2, 3\]"):
        likelihood.log_prob(lambda z, gamma: z[:, :1], jnp.zeros((2, 3)), jax.random.key(0))
    with pytest.raises(ValueError, match=r"of shape \[4, 3\], got float64 \[4, 1\]"):
        likelihood.log_prob(
            lambda z, gamma: z[:, :1], jnp.zeros((9, 3)), jax.random.key(0), lanes=4
        )


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"gamma_min": 5.0, "gamma_max": -5.0}, ValueError, "must be above .*gamma_max=-5.0"),
        ({"gamma_min": 5.0}, ValueError, "must be above `gamma_min`"),
        ({"gamma_min": -math.inf}, ValueError, "both finite .*gamma_min=-inf"),
        ({"gamma_min": math.nan}, ValueError, "both finite .*gamma_min=nan"),
        ({"gamma_max": math.inf}, ValueError, "both finite .*gamma_max=inf"),
        ({"gamma_max": "5"}, TypeError, "`gamma_max` must be a single static number.*got .*'5'"),
        ({"lanes": 0}, ValueError, "`lanes` must be an integer, 1 or more, got lanes=0"),
        ({"x": np.ones((2, 3), int)}, TypeError, r"`x` .*real numbers.*int64 \[2, 3\].*Scale"),
        ({"x": [[1.0]]}, TypeError, "`x` must be an array of real numbers.*got list"),
        ({"x": np.ones(())}, ValueError, "`x` must have a batch axis"),
        ({"key": 0}, TypeError, r"`key` .*such as jax.random.key\(0\).*got int"),
        ({"key": np.zeros((3, 2), np.uint32)}, TypeError, r"`key` must be one .*uint32 \[3, 2\]"),
        ({"x": np.ones((0, 3))}, ValueError, r"`x` must hold numbers.*empty \[0, 3\]"),
        ({"field": 3}, TypeError, "`field` must be a function"),
        ({"field": lambda z: z}, TypeError, r"`field` must take \(z, gamma\), got .*of \(z\)"),
        (
            {"field": lambda z, gamma: z, "args": (np.ones(2),)},
            TypeError,
            r"gamma, args\[0\]\), got",
        ),
        ({"field": lambda z, gamma: (z,)}, ValueError, "`field` must return .*got tuple"),
        ({"schedule": "vp"}, TypeError, r"of idode_gin.schedules, such as Var.*\(\), got 'vp'"),
        ({"schedule": StraightPath}, TypeError, r"such as StraightPath\(…\), got the class"),
        ({"solver": StraightPath()}, TypeError, "`solver` .*such as Adams.*got StraightPath"),
        ({"divergence": None}, TypeError, "`divergence` must be one of .*divergence, .*got None"),
        ({"args": np.ones(2)}, TypeError, "`args` must be a tuple"),
        ({"args": ({"w": np.ones((4, 4))},)}, ValueError, r"`args` .*2 examples.*\[4, 4\].*lambda"),
    ],
)
def test_what_is_wrong_is_told_kindly(changes, error, said):
    given = {"field": half, "x": np.ones((2, 3)), "key": key()} | changes
    with pytest.raises(error, match=said):
        AS_USERS_CALL_IT(given.pop("field"), given.pop("x"), given.pop("key"), **given)


def test_gammas_are_numbers_when_it_is_traced():
    with pytest.raises(TypeError, match="`gamma_max` must be a single static.*static argument"):
        jax.jit(lambda end: AS_USERS_CALL_IT(half, jnp.ones((2, 3)), key(), gamma_max=end))(5.0)


@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_data_of_any_width_are_scored_in_that_of_jax(float32, dtype):
    solver = Adams(steps=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = AS_USERS_CALL_IT(half, np.ones((2, 3), dtype), key(), solver=solver)
    assert found.dtype == np.float32
    here = AS_USERS_CALL_IT(half, jnp.ones((2, 3)), key(), solver=solver)
    np.testing.assert_array_equal(found, here)
