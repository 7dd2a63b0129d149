"""The pilot: compare reported errors with an exact density that the pilot does not use."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from coarse import Coarse

from idode_gin import checks, numerics
from idode_gin.dequantizers.truncated_normal import TruncatedNormal
from idode_gin.evaluation import pilot_run
from idode_gin.integration_variables.exponential import Exponential
from idode_gin.integration_variables.kappa import Kappa
from idode_gin.likelihood import ode_likelihood, pilot_grids, spacing_fit
from idode_gin.likelihood import pilot as pilot_lib
from idode_gin.likelihood.pilot import Pilot, Report
from idode_gin.networks.base import AbstractNetwork
from idode_gin.parameterizations.base import AbstractParameterization
from idode_gin.parameterizations.noise import Noise
from idode_gin.schedules.base import AbstractSchedule
from idode_gin.schedules.time.linear import Linear
from idode_gin.schedules.variance_preserving import VariancePreserving
from idode_gin.solvers.adams import Adams
from idode_gin.solvers.adaptive import DormandPrince
from idode_gin.solvers.divergence import Exact
from idode_gin.solvers.spacings import Tabulated

from . import discovery, toys

EACH_SCHEDULE = discovery.each("schedule", AbstractSchedule)
EACH_PARAMETERIZATION = discovery.each("parameterization", AbstractParameterization)
SHAPE, LEVELS, BATCH = (2, 2, 1), 9, 6
pytestmark = pytest.mark.usefixtures("float64")


def problem(schedule, parameterization):
    """A model of Gaussian data, some images, and their exact bits per dim for given noise."""
    time = Linear(gamma_min=-2 * np.log(3 * LEVELS), gamma_max=5.0)
    data = toys.gaussian(schedule)
    model = toys.optimal_model(data.field(parameterization), time, LEVELS)
    images = jax.random.randint(jax.random.key(2), (BATCH, *SHAPE), 0, LEVELS)
    batch = {"image": images, "index": jnp.arange(BATCH), "conditioning": jnp.zeros((BATCH, 1))}
    estimator = ode_likelihood.ODELikelihood(dequantizer=TruncatedNormal(), divergence=Exact())
    key = jax.random.key(3)
    noise, _ = estimator.draw(0, SHAPE, model.end, numerics.fold_in_each(key, batch["index"]))
    z = estimator.dequantizer.start(images, noise, model.end)
    mean, std = data.pushed(time.gamma_min, time.gamma_max)
    log_p = numerics.log_normal((z - mean) / std) - np.sum(np.log(std))
    exact = -(log_p + estimator.dequantizer.entropy(4, model.end)) / (4 * np.log(2))
    return model, batch, key, estimator, np.asarray(exact)


def error_of(model, batch, key, estimator, exact):
    found = jax.jit(lambda batch: model.likelihood_fn({}, batch, key, estimator))(batch)
    return float(np.mean(np.abs(np.asarray(found.bits_per_dim(4)) - exact)))


@pytest.mark.full_cases("(Data|Noise|Score|Velocity-StraightPath).*", ".*tolerances1")
@pytest.mark.parametrize("tolerances", [(1e-1, 1e-4), (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)])
@EACH_SCHEDULE
@EACH_PARAMETERIZATION
def test_the_tolerance_is_kept(schedule, parameterization, tolerances):
    model, batch, key, estimator, exact = problem(schedule, parameterization)
    steps = []
    for tolerance in tolerances:
        chosen, report = Pilot(tolerance=tolerance).run(model, {}, batch, key, estimator)
        assert report.is_within
        error = error_of(model, batch, key, chosen, exact)
        assert error <= tolerance
        np.testing.assert_allclose(report.error, error, atol=0.5 * tolerance)
        assert isinstance(chosen.solver, Adams)
        steps.append(chosen.solver.steps)
    assert steps == sorted(steps)
    assert steps[0] < steps[-1]


def test_a_given_solver_is_kept_and_measured():
    schedule, parameterization = VariancePreserving(), Noise()
    model, batch, key, estimator, exact = problem(schedule, parameterization)
    solver = DormandPrince(rtol=1e-2, atol=1e-2)
    estimator = ode_likelihood.ODELikelihood(
        dequantizer=TruncatedNormal(), divergence=Exact(), solver=solver
    )
    chosen, report = Pilot().run(model, {}, batch, key, estimator)
    assert chosen == estimator
    error = error_of(model, batch, key, estimator, exact)
    assert report.error == pytest.approx(error, abs=3e-4)
    assert not Pilot(tolerance=1e-9).run(model, {}, batch, key, estimator)[1].is_within


def test_a_given_grid_that_is_the_reference_is_not_measured_against_itself():
    model, batch, key, estimator, _ = problem(VariancePreserving(), Noise())
    pilot = Pilot(tolerance=1e-3)
    steps = pilot.run(model, {}, batch, key, estimator)[1].reference_evaluations - 1

    @functools.partial(jax.jit, static_argnums=0)
    def figures(steps):
        given = dataclasses.replace(estimator, solver=Adams(steps=steps))
        return model.likelihood_fn({}, batch, key, given).bits_per_dim(4)

    given = dataclasses.replace(estimator, solver=Adams(steps=steps))
    _, report = pilot.run(model, {}, batch, key, given)
    expected = np.mean(np.abs(figures(steps) - figures(steps // 2)))
    assert expected > 1e-6
    assert report.error == pytest.approx(expected, rel=1e-3)


def test_the_bias_is_the_figures_minus_the_exact_ones():
    """With its sign: a coarse grid's figures are too low or too high on average. And rounding."""
    model, batch, key, estimator, exact = problem(VariancePreserving(), Noise())
    estimator = dataclasses.replace(estimator, solver=Adams(steps=4))
    found = jax.jit(lambda batch: model.likelihood_fn({}, batch, key, estimator))(batch)
    bias = float(np.mean(np.asarray(found.bits_per_dim(4)) - exact))
    several = dataclasses.replace(estimator, num_importance=2, num_repeats=2)
    _, report = Pilot(tolerance=1e-3).run(model, {}, batch, key, several)  # of the first draw
    assert abs(bias) > 10 * report.reference_error
    assert report.bias == pytest.approx(bias, abs=report.reference_error)
    # One unit in the last place of log(kappa_1 / kappa_0), kappa = sigma / alpha, bits per dim.
    sigma, alpha = (
        each(jnp.asarray([model.end.gamma_number, model.gamma_max]))
        for each in (model.schedule.sigma, model.schedule.alpha)
    )
    largest = float(jnp.log2(sigma[1] / alpha[1]) - jnp.log2(sigma[0] / alpha[0]))
    assert report.rounding == pytest.approx(np.finfo(float).eps * largest, rel=1e-6, abs=0)


