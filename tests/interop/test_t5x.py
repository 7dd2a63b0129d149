"""The model for upstream t5x, with a stand-in for its base class; and with t5x where it is."""

import importlib
import inspect
import pathlib
import re

import classes
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import upstream
from clu import metrics
from flax.linen import partitioning

from idode_gin.dequantizers.uniform import Uniform
from idode_gin.evaluation import pixel_keys, scores
from idode_gin.interop import t5x
from idode_gin.likelihood.ode_likelihood import ODELikelihood
from idode_gin.losses.bound import VariationalBound
from idode_gin.samplers.heun import Heun
from idode_gin.schedules.time.tabulated import Tabulated
from idode_gin.solvers.divergence import Exact
from idode_gin.solvers.fixed_grid import FixedGrid
from idode_gin.training import optimizers, train_state, train_step

ROOT = pathlib.Path(__file__).parents[2]
FACTS = upstream.FACTS
SIZE, STEPS = 8, 20
OPTIMIZER = optimizers.AdamW(learning_rate=1e-2, warmup_steps=5)
UPDATE = train_step.UpdateConfig(ema_rate=0.9, log_period=1)


def parts(**changes):
    fields = {
        "diffusion_ode": tiny.model(image_shape=tiny.SHAPE),
        "optimizer": OPTIMIZER,
        "feature_converter_cls": dict,
        "bound": VariationalBound(num_times=4),
        "sampler": Heun(steps=2),
    }
    return t5x.Parts(**(fields | changes))


def model(**changes):
    return t5x.class_over(upstream.stand_in())(parts(**changes), optimizer_def="optimizer")


def batch(seed=0, size=SIZE):
    images = np.random.default_rng(seed).integers(0, tiny.LEVELS, (size, *tiny.SHAPE))
    return {"image": jnp.asarray(images, jnp.uint8), "conditioning": jnp.zeros((size, 1))}


@pytest.fixture(scope="module")
def params():
    return parts().variables(jax.random.key(0), tiny.SHAPE)["params"]


def test_every_call_form_is_answered(params):
    ours = model()
    values = {"params": params, "batch": batch(), "key": jax.random.key(1)}
    for name, arguments in FACTS["calls"].items():
        result = getattr(ours, name)(*(values[each] for each in arguments))
        if name in ("loss_fn", "eval_fn"):
            loss, logged = result
            assert loss.shape == ()
            assert all(isinstance(each, metrics.Metric) for each in logged.values())
        elif name == "score_batch":
            assert result.shape == (SIZE,)
        else:
            images = result if name == "predict_batch" else result[0]
            assert images.shape == (SIZE, *tiny.SHAPE)
    assert ours.optimizer_def == "optimizer"
    for keywords in FACTS["converter_calls"]:
        converter = ours.FEATURE_CONVERTER_CLS(**dict.fromkeys(keywords, False))
        assert isinstance(converter, ours.FEATURE_CONVERTER_CLS)


def test_methods_take_the_parameters_of_t5x():
    for name in (*FACTS["abstract"], "eval_fn", "predict_batch"):
        here = list(inspect.signature(getattr(model(), name)).parameters)
        assert here == FACTS["parameters"][f"t5x.models.BaseModel.{name}"]
    # t5x passes a key to whatever has a parameter of this name.
    assert "rng" not in inspect.signature(model().score_batch).parameters


def test_every_axis_is_named():
    variables = model().get_initial_variables(
        rng=jax.random.key(0), input_shapes={"image": (SIZE, *tiny.SHAPE)}, input_types=None
    )
    names = partitioning.get_axis_names(variables["params_axes"])
    shapes = jax.tree.map(jnp.ndim, variables["params"])
    assert jax.tree.map(len, names, is_leaf=lambda each: isinstance(each, tuple)) == shapes
    known = {name for name, _ in t5x.logical_axis_rules()}
    assert {name for each in jax.tree.leaves(names) for name in each if name} <= known


