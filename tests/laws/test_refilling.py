"""Laws of lanes: results do not depend on other lanes, and no lane is idle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from idode_gin.solvers.adaptive import DormandPrince
from idode_gin.solvers.base import AbstractSolver

from . import discovery

EACH = discovery.each("solver", AbstractSolver)
pytestmark = pytest.mark.usefixtures("float64")
RATES = np.asarray([1.0, 30.0, 2.0, 5.0, 0.1, 60.0, 3.0])


def decay(t, y, rate):
    return -rate[:, None] * (y - jnp.cos(rate * t)[:, None])


def solve(solver, lanes, rates=RATES, field=decay):
    start = jnp.ones((len(rates), 2))
    run = jax.jit(lambda y, rate: solver.solve(field, y, 0.0, 2.0, (rate,), lanes=lanes))
    return run(start, jnp.asarray(rates))


@pytest.mark.full_cases("(1|7|10)-.*")
@EACH
@pytest.mark.parametrize("lanes", [1, 3, 7, 10])
def test_refilled_and_plain_agree(solver, lanes):
    """Compare state, cost and success of every example."""
    plain, found = solve(solver, None), solve(solver, lanes)
    np.testing.assert_allclose(found.state, plain.state, rtol=1e-12)
    np.testing.assert_array_equal(found.num_evaluations, plain.num_evaluations)
    np.testing.assert_array_equal(found.success, plain.success)


def test_the_cost_is_the_mean_and_not_the_maximum():
    """The number of evaluations of the whole loop is the mean over examples per lane."""
    calls = []

    def counted(t, y, rate):
        jax.debug.callback(lambda: calls.append(1))
        return decay(t, y, rate)

    rates = np.tile(RATES, 8)
    found = solve(DormandPrince(), 4, rates, counted)
    jax.block_until_ready(found)
    jax.effects_barrier()
    needed = np.asarray(found.num_evaluations)
    assert np.sum(needed) / 4 <= len(calls) <= np.sum(needed) / 4 + np.max(needed)
    assert len(calls) < 0.5 * np.max(needed) * len(rates) / 4


def test_a_failed_example_gives_its_lane_to_the_next():
    def broken(t, y, rate):
        return jnp.where((rate == 30.0)[:, None] & (t > 0.5)[:, None], jnp.nan, decay(t, y, rate))

    found = solve(DormandPrince(), 2, field=broken)
    np.testing.assert_array_equal(found.success, RATES != 30.0)
    plain = solve(DormandPrince(), None)
    np.testing.assert_allclose(
        np.asarray(found.state)[RATES != 30.0], np.asarray(plain.state)[RATES != 30.0], rtol=1e-12
    )
