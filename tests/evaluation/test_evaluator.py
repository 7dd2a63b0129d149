"""Evaluation and sampling: every image once, and independent of the batch it is in."""

import dataclasses
import json
import pathlib

import interrupted
import jax
import numpy as np
import pyarrow.parquet
import pytest
import tiny
from coarse import Coarse

from idode_gin import eval as eval_script
from idode_gin.checkpoints import saving
from idode_gin.dequantizers.truncated_normal import TruncatedNormal
from idode_gin.evaluation import evaluator, histogram
from idode_gin.evaluation import results as eval_results
from idode_gin.evaluation import summary as summary_lib
from idode_gin.feed import data, loading
from idode_gin.generation import sampler
from idode_gin.interop import t5x
from idode_gin.likelihood.ode_likelihood import ODELikelihood
from idode_gin.likelihood.pilot import Pilot
from idode_gin.losses.bound import VariationalBound
from idode_gin.networks.unet import UNet
from idode_gin.runs import run_inputs
from idode_gin.samplers.ode import ODESampler
from idode_gin.schedules.time.learned_linear import LearnedLinear
from idode_gin.schedules.time.linear import Linear
from idode_gin.schedules.time.monotone import Monotone
from idode_gin.solvers.adams import Adams
from idode_gin.solvers.adaptive import DormandPrince
from idode_gin.solvers.fixed_grid import FixedGrid
from idode_gin.time_samplers.discrete_steps import DiscreteSteps
from idode_gin.training import train_state
from idode_gin.training.optimizers import AdamW

LOOSE = DormandPrince(rtol=1e-3, atol=1e-3)


@pytest.fixture
def evaluate(monkeypatch, tmp_path):
    """Evaluate a random network; return the summary and the values per image."""

    def run(number, batch_size, model, solver, solve_size=4, num_images=None, **changes):
        tiny.use_tiny_data(monkeypatch, number)
        params = model.init(jax.random.key(0), tiny.SHAPE)
        noise = jax.random.split(jax.random.key(1), len(jax.tree.leaves(params)))
        params = jax.tree.map(
            lambda leaf, key: leaf + 0.1 * jax.random.normal(key, leaf.shape),
            params,
            jax.tree.unflatten(jax.tree.structure(params), list(noise)),
        )
        restored = saving.RestoredParams(params, 3, pathlib.Path("unread"), {})
        monkeypatch.setattr(run_inputs, "load_params", lambda *_: restored)
        monkeypatch.setattr(saving, "find", pathlib.Path)
        monkeypatch.setattr(
            eval_results, "draw", lambda *_: None
        )  # slow, and tested in test_evaluation_plots
        made = evaluator.Evaluator(
            output_dir=str(tmp_path),
            checkpoint_path="made",
            likelihoods={"tn": ODELikelihood(dequantizer=TruncatedNormal(), solver=solver)},
            solve_size=solve_size,
            **{"variational_bound": VariationalBound(num_times=2)} | changes,
        )
        summary = made.run(model, tiny.config(batch_size, num_images=num_images))
        assert json.loads((tmp_path / "summary.json").read_text()) == summary
        with np.load(tmp_path / "results.npz") as found:
            return summary, dict(found)

    return run


def test_every_image_once_for_every_batch_size(evaluate):
    number = 3
    summaries, results = zip(
        *(evaluate(number, size, tiny.model(), FixedGrid(steps=3)) for size in (1, 2, 3, 5)),
        strict=True,
    )
    for summary, found in zip(summaries, results, strict=True):
        assert summary["num_images"] == number == len(found["tn/bpd"])
        for name in ("tn", "variational_bound"):
            assert summary[name]["mean"] == pytest.approx(summaries[0][name]["mean"], abs=1e-6)


