"""Laws of every solver and tableau."""

import functools
import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from idode_gin.solvers import norms, tableaus
from idode_gin.solvers.adams import Adams
from idode_gin.solvers.adaptive import DormandPrince
from idode_gin.solvers.base import AbstractSolver
from idode_gin.solvers.fixed_grid import FixedGrid
from idode_gin.solvers.spacings import Tabulated

from . import discovery

EACH = discovery.each("solver", AbstractSolver)
ORDERS = {"euler": 1, "midpoint": 2, "heun": 2, "runge_kutta_4": 4, "dormand_prince": 5}
TABLEAUS = [
    name
    for name, make in inspect.getmembers(tableaus, inspect.isfunction)
    if make.__module__ == tableaus.__name__
]
EACH_TABLEAU = pytest.mark.parametrize("name", TABLEAUS)
pytestmark = pytest.mark.usefixtures("float64")


# --- problems: (field, start [B], t0, t1), each example another member of the family


def stiff_linear(t, y):
    """Fast decay onto a slow curve."""
    return -40.0 * (y - jnp.cos(t))


def logistic(t, y):
    """A nonlinear equation that depends on time."""
    return y * (1 - y) * (1 + jnp.sin(3 * t))


def polynomial(t, y):
    """No transcendental function, so that a batch rounds as one example does."""
    return 0.3 - y * y + 0.1 * t * y


STARTS = np.asarray([0.1, 0.35, 0.8, 1.7])


def reference(field, start, t0, t1):
    """SciPy's order 8, far below the tolerances here."""
    found = integrate.solve_ivp(
        lambda t, y: np.asarray(field(t, y)), (t0, t1), [start], "DOP853", rtol=1e-12, atol=1e-13
    )
    return found.y[0, -1]


def solve(solver, field, start, t0=0.0, t1=2.0):
    """The solution for a batch of numbers, compiled."""
    return jax.jit(lambda y: solver.solve(field, y, t0, t1))(jnp.asarray(start))


# --- tableaus


def trees(order):
    """Rooted trees with `order` nodes, each a sorted tuple of its root's subtrees."""
    if order == 1:
        return {()}
    return {
        tuple(sorted((*tree, branch)))
        for size in range(1, order)
        for tree in trees(order - size)
        for branch in trees(size)
    }


def size_of(tree):
    return 1 + sum(size_of(branch) for branch in tree)


def density_of(tree):
    return size_of(tree) * math.prod(density_of(branch) for branch in tree)


def stages_of(tree, a):
    values = [a @ stages_of(branch, a) for branch in tree]
    return functools.reduce(np.multiply, values, np.ones(len(a)))


def order_defect(a, b, order):
    """The largest violated order condition up to `order` (Butcher)."""
    return max(
        abs(b @ stages_of(tree, a) - 1 / density_of(tree))
        for size in range(1, order + 1)
        for tree in trees(size)
    )


def matrix(tableau):
    stages = len(tableau.c)
    return np.asarray([(*row, *[0.0] * (stages - len(row))) for row in tableau.a])


def test_there_are_as_many_trees_as_known():
    assert [len(trees(order)) for order in range(1, 7)] == [1, 1, 2, 4, 9, 20]


@EACH_TABLEAU
def test_tableaus_satisfy_their_order_conditions(name):
    tableau, order = getattr(tableaus, name)(), ORDERS[name]
    a, b = matrix(tableau), np.asarray(tableau.b)
    np.testing.assert_allclose(a.sum(1), tableau.c, atol=1e-14)
    assert order_defect(a, b, order) < 1e-14
    assert order_defect(a, b, order + 1) > 1e-4
    if name == "dormand_prince":
        embedded = b - np.asarray(tableaus.DORMAND_PRINCE_ERROR)
        assert order_defect(a, embedded, order - 1) < 1e-14
        assert order_defect(a, embedded, order) > 1e-4


