"""Everything that a result depends on is a fact, and every fact is compared on resume."""

import dataclasses
import functools
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from flax import linen as nn

from idode_gin import numerics
from idode_gin.checkpoints import saving
from idode_gin.dequantizers.truncated_normal import TruncatedNormal
from idode_gin.dequantizers.variational import Variational
from idode_gin.encoding import Encoding
from idode_gin.evaluation.evaluator import Evaluator
from idode_gin.feed import augmentation, loading
from idode_gin.generation.encoder import Encoder
from idode_gin.generation.interpolator import Interpolator
from idode_gin.generation.sampler import Sampler
from idode_gin.likelihood.ode_likelihood import ODELikelihood
from idode_gin.losses.bound import VariationalBound
from idode_gin.networks.flax_module import FlaxNetwork
from idode_gin.networks.unet import UNet
from idode_gin.parameterizations.noise import Noise
from idode_gin.processes import agreement
from idode_gin.runs import facts, partial_results, resuming, run_inputs
from idode_gin.schedules.straight_path import StraightPath
from idode_gin.solvers.divergence import Exact
from idode_gin.solvers.fixed_grid import FixedGrid
from idode_gin.training import guards

LIKELIHOOD = ODELikelihood(dequantizer=TruncatedNormal(), solver=FixedGrid(steps=2))
SPLIT = dataclasses.replace(tiny.split(), labels=np.arange(20) % 3, num_classes=3)
OTHER_LABELS = dataclasses.replace(SPLIT, labels=np.arange(1, 21) % 3)


def evaluator(**changes):
    fields = {
        "output_dir": "out",
        "checkpoint_path": "in",
        "likelihoods": {"tn": LIKELIHOOD},
        "variational_bound": VariationalBound(num_times=2),
    }
    return Evaluator(**(fields | changes))


def facts_of(model=None, params=None, settings=None, split=SPLIT):
    model = model or tiny.model()
    params = params or model.init(jax.random.key(0), tiny.SHAPE)
    return facts.result_facts(model, params, settings or evaluator(), split)


def with_likelihood(**changes):
    return evaluator(likelihoods={"tn": dataclasses.replace(LIKELIHOOD, **changes)})


def moved_params():
    params = tiny.model().init(jax.random.key(0), tiny.SHAPE)
    params["out"]["bias"] = params["out"]["bias"].at[0].add(1e-6)
    return params


