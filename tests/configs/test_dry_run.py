"""Dry runs of every published experiment: on a laptop, without data, for the mesh of a cluster."""

import pathlib
import re

import numpy as np
import pytest
from gin import config

from idode_gin import encode as encode_program
from idode_gin import eval as eval_program
from idode_gin import interpolate as interpolate_program
from idode_gin import sample as sample_program
from idode_gin import train as train_program
from idode_gin.configs import building, programs
from idode_gin.feed import loading
from idode_gin.feed.data import DatasetConfig
from idode_gin.runs import descriptions, facts, image_loop, partial_results
from idode_gin.training import dry_run

ROOT = pathlib.Path(__file__).parents[2]
PUBLISHED = sorted(
    path.stem
    for path in (ROOT / "gin_configs/experiments").glob("*.gin")
    if re.match(r"cifar10|imagenet", path.stem)
)
ROOTS = {
    "eval": eval_program.evaluate,
    "sample": sample_program.sample,
    "encode": encode_program.encode,
    "interpolate": interpolate_program.interpolate,
}
MILLIONS = {"cifar10": 30.6, "cifar10_aug": 139.2, "cifar10_vdm_aug": 122.1, "imagenet": 122.1}


@pytest.mark.parametrize(
    ("name", "more", "said"),
    [
        ("eval", None, "Nothing to score digits / test with yet. No checkpoint at"),
        ("eval", "all", "Nothing to score digits / test with every checkpoint up to yet."),
        ("eval", "watch", "with every future checkpoint, and all up to yet."),
        ("sample", None, "Nothing to draw 64 images with yet."),
        ("encode", None, "Nothing to encode digits / test with yet."),
        ("interpolate", None, "Nothing to interpolate digits / test with yet."),
    ],
)
def test_a_checkpoint_that_is_not_there_yet_is_no_error(
    name, more, said, monkeypatch, tmp_path, capsys
):
    monkeypatch.chdir(tmp_path)
    files = [f"gin_configs/experiments/digits_{name}.gin"]
    files += [f"gin_configs/checkpoints/{more}.gin"] if more else []
    bindings = ["MESH_SHAPE = (2, 1, 1)", "BATCH_SIZE = 4"]
    building.load_and_check(ROOTS[name], files, bindings)
    config.get_configurable(ROOTS[name])(dry_run=True)
    text = capsys.readouterr().out
    assert "Mesh: data=2 x fsdp=1 x model=1, 2 devices." in text
    assert said in text
    assert ("Estimated cost of an image: 364 network evaluations" in text) == (name == "eval")
    assert not list(tmp_path.iterdir())


def test_the_solves_of_a_parity_are_estimated(monkeypatch, tmp_path, capsys):
    """Five more of each of three likelihoods, of 50 evaluations with their trace."""
    monkeypatch.chdir(tmp_path)
    files = ["gin_configs/experiments/digits_eval.gin", "gin_configs/parity/official.gin"]
    building.load_and_check(ROOTS["eval"], files)
    config.get_configurable(ROOTS["eval"])(dry_run=True)
    text = capsys.readouterr().out
    assert "Estimated cost of an image: 1,864 network evaluations" in text
    assert "parity 1,500;" in text


@pytest.mark.parametrize("program", ["eval", "sample", "encode", "interpolate"])
def test_a_run_that_is_not_there_yet_is_no_error_either(program, tmp_path, capsys):
    given = [f"--gin.CHECKPOINT_PATH={str(tmp_path / 'none')!r}"]
    function = ROOTS[program].__name__
    assert programs.run(f"idode_gin.{program}", function, "", [*given, "--dry_run"]) == 0
    text = capsys.readouterr().out
    assert "Nothing to do yet. No checkpoint at" in text
    assert "name its gin files by --gin_file" in text
    assert programs.run(f"idode_gin.{program}", function, "", given) == 2
    assert "No checkpoint at" in capsys.readouterr().err


@pytest.mark.parametrize("name", ROOTS)
def test_values_of_another_computation_are_refused(name, tmp_path, capsys):
    """As the run itself does, which would find them only after it has read the images."""
    files = [f"gin_configs/experiments/digits_{name}.gin"]
    macro = {"eval": "EVAL", "encode": "ENCODE", "sample": "SAMPLE", "interpolate": "INTERPOLATE"}
    bindings = [f"{macro[name]}_OUTPUT_DIR = {str(tmp_path)!r}", "RANDOM_SEED = 3"]
    building.load_and_check(ROOTS[name], files, bindings)
    arguments = building.build(ROOTS[name])
    (loop,) = (each for each in arguments.values() if isinstance(each, descriptions.Loop))
    known = facts.result_facts(arguments["model"], {}, loop) | {"dataset_sha256": "0" * 64}
    folder = tmp_path / image_loop.FOLDER
    kept = partial_results.PartialResults(folder, known, 3)
    kept.add("a", np.arange(2), {"bpd": np.ones(2)})
    kept.write()
    dry_run_of = config.get_configurable(ROOTS[name])
    dry_run_of(dry_run=True)
    capsys.readouterr()
    building.load_and_check(ROOTS[name], files, [bindings[0], "RANDOM_SEED = 4"])
    with pytest.raises(ValueError, match="another computation.* seed was 3 and is now 4"):
        dry_run_of(dry_run=True)
    if name == "eval":
        building.load_and_check(ROOTS[name], files, [*bindings, "LIKELIHOODS = {}"])
        with pytest.raises(ValueError, match="truncated_normal was ODELikelihood and is now"):
            dry_run_of(dry_run=True)