@EACH_TABLEAU
def test_measured_order_of_convergence(name):
    """y' = y cos t from y_0 ends in y_0 e^{sin t}."""
    tableau, order = getattr(tableaus, name)(), ORDERS[name]
    coarse = {1: 256, 2: 64, 4: 32}.get(order, 16)
    errors = []
    for steps in (coarse, 2 * coarse):
        solver = FixedGrid(steps=steps, tableau=tableau)
        solution = solve(solver, lambda t, y: y * jnp.cos(t), STARTS)
        errors.append(np.max(np.abs(np.asarray(solution.state) - STARTS * np.exp(np.sin(2)))))
    assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.3)


@pytest.mark.parametrize(("history", "order"), [(1, 2), (2, 3)])
def test_measured_order_of_adams(history, order):
    errors = []
    for steps in (200, 400):
        solution = solve(Adams(steps=steps, history=history), logistic, STARTS)
        expected = [reference(logistic, start, 0.0, 2.0) for start in STARTS]
        errors.append(np.max(np.abs(np.asarray(solution.state) - expected)))
    assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.3)


def test_adams_is_exact_for_polynomials_in_time_on_any_grid():
    """Past the start: cubic slopes with three behind, of which the first two steps see less."""
    table = (0.0, 1e-7, 3e-7, 0.2, 0.3, 0.45, 0.8, 1.0)
    solver = Adams(steps=7, history=3, spacing=Tabulated(table=table))
    solution = solve(solver, lambda t, y: 4 * t**3 + 0 * y, [1.0])
    np.testing.assert_allclose(solution.state, [17.0], rtol=1e-10)


# --- solvers


@EACH
@pytest.mark.parametrize("field", [stiff_linear, logistic])
def test_error_against_scipy(solver, field):
    expected = [reference(field, start, 0.0, 2.0) for start in STARTS]
    solution = solve(solver, field, STARTS)
    np.testing.assert_allclose(solution.state, expected, atol=1e-4)
    assert np.all(np.asarray(solution.success))


@pytest.mark.parametrize("field", [stiff_linear, logistic])
def test_adaptive_error_follows_the_tolerance(field):
    expected = np.asarray([reference(field, start, 0.0, 2.0) for start in STARTS])
    evaluations = []
    for tolerance in (1e-4, 1e-6, 1e-8):
        solution = solve(DormandPrince(rtol=tolerance, atol=tolerance), field, STARTS)
        error = np.abs(np.asarray(solution.state) - expected)
        assert np.max(error) < 30 * tolerance
        evaluations.append(np.asarray(solution.num_evaluations))
    assert np.all(evaluations[2] > evaluations[0])


@pytest.mark.parametrize("field", [stiff_linear, logistic])
def test_dormand_prince_takes_the_steps_of_scipy(field):
    """SciPy's RK45 is the same method with the same control: value and count agree."""
    start = 0.35
    theirs = integrate.solve_ivp(
        lambda t, y: np.asarray(field(t, y)), (0, 2), [start], "RK45", rtol=1e-6, atol=1e-7
    )
    ours = solve(DormandPrince(rtol=1e-6, atol=1e-7), field, [start])
    np.testing.assert_allclose(ours.state[0], theirs.y[0, -1], rtol=1e-10)
    assert int(ours.num_evaluations[0]) == theirs.nfev


def test_relative_tolerance_counts_for_large_states():
    def growth(t, y):
        return 3.0 * y

    expected = 1e4 * np.exp(6.0)
    loose = solve(DormandPrince(rtol=1e-6, atol=1e-12), growth, [1e4])
    assert abs(float(loose.state[0]) / expected - 1) < 3e-5
    tight = solve(DormandPrince(rtol=1e-12, atol=1e-6), growth, [1e4])
    assert int(tight.num_evaluations[0]) > 2 * int(loose.num_evaluations[0])


