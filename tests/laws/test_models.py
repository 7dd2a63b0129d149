"""Laws of the model: results of an image do not depend on its batch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from idode_gin.dequantizers.truncated_normal import TruncatedNormal
from idode_gin.encoding import Encoding
from idode_gin.likelihood.ode_likelihood import ODELikelihood
from idode_gin.losses.base import AbstractBound, AbstractLoss
from idode_gin.losses.bound import VariationalBound
from idode_gin.losses.first_order import FirstOrder
from idode_gin.models import DiffusionODE
from idode_gin.networks.base import AbstractNetwork
from idode_gin.parameterizations.velocity import Velocity
from idode_gin.samplers.ode import ODESampler
from idode_gin.schedules.time.learned_linear import LearnedLinear
from idode_gin.schedules.time.linear import Linear
from idode_gin.schedules.time.monotone import Monotone
from idode_gin.schedules.time.tabulated import Tabulated
from idode_gin.schedules.variance_preserving import VariancePreserving
from idode_gin.solvers import tableaus
from idode_gin.solvers.fixed_grid import FixedGrid
from idode_gin.time_samplers.base import AbstractTimeSampler
from idode_gin.time_samplers.importance import Importance
from idode_gin.time_samplers.quantiles.base import AbstractQuantiles
from idode_gin.time_samplers.quantiles.low_discrepancy import LowDiscrepancy
from idode_gin.time_samplers.uniform import Uniform

from . import discovery, toys

LOSSES = discovery.instances(AbstractLoss)
EACH_LOSS = discovery.each("loss", AbstractLoss)
EACH_BOUND = discovery.each("bound", AbstractBound)
EACH_SAMPLER = discovery.each("sampler", AbstractTimeSampler)
EACH_QUANTILES = discovery.each("quantiles", AbstractQuantiles)
SHAPE, DIMS, LEVELS, BATCH = (2, 2, 1), 4, 5, 6
KEY = jax.random.key(17)
pytestmark = pytest.mark.usefixtures("float64")


def build(**changes):
    model = DiffusionODE(
        network=toys.TinyNetwork(scale=0.5),
        schedule=VariancePreserving(),
        time=Linear(gamma_min=-5.0, gamma_max=3.0),
        parameterization=Velocity(),
        time_sampler=Importance(),
        loss=FirstOrder(),
        encoding=Encoding(levels=LEVELS),
        image_shape=SHAPE,
    )
    return dataclasses.replace(model, **changes)


def params_of(model):
    return model.init(jax.random.key(0), SHAPE)


def batch_of(places=range(BATCH)):
    """A part of one global batch of BATCH images."""
    places = jnp.asarray(list(places))
    images = jax.random.randint(jax.random.key(2), (BATCH, *SHAPE), 0, LEVELS)
    conditioning = jnp.linspace(0.0, 1.0, BATCH).reshape(-1, 1)
    return {
        "image": images[places].astype(jnp.uint8),
        "conditioning": conditioning[places],
        "position": places,
        "index": 100 + places,
        "mask": jnp.ones(places.shape),
    }


def slices_equal_whole(model):
    """Losses and gradients of three microbatches against one batch."""
    params = params_of(model)

    def loss(params, batch):
        return model.loss_fn(params, batch, KEY, BATCH)

    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (mean, parts), gradient = run(params, batch_of())
    pieces = [run(params, batch_of(range(start, start + 2))) for start in (0, 2, 4)]
    np.testing.assert_allclose(np.mean([piece[0][0] for piece in pieces]), mean, rtol=1e-11)
    for name, expected in parts.items():
        found = np.concatenate([piece[0][1][name] for piece in pieces])
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-13, err_msg=name)
    average = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *[p[1] for p in pieces])
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-12), average, gradient
    )


@pytest.mark.full
@EACH_LOSS
def test_microbatches_equal_the_whole_batch(loss):
    slices_equal_whole(build(loss=loss))


@pytest.mark.full
@EACH_SAMPLER
def test_microbatches_equal_the_whole_batch_for_every_time_sampler(sampler):
    slices_equal_whole(build(time_sampler=sampler))


@EACH_QUANTILES
def test_microbatches_equal_the_whole_batch_for_all_quantiles(quantiles):
    slices_equal_whole(build(time_sampler=Uniform(quantiles=quantiles)))


@pytest.mark.full_cases("FirstOrder")
@EACH_LOSS
def test_training_parts_add_up_in_bits(loss):
    model = build(loss=loss)
    params, batch = params_of(model), batch_of()
    mean, parts = model.loss_fn(params, batch, KEY)
    terms = {"reconstruction", "prior", "diffusion", "bpd", "second_order", "loss"}
    assert set(parts) == terms | {"gamma"}
    total = parts["reconstruction"] + parts["prior"] + parts["diffusion"]
    np.testing.assert_allclose(parts["bpd"], total, rtol=1e-12)
    np.testing.assert_allclose(parts["loss"], parts["bpd"] + parts["second_order"], rtol=1e-12)
    np.testing.assert_allclose(mean, np.mean(parts["loss"]), rtol=1e-12)

    draws = model.draw(KEY, batch["position"], SHAPE, BATCH)
    field = model.field(params, batch["conditioning"], draws.dropout)
    gamma, density = model.time_sampler.gamma_and_density(
        draws.u, model.time, lambda gamma: jax.nn.sigmoid(-gamma)
    )
    terms = loss(field, model.encoding.encode(batch["image"]), gamma, density, draws.loss)
    bits = DIMS * np.log(2)
    np.testing.assert_allclose(parts["diffusion"], terms.diffusion / bits, rtol=1e-10)
    np.testing.assert_allclose(parts["second_order"], terms.second_order / bits, rtol=1e-10)


def test_random_numbers_change_with_key_and_position():
    model = build()
    params, batch = params_of(model), batch_of([0] * BATCH)
    batch["position"] = jnp.arange(BATCH)
    _, parts = model.loss_fn(params, batch, KEY)
    for name in ("diffusion", "reconstruction"):
        assert len(np.unique(parts[name])) == BATCH
    _, other = model.loss_fn(params, batch, jax.random.key(18))
    assert not np.any(np.isclose(other["diffusion"], parts["diffusion"], rtol=1e-6))


FIGURES = {
    "eval": lambda model, params, batch: model.eval_fn(params, batch, KEY),
    "likelihood": lambda model, params, batch: {
        "log_p": model.likelihood_fn(params, batch, KEY, LIKELIHOOD).log_p
    },
    "sample": lambda model, params, batch: {
        name: each
        for name, each in model.sample_fn(params, batch, KEY, SAMPLER)._asdict().items()
        if each is not None
    },
}
LIKELIHOOD = ODELikelihood(
    dequantizer=TruncatedNormal(), solver=FixedGrid(steps=10), num_importance=2, num_repeats=2
)
SAMPLER = ODESampler(solver=FixedGrid(steps=10))


@pytest.mark.full
@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("width", ["float32", "float64"])
def test_an_image_has_its_own_figure(name, width, request):
    """Results depend on the index of the image, not on batch size, order or neighbours."""
    request.getfixturevalue(width)
    model = build()
    params = params_of(model)
    assert params["first"].dtype == width
    run = jax.jit(lambda params, batch: FIGURES[name](model, params, batch))
    whole = run(params, batch_of())
    for places in ([3], [5, 0]):
        some = run(params, batch_of(places))
        for part, values in whole.items():
            expected = values[jnp.asarray(places)]
            np.testing.assert_allclose(some[part], expected, rtol=1e-5, atol=1e-6)
    same = batch_of([1, 1])
    same["index"] = jnp.asarray([101, 7])
    values = run(params, same)
    part = {"eval": "diffusion", "likelihood": "log_p", "sample": "latent"}[name]
    assert not np.any(np.isclose(values[part][0], values[part][1], rtol=1e-6))
    np.testing.assert_allclose(values[part][0], whole[part][1], rtol=1e-5)


@EACH_BOUND
def test_bound_parts_add_up_in_bits(bound):
    model = build()
    params, batch = params_of(model), batch_of()
    parts = model.bound_fn(params, batch, KEY, bound)
    assert set(parts) == {"reconstruction", "prior", "diffusion", "bpd"}
    total = parts["reconstruction"] + parts["prior"] + parts["diffusion"]
    np.testing.assert_allclose(parts["bpd"], total, rtol=1e-12)
    keys = jax.vmap(lambda index: jax.random.fold_in(KEY, index))(batch["index"])
    field = model.field(params, batch["conditioning"])
    terms = bound(field, model.end, model.time, batch["image"], keys)
    np.testing.assert_allclose(parts["prior"], terms.prior / (DIMS * np.log(2)), rtol=1e-12)
    np.testing.assert_allclose(parts["diffusion"], terms.diffusion / (DIMS * np.log(2)), rtol=1e-9)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Denser(AbstractTimeSampler):
    """Uniform times, whose densities are said to be twice as large."""

    quantiles: AbstractQuantiles = dataclasses.field(default_factory=LowDiscrepancy)

    def gamma_and_density(self, u, time, weight):
        gamma, density = Uniform().gamma_and_density(u, time, weight)
        return gamma, 2 * density


def test_the_bound_that_is_monitored_has_the_time_sampler_of_the_model():
    """Its diffusion term is the mean of the integrand over the density, here twice as large."""
    batch = batch_of()
    plain, denser = (build(time_sampler=each) for each in (Uniform(), Denser()))
    params = params_of(plain)
    whole, half = (model.eval_fn(params, batch, KEY) for model in (plain, denser))
    np.testing.assert_allclose(half["diffusion"], whole["diffusion"] / 2, rtol=1e-12)
    np.testing.assert_array_equal(half["reconstruction"], whole["reconstruction"])


def test_the_integrand_integrates_to_the_diffusion_term():
    model = build()
    params = params_of(model)
    batch = batch_of(np.arange(3000) % BATCH)
    batch["index"] = jnp.arange(3000)
    gammas = jnp.linspace(-5.0, 3.0, 65)
    values = jax.jit(lambda batch: model.integrand(params, batch, KEY, gammas))(batch)
    assert values.shape == (65,)
    estimator = VariationalBound(num_times=4)
    bound = jax.jit(lambda batch: model.bound_fn(params, batch, KEY, estimator))(batch)
    integral = np.trapezoid(values, gammas)
    toys.assert_mean(bound["diffusion"], integral, sigmas=6, at_most=0.02 * integral)


def test_the_network_is_told_time_conditioning_and_when_to_drop():
    """Time is the fraction of gamma's range; dropout keys come in training only."""
    seen = []

    @dataclasses.dataclass(frozen=True)
    class Spy(toys.AbstractNetwork):
        def init(self, key, image_shape):
            return {}

        def __call__(self, params, z, time, conditioning, key=None):
            seen.append((np.asarray(time), np.asarray(conditioning), key))
            return jnp.zeros_like(z)

    model, batch = build(network=Spy()), batch_of()
    gamma = jnp.linspace(-5.0, 3.0, BATCH)
    model.field({}, batch["conditioning"]).output(jnp.zeros((BATCH, *SHAPE)), gamma)
    np.testing.assert_allclose(seen[-1][0], np.linspace(0, 1, BATCH), atol=1e-12)
    np.testing.assert_array_equal(seen[-1][1], batch["conditioning"])
    assert seen[-1][2] is None
    model.loss_fn({}, batch, KEY)
    assert seen[-1][2].shape == (BATCH,)
    assert len({tuple(np.ravel(jax.random.key_data(key))) for key in seen[-1][2]}) == BATCH