def test_some_images_score_as_they_do_among_all(evaluate, tmp_path):
    """Bit for bit, the integrand's apart; and an evaluation of another number is another one."""
    solver, model = FixedGrid(steps=2), tiny.model()
    whole, among_all = evaluate(9, 4, model, solver)
    assert "place" not in among_all
    assert "whole_split" not in whole
    with pytest.raises(ValueError, match="num_images was None and is now 4"):
        evaluate(9, 4, model, solver, num_images=4)
    (tmp_path / "summary.json").unlink()
    summary, found = evaluate(9, 3, model, solver, num_images=4)
    places = found.pop("place")
    assert places.tolist() == [0, 3, 5, 8]
    assert found.pop("index").tolist() == [0, 1, 2, 3]
    assert found.keys() == among_all.keys() - {"index"}
    for name, each in found.items():
        np.testing.assert_array_equal(each, among_all[name][places], err_msg=name)
    assert (summary["num_images"], summary["whole_split"]) == (4, 9)
    assert summary["sha256"] != whole["sha256"]
    assert "train: 4 of 9 images of 4x4x1" in summary_lib.table(summary)
    assert summary["tn"]["mean"] == among_all["tn/bpd"][places].mean()


def test_noise_by_pixels_is_that_of_the_programs_of_t5x(evaluate):
    """And an image has the same score at another place in the split."""
    solver, model = FixedGrid(steps=2), tiny.model()
    _, found = evaluate(5, 3, model, solver, noise_by_pixels=True)
    images = tiny.split(number=5).images
    batch = {"image": jax.numpy.asarray(images), "conditioning": jax.numpy.zeros((5, 1))}
    theirs = t5x.Parts(
        diffusion_ode=model,
        optimizer=AdamW(),
        feature_converter_cls=dict,
        bound=VariationalBound(num_times=2),
        likelihood=ODELikelihood(dequantizer=TruncatedNormal(), solver=solver),
        likelihood_name="tn",
    )
    params = run_inputs.load_params().params
    bound = theirs.bits_per_dim(params, batch)["bpd"]
    np.testing.assert_allclose(found["variational_bound/bpd"], bound, rtol=1e-6)
    np.testing.assert_allclose(found["tn/nats"], -theirs.log_p(params, batch), rtol=1e-6)
    moved = {name: each[::-1] for name, each in batch.items()}
    np.testing.assert_allclose(bound[::-1], theirs.bits_per_dim(params, moved)["bpd"], rtol=1e-6)
    with pytest.raises(ValueError, match="noise_by_pixels was True and is now False"):
        evaluate(5, 3, model, solver)


TASK = """
import numpy as np, seqio, tensorflow as tf
images = np.arange(5 * 16, dtype=np.uint8).reshape(5, 4, 4, 1) % 17
source = seqio.FunctionDataSource(
    lambda split, shuffle_files, seed=None: tf.data.Dataset.from_tensor_slices({"image": images}),
    splits=("test",),
)
image = seqio.ContinuousFeature(dtype=tf.uint8, rank=3)
seqio.TaskRegistry.add("scored", source, preprocessors=[], output_features={"image": image})
"""


@pytest.mark.full
def test_a_seqio_task_of_the_user_is_scored_into_files(monkeypatch, tmp_path):
    (tmp_path / "my_scored_tasks.py").write_text(TASK)
    monkeypatch.syspath_prepend(tmp_path)
    model = tiny.model()
    params = model.init(jax.random.key(0), tiny.SHAPE)
    restored = saving.RestoredParams(params, 3, pathlib.Path("unread"), {})
    monkeypatch.setattr(run_inputs, "load_params", lambda *_: restored)
    monkeypatch.setattr(saving, "find", pathlib.Path)
    task = data.DatasetConfig(
        mixture_or_task_name="scored",
        module="my_scored_tasks",
        split="test",
        batch_size=2,
        cache_dir="",
    )
    folder = tmp_path / "out"
    evaluator.Evaluator(
        output_dir=str(folder), checkpoint_path="made", likelihoods={}, histogram_split=None
    ).run(model, task)
    with np.load(folder / "results.npz") as found:
        assert found["variational_bound/bpd"].shape == (5,)
    rows = pyarrow.parquet.read_table(folder / "results.parquet")
    assert rows.num_rows == 5
    assert "variational_bound/bpd" in rows.column_names