@pytest.mark.compiled_as_users
@EACH
def test_an_example_is_alone_in_its_batch(solver):
    """State, cost and success do not depend on the batch."""
    starts = np.asarray([0.1, 30.0, -0.2, 1.7, 0.35])
    batch = solve(solver, polynomial, starts)
    for place, start in enumerate(starts):
        alone = solve(solver, polynomial, [start])
        for found, expected in zip(alone, batch, strict=True):
            np.testing.assert_array_equal(found[0], expected[place])


@EACH
def test_backwards_undoes_forwards(solver):
    there = solve(solver, logistic, STARTS)
    back = solve(solver, logistic, there.state, 2.0, 0.0)
    np.testing.assert_allclose(back.state, STARTS, atol=1e-3)
    assert np.all(np.asarray(back.success))


@EACH
def test_a_known_factor_of_a_slope_changes_no_solution(solver):
    """One leaf without a factor, one whose slope has it already: its integral is exact."""

    def factor(t):
        return jnp.exp(-2 * t)

    def field(t, state):
        moved, _ = state
        return logistic(t, moved), factor(t)

    def solved(state):
        return solver.solve(field, state, 0.0, 2.0, weight_fns=(None, factor))

    moved, total = jax.jit(solved)((jnp.asarray(STARTS), jnp.zeros(len(STARTS)))).state
    expected = [reference(logistic, start, 0.0, 2.0) for start in STARTS]
    np.testing.assert_allclose(moved, expected, atol=1e-4)
    np.testing.assert_allclose(total, -np.expm1(-4.0) / 2, atol=1e-4)


@EACH
def test_a_state_may_be_a_tree(solver):
    """Images and one number per image: the shape of a likelihood's state."""

    def field(t, state):
        images, total = state
        slopes = logistic(t[:, None, None, None], images)
        return slopes, jnp.sum(slopes, axis=(1, 2, 3))

    images = jnp.asarray(np.resize(STARTS, (3, 2, 1, 1)))
    solution = jax.jit(lambda state: solver.solve(field, state, 0.0, 2.0))((images, jnp.zeros(3)))
    moved, total = solution.state
    expected = [reference(logistic, start, 0.0, 2.0) for start in np.ravel(images)]
    np.testing.assert_allclose(np.ravel(moved), expected, atol=1e-4)
    np.testing.assert_allclose(total, jnp.sum(moved - images, axis=(1, 2, 3)), atol=1e-4)
    assert total.shape == solution.success.shape == solution.num_evaluations.shape == (3,)


@EACH
def test_evaluations_are_counted_as_they_happen(solver):
    calls = []

    def counted(t, y):
        jax.debug.callback(lambda: calls.append(1))
        return logistic(t, y)

    solution = solve(solver, counted, [0.35])
    jax.block_until_ready(solution)
    jax.effects_barrier()
    assert int(solution.num_evaluations[0]) == len(calls)


@EACH
def test_a_field_is_compiled_once(solver):
    """Most of the time before the first figure is the network's compilation."""
    compiled = jax.jit(lambda y: solver.solve(lambda t, y: jnp.cbrt(y), y, 0.0, 1.0))
    assert compiled.lower(jnp.asarray(STARTS)).as_text().count("stablehlo.cbrt") == 1


@EACH
def test_a_field_without_a_value_fails_its_own_example_only(solver):
    def broken(t, y):
        return jnp.where((y > 1.5) & (t > 0.5), jnp.nan, logistic(t, y) * (y < 1.5))

    solution = solve(solver, broken, [0.1, 1.7, 0.8])
    np.testing.assert_array_equal(solution.success, [True, False, True])
    expected = [reference(logistic, start, 0.0, 2.0) for start in (0.1, 0.8)]
    np.testing.assert_allclose(np.asarray(solution.state)[[0, 2]], expected, atol=1e-4)