def test_the_model_is_for_one_image_shape():
    with pytest.raises(ValueError, match="image_shape"):
        build().init(jax.random.key(0), (3, 2, 1))
    with pytest.raises(ValueError, match=r"are \(1, 7, 9\), .* numpy\.moveaxis\(images, 1, -1\)"):
        build().init(jax.random.key(0), (1, 7, 9))
    params = build(image_shape=None).init(jax.random.key(0), (3, 2, 1))
    expected = build(image_shape=(3, 2, 1)).init(jax.random.key(0), (3, 2, 1))
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    with pytest.raises(ValueError, match="DiffusionODE.image_shape"):
        build(image_shape=None).sample_fn({}, batch_of(), KEY, SAMPLER)


@pytest.mark.parametrize("change", ["none", "gamma_min", "gamma_max"])
def test_the_ends_of_gamma_are_trained_by_the_bound(change):
    """Gradients of every parameter of gamma(t) equal finite differences of the loss."""
    learned = build(time=LearnedLinear(gamma_min=-5.0, gamma_max=3.0))
    params, batch = params_of(learned), batch_of()
    assert params.keys() == {"time_schedule", *params_of(build())}
    if change == "none":  # the same loss as the fixed one at the same ends
        expected, _ = build().loss_fn(params_of(build()), batch, KEY)
        np.testing.assert_allclose(learned.loss_fn(params, batch, KEY)[0], expected, rtol=1e-12)
        return

    def loss(value):
        ends = {**params["time_schedule"]["ends"], change: value}
        return learned.loss_fn({**params, "time_schedule": {"ends": ends}}, batch, KEY)[0]

    value, step = params["time_schedule"]["ends"][change], 1e-4
    slope = (loss(value + step) - loss(value - step)) / (2 * step)
    assert abs(slope) > 1e-3
    np.testing.assert_allclose(jax.grad(loss)(value), slope, rtol=1e-6)