def test_an_error_against_a_reference_that_is_not_known_is_not_within():
    known = Report("a solver", 1e-3, 5e-4, 0.0, 2e-4, 65, 8)
    assert known.is_within
    assert not known._replace(reference_error=3e-4).is_within
    assert not known._replace(error=1.1e-3).is_within
    assert not known._replace(error=8.1e-4).is_within  # 1.01e-3 with what the reference may be off
    assert not known._replace(rounding=3.1e-4).is_within  # of the reference, which nobody sees


@pytest.mark.parametrize(
    ("within", "chosen"),
    [
        ({8, 16, 32, 64, 128}, 8),
        ({12, 14, 16, 32, 64, 128}, 12),
        ({24, 28, 64, 128}, 24),  # 32 meets a period
        ({56, 64, 128}, 56),
        ({12, 64, 128}, 64),  # nothing so coarse is tried
        ({128}, 128),
        (set(), 128),
    ],
)
def test_the_coarsest_grid(within, chosen):
    assert pilot_lib._coarsest([8, 16, 32, 64, 128], lambda steps: steps in within) == chosen


@pytest.mark.parametrize(
    ("before", "last", "left"),
    [
        (3.0, 1.0, 1 / 2),
        (16.0, 1.0, 1 / 3),  # order 4 is not believed
        (2.0, 1.0, 1.0),  # order 1
        (1.0, 1.0, 1.0),  # no order at all
        (0.5, 1.0, 1.0),
        (np.inf, 1.0, 1.0),  # the first
        (0.0, 0.0, 0.0),
    ],
)
def test_what_a_reference_has_left_to_move(before, last, left):
    assert pilot_lib._still_to_move(before, last) == pytest.approx(left)


