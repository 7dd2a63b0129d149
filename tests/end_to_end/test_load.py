"""`idode_gin.load`: a trained model in Python, with the figures of the programs."""

import dataclasses
import functools
import json
import pathlib
import shutil
import subprocess
import sys
import threading

import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import idode_gin
from idode_gin import likelihood, loaded
from idode_gin.checkpoints import meta as checkpoint_meta
from idode_gin.checkpoints.meta import DamagedError
from idode_gin.checkpoints.saving import RestoredParams
from idode_gin.configs import programs
from idode_gin.feed import loading
from idode_gin.feed.data import DatasetConfig
from idode_gin.networks.unet import UNet
from idode_gin.samplers.ode import ODESampler
from idode_gin.schedules.time.learned_linear import LearnedLinear
from idode_gin.solvers.adams import Adams
from idode_gin.solvers.fixed_grid import FixedGrid

FUNCTIONS = {"eval": "evaluate"}
DIGITS = "--gin_file=gin_configs/experiments/digits.gin"
TINY = {"UNet.channels": 8, "UNet.levels": 1, "UNet.groups": 2, "TRAIN_STEPS": 4} | {
    "CHECKPOINT_PERIOD": 2,
    "EVAL_PERIOD": None,
    "EMA_RATE": 0.5,
}
INCLUDED = "include 'gin_configs/experiments/digits.gin'"
OWN = f"""
from __gin__ import dynamic_registration
import own_networks
from idode_gin.networks import flax_module
{INCLUDED}
NETWORK = @flax_module.FlaxNetwork()
flax_module.FlaxNetwork.module = @own_networks.{{module}}
own_networks.{{name}}.width = 6
"""
GRID = Adams(steps=9)


def run(program: str, *files: str, **bindings) -> None:
    given = [f"--gin.{name}={value!r}" for name, value in bindings.items()]
    function = FUNCTIONS.get(program, program)
    assert programs.run(f"idode_gin.{program}", function, "", [*files, *given]) == 0


def train(folder: pathlib.Path, *files: str, **bindings) -> pathlib.Path:
    run("train", *files, **{"MODEL_DIR": str(folder), **bindings})
    gin.clear_config()
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> pathlib.Path:
    return train(tmp_path_factory.mktemp("load") / "run", DIGITS, **TINY)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    config = DatasetConfig(mixture_or_task_name="digits", split="validation", batch_size=1)
    return np.asarray(loading.load_split(config).images)


@pytest.fixture(scope="module")
def model(trained) -> idode_gin.TrainedModel:
    return idode_gin.load(trained)


def test_figures_are_those_of_eval_bit_for_bit(trained, model, images, tmp_path, capsys):
    named = "{'%s': @%s/ode_likelihood.ODELikelihood()}"
    bound = "uniform"
    out = tmp_path / "eval"
    files = [f"--gin.LIKELIHOODS={named % (bound, bound)}", "--gin.EVAL_SPLIT='validation'"]
    given = {"CHECKPOINT_PATH": str(trained), "EVAL_OUTPUT_DIR": str(out), "BPD_TOLERANCE": 0.1}
    run("eval", *files, **given, RANDOM_SEED=3)
    assert f"python -m idode_gin.compare {out} OTHER_RUN\n" in capsys.readouterr().out
    rows = np.load(out / "results.npz")
    summary = json.loads((out / "summary.json").read_text())
    found = model.bits_per_dim(images, bound=bound, tolerance=0.1, key=3)
    np.testing.assert_array_equal(found.per_image, rows[f"{bound}/bpd"])
    np.testing.assert_array_equal(-found.log_prob, rows[f"{bound}/nats"])
    assert found.mean == summary[bound]["mean"]
    assert found.standard_error == summary[bound]["stderr"]
    assert found.solver_error == summary[bound]["solver_error"]["error"]
    assert found.report.solver == summary[bound]["solver_error"]["solver"]
    found = model.bits_per_dim(images, bound="variational_bound", key=jax.random.key(3))
    np.testing.assert_array_equal(found.per_image, rows["variational_bound/bpd"])
    assert found.solver_error is None


def test_the_images_are_those_of_the_run(model, images):
    np.testing.assert_array_equal(model.images("validation"), images)
    assert len(model.images()) == len(loading.load_labels(model.dataset, 10)) == 300
    with pytest.raises(ValueError, match="no split 'tset'"):
        model.images("tset")
    with pytest.raises(ValueError, match=r"TrainedModel\(.*is not conditioned on classes"):
        model.labels()
    network = dataclasses.replace(model.model.network, num_classes=10)
    of_classes = dataclasses.replace(model, model=dataclasses.replace(model.model, network=network))
    expected = loading.load_labels(dataclasses.replace(model.dataset, split="validation"), 10)
    np.testing.assert_array_equal(of_classes.labels("validation"), expected)
    assert set(expected) == set(range(10))
    with pytest.raises(ValueError, match="no dataset"):
        dataclasses.replace(model, dataset=None).images()