@pytest.mark.full
def test_adaptive_steps_of_a_convolutional_network_do_not_depend_on_the_batch(evaluate):
    """In float32 and at a loose tolerance, where rounding alone can change the steps taken."""
    model = tiny.model(network=UNet(channels=8, levels=1, groups=2, fourier_exponents=(1,)))
    first, *others = (evaluate(11, size, model, LOOSE)[1] for size in (3, 11))
    assert np.ptp(first["tn/nfe"]) > 0
    for other in others:
        np.testing.assert_array_equal(other["tn/nfe"], first["tn/nfe"])
        np.testing.assert_array_equal(other["tn/bpd"], first["tn/bpd"])
        np.testing.assert_array_equal(
            other["variational_bound/bpd"], first["variational_bound/bpd"]
        )


@pytest.mark.parametrize(
    "network",
    [
        pytest.param(
            UNet(channels=8, levels=1, groups=2, fourier_exponents=(1,), dtype="bfloat16"),
            marks=pytest.mark.full,
            id="convolutions",
        ),
        pytest.param(Coarse(tiny.AffineNetwork()), id="affine"),
    ],
)
def test_the_error_of_bfloat16_is_in_the_summary_and_is_limited(
    network, monkeypatch, tmp_path, capsys
):
    """The whole program, from the checkpoint on disk to summary.json."""
    tiny.use_tiny_data(monkeypatch, 4)
    monkeypatch.setattr(eval_results, "draw", lambda *_: None)
    params = jax.tree.map(lambda leaf: leaf + 0.05, network.init(jax.random.key(0), tiny.SHAPE))
    state = train_state.create(params, tiny.trainer(tmp_path).optimizer.build(), ["loss"])
    with saving.Checkpoints(tmp_path / "run", saving.CheckpointConfig(), {}) as saved:
        saved.save(state)
    estimator = ODELikelihood(dequantizer=TruncatedNormal(), solver=Adams(steps=4))

    def summary(output, network, name="tn", **changes):
        made = evaluator.Evaluator(
            output_dir=str(tmp_path / output),
            checkpoint_path=str(tmp_path / "run"),
            likelihoods={"tn": estimator} if name == "tn" else {},
            variational_bound=VariationalBound(num_times=2),
            histogram_split=None,
            pilot=Pilot(num_images=4, max_steps=16, **changes),
        )
        model = tiny.model(network=network)
        eval_script.evaluate(model=model, dataset_cfg=tiny.config(4), evaluator=made)
        return json.loads((tmp_path / output / "summary.json").read_text())[name]

    summary("bound", network, "variational_bound")
    unmeasured = "LIKELIHOODS is empty, so the error caused by"
    assert unmeasured in capsys.readouterr().out
    coarse = summary("coarse", network, tolerance=0.5)
    assert 1e-4 < coarse["precision_error"] < 0.5
    assert "is not measured" not in capsys.readouterr().out
    before = {each: each.read_bytes() for each in (tmp_path / "coarse").rglob("*.*")}
    tiny.use_tiny_data(monkeypatch, 4, seed=1)  # other images under the same name
    with pytest.raises(ValueError, match=r"another evaluation.* dataset_sha256 was .*EVAL_OUTPUT"):
        summary("coarse", network, tolerance=0.5)
    assert before == {each: each.read_bytes() for each in (tmp_path / "coarse").rglob("*.*")}
    small = coarse["precision_error"] / 2
    with pytest.raises(ValueError, match="bfloat16 .*UNet.dtype = None.*Pilot.precision_tolerance"):
        summary("refused", network, tolerance=0.5, precision_tolerance=small)
    assert not (tmp_path / "refused" / "summary.json").exists()
    summary("refused", network.in_full_precision(), tolerance=0.5)  # nothing is in its way


@pytest.mark.parametrize(
    ("variant", "shown"), [("", "made /"), ("van den Oord", "made, van den Oord /")]
)
def test_the_table_identifies_the_pixels(variant, shown):
    summary = {
        **{"dataset": "made", "variant": variant, "split": "test", "num_images": 3},
        **{"image_shape": [8, 8, 1], "levels": 17, "step": 5, "sha256": "0123456789abcdef" * 4},
        "uniform": {"mean": 2.0, "stderr": 0.5, "nfe": 7.0},
    }
    first, _, bound = summary_lib.table(summary).split("\n")
    assert first == f"{shown} test: 3 images of 8x8x1, 17 levels, sha256 0123456789ab, step 5"
    assert bound.split() == ["uniform", "2.0000", "0.5000", "-", "7"]


