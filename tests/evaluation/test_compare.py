"""The program `compare`, on two evaluations of a network before and after a change."""

import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny
from PIL import Image

from idode_gin import compare
from idode_gin.checkpoints import saving
from idode_gin.dequantizers.truncated_normal import TruncatedNormal
from idode_gin.evaluation import plots as eval_plots
from idode_gin.evaluation import results
from idode_gin.evaluation.evaluator import Evaluator
from idode_gin.feed import image_fingerprints
from idode_gin.likelihood.ode_likelihood import ODELikelihood
from idode_gin.losses.bound import VariationalBound
from idode_gin.runs import run_inputs
from idode_gin.solvers.fixed_grid import FixedGrid

NUMBER = 9
DATA = {
    "mixture_or_task_name": "%MIXTURE_OR_TASK_NAME",
    "split": "%EVAL_SPLIT",
    "use_cached": "False",
    "module": "None",
    "data_path": "None",
    "cache_dir": "None",
}
CONFIG = "from idode_gin import eval as eval_script\nMIXTURE_OR_TASK_NAME = %TASK\nTASK = 'tiny'\n"
CONFIG += "EVAL_SPLIT = 'train'\n"
CONFIG += "".join(f"data.DatasetConfig.{name} = {value}\n" for name, value in DATA.items())


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A folder with the evaluations `a` and `b`, whose parameters differ."""
    folder = tmp_path_factory.mktemp("evaluated")
    with pytest.MonkeyPatch.context() as patch:
        tiny.use_tiny_data(patch, NUMBER)
        patch.setattr(saving, "find", lambda path: path)
        patch.setattr(results, "draw", lambda *_: None)
        for change, name in enumerate("ab"):

            def load_params(model, shape, *_, change=change):
                params = model.init(jax.random.key(0), shape)
                params = jax.tree.map(lambda leaf: leaf + 0.02 * change, params)
                return saving.RestoredParams(params, 3, folder / "checkpoint_3", {})

            patch.setattr(run_inputs, "load_params", load_params)
            solver, bound = FixedGrid(steps=2), VariationalBound(num_times=2)
            likelihood = ODELikelihood(dequantizer=TruncatedNormal(), solver=solver)
            made = Evaluator(
                output_dir=str(folder / name),
                checkpoint_path="made",
                likelihoods={"tn": likelihood},
                variational_bound=bound,
                histogram_split=None,
            )
            made.run(tiny.model(), tiny.config(4))
            for config in ("config.gin", "operative_config.gin"):
                (folder / name / config).write_text(CONFIG)
    return folder


@pytest.fixture
def both(evaluated, tmp_path, monkeypatch):
    """Copies of the two folders."""
    tiny.use_tiny_data(monkeypatch, NUMBER)
    return [shutil.copytree(evaluated / name, tmp_path / name) for name in "ab"]


def run(*arguments):
    return compare.main([str(each) for each in arguments])


def change_summary(folder, **changes):
    found = json.loads((folder / "summary.json").read_text())
    for name, value in changes.items():
        *path, last = name.split("__")
        inner = found
        for each in path:
            inner = inner[each]
        inner[last] = value
    (folder / "summary.json").write_text(json.dumps(found))


def test_images_of_a_part_are_named_by_their_places_in_the_whole_split(both, capsys):
    for folder in both:
        rows = dict(np.load(folder / "results.npz"))
        np.savez(folder / "results.npz", **rows, place=3 * rows["index"] + 100)
    assert run(*both) == 0
    found = json.loads((both[0].with_name("a_compared") / "compare.json").read_text())
    a, b = (dict(np.load(each / "results.npz")) for each in both)
    printed = capsys.readouterr().out
    for each in found["differences"]:
        values = b[f"{each['bound']}/bpd"] - a[f"{each['bound']}/bpd"]
        assert all(f"#{image['place']} " in printed for image in each["lower"] + each["higher"])
        for image in each["lower"] + each["higher"]:
            assert image["place"] == 3 * image["index"] + 100
            assert image["difference"] == values[image["index"]]


def test_tensorflow_is_silenced_before_jax_sets_its_log_level(tmp_path):
    code = (
        "import sys; from idode_gin import compare; compare.main(['a', 'b']); "
        "print('jax' in sys.modules, [type(each).__module__ for each in sys.meta_path])"
    )
    environment = {name: each for name, each in os.environ.items() if name[:6] != "TF_CPP"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("False ['idode_gin.feed.quiet', ")


def test_two_evaluations_are_compared_image_by_image(both, capsys, monkeypatch):
    drawn, draw = {}, eval_plots.plot_differences

    def remember(pairs, path, **options):
        drawn.update(options)
        draw(pairs, path, **options)

    monkeypatch.setattr(eval_plots, "plot_differences", remember)
    assert run(*both) == 0
    folder = both[0].with_name("a_compared")
    printed = capsys.readouterr().out
    assert printed == (folder / "compare.txt").read_text() + (
        f"Wrote {folder / 'compare.png'}, .json and .txt.\n"
    )
    found = json.loads((folder / "compare.json").read_text())
    assert found["notes"] == []
    a, b = (dict(np.load(each / "results.npz")) for each in both)
    assert [each["bound"] for each in found["differences"]] == ["variational_bound", "tn"]
    for each in found["differences"]:
        values = b[f"{each['bound']}/bpd"] - a[f"{each['bound']}/bpd"]
        assert each["difference"] == pytest.approx(values.mean())
        assert each["stderr"] == pytest.approx(values.std(ddof=1) / NUMBER**0.5)
        assert 0 < each["stderr"] < each["stderr_unpaired"]
        named = each["lower"] + each["higher"]
        assert {abs(i["difference"]) for i in named} >= {abs(values).max()}
        assert all(i["difference"] == values[i["index"]] for i in named)
        assert f"{each['difference']:+.5f}" in printed
    parts = found["differences"][0]["parts"]
    of_terms = sum(parts[name]["difference"] for name in ("reconstruction", "prior", "diffusion"))
    assert of_terms == pytest.approx(found["differences"][0]["difference"], rel=1e-3)
    np.testing.assert_array_equal(drawn["images"], tiny.split(number=NUMBER).images)
    with Image.open(folder / "compare.png") as picture:
        assert picture.format == "PNG"


def test_images_of_a_step_of_a_series_are_shown(both):
    """All steps have one configuration, that of the series."""
    series = both[0].with_name("curve")
    series.mkdir()
    (series / "series.json").write_text("{}")
    step = shutil.move(both[0], series / "step_3")
    shutil.move(step / "operative_config.gin", series)
    assert run(step, both[1]) == 0
    assert json.loads((series / "step_3_compared" / "compare.json").read_text())["notes"] == []


def test_rows_in_another_order_give_the_same(both, tmp_path):
    rows = dict(np.load(both[1] / "results.npz"))
    order = np.random.default_rng(0).permutation(NUMBER)
    other = shutil.copytree(both[1], tmp_path / "c")
    np.savez(other / "results.npz", **{name: each[order] for name, each in rows.items()})
    compare.write([*map(str, [both[0], both[1], other])], str(tmp_path / "o"))
    found = json.loads((tmp_path / "o" / "compare.json").read_text())["differences"]
    figures = [{k: v for k, v in each.items() if k != "other"} for each in found]
    assert figures[:2] == figures[2:]


@pytest.mark.parametrize(("share", "notes"), [(0.6, 1), (0.4, 0)])
def test_the_solver_errors_of_both_add_up(both, share, notes):
    """Each below the difference, but together above it, they leave nothing to be said."""
    a, b = (np.load(each / "results.npz")["tn/bpd"] for each in both)
    error = share * abs(float(np.mean(b - a)))
    for each in both:
        change_summary(each, tn__solver_error={"error": error, "is_within": True})
    assert run(*both) == 0
    found = json.loads((both[0].with_name("a_compared") / "compare.json").read_text())
    errors = {each["bound"]: each["solver_error"] for each in found["differences"]}
    assert errors == {"variational_bound": None, "tn": pytest.approx(2 * error)}
    assert len(found["notes"]) == notes
    assert all("smaller than the solvers' errors together" in each for each in found["notes"])


def test_images_of_a_task_of_the_user_s_own_are_found(tmp_path, monkeypatch):
    (tmp_path / "data_of_mine.py").write_text(
        "import seqio, numpy as np, tensorflow as tf\n"
        "images = {'image': np.zeros((3, 2, 2, 1), np.uint8)}\n"
        "read = lambda split, shuffle_files: tf.data.Dataset.from_tensor_slices(images)\n"
        "feature = seqio.ContinuousFeature(dtype=tf.uint8, rank=3)\n"
        "seqio.TaskRegistry.add('images_of_mine', preprocessors=[],\n"
        "    source=seqio.FunctionDataSource(read, splits=['test']),\n"
        "    output_features={'image': feature})\n"
    )
    (tmp_path / "operative_config.gin").write_text(
        "from __gin__ import dynamic_registration\nimport data_of_mine\n\n"
        "data.DatasetConfig.mixture_or_task_name = 'images_of_mine'\n"
        "data.DatasetConfig.split = 'test'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    zeros = image_fingerprints.fingerprint(np.zeros((3, 2, 2, 1), np.uint8))
    found, why = compare._images(tmp_path, {"sha256": zeros.sha256}, None)
    assert why == ""
    assert found.shape == (3, 2, 2, 1)
    import seqio

    seqio.TaskRegistry.remove("images_of_mine")


def test_an_evaluation_and_itself_and_images_that_cannot_be_read(both, capsys):
    (both[0] / "operative_config.gin").unlink()
    assert run(both[0], both[0]) == 0
    printed = capsys.readouterr().out
    assert "Note: compare.png shows no images: " in printed
    found = json.loads((both[0].with_name("a_compared") / "compare.json").read_text())
    for each in found["differences"]:
        assert (each["difference"], each["stderr"], each["lower"], each["higher"]) == (0, 0, [], [])


def test_a_run_directory_stands_for_its_only_evaluation(both, tmp_path, capsys):
    runs = [tmp_path / "runs" / name for name in "ab"]
    for each, source in zip(runs, both, strict=True):
        each.mkdir(parents=True)
        (each / "metrics.jsonl").touch()
        shutil.copytree(source, each / "eval" / "digits_test")
    assert run(*runs) == 0
    assert (runs[0] / "eval" / "digits_test_compared" / "compare.json").exists()
    capsys.readouterr()
    shutil.copytree(both[0], runs[0] / "eval" / "digits_train")
    assert run(*runs) == 2
    told = capsys.readouterr().err
    assert "holds several: " in told
    assert f"\n  {runs[0]}/eval/digits_train: tiny / train, step 3; variational_bound" in told
    shutil.rmtree(runs[1] / "eval")
    assert run(both[0], runs[1]) == 2
    assert f"CHECKPOINT_PATH=\"'{runs[1]}'\"" in capsys.readouterr().err


TOLD = {
    "repeats": ({"tn__settings__bound.num_repeats": "4"}, "num_repeats is 1 in A and 4 in B"),
    "seed": ({"seed": 1}, "seed is 0 in A and 1 in B"),
    "no settings": ({"tn__settings": None}, "does not record settings"),
    "rough solver": (
        {"tn__solver_error": {"error": 9.0, "is_within": False}},
        "The solver error of tn in B is not within",
    ),
}


def test_every_name_that_differs_is_told(both, capsys):
    changes = {"parameters": "raw", "solve_size": 7, "num_classes": 3, "variant": "other"}
    change_summary(both[1], **changes)
    assert run(*both) == 0
    printed = capsys.readouterr().out
    for name, before in zip(changes, ("ema", 32, None, ""), strict=True):
        assert f"{name} is {before} in A and {changes[name]} in B." in printed


@pytest.mark.parametrize(
    ("name", "before", "value", "why"),
    [
        ("model.network.dtype", "None", "'bfloat16'", "compute in different arithmetic"),
        ("matmul_precision", "None", "highest", "compute in different arithmetic"),
        ("coarse_products", None, "the gpu's", "compute in different arithmetic"),
        ("float", "float32", "float64", "compute in different arithmetic"),
        ("noise_by_pixels", False, True, "draw different noise"),
        ("random_numbers", "threefry2x32", "rbg", "draw different noise"),
    ],
)
def test_settings_of_arithmetic_and_noise_that_differ_are_told(name, before, value, why, both):
    """Where both sides record them: other versions wrote fewer, or no file."""

    def notes(*settings):
        for folder, each in zip(both, settings, strict=True):
            path = folder / "settings.json"
            path.unlink(missing_ok=True)
            if each is not None:
                path.write_text(json.dumps(each))
        assert run(*both) == 0
        found = json.loads((both[0].with_name("a_compared") / "compare.json").read_text())
        return found["notes"]

    (note,) = notes({name: before}, {name: value})
    assert note.startswith(f"{name} is {before} in A and {value} in B: they {why}")
    assert notes({name: value}, {name: value}) == []
    assert notes({}, {name: value}) == []
    assert notes(None, {name: value}) == []


def test_other_labels_are_told(both, capsys):
    for folder, labels in zip(both, "ab", strict=True):
        change_summary(folder, num_classes=3, labels_sha256=labels * 64)
    assert run(*both) == 0
    assert "Note: The labels of the images differ (labels_sha256)" in capsys.readouterr().out
    change_summary(both[1], labels_sha256="a" * 64)
    assert run(*both) == 0
    assert "The labels" not in capsys.readouterr().out


@pytest.mark.parametrize("name", TOLD)
def test_what_differs_without_harm_is_told(name, both, capsys):
    changes, said = TOLD[name]
    change_summary(both[1], **changes)
    assert run(*both) == 0
    assert said in capsys.readouterr().out


REFUSED = {
    "split": (lambda b: change_summary(b, split="test", sha256="0"), "sha256 .* and 0"),
    "order": (lambda b: change_summary(b, sha256="0"), "the same images in another order"),
    "dtype": (
        lambda b: change_summary(b, sha256="0", content_sha256="1"),
        "perhaps the same pixels as another integer dtype",
    ),
    "pixels": (
        lambda b: change_summary(b, sha256="0", content_sha256="1", channel_mean=[1.0]),
        r"sha256 \w+ and 0\. Evaluate both",
    ),
    "levels": (lambda b: change_summary(b, levels=16), "levels 17 and 16"),
    "shape": (lambda b: change_summary(b, image_shape=[2, 8, 1]), r"image_shape \[4, 4, 1\] and"),
    "dequantizer": (
        lambda b: change_summary(b, **{"tn__settings__bound.dequantizer": "Uniform"}),
        "dequantizer is TruncatedNormal in A and Uniform in B.* --bounds variational_bound",
    ),
    "bound": (
        lambda b: change_summary(b, **{"variational_bound__settings__bound": "DiscreteBound"}),
        "bound is VariationalBound in A and DiscreteBound in B",
    ),
    "importance": (
        lambda b: change_summary(b, **{"tn__settings__bound.num_importance": "20"}),
        "num_importance is 1 in A and 20 in B",
    ),
    "chain": (
        lambda b: change_summary(
            b, **{"variational_bound__settings__bound.time_sampler": "DiscreteSteps"}
        ),
        "time_sampler is Uniform in A and DiscreteSteps in B",
    ),
    "unfinished": (lambda b: (b / "summary.json").unlink(), "is not finished: it has no summary"),
    "no pixels": (lambda b: change_summary(b, sha256=None), "the summary has no sha256"),
    "text": (lambda b: change_summary(b, tn__settings="x"), "settings of tn is 'x'"),
    "a number": (lambda b: change_summary(b, tn__solver_error=1e-3), "solver_error of tn is 0.001"),
    "mixed": (lambda b: change_summary(b, tn__mean=1.0), "are not those of one evaluation"),
    "damaged": (lambda b: (b / "results.npz").write_bytes(b"PK"), "or are damaged"),
    "series": (lambda b: (b / "series.json").touch(), "a series of checkpoints"),
    "absent": (shutil.rmtree, "does not exist"),
    "of others": (lambda b: (b / "config.gin").write_text("import idode_gin.sample"), "holds none"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_compared_is_refused(name, both, capsys):
    change, said = REFUSED[name]
    change(both[1])
    assert run(*both) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    with pytest.raises(ValueError, match=said):
        compare.write([str(each) for each in both])
    assert not both[0].with_name("a_compared").exists()


def test_a_reader_that_has_ended_costs_no_file(both, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise BrokenPipeError

    monkeypatch.setattr("builtins.print", refuse)
    with pytest.raises(BrokenPipeError):
        run(*both, "--output", tmp_path / "out")
    names = {each.name for each in (tmp_path / "out").iterdir()}
    assert names == {"compare.json", "compare.png", "compare.txt"}


def test_bounds_can_be_chosen(both, capsys):
    change_summary(both[1], **{"tn__settings__bound.dequantizer": "Uniform"})
    assert run(*both, "--bounds", "variational_bound") == 0
    assert "tn " not in capsys.readouterr().out
    assert run(*both, "--bounds", "uniform") == 2
    assert "do not share uniform. They share: variational_bound, tn" in capsys.readouterr().err
    assert run(both[0]) == 2