CHANGES = {
    "params_sha256": lambda: facts_of(params=moved_params(), settings=evaluator(use_ema=False)),
    "dataset_sha256": lambda: facts_of(split=tiny.split(seed=1)),
    "dataset": lambda: facts_of(split=tiny.split(name="other")),
    "conditioning_sha256": lambda: facts_of(
        split=dataclasses.replace(SPLIT, conditioning=np.ones_like(SPLIT.conditioning))
    ),
    "labels_sha256": lambda: facts_of(split=OTHER_LABELS),
    "num_classes": lambda: facts_of(split=dataclasses.replace(SPLIT, num_classes=4)),
    "seed": lambda: facts_of(settings=evaluator(seed=1)),
    "solve_size": lambda: facts_of(settings=evaluator(solve_size=3)),
    "model.network.width": lambda: facts_of(tiny.model(width=9)),
    "model.schedule": lambda: facts_of(tiny.model(schedule=StraightPath())),
    "variational_bound.num_times": lambda: facts_of(
        settings=evaluator(variational_bound=VariationalBound(num_times=3))
    ),
    "likelihoods.tn.solver.steps": lambda: facts_of(
        settings=with_likelihood(solver=FixedGrid(steps=3))
    ),
    "likelihoods.tn.dequantizer": lambda: facts_of(
        settings=with_likelihood(dequantizer=Variational())
    ),
    "likelihoods.tn.divergence": lambda: facts_of(settings=with_likelihood(divergence=Exact())),
    "likelihoods.tn.num_importance": lambda: facts_of(settings=with_likelihood(num_importance=2)),
    "likelihoods.tn.num_repeats": lambda: facts_of(settings=with_likelihood(num_repeats=2)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_result_depends_on_is_a_fact(name):
    before = facts_of(settings=evaluator(use_ema=False)) if "params" in name else facts_of()
    after = CHANGES[name]()
    assert name in before
    assert before[name] != after[name]


def test_arithmetic_and_code_are_facts(monkeypatch):
    before = facts_of()
    with jax.default_matmul_precision("bfloat16"):
        assert facts_of()["matmul_precision"] != before["matmul_precision"]
    monkeypatch.setattr(numerics, "float_dtype", lambda: np.float64)
    assert facts_of()["float"] != before["float"]
    monkeypatch.setattr(numerics, "coarse_products", lambda: not before["coarse_products"])
    assert facts_of()["coarse_products"] != before["coarse_products"]
    monkeypatch.setattr(agreement, "code_sha256", lambda: "other")
    assert facts_of()["code_sha256"] != before["code_sha256"]


@pytest.mark.parametrize(
    ("setting", "other"), [("default_prng_impl", "rbg"), ("threefry_partitionable", False)]
)
def test_what_decides_random_numbers_beside_a_seed_is_a_fact(setting, other):
    """Of a result, which is not resumed with other noise, and of a run, which logs it."""
    result, run = facts_of(), settings_of()
    with getattr(jax, setting)(other):
        drawn = jax.random.normal(jax.random.key(0), (3,))
        changed = facts.changed(result, facts_of()), facts.changed(run, settings_of())
    assert not np.array_equal(drawn, jax.random.normal(jax.random.key(0), (3,)))
    for sentences in changed:
        assert "random_numbers was threefry2x32, partitionable and is now" in " ".join(sentences)


def test_settings_without_effect_are_no_facts():
    same = evaluator(output_dir="o", checkpoint_path="i")
    assert facts_of(settings=same) == facts_of()


FOLDERS = {"output_dir": "out", "checkpoint_path": "in"}
DEPENDS_ON = (
    (evaluator(), "likelihoods variational_bound discrete_steps noise_by_pixels parity"),
    (Sampler(**FOLDERS), "method num_samples conditioning label return_log_prob divergence"),
    (Encoder(**FOLDERS), "method indices"),
    (Interpolator(**FOLDERS), "method pairs num_points"),
)


@pytest.mark.parametrize(("program", "own"), DEPENDS_ON, ids=lambda each: type(each).__name__)
def test_settings_with_effect_are_facts_of_every_program(program, own):
    known = {name.partition(".")[0] for name in facts_of(settings=program)}
    settings = known & {each.name for each in dataclasses.fields(program)}
    assert settings == {*own.split(), "seed", "solve_size"}


def test_every_fact_is_compared(tmp_path):
    """Another value of any one fact, or none, is another computation."""
    known = facts_of()

    def opened(found):
        return partial_results.PartialResults(tmp_path, found, 3)

    kept = opened(known)
    kept.add("a", np.arange(2), {"bpd": np.ones(2)})
    kept.write()
    assert opened(known).is_begun
    assert len(known) > 20
    for name in known:
        for other in ({**known, name: "other"}, {n: v for n, v in known.items() if n != name}):
            with pytest.raises(ValueError, match="and is now"):
                opened(other)


TRAINER_CHANGES = {
    "seed": lambda: settings_of(trainer=tiny.trainer("unused", seed=1)),
    "ema_rate": lambda: settings_of(trainer=tiny.trainer("unused", ema_rate=0.6)),
    "ema_warmup": lambda: settings_of(trainer=tiny.trainer("unused", ema_warmup=True)),
    "num_microbatches": lambda: settings_of(trainer=tiny.trainer("unused", num_microbatches=2)),
    "non_finite": lambda: settings_of(trainer=tiny.trainer("unused", non_finite=guards.Skip())),
    "loss_spike.factor": lambda: settings_of(
        trainer=tiny.trainer("unused", loss_spike=guards.LossSpike(factor=7.0))
    ),
    "optimizer.b2": lambda: settings_of(
        trainer=tiny.trainer("unused", optimizer=dataclasses.replace(OPTIMIZER, b2=0.98))
    ),
    "batch_size": lambda: settings_of(config=tiny.config(6)),
    "dataset_seed": lambda: settings_of(config=tiny.config(seed=1)),
    "shuffle": lambda: settings_of(config=tiny.config(shuffle=False)),
    "model.time.gamma_max": lambda: settings_of(
        model=tiny.model(time=dataclasses.replace(tiny.model().time, gamma_max=6.0))
    ),
    "dataset": lambda: settings_of(split=tiny.split(name="other")),
    "dataset_sha256": lambda: settings_of(split=tiny.split(seed=1)),
    "labels_sha256": lambda: settings_of(split=OTHER_LABELS),
    "eval_labels_sha256": lambda: settings_of(eval_split=OTHER_LABELS),
    "eval_dataset_sha256": lambda: settings_of(eval_split=tiny.split(seed=2)),
    "augmentation": lambda: settings_of(
        split=dataclasses.replace(SPLIT, augmentation=augmentation.Augmentation(flip=True))
    ),
}
OPTIMIZER = tiny.trainer("unused").optimizer
SPIKE = guards.LossSpike(factor=3.0)


def settings_of(trainer=None, model=None, config=None, split=SPLIT, eval_split=SPLIT):
    """Return the facts that a checkpoint of a training run keeps."""
    trainer = trainer or tiny.trainer("unused", loss_spike=SPIKE)
    found = trainer.settings(model or tiny.model(), config or tiny.config())
    return found | facts.image_facts(split, eval_split)


@pytest.mark.parametrize("name", TRAINER_CHANGES)
def test_what_a_run_depends_on_is_a_fact_and_is_compared(name):
    before, after = settings_of(), TRAINER_CHANGES[name]()
    assert before[name] != after[name]
    assert any(f"{name} was" in each for each in facts.changed(before, after))


def test_every_fact_of_a_run_is_compared():
    known = settings_of()
    assert len(known) > 30
    assert facts.changed(known, dict(known)) == []
    for name in known:
        (sentence,) = facts.changed({**known, name: "other"}, known)
        assert f"{name} was other" in sentence


MEANINGS = {
    "model.schedule": {"schedule": StraightPath()},
    "model.time.gamma_min": {"time": dataclasses.replace(tiny.model().time, gamma_min=-6.0)},
    "model.parameterization": {"parameterization": Noise()},
    "model.encoding.levels": {"encoding": Encoding(levels=16)},
}


@pytest.mark.parametrize("name", MEANINGS)
def test_what_gives_the_output_its_meaning_is_refused(name, tmp_path):
    before, model = settings_of(), tiny.model(**MEANINGS[name])
    with pytest.raises(ValueError, match=f"another model: .*{name} was"):
        resuming.check_resumed(tmp_path, before, settings_of(model=model), model, is_done=False)


NETWORKS = {
    "num_classes": 3,  # other numbers of the conditioning are classes
    "attention_heads": 4,
    "groups": 8,
    "time_embedding_scale": 10.0,
    "fourier_exponents": (5, 6),
}
"""Fields that change the function, and not the shape of any parameter."""


@pytest.mark.parametrize("name", NETWORKS)
def test_another_function_of_the_same_parameters_is_refused(name, tmp_path):
    before = settings_of(model=tiny.model(network=UNet(conditioning_size=4)))
    sizes = {"conditioning_size": 1} if name == "num_classes" else {"conditioning_size": 4}
    model = tiny.model(network=UNet(**{name: NETWORKS[name], **sizes}))
    with pytest.raises(ValueError, match=f"another model: .*model.network.{name} was"):
        resuming.check_resumed(tmp_path, before, settings_of(model=model), model, is_done=False)


def test_a_network_of_other_classes_is_refused(tmp_path):
    """Its conditioning numbers would be read as other classes."""
    before, after = (tiny.model(network=UNet(num_classes=count)) for count in (3, 4))
    saved, now = settings_of(model=before), settings_of(model=after)
    with pytest.raises(ValueError, match=r"another model: model.network.num_classes was 3 and is"):
        resuming.check_resumed(tmp_path, saved, now, after, is_done=False)


COMPUTATIONS = {
    "dropout_rate": 0.5,
    "remat": "full",
    "scan": True,
    "dtype": "bfloat16",
    "fused": True,
}


def test_the_same_function_computed_otherwise_is_accepted(tmp_path):
    before, model = settings_of(), tiny.model(network=UNet())
    before |= settings_of(model=model)
    other = tiny.model(network=UNet(**COMPUTATIONS))
    resuming.check_resumed(tmp_path, before, settings_of(model=other), other, is_done=False)


class Dense(nn.Module):
    width: int = 8
    dtype: str | None = None
    chunk: int = 1
    computation = ("chunk",)

    @nn.compact
    def __call__(self, z, time, conditioning):
        return nn.Dense(z.shape[-1], dtype=self.dtype)(z)


def test_fields_of_a_module_count_but_those_of_its_computation(tmp_path):
    def model_of(**fields):
        return tiny.model(network=FlaxNetwork(module=Dense(**fields)))

    before = settings_of(model=model_of())
    for fields in ({"dtype": "bfloat16"}, {"name": "other"}, {"chunk": 2}):
        assert facts.changed_meaning(before, model_of(**fields)) == []
    (change,) = facts.changed_meaning(before, model_of(width=9))
    assert change == "model.network.module.width was 8 and is now 9"


def test_what_a_converted_checkpoint_does_not_know_is_logged(tmp_path, caplog):
    run_inputs.check_meaning(tmp_path, settings_of(), tiny.model())
    assert caplog.text == ""
    run_inputs.check_meaning(tmp_path, facts.described_network(tiny.AffineNetwork()), tiny.model())
    assert f"{tmp_path} was converted" in caplog.text
    assert "Velocity() on VariancePreserving()." in caplog.text


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_arrays_that_differ_in_one_number_are_different_facts(array):
    """Although numpy would show both as `[0., 0., ..., 0.]`, or with eight digits."""
    long = np.zeros(2000, np.float32)
    other = long.copy()
    other[1000] = 1
    near = np.nextafter(long + 1, np.float32(2))
    texts = {facts.shortened((array(each),)) for each in (long, other, long + 1, near)}
    assert len(texts) == 4


def test_other_facts_are_logged_alone(tmp_path, caplog):
    before, after = settings_of(), TRAINER_CHANGES["seed"]()
    resuming.check_resumed(tmp_path, before, after, tiny.model(), is_done=False)
    assert "seed was 0 and is now 1" in caplog.text


def test_processes_agree_on_images_and_checkpoint(monkeypatch, tmp_path):
    """Every fact of the images that they loaded, in their order, and the checkpoint."""
    agreed = {}
    monkeypatch.setattr(agreement, "check", lambda what, known: agreed.update(known()))
    monkeypatch.setattr(loading, "load_split", lambda _: SPLIT)
    run_inputs.load(tiny.config(6, seed=2), tiny.model())
    assert agreed == {**SPLIT.facts(), "seed": 2, "batch_size": 6}
    agreed.clear()
    restored = saving.RestoredParams({}, 3, tmp_path / "checkpoint_3", {})
    monkeypatch.setattr(saving, "restore_params", lambda *_, **__: restored)
    run_inputs.load_params(tiny.model(), tiny.SHAPE, str(tmp_path), True)
    assert agreed == {"path": str(tmp_path / "checkpoint_3"), "step": 3}


class Plain:
    """A part that is no dataclass."""

    def __init__(self, size, inner=None):
        self.size, self.inner, self.own = size, inner, self

    @functools.cached_property
    def table(self):
        """Computed when it is used, so no fact."""
        return [self.size] * 3


def test_attributes_of_a_plain_object_are_facts():
    assert facts.described("a", Plain(2, Plain(3))) == {
        "a": "<test_facts.Plain object>",
        "a.size": "2",
        "a.own": "<test_facts.Plain object>",
        "a.inner": "<test_facts.Plain object>",
        "a.inner.size": "3",
        "a.inner.inner": "None",
        "a.inner.own": "<test_facts.Plain object>",
    }
    used = Plain(2)
    before = facts.described("a", used)
    assert used.table == [2, 2, 2]
    assert facts.described("a", used) == before
    found = facts.setting_facts(tiny.model(), types.SimpleNamespace(method=Plain(2), seed=3))
    assert (found["method.size"], found["seed"]) == ("2", 3)
    json.dumps(found)


def test_numbers_of_an_optax_transformation_are_facts():
    """Its repr is the same whatever they are: functions hold them."""

    def made(rate, **numbers):
        schedule = optax.cosine_decay_schedule(rate, 100)
        adam = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule, **numbers))
        return facts.described("optimizer", adam)

    assert facts.changed(made(1e-3), made(1e-3)) == []
    (rate,) = facts.changed(made(1e-3), made(5e-4))
    assert rate.endswith("learning_rate.init_value was 0.001 and is now 0.0005")
    (decay,) = facts.changed(made(1e-3), made(1e-3, b1=0.8))
    assert decay.endswith(".b1 was 0.9 and is now 0.8")

    def accumulated(rate):
        parts = {"a": optax.adam(rate), "b": optax.sgd(0.1)}
        every = optax.MultiSteps(optax.partition(parts, lambda _: "a"), 2)
        return facts.described("optimizer", every.gradient_transformation())

    assert facts.changed(accumulated(1e-3), accumulated(1e-3)) == []
    rates = facts.changed(accumulated(1e-3), accumulated(5e-4))
    assert {each.partition(" was ")[2] for each in rates} == {"-0.001 and is now -0.0005"}


def test_methods_of_an_object_without_attributes_have_no_numbers():
    class Slots:
        __slots__ = ()

        def init(self, params):
            """Not called."""

        update = init

    own = optax.GradientTransformation(Slots().init, Slots().update)
    (name,) = facts.described("optimizer", own)
    assert name == "optimizer"