def test_the_table_in_the_readme_is_of_these_pixels():
    from idode_gin.feed import data, loading

    config = data.DatasetConfig(mixture_or_task_name="digits", split="test", batch_size=1)
    split = loading.load_split(config)
    readme = pathlib.Path(__file__).parents[2].joinpath("README.md").read_text()
    facts = {**split.facts(), "levels": 17, "step": 1500}
    assert f"\n{summary_lib.table(facts).splitlines()[0]}\n" in readme


def test_the_histogram_may_be_of_other_images(monkeypatch):
    """A fingerprint of the images that are scored is none of those that it is fitted on."""
    asked = []
    fitted, scored = tiny.split(number=30, seed=1), tiny.split()
    monkeypatch.setattr(loading, "load_split", lambda config: asked.append(config) or fitted)
    dataset = tiny.config(split="test", fingerprint="0" * 16)
    made = evaluator.Evaluator(output_dir="unread", checkpoint_path="unread", likelihoods={})
    found = made._prepared(tiny.model(), dataset, scored, None).histogram
    expected = histogram.bits_per_dim(fitted.images, scored.images, tiny.LEVELS)
    np.testing.assert_array_equal(found, expected)
    assert [(each.split, each.fingerprint) for each in asked] == [("train", None)]


@pytest.mark.parametrize(
    "scored", ["train", "same", "reordered", "part", "part of train", "a split inside"]
)
def test_no_histogram_is_fitted_on_the_images_that_it_scores(scored, monkeypatch, capsys):
    """It would give fewer bits per dim than the images have; a split's name is not all it takes."""
    whole = tiny.split(number=30)
    order = slice(None, None, -1 if scored == "reordered" else 1)
    images = data.ImageSplit(
        images=whole.images[order], conditioning=whole.conditioning, name="tiny", split="other"
    )
    split = images.some(7) if "part" in scored else images
    if scored == "a split inside":
        some = whole.images[3:9].astype(np.int32)
        split = dataclasses.replace(images, images=some, conditioning=whole.conditioning[3:9])
    monkeypatch.setattr(loading, "load_split", lambda _: whole)
    dataset = tiny.config(split="train" if "train" in scored else "other")
    assert histogram.baseline(dataset, "train", split, tiny.LEVELS) is None
    assert "left out: 'train' (Evaluator.histogram_split) holds" in capsys.readouterr().out


@pytest.mark.parametrize("lanes", [4, 5])
def test_lanes_must_not_exceed_the_solve_size(lanes):
    estimator = ODELikelihood(dequantizer=TruncatedNormal(), solver=LOOSE, lanes=lanes)
    common = {"output_dir": "unused", "checkpoint_path": "unused", "solve_size": 4}
    for made in (
        lambda: evaluator.Evaluator(likelihoods={"tn": estimator}, **common),
        lambda: sampler.Sampler(method=ODESampler(solver=LOOSE, lanes=lanes), **common),
    ):
        if lanes == 4:
            assert made()
            continue
        with pytest.raises(ValueError, match="lanes=5 and solve_size=4.*Lower `lanes`"):
            made()


def test_a_single_image_has_no_standard_error(evaluate):
    summary, _ = evaluate(1, 2, tiny.model(), FixedGrid(steps=3))
    assert summary["num_images"] == 1
    assert summary["tn"]["stderr"] is None


def test_an_output_folder_holds_one_evaluation(monkeypatch, tmp_path, capsys):
    """Other settings are refused; the same ones replace results and remove what they leave over."""
    interrupted.prepare(monkeypatch.setattr)
    interrupted.evaluate(tmp_path, 41)
    assert "Replaces" not in capsys.readouterr().out
    old, own = tmp_path / "plots" / "bpd_old.png", tmp_path / "plots" / "own.png"
    old.parent.mkdir()
    for path in (old, own):
        path.touch()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for changes, said in [
        ({"seed": 1}, "seed was 0 and is now 1"),
        ({"checkpoint_path": "other"}, "run was .*made and is now .*other"),
        ({"checkpoint_path": "made/checkpoint_a"}, "run was .*made and is now .*checkpoint_a"),
        ({"use_ema": False}, "parameters was ema and is now raw"),
        ({"likelihoods": {}}, r"likelihoods was \['tn'\] and is now \[\]"),
    ]:
        with pytest.raises(ValueError, match=f"another evaluation.*{said}.*EVAL_OUTPUT_DIR"):
            interrupted.evaluate(tmp_path, 41, **changes)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    interrupted.evaluate(tmp_path, 82, checkpoint_path="made/checkpoint_3")
    assert "Replaces the results of made, step 3, in" in capsys.readouterr().out
    assert own.exists()
    assert not old.exists()
    assert (tmp_path / "summary.json").exists()