def test_an_image_s_figure_depends_on_its_index_alone(model, images):
    whole = model.log_prob(images[:40], solver=GRID, tolerance=None)
    chosen = np.array([31, 2, 2])
    some = model.log_prob(images[chosen], solver=GRID, tolerance=None, index=chosen)
    np.testing.assert_array_equal(some, whole[chosen])
    other = model.log_prob(images[chosen], solver=GRID, tolerance=None)
    assert (other[:2] != some[:2]).all()
    again = model.log_prob(images[:40], solver=GRID, tolerance=None, key=1)
    assert (again != whole).all()


def test_samples_and_latents_are_those_of_the_programs(trained, model, images, tmp_path, capsys):
    given = {"CHECKPOINT_PATH": str(trained), "TOLERANCE": 1e-2, "RANDOM_SEED": 5}
    run("sample", **given, SAMPLE_OUTPUT_DIR=str(tmp_path / "samples"), NUM_SAMPLES=40)
    assert f"The samples are in {tmp_path}/samples: " in capsys.readouterr().out.splitlines()[-2]
    found = np.load(tmp_path / "samples/samples.npz")
    method = ODESampler(solver=dataclasses.replace(ODESampler().solver, rtol=1e-2, atol=1e-2))
    drawn = model.sample(40, 5, method=method)
    np.testing.assert_array_equal(drawn, found["levels"])
    np.testing.assert_array_equal(model.sample(3, 5, method=method, first=37), drawn[37:])
    indices = (0, 3, 7)
    out = str(tmp_path / "encoded")
    run("encode", **given, ENCODE_OUTPUT_DIR=out, INDICES=indices, EVAL_SPLIT="validation")
    found = np.load(tmp_path / "encoded/latents.npz")
    index = np.array(indices)
    noise = model.encode(images[index], 5, method=method, index=index)
    np.testing.assert_array_equal(noise, found["noise"])
    np.testing.assert_array_equal(model.decode(noise, method=method), found["levels"])
    with pytest.raises(ValueError, match=r"`noise` must be .* N >= 1, .*got \[0, 8, 8, 1\]"):
        model.decode(noise[:0])


OWN_GIN = """
import dataclasses, sys
import gin, pytest

@gin.configurable("UNet", module="mine.networks")
def network(channels=1):
    return channels

gin.constant("mine.SIZE", 5)
gin.parse_config("UNet.channels = 3\\nNETWORK = 7\\ninner/UNet.channels = %NETWORK")
gin.finalize()

def state():
    names = sorted(name for name, _ in gin.config._REGISTRY.items())
    constants = dict(gin.config._CONSTANTS.items())
    scope, locked = gin.current_scope(), gin.config_is_locked()
    return gin.config_str(), gin.operative_config_str(), names, constants, scope, locked

import idode_gin
from idode_gin.samplers.ode import ODESampler
from idode_gin.solvers.fixed_grid import FixedGrid

path = sys.argv[1]
with gin.config_scope("inner"):
    assert network() == 7
    before = state()
    first, second = idode_gin.load(path), idode_gin.load(path, step=2, ema=False)
    assert state() == before
    for wrong in (path + "/checkpoint_9", path + "/train", "nowhere"):
        with pytest.raises(ValueError, match="No checkpoint"):
            idode_gin.load(wrong)
    assert state() == before
    assert network() == 7
    assert dataclasses.replace(first.model.network, channels=16).channels == 16
    first.sample(1, method=ODESampler(solver=FixedGrid(steps=1)))
    assert state() == before
with gin.unlock_config():
    gin.parse_config("UNet.channels = %mine.SIZE")  # still means one thing
assert (network(), first.step, second.step) == (5, 4, 2)
assert (first.config["NETWORK/unet.UNet.channels"], first.model.network.channels) == ("8", 8)
"""


def test_gin_of_the_caller_stays_as_it_is(trained):
    command = [sys.executable, "-c", OWN_GIN, str(trained)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_two_runs_at_once_in_two_threads(trained, tmp_path):
    other = shutil.copytree(trained, tmp_path / "other")
    config = other / "operative_config.gin"
    config.write_text(config.read_text().replace("RATE = 0.0", "RATE = 0.25"))
    found: dict[str, list[float]] = {}

    def load(path: pathlib.Path) -> None:
        found[path.name] = [idode_gin.load(path).model.network.dropout_rate for _ in range(3)]

    threads = [threading.Thread(target=load, args=(each,)) for each in (trained, other)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert found == {"run": [0.0] * 3, "other": [0.25] * 3}


def test_the_checkpoint_that_is_loaded(trained, model):
    assert model.path.name == "checkpoint_4"
    before = idode_gin.load(trained / "checkpoint_2")
    assert before.step == idode_gin.load(str(trained), step=2).step == 2
    raw = idode_gin.load(trained, ema=False)
    for each in (before, raw):
        differ = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), each.params, model.params)
        assert any(jax.tree.leaves(differ))
    assert repr(model).startswith("TrainedModel(")
    assert "checkpoint_4, 8 x 8 x 1, 17 levels" in repr(model)