@dataclasses.dataclass(frozen=True)
class OnInitialRange(AbstractNetwork):
    """A network whose time input is a fraction of [-5, 3], in a model of [-6, 4]."""

    network: AbstractNetwork

    def init(self, key, image_shape):
        return self.network.init(key, image_shape)

    def __call__(self, params, z, time, conditioning, key=None):
        return self.network(params, z, (-6 + 10 * time + 5) / 8, conditioning, key)


def test_every_figure_is_of_the_ends_that_were_learned():
    """As of a model that has them from the start: bounds, densities, samples, latents, losses."""
    learned = build(time=LearnedLinear(gamma_min=-5.0, gamma_max=3.0), time_sampler=Uniform())
    fixed = dataclasses.replace(
        learned, time=Linear(gamma_min=-6.0, gamma_max=4.0), network=OnInitialRange(learned.network)
    )
    ends = {"gamma_min": jnp.asarray(-6.0), "gamma_max": jnp.asarray(4.0)}
    params, batch = params_of(fixed), batch_of()
    noise = jax.random.normal(jax.random.key(5), (BATCH, *SHAPE))
    step = FixedGrid(steps=1, tableau=tableaus.euler())
    sampler = ODESampler(solver=step)
    likelihood = ODELikelihood(dequantizer=TruncatedNormal(), solver=step)

    def figures(model, params):
        def found(batch):
            return {
                "loss": model.loss_fn(params, batch, KEY)[1],
                "bound": model.bound_fn(params, batch, KEY, VariationalBound(num_times=2)),
                "monitored": model.eval_fn(params, batch, KEY),
                "likelihood": model.likelihood_fn(params, batch, KEY, likelihood).log_p,
                "sample": model.sample_fn(params, batch, KEY, sampler).latent,
                "encode": model.round_trip_fn(params, batch, KEY, sampler)[:3],
                "decode": model.decode_fn(params, {**batch, "noise": noise}, sampler)[:2],
            }

        return jax.jit(found)(batch)

    expected = figures(fixed, params)
    moved = figures(learned, {**params, "time_schedule": {"ends": ends}})
    for name, each in expected.items():
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), moved[name], each
        )


