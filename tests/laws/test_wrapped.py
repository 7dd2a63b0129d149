"""Functions as models: pixels of known probability under every convention, and misuse."""

import dataclasses
import inspect
import logging
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import idode_gin
from idode_gin.dequantizers.truncated_normal import TruncatedNormal
from idode_gin.interop.host import on_host
from idode_gin.likelihood.ode_likelihood import ODELikelihood
from idode_gin.losses.base import AbstractBound
from idode_gin.losses.bound import VariationalBound
from idode_gin.networks.base import AbstractNetwork
from idode_gin.parameterizations.data import Data
from idode_gin.parameterizations.noise import Noise
from idode_gin.samplers.ancestral import Ancestral
from idode_gin.samplers.base import AbstractSampler, start_noise
from idode_gin.samplers.dpm_solver import DPMSolverPlusPlus
from idode_gin.samplers.ode import ODESampler
from idode_gin.schedules.straight_path import StraightPath
from idode_gin.schedules.variance_preserving import VariancePreserving
from idode_gin.solvers.adams import Adams
from idode_gin.solvers.base import AbstractSolver
from idode_gin.solvers.divergence import Hutchinson
from idode_gin.time_samplers.discrete_steps import DiscreteSteps

SHAPE, LEVELS, MEAN, VARIANCE = (4, 4, 3), 64, 0.1, 0.05
"""Pixels are independent: f = 2 (x + 1/2) / V - 1 is N(MEAN, VARIANCE), cut into bins."""
SCALES = {"own": None, "ends": (-1.0, 1.0), "unit": (0.0, 1.0)}
AS_USERS_CALL_IT = inspect.unwrap(idode_gin.wrap)
SOLVER = {"solver": Adams(steps=48), "tolerance": None, "bound": "uniform"}


def moments(inputs):
    """Mean and variance of a pixel on the scale `inputs`."""
    if inputs is None:
        return MEAN, VARIANCE
    first, last = inputs
    slope = (last - first) / 2 * LEVELS / (LEVELS - 1)
    return slope * MEAN + (first + last) / 2, slope**2 * VARIANCE


def exact_velocity(inputs, data_at):
    """Velocity dz / dt of the exact flow of independent Gaussian pixels."""
    mean, variance = moments(inputs)

    def velocity(z, t):
        noise = (t if data_at == 0 else 1 - t)[:, None, None, None]
        share = 1 - noise
        total = share**2 * variance + noise**2
        centred = z - share * mean
        eps, data = noise * centred / total, mean + share * variance * centred / total
        return eps - data if data_at == 0 else data - eps

    return velocity


@pytest.fixture(scope="module")
def images():
    normal = np.random.default_rng(0).standard_normal((40, *SHAPE))
    pixels = np.floor((MEAN + math.sqrt(VARIANCE) * normal + 1) * LEVELS / 2)
    assert pixels.min() > 0
    assert pixels.max() < LEVELS - 1
    return pixels.astype(np.uint8)


def exact_bits(images):
    edges = np.stack([images, images + 1.0]) * 2 / LEVELS - 1
    below, above = jax.scipy.stats.norm.cdf((edges - MEAN) / math.sqrt(VARIANCE))
    return -np.log2(above - below).mean(axis=(1, 2, 3))


@pytest.mark.parametrize("data_at", [0, 1])
@pytest.mark.parametrize("scale", SCALES)
def test_a_flow_scores_the_known_probability(images, scale, data_at):
    """The bound is above the exact bits by at most the loss of dequantization.

    For a density that is nearly linear within a bin that loss is below (width / std)^2 / 24 nats a
    pixel, plus noise of the probes; width is 2 / V.
    """
    inputs = SCALES[scale]
    model = idode_gin.wrap_flow(
        exact_velocity(inputs, data_at), SHAPE, data_at=data_at, levels=LEVELS, inputs=inputs
    )
    found, exact = model.bits_per_dim(images, **SOLVER).per_image, exact_bits(images)
    gap = found - exact
    noise = gap.std(ddof=1) / math.sqrt(len(gap))
    loss = (2 / LEVELS) ** 2 / VARIANCE / 24 / math.log(2)
    assert -4 * noise < gap.mean() < loss + 4 * noise
    assert noise < 2e-3


def exact_output(inputs, kind):
    mean, variance = moments(inputs)
    path = VariancePreserving()

    def output(z, gamma):
        alpha, sigma = (each(gamma)[:, None, None, None] for each in (path.alpha, path.sigma))
        centred, total = z - alpha * mean, alpha**2 * variance + sigma**2
        noise, data = sigma * centred / total, mean + alpha * variance * centred / total
        return noise if isinstance(kind, Noise) else data

    return output