def test_a_plain_function_for_log_prob(model, images):
    x = model.model.encoding.encode(jnp.asarray(images[:3]))
    key = jax.random.key(0)
    options = {"solver": FixedGrid(steps=4), **model.field_options}

    def log_prob(field, x, args=()):
        return likelihood.log_prob(field, x, key, args=args, **options)

    found = jax.jit(log_prob, static_argnums=0)(model.field, x)
    args = (jnp.zeros((3, 1)),)
    given = jax.jit(log_prob, static_argnums=0)(model.field, x, args)
    np.testing.assert_array_equal(found, given)
    network = model.model.network

    def field(z, gamma):
        time = model.model.time.rescale(gamma)
        return network(model.params, z, time, jnp.zeros((z.shape[0], 1)))

    expected = jax.jit(log_prob, static_argnums=0)(field, x)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    gradient = jax.jit(jax.grad(lambda x: log_prob(model.field, x).sum()))(x)
    assert jnp.isfinite(gradient).all()

    def of_params(params):
        return log_prob(functools.partial(model.field, params=params), x)

    compiled = jax.jit(of_params).lower(model.params).compile()
    np.testing.assert_allclose(compiled(model.params), expected, rtol=1e-5)
    by_params = jax.jit(jax.grad(lambda params: of_params(params).sum()))(model.params)
    assert any(jnp.any(each != 0) for each in jax.tree.leaves(by_params))


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (np.zeros((2, 8, 8)), {}, "Images must be integers"),
        (np.zeros((2, 8, 8, 1)), {}, "Images must be integers"),
        (np.full((2, 8, 8, 1), 17), {}, "Pixels must be in 0..16"),
        (np.zeros((2, 4, 4, 1), int), {}, r"must be \[N, height, width, channels\] of \(8, 8, 1\)"),
        (
            np.zeros((2, 8, 8, 1), int),
            {"index": np.arange(1)},
            "one integer for each of the 2 images",
        ),
        (
            np.zeros((2, 8, 8, 1), int),
            {"index": np.arange(2) + 2**32},
            "from 0 to 2\\^31 - 1, got 4294967296 to 4294967297",
        ),
        (np.zeros((2, 8, 8, 1), int), {"index": np.arange(2) - 1}, "got -1 to 0"),
        (np.zeros((2, 8, 8, 1), int), {"bound": "unifrom"}, "Did you mean 'uniform'"),
        (np.zeros((2, 8, 8, 1), int), {"tolerance": None}, "Give a `tolerance`, or a `solver`"),
        (np.zeros((2, 8, 8, 1), int), {"conditioning": np.ones((2, 2))}, r"must be \[2, 1\]"),
    ],
)
def test_wrong_arguments(model, images, options, message):
    with pytest.raises(ValueError, match=message):
        model.bits_per_dim(images, **options)


def test_a_gamma_of_t_is_loaded_as_it_was_learned(monkeypatch, tmp_path):
    """With the ends of the checkpoint, in whose range a field is to be integrated."""
    time = LearnedLinear(gamma_min=-5.0, gamma_max=3.0)
    model = tiny.model(time=time, image_shape=tiny.SHAPE)
    params = model.init(jax.random.key(0), tiny.SHAPE)
    moved = {"gamma_min": jnp.asarray(-7.0), "gamma_max": jnp.asarray(4.0)}
    restored = RestoredParams({**params, "time_schedule": {"ends": moved}}, 3, tmp_path, {})
    config = tmp_path / "config.gin"
    config.touch()
    monkeypatch.setattr(loaded.from_training, "config_of", lambda path: config)
    monkeypatch.setattr(loaded.saving, "find", lambda path: path)
    monkeypatch.setattr(
        loaded, "_built", lambda source: (model, {"mixture_or_task_name": "digits"})
    )
    monkeypatch.setattr(loaded.run_inputs, "load_params", lambda *_: restored)
    options = idode_gin.load(tmp_path).field_options
    assert (options["gamma_min"], options["gamma_max"]) == (-7.0, 4.0)