def test_loss_is_that_of_training(params):
    key, images = jax.random.key(3), batch()
    loss, logged = model().loss_fn(params, images, key)
    placed = {**images, "position": jnp.arange(SIZE, dtype=jnp.int32)}
    expected, terms = tiny.model().loss_fn(params, placed, key, SIZE)
    assert loss == expected
    assert logged["bpd"].compute() == pytest.approx(float(jnp.mean(terms["bpd"])), rel=1e-6)
    half, _ = model(num_microbatches=2).loss_fn(params, images, key)
    assert half == expected / 2


def test_what_t5x_cannot_train_is_refused():
    table = Tabulated(gamma_min=-7.9, adapt_period=2)
    with pytest.raises(ValueError, match="t5x cannot train a Tabulated"):
        parts(diffusion_ode=tiny.model(image_shape=tiny.SHAPE, time=table))
    with pytest.raises(ValueError, match=f"no labels, and the model has {classes.COUNT} classes"):
        parts(diffusion_ode=classes.model())
    with pytest.raises(ValueError, match=r"`ema_rate` must be in \[0, 1\)"):
        parts(ema_rate=1.5)


def test_metrics_merge(params):
    ours = model()
    _, whole = ours.eval_fn(params, batch(size=8))
    images = batch(size=8)
    halves = [
        ours.eval_fn(params, {name: each[rows] for name, each in images.items()})[1]
        for rows in (slice(0, 4), slice(4, 8))
    ]
    merged = halves[0]["bpd"].merge(halves[1]["bpd"])
    assert float(merged.compute()) == pytest.approx(float(whole["bpd"].compute()), rel=1e-6)


def test_scores_are_log_likelihoods_of_the_image_alone(params):
    ours, images = model(), batch()
    scores = ours.score_batch(params, images)
    _, logged = ours.loss_fn(params, images, None)
    dims = np.prod(tiny.SHAPE)
    assert float(-scores.mean() / dims / np.log(2)) == pytest.approx(
        float(logged["bpd"].compute()), rel=1e-5
    )
    turned = {name: each[::-1] for name, each in images.items()}
    np.testing.assert_allclose(ours.score_batch(params, turned)[::-1], scores, rtol=1e-6)
    with pytest.raises(ValueError, match="no intermediates"):
        ours.score_batch(params, images, return_intermediates=True)


def test_scores_of_the_ode(params):
    likelihood = ODELikelihood(dequantizer=Uniform(), solver=FixedGrid(steps=2), divergence=Exact())
    images, ours = batch(), model(likelihood=likelihood)
    keyed = {**images, "index": pixel_keys.hashes(images["image"])}
    key = scores.key_of(0, "truncated_normal")
    expected = tiny.model().likelihood_fn(params, keyed, key, likelihood)
    np.testing.assert_array_equal(ours.score_batch(params, images), expected.log_p)


def test_hash_of_an_image_depends_on_every_pixel():
    images = jnp.asarray(batch(size=1)["image"])
    each_changed = jnp.concatenate(
        [images, *(images.at[0, i, j].add(1) for i in range(4) for j in range(4))]
    )
    assert len(set(pixel_keys.hashes(each_changed).tolist())) == 17
    swapped = images[:, ::-1]
    assert pixel_keys.hashes(images) != pixel_keys.hashes(swapped)


def test_samples_need_a_sampler(params):
    ours = model()
    first = ours.predict_batch(params, batch(), jax.random.key(1))
    assert (ours.predict_batch(params, batch(), jax.random.key(1)) == first).all()
    assert (ours.predict_batch(params, batch(), jax.random.key(2)) != first).any()
    with pytest.raises(ValueError, match="predict_batch` needs a sampler"):
        model(sampler=None).predict_batch(params, batch())