class Figures(pilot_grids.Grids):
    """In place of grids: figures of two images, by number of steps."""

    rounding = 0.0

    def __init__(self, figure_of):
        self.figure_of = figure_of

    def __call__(self, params, steps, spacing=None):
        return np.array([self.figure_of(steps), 2.0])

    def by_solver(self, params):
        return self(params, 24)

    def in_full_precision(self, estimator):
        return None


@pytest.mark.parametrize("bad", [np.inf, np.nan, -np.inf])
def test_grids_that_overflow_are_refined_until_they_do_not(bad):
    """Two of them in a row are no answer, although neither is further from the other than NaN."""
    score = Figures(lambda steps: bad if steps < 40 else 3.0)
    estimator = ode_likelihood.ODELikelihood(dequantizer=TruncatedNormal())
    found, report = Pilot(tolerance=1e-2)._measured(score, {}, estimator)
    assert (found.solver.steps, report.error, report.bias) == (40, 0, 0)
    assert report.reference_evaluations == 129
    assert report.is_within


@pytest.mark.parametrize(
    ("solver", "finite_from", "said"),
    [
        (None, 1 << 20, r"1 of the 2 images .* by 32 steps of Adams: .* Double Pilot.max_steps "),
        (None, 64, r"by 32 steps of Adams: .* Double Pilot.max_steps "),
        (Adams(steps=24), 32, r"by Adams\(steps=24.*Raise the number of its steps,"),
    ],
)
def test_figures_that_are_not_finite_are_no_report(solver, finite_from, said):
    score = Figures(lambda steps: 3.0 if steps >= finite_from else np.nan)
    estimator = ode_likelihood.ODELikelihood(dequantizer=TruncatedNormal(), solver=solver)
    with pytest.raises(checks.NonFiniteError, match=said):
        Pilot(tolerance=1e-2, max_steps=64)._measured(score, {}, estimator)


def test_what_a_reference_is_off_by_is_as_reported():
    """For a smooth density the reported error is an upper bound within a factor."""
    model, batch, key, estimator, exact = problem(VariancePreserving(), Noise())
    for tolerance in (1e-1, 1e-2, 1e-3):
        _, report = Pilot(tolerance=tolerance).run(model, {}, batch, key, estimator)
        reference = dataclasses.replace(
            estimator, solver=Adams(steps=report.reference_evaluations - 1)
        )
        off = error_of(model, batch, key, reference, exact)
        assert off <= report.reference_error <= 100 * off


@pytest.mark.full_cases("given")
@pytest.mark.parametrize(
    "solver", [pytest.param(None, marks=pytest.mark.full), Adams(steps=12)], ids=["chosen", "given"]
)
def test_what_coarse_arithmetic_does_is_measured_and_refused(solver):
    fine, batch, key, estimator, _ = problem(VariancePreserving(), Noise())
    estimator = dataclasses.replace(estimator, solver=solver)
    assert Pilot(tolerance=0.1).run(fine, {}, batch, key, estimator)[1].precision_error is None
    model = dataclasses.replace(fine, network=Coarse(fine.network))
    pilot = Pilot(tolerance=0.1, precision_tolerance=1e-5)
    chosen, report = pilot.run(model, {}, batch, key, estimator)
    there, here = (
        np.asarray(jax.jit(lambda each=each: each.likelihood_fn({}, batch, key, chosen))().log_p)
        for each in (model, fine)
    )
    expected = np.mean(np.abs(there - here)) / (4 * np.log(2))
    assert 1e-3 < expected < 0.1
    assert report.precision_error == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match="network of bfloat16 .* 1.0e-05 .*UNet.dtype = None"):
        pilot.check_precision(model, report)
    Pilot(tolerance=0.1).check_precision(model, report)
    with pytest.raises(ValueError, match="must be within 1.0e-05"):
        Pilot(tolerance=1e-5).check_precision(model, report)