def test_a_part_that_the_norm_leaves_out_must_be_finite_too():
    def field(t, state):
        y, _ = state
        time = jnp.broadcast_to(t, y.shape)
        return logistic(t, y), jnp.where((time > 0.5) & (y > 1.0), jnp.nan, 0 * y)

    solver = DormandPrince(norm=norms.FirstPart())
    starts = jnp.asarray([1.5, 0.1])
    solution = jax.jit(lambda y: solver.solve(field, (y, 0 * y), 0.0, 0.6))(starts)
    finite = np.isfinite(np.asarray(solution.state[1]))
    np.testing.assert_array_equal(finite, [False, True])
    np.testing.assert_array_equal(solution.success, finite)


@EACH
def test_arguments_of_the_field_may_be_of_numpy(solver):
    rates = np.asarray([0.5, 1.0, 2.0])
    starts = np.asarray([1.0, 2.0, 3.0])
    solution = solver.solve(lambda t, y, rate: -rate * y, starts, 0.0, 1.0, (rates,))
    np.testing.assert_allclose(solution.state, starts * np.exp(-rates), atol=1e-4)


@pytest.mark.parametrize("max_steps", [1, 3])
def test_the_step_limit_is_a_failure(max_steps):
    short = solve(DormandPrince(max_steps=max_steps), stiff_linear, STARTS)
    assert not np.any(np.asarray(short.success))
    np.testing.assert_array_equal(short.num_evaluations, 2 + 6 * max_steps)
    assert np.all(np.isfinite(np.asarray(short.state)))


def test_steps_may_be_short_near_time_zero():
    """16-bit images begin at kappa = 5e-6; y = sin(20 log t) needs steps far below 1e-6 there."""
    start, wave = 5e-6, lambda t: np.sin(20 * np.log(t))
    field = lambda t, y: 20 * jnp.cos(20 * jnp.log(t)) / t + 0 * y  # noqa: E731
    solution = solve(DormandPrince(), field, np.asarray([wave(start)], np.float32), start, 1.0)
    assert solution.success.all()
    np.testing.assert_allclose(solution.state, [wave(1.0)], atol=1e-3)


def test_a_wall_is_a_failure_not_an_endless_loop():
    """y' = y^2 from 1 diverges at t = 1."""
    solution = solve(DormandPrince(), lambda t, y: y * y, [1.0, -1.0])
    np.testing.assert_array_equal(solution.success, [False, True])
    np.testing.assert_allclose(solution.state[1], -1 / 3, atol=1e-4)


@EACH
def test_a_path_of_no_length(solver):
    """An integration from t0 to t0 returns the state."""
    solution = solve(solver, logistic, STARTS, 1.0, 1.0)
    np.testing.assert_array_equal(solution.state, STARTS)
    assert np.all(np.asarray(solution.success))


@EACH
def test_float32(solver):
    solution = solve(solver, logistic, STARTS.astype(np.float32))
    assert solution.state.dtype == jnp.float32
    expected = [reference(logistic, start, 0.0, 2.0) for start in STARTS]
    np.testing.assert_allclose(solution.state, expected, atol=1e-4)


@pytest.mark.parametrize(
    "make",
    [
        lambda: DormandPrince(rtol=0.0),
        lambda: DormandPrince(atol=-1e-5),
        lambda: DormandPrince(max_steps=0),
        lambda: FixedGrid(steps=0),
        lambda: Adams(steps=0),
        lambda: Adams(history=0),
    ],
)
def test_arguments_must_be_positive(make):
    with pytest.raises(ValueError, match="greater than zero"):
        make()


@pytest.mark.parametrize("solver", [Adams(steps=5000), FixedGrid(steps=5000)], ids=["Adams", "RK"])
def test_rounding_does_not_pile_up(solver, float32):
    """A sum of equal steps, each rounded the same way: 5,000 of them would lose 7e-4 of 20."""
    found = jax.jit(lambda y: solver.solve(lambda t, y: jnp.full_like(y, 20.0), y, 0.0, 1.0).state)(
        jnp.zeros((1, 1), jnp.float32)
    )
    np.testing.assert_allclose(found, 20.0, rtol=3e-7)