@pytest.mark.parametrize("kind", [Noise(), Data()], ids=["noise", "data"])
def test_scales_and_meanings_give_one_figure(images, kind):
    """One distribution on three scales: the fields are the same ODE, so figures are equal."""
    figures = [
        idode_gin.wrap(
            exact_output(inputs, kind),
            SHAPE,
            levels=LEVELS,
            inputs=inputs,
            parameterization=kind,
            gamma_max=12.0,
        ).log_prob(images[:8], **SOLVER)
        for inputs in SCALES.values()
    ]
    size = math.prod(SHAPE)
    for each in figures[1:]:
        np.testing.assert_allclose(each / size, figures[0] / size, atol=1e-4)


def test_params_classes_and_a_solver_error(images):
    velocity = exact_velocity(None, 0)

    def of_class(params, z, t, classes):
        assert classes.shape[1] == 2
        return velocity(z, t) + (params * classes).sum(axis=1)[:, None, None, None]

    model = idode_gin.wrap_flow(
        of_class, SHAPE, data_at=0, levels=LEVELS, params=jnp.asarray([0.0, 0.3]), num_classes=2
    )
    plain = idode_gin.wrap_flow(velocity, SHAPE, data_at=0, levels=LEVELS)
    found = model.bits_per_dim(images[:8], bound="uniform", label=0)
    assert 0 < found.solver_error < 1e-3
    assert found.report.error == found.solver_error
    expected = plain.log_prob(images[:8], **SOLVER)
    np.testing.assert_allclose(model.log_prob(images[:8], **SOLVER, label=0), expected, rtol=1e-6)
    assert (model.log_prob(images[:8], **SOLVER, label=1) < expected - 1).all()
    assert "a function, 4 x 4 x 3, 64 levels, 2 parameters" in repr(model)


def test_a_function_on_the_host_gives_the_same(images):
    velocity = exact_velocity(None, 0)
    inside = jax.jit(velocity)
    slope = jax.jit(lambda z, t, dz: jax.jvp(lambda z: velocity(z, t), (z,), (dz,))[1])
    calls = []

    def function(z, t):
        calls.append(type(z))
        return np.asarray(inside(z, t))

    host = on_host(function, lambda z, t, dz: np.asarray(slope(z, t, dz)))
    given = {"data_at": 0, "levels": LEVELS}
    short = SOLVER | {"solver": Adams(steps=4)}
    found = idode_gin.wrap_flow(host, SHAPE, **given).log_prob(images[:4], **short)
    expected = idode_gin.wrap_flow(velocity, SHAPE, **given).log_prob(images[:4], **short)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert set(calls) == {np.ndarray}
    with pytest.raises(ValueError, match="no derivative by t"):
        jax.jvp(lambda t: host(jnp.zeros((1, *SHAPE)), t), (jnp.zeros(1),), (jnp.ones(1),))
    cut = on_host(lambda z, t: z[:, :1], lambda z, t, dz: dz)
    with pytest.raises(
        jax.errors.JaxRuntimeError, match=r"`function` must return .* got \[1, 1, 4, 3\]"
    ):
        jax.block_until_ready(cut(jnp.zeros((1, *SHAPE)), jnp.zeros(1)))


def test_a_function_of_classes_on_the_host_gives_the_same(images):
    velocity = exact_velocity(None, 0)

    def of_class(z, t, classes):
        return velocity(z, t) * (1 + 0.3 * classes[:, 1:, None, None])

    def slope(z, t, classes, dz):
        return jax.jvp(lambda z: of_class(z, t, classes), (z,), (dz,))[1]

    def on_numpy(function):
        compiled = jax.jit(function)
        return lambda *arrays: np.asarray(compiled(*arrays))

    host = on_host(on_numpy(of_class), on_numpy(slope))
    given = {"data_at": 0, "levels": LEVELS, "num_classes": 2}
    short = SOLVER | {"solver": Adams(steps=4), "label": [0, 1, 0, 1]}
    found = idode_gin.wrap_flow(host, SHAPE, **given).log_prob(images[:4], **short)
    expected = idode_gin.wrap_flow(of_class, SHAPE, **given).log_prob(images[:4], **short)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "kind", "message"),
    [
        ({"data_at": 2}, ValueError, "`data_at` must be the time of data, 0 .* got 2"),
        ({"inputs": (1.0, -1.0)}, ValueError, "`inputs` must be .* such as"),
        ({"levels": 1}, ValueError, "`levels` must be an integer, 2 or more"),
        ({"gamma_max": -20.0}, ValueError, "`gamma_max`, the noise end, must be above"),
        ({"num_classes": 3}, TypeError, r"`velocity` must take \(z, t, classes\), got"),
    ],
    ids=lambda each: str(each) if isinstance(each, dict) else "",
)
def test_misuse_is_refused(wrong, kind, message):
    given = {"image_shape": SHAPE, "data_at": 0, "levels": LEVELS} | wrong
    with pytest.raises(kind, match=message):
        idode_gin.wrap_flow(lambda z, t: z, **given)