@pytest.mark.parametrize("loss", [each for each in LOSSES if not each.trains_time], ids=repr)
@pytest.mark.parametrize("time", [LearnedLinear(), Monotone(units=4)], ids=repr)
def test_a_loss_that_is_no_bound_leaves_gamma_as_it_is(loss, time):
    model = build(time=time, time_sampler=Uniform(), loss=loss)
    params = params_of(model)
    found = jax.grad(lambda params: model.loss_fn(params, batch_of(), KEY)[0])(params)
    assert not any(np.any(each) for each in jax.tree.leaves(found.pop("time_schedule")))
    assert all(np.any(each) for each in found.values())


def test_the_interior_is_trained_by_variance_and_the_rest_by_the_loss():
    """One backward pass: d mean(L^2) for the interior, d mean(L) for ends and network."""
    learned = build(time=Monotone(gamma_min=-5.0, gamma_max=3.0, units=4), time_sampler=Uniform())
    params, batch = params_of(learned), batch_of()

    @jax.jit
    def parts_of(params):
        return learned.loss_fn(params, batch, KEY)

    def second_moment(params):
        parts = parts_of(params)[1]
        return jnp.mean((parts["diffusion"] + parts["second_order"]) ** 2)

    found = jax.jit(jax.grad(lambda params: parts_of(params)[0]))(params)
    for part, function in {"interior": second_moment, "ends": lambda p: parts_of(p)[0]}.items():
        inner = sum(jnp.sum(each) for each in jax.tree.leaves(found["time_schedule"][part]))
        slope = slope_along(function, params, ["time_schedule", part])
        assert abs(slope) > 1e-6
        np.testing.assert_allclose(inner, slope, rtol=1e-5)
    plain = dataclasses.replace(learned, time=learned.at(params).time)
    expected = jax.jit(jax.grad(lambda params: plain.loss_fn(params, batch, KEY)[0]))(params)
    for name in learned.network_params(params):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-10)


