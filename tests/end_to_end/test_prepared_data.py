"""From a publisher's bytes to a trained step and a score, for every format that is read."""

import json
import pathlib
import sys

import numpy as np
import pytest

from idode_gin import checks
from idode_gin.configs import programs
from tasks.prepare import __main__ as prepare

ROOT = pathlib.Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))

import archives  # noqa: E402  beside the tests of the readers

N_TRAIN, N_OTHER = 21, 5
SMALL = (
    "--gin.UNet.channels=8",
    "--gin.UNet.levels=1",
    "--gin.UNet.groups=2",
    "--gin.UNet.attention_everywhere=False",
    "--gin.BATCH_SIZE=4",
)


def run(program, function, *arguments):
    """Run a program like a shell, but in this process: its imports take seconds."""
    return programs.run(f"idode_gin.{program}", function, program, [*arguments])


def cifar10(write):
    def build(folder):
        write(folder / "archive.tar.gz", N_TRAIN, N_OTHER)
        return [folder / "archive.tar.gz"]

    return build


def imagenet(write):
    def build(folder):
        write(folder, N_TRAIN, N_OTHER)
        return sorted(folder.iterdir())

    return build


def tfrecords(folder):
    archives.authors_tfrecords(folder, N_TRAIN, N_OTHER)
    return [folder / "downsampled_imagenet_new" / "32x32" / "2.0.0"]


def idx(folder):
    archives.mnist(folder, N_TRAIN, N_OTHER)
    return [folder]


FORMATS = {
    "mnist, idx": ("fashion_mnist", "fashion_mnist", idx),
    "cifar10, python": ("cifar10", "cifar10", cifar10(archives.cifar10_python)),
    "cifar10, binary": ("cifar10", "cifar10_aug_with_channel", cifar10(archives.cifar10_binary)),
    "imagenet, tar": ("imagenet32_old", "imagenet32_old", imagenet(archives.imagenet_old_tars)),
    "imagenet, zip": ("imagenet32_new", "imagenet32_new", imagenet(archives.imagenet_zip_pickles)),
    "imagenet, npz": ("imagenet32_new", "imagenet32_new", imagenet(archives.imagenet_npz)),
    "imagenet, tfrecords": ("imagenet32_new", "imagenet32_new", tfrecords),
}


QUICK = ("cifar10, binary", "imagenet, tar", "imagenet, zip")


@pytest.mark.full_cases("imagenet, zip", "cifar10, binary")
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.full) for name in FORMATS],
)
def test_prepared_trained_and_scored(name, tmp_path, capsys):
    dataset, experiment, build = FORMATS[name]
    (tmp_path / "source").mkdir()
    sources = [str(each) for each in build(tmp_path / "source")]
    data_dir = f"--tfds_data_dir={tmp_path / 'data'}"
    experiments = ROOT / "gin_configs" / "experiments"

    # A part of a dataset is refused by default.
    assert prepare.main([dataset, "--source", *sources, data_dir]) == checks.EXIT_BAD_INPUT
    assert not list((tmp_path / "data").glob("*/dataset_info.json"))
    allowed = [dataset, "--source", *sources, data_dir, "--allow_partial"]
    assert prepare.main(allowed) == 0

    model_dir, out = str(tmp_path / "run"), str(tmp_path / "eval")
    code = run(
        "train",
        "train",
        f"--gin_file={experiments / experiment}.gin",
        data_dir,
        *SMALL,
        f"--gin.MODEL_DIR={model_dir!r}",
        "--gin.TRAIN_STEPS=2",
        "--gin.EVAL_STEPS=1",
        "--gin.Trainer.tensorboard=False",
    )
    assert code == 0, capsys.readouterr().err
    trained = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert trained["step"] == 2
    assert trained["data"]["num_images"] == N_TRAIN

    code = run(
        "eval",
        "evaluate",
        f"--gin_file={experiments / experiment}_eval.gin",
        data_dir,
        *SMALL,
        f"--gin.CHECKPOINT_PATH={model_dir!r}",
        f"--gin.EVAL_OUTPUT_DIR={out!r}",
        "--gin.BOUND_TIMES=2",
        "--gin.Evaluator.likelihoods={}",
        "--gin.Evaluator.solve_size=4",
    )
    assert code == 0, capsys.readouterr().err
    scored = json.loads((tmp_path / "eval" / "summary.json").read_text())
    assert scored["num_images"] == N_OTHER
    assert "PARTIAL" in scored["variant"]
    assert np.isfinite(scored["variational_bound"]["mean"])
    stored = next((tmp_path / "data").rglob("fingerprint.json"), None)
    if stored is not None:
        kept = json.loads(stored.read_text())[scored["split"]]
        assert {key: scored[key] for key in kept} == kept