def test_wrong_outputs_and_schedules_are_named(images):
    model = idode_gin.wrap(lambda z, gamma: z[..., :1], SHAPE, levels=LEVELS)
    with pytest.raises(
        ValueError, match=r"must return one number for each of z, .* got \(\d+, 4, 4, 1\)"
    ):
        model.bits_per_dim(images[:8], **SOLVER)
    with pytest.raises(TypeError, match="the class StraightPath instead of an instance"):
        AS_USERS_CALL_IT(lambda z, gamma: z, SHAPE, schedule=StraightPath)
    assert isinstance(model.model.network, AbstractNetwork)
    pair = idode_gin.wrap_flow(lambda z, t: (z, t), SHAPE, data_at=0, levels=LEVELS)
    with pytest.raises(ValueError, match="must return one number for each of z, .* got tuple"):
        pair.bits_per_dim(images[:8], **SOLVER)
    with pytest.raises(TypeError, match="`params` must hold arrays alone, got <.*eqx.part"):
        idode_gin.wrap(lambda p, z, gamma: z, SHAPE, params={"act": jnp.tanh}, levels=LEVELS)


def test_a_coarse_function_is_reported(images, caplog):
    exact = exact_velocity(None, 0)
    for dtype in (jnp.float32, jnp.bfloat16):
        coarse = lambda z, t, dtype=dtype: exact(z, t).astype(dtype)  # noqa: E731
        flow = idode_gin.wrap_flow(coarse, SHAPE, data_at=0, levels=LEVELS)
        with caplog.at_level(logging.WARNING, "absl"):
            flow.bits_per_dim(images[:8], **SOLVER)
        assert ("The function returns bfloat16" in caplog.text) == (dtype == jnp.bfloat16)
        assert ("The function returns" in caplog.text) == (dtype == jnp.bfloat16)


def test_a_coarse_function_on_the_host_is_reported_once(images, caplog):
    half = on_host(lambda z, t: z.astype(np.float16), lambda z, t, dz: dz.astype(np.float32))
    flow = idode_gin.wrap_flow(half, SHAPE, data_at=0, levels=LEVELS)
    with caplog.at_level(logging.WARNING, "absl"):
        flow.bits_per_dim(images[:8], **SOLVER)
    assert 1 <= caplog.text.count("The function returns float16") <= 4  # a compiled call each


def test_a_likelihood_of_one_s_own_is_a_bound(images):
    """Importance samples tighten the bound; without, the numbers are those of the bound by name."""
    flow = idode_gin.wrap_flow(exact_velocity(None, 0), SHAPE, data_at=0, levels=LEVELS)
    one = ODELikelihood(dequantizer=TruncatedNormal(), solver=Adams(steps=24))
    many = dataclasses.replace(one, num_importance=8)
    loose, tight = (flow.bits_per_dim(images, bound=each, tolerance=None) for each in (one, many))
    gain = loose.per_image - tight.per_image
    assert gain.mean() > 5 * gain.std() / len(images) ** 0.5 > 0
    assert tight.mean > exact_bits(images).mean()
    named = flow.bits_per_dim(
        images, bound="truncated_normal", solver=Adams(steps=24), tolerance=None
    )
    np.testing.assert_array_equal(named.per_image, loose.per_image)
    chosen = flow.bits_per_dim(images, bound=dataclasses.replace(one, solver=None), tolerance=1e-2)
    assert chosen.report is not None
    assert chosen.mean == pytest.approx(loose.mean, abs=2e-2)
    with pytest.raises(ValueError, match="must be an ODELikelihood, a bound such as .*unifrom"):
        flow.bits_per_dim(images, bound="unifrom")