@dataclasses.dataclass(frozen=True)
class Noting(AbstractNetwork):
    """A network that records the matmul precision when it is traced."""

    fine: AbstractNetwork
    noted: list

    def init(self, key, image_shape):
        return self.fine.init(key, image_shape)

    def __call__(self, *args):
        self.noted.append(jax.config.jax_default_matmul_precision)
        return self.fine(*args)


def test_an_accelerators_products_are_measured_against_precise_ones(monkeypatch):
    monkeypatch.setattr(numerics, "coarse_products", lambda: "a chip's products")
    fine, batch, key, estimator, _ = problem(VariancePreserving(), Noise())
    estimator = dataclasses.replace(estimator, solver=Adams(steps=8))
    model = dataclasses.replace(fine, network=Noting(fine.network, []))
    _, report = Pilot(tolerance=0.1).run(model, {}, batch, key, estimator)
    assert report.precision_error == 0.0  # here they are precise anyway
    assert list(dict.fromkeys(model.network.noted)) == [None, "highest"]
    with pytest.raises(ValueError, match="of a chip's products .*PRECISION=highest"):
        Pilot(tolerance=1e-3).check_precision(model, report._replace(precision_error=2e-3))


def test_products_are_coarse_on_accelerators_unless_forbidden(float32, monkeypatch):
    assert numerics.coarse_products() is None
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert "gpu" in numerics.coarse_products()
    with jax.default_matmul_precision("highest"):
        assert numerics.coarse_products() is None


def test_nothing_is_scored_without_a_solver():
    model, batch, key, estimator, _ = problem(VariancePreserving(), Noise())
    with pytest.raises(ValueError, match="`solver` is None"):
        model.likelihood_fn({}, batch, key, estimator)


@pytest.mark.parametrize("name", ["tolerance", "num_images"])
def test_arguments_must_be_positive(name):
    with pytest.raises(ValueError, match="greater than zero"):
        Pilot(**{name: 0})
    with pytest.raises(ValueError, match="`tolerance` must be greater than zero and finite"):
        Pilot(tolerance=float("inf"))
    with pytest.raises(ValueError, match="`max_steps` must be at least 16"):
        Pilot(max_steps=8)


@pytest.mark.full
@pytest.mark.parametrize(("tolerance", "times"), [(1e-2, 2), (1e-4, 4)])
def test_a_fitted_grid_needs_few_steps_where_something_happens_at_once(tolerance, times):
    """A change within a tenth of a nat of twelve; the reference uses adaptive steps."""
    schedule, parameterization = VariancePreserving(), Noise()
    model, batch, key, estimator, _ = problem(schedule, parameterization)
    model = dataclasses.replace(model, network=Sudden(model.network))
    plain, at_equal = Pilot(tolerance=tolerance, max_steps=2048).run(
        model, {}, batch, key, estimator
    )
    pilot = Pilot(tolerance=tolerance, max_steps=2048, fit_spacing=True)
    chosen, report = pilot.run(model, {}, batch, key, estimator)
    assert at_equal.is_within
    assert report.is_within
    assert chosen.solver.steps + 1 <= (plain.solver.steps + 1) / times
    # What the summary tells can be bound by hand.
    assert chosen.solver == Adams(
        steps=chosen.solver.steps, spacing=Tabulated(table=report.spacing)
    )
    tight = dataclasses.replace(estimator, solver=DormandPrince(rtol=1e-9, atol=1e-9))
    figures = [
        np.asarray(jax.jit(lambda each=each: model.likelihood_fn({}, batch, key, each))().log_p)
        for each in (chosen, tight)
    ]
    assert np.mean(np.abs(figures[0] - figures[1])) / (4 * np.log(2)) <= tolerance