def slope_along(function, params, path, step=1e-5):
    """Return the change of the function when every number at `path` grows, by differences."""

    def at(shift):
        def moved(tree, path):
            if not path:
                return jax.tree.map(lambda each: each + shift, tree)
            return {**tree, path[0]: moved(tree[path[0]], path[1:])}

        return function(moved(params, path))

    return (at(step) - at(-step)) / (2 * step)


def test_a_sampler_with_a_density_of_its_own_would_leave_the_interior_untrained():
    with pytest.raises(
        ValueError, match="Set `time_sampler` to a Uniform of idode_gin.time_samplers.uniform"
    ):
        build(time=Monotone(), time_sampler=Importance())
    assert not build(time=LearnedLinear(), time_sampler=Importance()).time.learns_interior


def test_an_adapted_gamma_reports_the_integrand():
    """The mean of the integrand times 1 / density is the loss; gradients leave the masses alone."""
    model = build(time=Tabulated(gamma_min=-5.0, gamma_max=3.0, bins=3), time_sampler=Uniform())
    params, batch = params_of(model), batch_of()
    params["time_schedule"]["interior"]["log_masses"] = jnp.log(jnp.asarray([0.5, 0.2, 0.3]))
    (_, parts), found = jax.value_and_grad(model.loss_fn, has_aux=True)(params, batch, KEY)
    place = np.clip(np.floor(parts["gamma_fraction"] * 3), 0, 2).astype(int)
    density = np.asarray([0.5, 0.2, 0.3])[place] * 3 / 8
    np.testing.assert_allclose(parts["integrand"], parts["diffusion"] * density, rtol=1e-10)
    np.testing.assert_allclose(parts["gamma"], -5 + 8 * parts["gamma_fraction"], rtol=1e-10)
    assert not np.any(found["time_schedule"]["interior"]["log_masses"])
    assert np.all(np.asarray(jax.tree.leaves(found["time_schedule"]["ends"])) != 0)


def test_solvers_need_the_ends_as_numbers():
    learned = build(time=LearnedLinear(gamma_min=-5.0, gamma_max=3.0))
    params, batch = params_of(learned), batch_of([0])
    params["time_schedule"]["ends"]["gamma_min"] = jnp.asarray(-5.5)

    def score(model):
        return jax.jit(lambda p: model.likelihood_fn(p, batch, KEY, LIKELIHOOD).log_p)(params)

    params["first"] = params["first"].at[DIMS].set(0.0)  # which reads the time
    fixed = build(time=Linear(gamma_min=-5.5, gamma_max=3.0))
    np.testing.assert_allclose(score(learned.at(params)), score(fixed), rtol=1e-10)
    assert fixed.at(params) is fixed
    with pytest.raises(ValueError, match=r"Use `model\.at\(params\)`"):
        score(learned)


def test_the_network_must_leave_the_name_of_the_parameters_of_gamma():
    class Taken(toys.TinyNetwork):
        def init(self, key, image_shape):
            return {"time_schedule": jnp.zeros(2)}

    with pytest.raises(ValueError, match="Rename the network's"):
        params_of(build(network=Taken()))


def test_the_clean_end_follows_the_model():
    end = build().end
    assert (end.gamma_min, end.encoding.levels) == (-5.0, LEVELS)
    assert end.schedule == VariancePreserving()