@pytest.mark.parametrize("decorate", [dataclasses.dataclass, lambda kind: kind])
def test_parts_that_changed_are_not_taken_for_those_before(images, decorate):
    """Of a user, and not frozen; also within a sampler, which is equal to one of equal parts."""

    @decorate
    class Solver(AbstractSolver):
        steps: int

        def __init__(self, steps):
            self.steps = steps

        def solve(self, *given, **more):
            return Adams(steps=self.steps).solve(*given, **more)

    class Bound(AbstractBound):
        num_times = 1

        def num_evaluations(self):
            return self.num_times

        def __call__(self, *given):
            return VariationalBound(num_times=self.num_times)(*given)

    class Sampler(AbstractSampler):
        def __init__(self):
            self.settings = {"steps": [2]}

        def __call__(self, *given):
            return ODESampler(solver=Adams(steps=self.settings["steps"][0]))(*given)

    flow = idode_gin.wrap_flow(exact_velocity((-1.0, 1.0), 0), SHAPE, data_at=0, levels=LEVELS)
    solver, bound, sampler = Solver(2), Bound(), Sampler()
    calls = {
        "score": lambda: flow.bits_per_dim(images[:8], solver=solver, tolerance=None).mean,
        "bound": lambda: flow.bits_per_dim(images[:8], bound=bound).mean,
        "encode": lambda: flow.encode(images[:8], method=ODESampler(solver=solver)).mean(),
        "sample": lambda: flow.sample(2, method=sampler).mean(),
    }
    first = {name: call() for name, call in calls.items()}
    assert {name: call() for name, call in calls.items()} == first
    solver.steps = bound.num_times = sampler.settings["steps"][0] = 32
    unchanged = [name for name, call in calls.items() if call() == first[name]]
    assert not unchanged


def test_what_sampling_encoding_and_decoding_cost_and_take(images):
    """Encoding is one solve; decoding takes the noise of any deterministic sampler."""
    calls, steps = [], 6
    velocity = exact_velocity((-1.0, 1.0), 0)

    def counted(z, t):
        calls.append(z.shape)
        return np.asarray(velocity(jnp.asarray(z), jnp.asarray(t)))

    host = on_host(counted, lambda z, t, dz: dz)
    flow = idode_gin.wrap_flow(host, SHAPE, data_at=0, inputs=(-1, 1), levels=LEVELS)
    method, found = ODESampler(solver=Adams(steps=steps)), {}
    noise = flow.encode(images[:2], method=method)
    found["encode"] = len(calls)
    flow.decode(noise, method=method)
    flow.sample(2, method=method)
    assert (found["encode"], len(calls)) == (steps + 1, 3 * (steps + 1))
    fast = DPMSolverPlusPlus(steps=steps)
    drawn = flow.sample(2, 3, method=fast)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(3), i))(jnp.arange(2))
    noise = np.asarray(start_noise(keys, SHAPE))
    np.testing.assert_array_equal(flow.decode(noise, method=fast), drawn)
    decode = inspect.unwrap(type(flow).decode)  # without the annotations' check of tests
    with pytest.raises(ValueError, match="`method` must be an instance of AbstractDeterministic"):
        decode(flow, np.zeros((1, *SHAPE)), method=Ancestral(steps=2))
    with pytest.raises(ValueError, match=r"images alone, .*score the images with `bits_per_dim`"):
        flow.sample(1, method=method.with_log_prob(Hutchinson()))


def test_a_bound_that_solves_nothing(images):
    """Its quadrature is the caller's choice; a solver would have no effect."""
    velocity = exact_velocity((-1.0, 1.0), 0)
    flow = idode_gin.wrap_flow(velocity, SHAPE, data_at=0, inputs=(-1, 1), levels=LEVELS)
    named = flow.bits_per_dim(images, bound="variational_bound")
    own = VariationalBound(num_times=64, time_sampler=flow.model.time_sampler)
    np.testing.assert_array_equal(flow.bits_per_dim(images, bound=own).per_image, named.per_image)
    chain = VariationalBound(num_times=4, time_sampler=DiscreteSteps(steps=4))
    assert flow.bits_per_dim(images, bound=chain).mean > named.mean
    with pytest.raises(ValueError, match=r"solves no ODE, .*got Adams.*bound='truncated_normal'"):
        flow.bits_per_dim(images, bound="variational_bound", solver=Adams(steps=2))


def test_a_tolerance_that_is_missed_is_reported(images, caplog):
    flow = idode_gin.wrap_flow(
        exact_velocity((-1.0, 1.0), 0), SHAPE, data_at=0, inputs=(-1, 1), levels=LEVELS
    )
    found = flow.bits_per_dim(images[:4], bound="uniform", tolerance=1e-9)
    assert not found.report.is_within
    assert found.report.rounding > 1e-9
    assert "uniform: Adams" in caplog.text
    rounding = f"{found.report.rounding:.1e}"
    assert f"tolerance of 1.0e-09, mostly because float32 rounds by {rounding}." in caplog.text
    assert "known to within 0.0" not in caplog.text
    caplog.clear()
    coarse = flow.bits_per_dim(images[:4], solver=Adams(steps=2), tolerance=1e-4)
    assert not coarse.report.is_within
    assert "Give a `solver` with more steps, or raise `tolerance`." in caplog.text