def test_a_configuration_that_includes_a_file(trained, tmp_path):
    """As written beside a converted checkpoint."""
    copy = shutil.copytree(trained, tmp_path / "copy")
    for each in copy.glob("*config.gin"):
        each.unlink()
    network = [f"unet.{name} = {value}" for name, value in TINY.items() if name[:4] == "UNet"]
    lines = ["from idode_gin.networks import unet", INCLUDED, *network]
    (copy / "operative_config.gin").write_text("\n".join(lines))
    loaded = idode_gin.load(copy)
    assert loaded.config["MIXTURE_OR_TASK_NAME"] == "'digits'"
    assert loaded.config["UNet.channels"] == "8"


def test_what_cannot_be_loaded(trained, tmp_path):
    with pytest.raises(ValueError, match="there is no such directory"):
        idode_gin.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="it holds nothing"):
        idode_gin.load(tmp_path)
    with pytest.raises(ValueError, match=r"Saved steps beside it: \[2, 4\]"):
        idode_gin.load(trained, step=3)
    with pytest.raises(ValueError, match="`step` needs a run directory"):
        idode_gin.load(trained / "checkpoint_2", step=2)
    copy = shutil.copytree(trained, tmp_path / "checkpoint_copy")
    with pytest.raises(ValueError, match=r"Saved steps beside it: \[2, 4\]"):
        idode_gin.load(copy, step=3)
    for each in (copy / "checkpoint_4").rglob("*"):
        if each.is_file() and "ocdbt" not in each.name:
            each.write_bytes(b"")
    assert idode_gin.load(copy).step == 2  # the newest undamaged one
    with pytest.raises(DamagedError, match="The one before it is"):
        idode_gin.load(copy, step=4)
    meta = copy / "checkpoint_2/meta/metadata"
    other = checkpoint_meta.sealed({**json.loads(meta.read_text()), "format": 99})
    meta.write_text(json.dumps(other))
    with pytest.raises(ValueError, match="Read it with the version that wrote it"):
        idode_gin.load(copy, step=2)


def test_a_configuration_that_cannot_be_built(trained, tmp_path):
    copy = shutil.copytree(trained, tmp_path / "checkpoint_copy")
    with pytest.raises(ValueError, match=r"Saved steps beside it: \[2, 4\]"):
        idode_gin.load(copy, step=3)
    config = copy / "operative_config.gin"
    text = config.read_text()
    for old, new, message in (
        ("idode_gin.networks import unet", "idode_gin.networks import unets", "Did you mean"),
        ("UNet.channels = 8", "UNet.chanels = 8", "has no parameter 'chanels'"),
        ("UNet.channels = 8", "UNet.channels = 7", "`channels` must be even"),
        ("UNet.channels = 8", "UNet.channels = ", "cannot be built from operative_config.gin"),
    ):
        assert old in text
        config.write_text(text.replace(old, new))
        with pytest.raises(ValueError, match=message) as caught:
            idode_gin.load(copy)
        assert "another version of idode_gin" in str(caught.value)
    config.write_text("import no_such_module\n")
    with pytest.raises(ValueError, match="must be on sys.path"):
        idode_gin.load(copy)
    config.unlink()
    assert idode_gin.load(copy).step == 4  # config.gin is left
    (copy / "config.gin").unlink()
    with pytest.raises(ValueError, match="neither operative_config.gin nor config.gin"):
        idode_gin.load(copy)


def test_importing_the_package_is_cheap():
    code = "import sys, idode_gin; assert 'load' in dir(idode_gin); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"jax", "numpy", "gin", "idode_gin.trained", "idode_gin.loaded"}
    assert not heavy & set(done.stdout.split())
    with pytest.raises(AttributeError, match="has no attribute 'lod'"):
        idode_gin.lod  # noqa: B018


@pytest.mark.parametrize(("name", "module"), [("LinenNet", "LinenNet()"), ("NNXNet", "NNXNet")])
def test_an_own_flax_module_is_trained_scored_and_loaded(name, module, images, tmp_path):
    (tmp_path / "my.gin").write_text(OWN.format(name=name, module=module))
    folder, file = tmp_path / "run", f"--gin_file={tmp_path / 'my.gin'}"
    own = {key: value for key, value in TINY.items() if not key.startswith("UNet")}
    train(folder, file, **{**own, "EVAL_PERIOD": 2})
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    bpd = [row["eval/bpd"] for row in rows if "eval/bpd" in row]
    assert bpd[-1] < bpd[0]
    with gin.unlock_config():
        gin.clear_config()
    loaded = idode_gin.load(folder)
    assert not isinstance(loaded.model.network, UNet)
    assert {leaf.shape[-1] for leaf in jax.tree.leaves(loaded.params)} == {6, 1}
    found = loaded.log_prob(images[:2], solver=GRID, tolerance=None)
    assert np.isfinite(found).all()