def test_average_is_that_of_training(params):
    transformation = t5x.with_average(OPTIMIZER.build(), UPDATE)
    state, here = transformation.init(params), params
    grads = jax.tree.map(jnp.ones_like, params)
    for _ in range(3):
        updates, state = transformation.update(grads, state, here)
        here = jax.tree.map(jnp.add, here, updates)
    assert int(state[1].count) == 3
    expected = params
    again, inner = params, OPTIMIZER.build().init(params)
    for count in range(3):
        updates, inner = OPTIMIZER.build().update(grads, inner, again)
        again = jax.tree.map(jnp.add, again, updates)
        expected = train_step.average(expected, again, jnp.asarray(count + 1), UPDATE)
    jax.tree.map(np.testing.assert_array_equal, state[1].ema, expected)


def test_learning_rate_is_the_optimizers():
    assert t5x.learning_rate(OPTIMIZER)(3) == OPTIMIZER.learning_rate_at(3)


@pytest.mark.parametrize("name", ["train", "eval", "infer"])
def test_gin_file_binds_parameters_of_t5x(name):
    text = (ROOT / "gin_configs" / "t5x" / f"{name}.gin").read_text()
    owner, bound = None, []
    for line in text.splitlines():
        if found := re.match(r"(?:\w+/)?(\w+)\.(\w+)(?::|\.(\w+) = )", line):
            module, attribute, parameter = found.groups()
            owner = {"train_script": "train", "eval_script": "eval", "infer_script": "infer"}.get(
                module, module
            )
            owner = f"t5x.{owner}.{attribute}"
            bound += [(owner, parameter)] if parameter else []
        elif found := re.match(r"    (\w+) = ", line):
            bound.append((owner, found[1]))
    known = {owner: names for owner, names in FACTS["parameters"].items()}
    of_t5x = [(owner, each) for owner, each in bound if owner in known]
    assert len(of_t5x) > 10
    assert not [(owner, each) for owner, each in of_t5x if each not in known[owner]]
    others = {owner for owner, _ in bound} - set(known)
    assert others <= {"t5x.interop.learning_rate", "t5x.seqio.Evaluator"}


def test_facts_are_those_of_t5x():
    models = pytest.importorskip("t5x.models")
    assert sorted(models.BaseModel.__abstractmethods__) == FACTS["abstract"]
    for name, expected in FACTS["parameters"].items():
        module, rest = re.fullmatch(r"(t5x\.[a-z]+)\.(.*)", name).groups()
        target = importlib.import_module(module)
        for each in rest.split("."):
            target = getattr(target, each)
        found = [each for each in inspect.signature(target).parameters if each != "self"]
        assert found == expected, name


def test_twenty_steps_of_t5x_are_ours():
    trainer = pytest.importorskip("t5x.trainer")
    from t5x import train_state as upstream_state

    ode, key = tiny.model(), jax.random.PRNGKey(5)
    theirs = t5x.model(
        diffusion_ode=ode, optimizer=OPTIMIZER, feature_converter_cls=dict, ema_rate=0.9
    )
    variables = theirs.get_initial_variables(
        rng=jax.random.key(0), input_shapes={"image": (SIZE, *tiny.SHAPE)}
    )
    there = upstream_state.FlaxOptimTrainState.create(theirs.optimizer_def, variables)
    here = train_state.create(variables["params"], OPTIMIZER.build(), ["loss"])
    step = jax.jit(train_step.make_train_step(ode.loss_fn, OPTIMIZER.build(), key, UPDATE))

    @jax.jit
    def their_step(state, images):
        return trainer.train_with_lr(
            state, images, jnp.zeros(()), jax.random.fold_in(key, state.step), theirs, None
        )

    names = train_step.metric_names(ode.loss_fn, here.params, _placed(batch()), key)
    here = train_state.create(variables["params"], OPTIMIZER.build(), names)
    for number in range(STEPS):
        images = batch(number)
        there, logged = their_step(there, images)
        here, health = step(here, _placed(images))
        assert float(logged["loss"].compute()) == pytest.approx(float(health["loss"]), rel=1e-6)
    jax.tree.map(np.testing.assert_array_equal, dict(there.params), here.params)
    jax.tree.map(np.testing.assert_array_equal, dict(there.param_states[1].ema), here.ema)


def _placed(images):
    return {**images, "position": np.arange(SIZE, dtype=np.int32)}