def test_a_fitted_grids_error_is_of_images_it_was_not_fitted_on():
    model, batch, key, estimator, _ = problem(VariancePreserving(), Noise())
    model = dataclasses.replace(model, network=Sudden(model.network))
    pilot = Pilot(tolerance=1e-2, max_steps=256, fit_spacing=True)
    chosen, report = pilot.run(model, {}, batch, key, estimator)
    grids = pilot_grids.Grids(model, batch, key, estimator, 256)
    fitted = spacing_fit.fit(grids.defects({}, 256)[:, ::2], pilot_grids.ORDER)
    assert chosen.solver.spacing == fitted == Tabulated(table=report.spacing)
    errors = np.abs(grids({}, chosen.solver.steps, fitted) - grids({}, 256))
    assert report.error == pytest.approx(np.mean(errors[1::2]), rel=1e-9)
    assert report.error > 1.2 * np.mean(errors)
    assert report.num_images == BATCH / 2


def test_a_reference_that_has_to_be_chosen_has_the_error_of_its_last_doubling():
    model, batch, key, estimator, _ = problem(VariancePreserving(), Noise())
    chosen, report = Pilot(tolerance=1e-9, max_steps=16).run(model, {}, batch, key, estimator)
    assert chosen.solver.steps == 16
    assert report.error == report.reference_error > 0
    assert abs(report.bias) > 0
    assert not report.is_within


def test_a_single_image_is_not_enough_to_fit():
    with pytest.raises(ValueError, match="`fit_spacing` needs at least two images.*got 1"):
        Pilot(fit_spacing=True, num_images=1)
    model, batch, key, estimator, _ = problem(VariancePreserving(), Noise())
    one = jax.tree.map(lambda leaf: leaf[:1], batch)
    with pytest.raises(ValueError, match="`fit_spacing` needs at least two images.*got 1"):
        Pilot(tolerance=1, fit_spacing=True).run(model, {}, one, key, estimator)


@dataclasses.dataclass(frozen=True)
class Sudden(AbstractNetwork):
    """A network plus a term that depends on the image near one time only."""

    other: AbstractNetwork

    def init(self, key, image_shape):
        return {}

    def __call__(self, params, z, time, conditioning, key=None):
        low, high = self.other.time.gamma_min, self.other.time.gamma_max
        bump = jnp.exp(-0.5 * ((low + (high - low) * time + 1) / 0.05) ** 2)
        output = self.other(params, z, time, conditioning)
        return output + 4 * numerics.expand(bump, z) * jnp.sin(2 * z)


@pytest.mark.parametrize(
    ("variable", "fit_spacing", "steps", "said"),
    [
        (Kappa(), False, 896, "896 steps.*in Kappa.*exponential.gin, or .*fit_spacing=True"),
        (Kappa(), True, 896, r"use: [^ ]*exponential.gin, or a larger BPD_TOLERANCE\.$"),
        (Exponential(), False, 896, r"use: --gin.Pilot.fit_spacing=True, or a larger"),
        (Kappa(), False, 256, "^$"),
    ],
)
def test_a_grid_of_many_steps_is_not_taken_without_a_word(variable, fit_spacing, steps, said):
    estimator = ode_likelihood.ODELikelihood(
        dequantizer=TruncatedNormal(), variable=variable, solver=Adams(steps=steps)
    )
    line = pilot_run.warning(estimator, Pilot(fit_spacing=fit_spacing))
    assert re.search(said, line)
    assert line.count("\n") == bool(line)