def test_conditioning_must_match_the_network(monkeypatch):
    tiny.use_tiny_data(monkeypatch)
    network = UNet(channels=8, levels=1, groups=2, conditioning_size=3)
    with pytest.raises(ValueError, match=r"1 conditioning numbers.*takes 3.*conditioning_size = 1"):
        run_inputs.load(tiny.config(), tiny.model(network=network))
    split = dataclasses.replace(tiny.split(), conditioning=np.zeros((20, 3), np.float32))
    monkeypatch.setattr(loading, "load_split", lambda _: split)
    assert tiny.model().network.conditioning_size == 1  # the default of every network
    with pytest.raises(ValueError, match=r"3 conditioning numbers.*takes 1.*without this field"):
        run_inputs.load(tiny.config(), tiny.model())


@pytest.mark.full
def test_a_sample_does_not_depend_on_the_batch_size(monkeypatch, tmp_path):
    network = UNet(channels=8, levels=1, groups=2, fourier_exponents=(1,))
    model = tiny.model(network=network, image_shape=tiny.SHAPE)
    params = model.init(jax.random.key(0), tiny.SHAPE)
    restored = saving.RestoredParams(params, 3, pathlib.Path("unread"), {})
    monkeypatch.setattr(run_inputs, "load_params", lambda *_: restored)
    monkeypatch.setattr(saving, "find", pathlib.Path)
    found = []
    for size in (2, 5):
        made = sampler.Sampler(
            output_dir=str(tmp_path),
            checkpoint_path="made",
            method=ODESampler(solver=LOOSE),
            num_samples=5,
            batch_size=size,
            solve_size=2,
        )
        made.run(model)
        with np.load(tmp_path / "samples.npz") as file:
            found.append(file["levels"])
    np.testing.assert_array_equal(*found)


def test_a_model_of_discrete_time_has_no_continuous_bound_to_compare_with(evaluate):
    """Its variational bound is that of a chain, whose gap to itself would be reported as 0."""
    bound = VariationalBound(num_times=2, time_sampler=DiscreteSteps(steps=4))
    settings = {"discrete_steps": (4, 8), "variational_bound": bound}
    summary, rows = evaluate(6, 4, tiny.model(), FixedGrid(steps=2), **settings)
    same, other = rows["discrete_time_4/bpd"], rows["discrete_time_8/bpd"]
    np.testing.assert_array_equal(rows["variational_bound/bpd"], same)
    assert (other != same).all()
    for name in ("discrete_time_4", "discrete_time_8"):
        assert not any(each.startswith("above_continuous") for each in summary[name])


@pytest.mark.parametrize("time", [Linear(), LearnedLinear(), Monotone(units=4)], ids=repr)
def test_bounds_in_discrete_time_are_above_the_continuous_one(evaluate, time):
    """Also at the ends that a gamma(t) has learned, with the gap and its paired error."""
    time = dataclasses.replace(time, gamma_min=-8.0)
    model = tiny.model(time=time)
    summary, rows = evaluate(6, 4, model, FixedGrid(steps=2), discrete_steps=(1, 8))
    continuous, many = rows["variational_bound/bpd"], rows["discrete_time_8/bpd"]
    found = summary["discrete_time_8"]
    assert found["above_continuous"] == pytest.approx(np.mean(many - continuous))
    error = np.std(many - continuous, ddof=1) / np.sqrt(6)
    assert found["above_continuous_stderr"] == pytest.approx(error)
    assert summary["discrete_time_1"]["above_continuous"] > found["above_continuous"]
    assert (summary["discrete_time_1"]["nfe"], found["nfe"]) == (1, 2)