@pytest.mark.parametrize("name", ["eval", "encode", "interpolate"])
def test_images_of_one_s_own_must_be_there(name, monkeypatch, tmp_path):
    def missing(dataset, num_classes):
        raise ValueError(f"no {dataset.split} of {num_classes} classes")

    monkeypatch.setattr(loading, "check_there", missing)
    monkeypatch.chdir(tmp_path)
    building.load_and_check(ROOTS[name], [f"gin_configs/experiments/digits_{name}.gin"])
    with pytest.raises(ValueError, match="no test of 0 classes"):
        config.get_configurable(ROOTS[name])(dry_run=True)
    train = DatasetConfig(mixture_or_task_name="digits", split="train", batch_size=1)
    given = {"steps": 1, "eval_period": None, "save_period": None, "directory": "run"}
    given["early_stopping"] = None
    with pytest.raises(ValueError, match="no train of 3 classes"):
        dry_run.goal(train, None, num_classes=3, **given)


@pytest.mark.parametrize("program", ["train", "eval"])
@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ("MIXTURE_OR_TASK_NAME='digit'", "No seqio task or mixture named 'digit' .*'digits'"),
        ("EVAL_SPLIT='valid'", "'digits' has no split 'valid'. Its splits: 'test', 'train'"),
        ("DatasetConfig.module='tusks'", "`module` must name an importable module"),
    ],
)
def test_names_of_data_are_checked(program, binding, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = {"train": "digits", "eval": "digits_eval"}[program]
    root = {"train": train_program.train, **ROOTS}[program]
    building.load_and_check(root, [f"gin_configs/experiments/{file}.gin"], [binding])
    with pytest.raises(ValueError, match=message):
        config.get_configurable(root)(dry_run=True)


@pytest.mark.parametrize("program", ["train", "eval"])
def test_a_path_without_images_yet_is_a_warning(program, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = {"train": "image_npz", "eval": "image_npz_eval"}[program]
    function = {"train": "train", "eval": "evaluate"}[program]
    given = [f"--gin_file=gin_configs/experiments/{file}.gin", "--gin.DATA_PATH='none.npz'"]
    given += ["--gin_file=gin_configs/models/unet_tiny.gin", "--gin.IMAGE_SHAPE=(8, 8, 1)"]
    assert programs.run(f"idode_gin.{program}", function, "", [*given, "--dry_run"]) == 0
    text = capsys.readouterr().out
    assert text.count("WARNING: 'image_npz' found nothing at none.npz (DATA_PATH).") == 1
    assert ("FLOPs of a step" in text) == (program == "train")


@pytest.mark.full
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_experiment(name, monkeypatch, tmp_path, capsys):
    def unread(_):
        raise AssertionError("data was opened")

    monkeypatch.setattr(loading, "load_split", unread)
    monkeypatch.chdir(tmp_path)
    root = ROOTS.get(name.rpartition("_")[2], train_program.train)
    file = f"gin_configs/experiments/{name}.gin"
    mesh = "MESH_SHAPE = {'data': 2, 'fsdp': 16}"
    building.load_and_check(root, [file], [mesh])
    if name.endswith("_finetune"):
        with pytest.raises(ValueError, match="No checkpoint at .*/runs/"):
            config.get_configurable(root)(dry_run=True)
        building.load_and_check(root, [file], [mesh, "INITIAL_CHECKPOINT_PATH = None"])
    config.get_configurable(root)(dry_run=True)
    text = capsys.readouterr().out
    assert "Mesh: data=2 x fsdp=16 x model=1, 32 devices." in text
    start = max((each for each in MILLIONS if name.startswith(each)), key=len)
    total = int(re.search(r"Total: ([\d,]+) parameters", text)[1].replace(",", ""))
    assert total == pytest.approx(1e6 * MILLIONS[start], rel=2e-3)
    if root is train_program.train:
        stored = float(re.search(r"  parameters +([\d.]+) MiB", text)[1])
        assert stored == pytest.approx(4 * total / 16 / 2**20, abs=0.06)
        assert "FLOPs of a step" in text
    else:
        assert "yet. No checkpoint at" in text
    assert not list(tmp_path.iterdir())
