"""Programs take model and data from a run directory, or from any file for training."""

import dataclasses
import pathlib

import pytest
from gin import config

from idode_gin import encode as encode_program
from idode_gin import eval as eval_program
from idode_gin import interpolate as interpolate_program
from idode_gin import loaded
from idode_gin import sample as sample_program
from idode_gin import train as train_program
from idode_gin.configs import building, from_training, loading, outputs, programs
from idode_gin.configs.loading import ConfigError
from idode_gin.networks.unet import UNet

ROOTS = {
    "eval": eval_program.evaluate,
    "sample": sample_program.sample,
    "encode": encode_program.encode,
    "interpolate": interpolate_program.interpolate,
}
USES = {"eval": "evaluator", "sample": "sampler", "encode": "encoder"} | {
    "interpolate": "interpolator"
}
DEFAULTS = {"eval": "eval/digits_test", "sample": "samples", "encode": "encoded/digits_test"} | {
    "interpolate": "interpolated/digits_test"
}
DIGITS = "gin_configs/experiments/digits.gin"
OWN = """
from __gin__ import dynamic_registration
import optax
include 'gin_configs/experiments/digits.gin'
OPTIMIZER = @optax.adam()
optax.adam.learning_rate = 1e-3
NUM_LEVELS = 19
"""


def trained(folder: pathlib.Path, files: list[str], *bindings: str) -> pathlib.Path:
    """Write the configuration of a run; nothing is trained."""
    given = [f"MODEL_DIR = {str(folder)!r}", *bindings]
    building.load_and_check(train_program.train, files, given)
    config.get_configurable(train_program.train)(dry_run=True)
    folder.mkdir(exist_ok=True)
    with outputs.begun(folder, "MODEL_DIR"):
        pass
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("run")
    more = ("UNet.channels = 16", "UNet.time_embedding_scale = 500.0", "NUM_LEVELS = 18")
    return trained(folder, [DIGITS], "BATCH_SIZE = 48", *more)


def built(program: str, run: pathlib.Path, files=(), *bindings: str) -> dict:
    given = [f"CHECKPOINT_PATH = {str(run)!r}", *bindings]
    building.load_and_check(ROOTS[program], files, given)
    return building.build(ROOTS[program])


@pytest.mark.parametrize("program", ROOTS)
def test_a_run_directory_is_enough(program: str, run: pathlib.Path) -> None:
    building.load_and_check(train_program.train, [str(run / "config.gin")])
    model = building.build(train_program.train)["model"]
    found = built(program, run)
    assert found["model"] == model
    assert (model.network.channels, model.network.time_embedding_scale) == (16, 500.0)
    assert model.encoding.levels == 18
    assert found[USES[program]].output_dir == str(run / DEFAULTS[program])
    if program != "sample":
        dataset = found["dataset_cfg"]
        assert (dataset.mixture_or_task_name, dataset.split) == ("digits", "test")


@pytest.mark.parametrize("name", ["config.gin", "operative_config.gin"])
@pytest.mark.parametrize("program", ROOTS)
def test_a_run_s_own_configuration_is_a_file_of_every_program(
    program: str, name: str, run: pathlib.Path
) -> None:
    assert built(program, run, [str(run / name)])["model"] == built(program, run)["model"]


@pytest.mark.parametrize("name", ["config.gin", "operative_config.gin"])
def test_a_run_s_own_configuration_repeats_its_training(name: str, run: pathlib.Path) -> None:
    building.load_and_check(train_program.train, [str(run / name)])
    assert building.build(train_program.train)["model"] == built("eval", run)["model"]


def test_a_checkpoint_has_its_own_output_folder(run: pathlib.Path) -> None:
    found = built("sample", run / "checkpoint_20")
    assert found["sampler"].output_dir == str(run / "samples_20")
    found = built("eval", run / "checkpoint_20")
    assert found["evaluator"].output_dir == str(run / "eval/digits_test_20")
    every = ["gin_configs/checkpoints/all.gin"]
    found = built("eval", run, every)
    assert found["evaluator"].output_dir == str(run / "eval/digits_test_curve")
    with pytest.raises(ValueError, match=rf"requires a run directory.*Name {run}, or"):
        built("eval", run / "checkpoint_20", every)


def test_files_and_bindings_replace_parts(run: pathlib.Path) -> None:
    found = built(
        "eval",
        run,
        ["gin_configs/models/unet_tiny.gin", "gin_configs/solvers/adams.gin"],
        "UNet.levels = 1",
        "EVAL_SPLIT = 'validation'",
        "EVAL_OUTPUT_DIR = 'elsewhere'",
    )
    assert found["model"].network == UNet(
        channels=32, levels=1, groups=8, fourier_exponents=(), time_embedding_scale=500.0
    )
    assert found["dataset_cfg"].split == "validation"
    assert found["evaluator"].output_dir == "elsewhere"
    assert found["evaluator"].likelihoods["uniform"].solver is not None
    assert built("eval", run, (), "EVAL_SPLIT = 'train'")["evaluator"].output_dir.endswith(
        "digits_train"
    )


def test_a_binding_without_effect_is_still_an_error(run: pathlib.Path) -> None:
    for each in ("TRAIN_STEPS = 3", "OPTIMIZER = None", "UNET = 1"):
        with pytest.raises(ConfigError, match="is not used by anything"):
            built("sample", run, (), each)


def test_a_training_file_with_an_optimizer_is_accepted_by_sample(tmp_path: pathlib.Path) -> None:
    (tmp_path / "my.gin").write_text(OWN)
    for program in ROOTS:
        found = built(program, tmp_path / "runs", [str(tmp_path / "my.gin")])
        assert found["model"].encoding.levels == 19
    # Beside a file of the program, it gives model and data too.
    files = ["gin_configs/experiments/digits_sample.gin", str(tmp_path / "my.gin")]
    found = built("sample", tmp_path / "runs", files)
    assert found["model"].encoding.levels == 19
    assert found["sampler"].output_dir == "runs/digits/samples"


@pytest.mark.parametrize(("task", "split"), [("cifar10", "test"), ("imagenet32_new", "validation")])
def test_the_split_is_the_one_that_the_task_is_scored_on(
    task: str, split: str, tmp_path: pathlib.Path
) -> None:
    found = built("eval", tmp_path, [f"gin_configs/experiments/{task}.gin"])
    assert found["dataset_cfg"].split == split
    assert found["evaluator"].output_dir == str(tmp_path / f"eval/{task}_{split}")


def test_what_describes_images_comes_along(tmp_path: pathlib.Path) -> None:
    (tmp_path / "my.gin").write_text(
        "from __gin__ import dynamic_registration\n"
        "import toy_program\n"  # registers a task
        "from idode_gin.feed import data\n"
        f"include '{DIGITS}'\n"
        "MIXTURE_OR_TASK_NAME = 'mine/1.0'\n"
        "data.DatasetConfig.module = 'toy_program'\n"
        "train/data.DatasetConfig.use_cached = True\n"
        "data.DatasetConfig.shuffle = False\n"
    )
    found = built("eval", tmp_path, [str(tmp_path / "my.gin")])
    dataset = found["dataset_cfg"]
    assert (dataset.module, dataset.use_cached, dataset.shuffle) == ("toy_program", True, True)
    assert found["evaluator"].output_dir == str(tmp_path / "eval/mine_1.0_test")
    assert "import toy_program" in config.config_str()


def test_the_configuration_written_by_a_program_repeats_it(
    run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    found = built("eval", run)
    text = config.config_str()
    assert "idode_gin import train" not in text  # the folder would be taken for a training run's
    (tmp_path / "config.gin").write_text(text)
    building.load_and_check(eval_program.evaluate, [str(tmp_path / "config.gin")])
    assert building.build(eval_program.evaluate) == found


def test_a_model_bound_without_its_macro(tmp_path: pathlib.Path) -> None:
    (tmp_path / "my.gin").write_text(
        "from __gin__ import dynamic_registration\n"
        "from idode_gin import models\nfrom idode_gin import train as train_script\n"
        f"include '{DIGITS}'\n"
        "train_script.train.model = @own/models.DiffusionODE()\n"
        "own/models.DiffusionODE.image_shape = (4, 4, 1)\n"
    )
    for program in ROOTS:
        found = built(program, tmp_path, [str(tmp_path / "my.gin")])
        assert found["model"].image_shape == (4, 4, 1)
    with_config, _ = from_training.model_and_dataset_of(tmp_path / "my.gin")
    assert with_config.image_shape == (4, 4, 1)


@pytest.mark.parametrize("name", ["config.gin", "operative_config.gin"])
def test_a_given_file_is_never_overwritten(name: str, tmp_path: pathlib.Path) -> None:
    own = f"# Mine.\ninclude '{DIGITS}'\nMODEL_DIR = {str(tmp_path)!r}\n"
    (tmp_path / name).write_text(own)
    trained(tmp_path, [str(tmp_path / name)], "TRAIN_STEPS = 7")
    assert (tmp_path / name).read_text() == own
    (other,) = {"config.gin", "operative_config.gin"} - {name}
    assert "TRAIN_STEPS = 7" in (tmp_path / other).read_text()
    (tmp_path / "including.gin").write_text(f"include {str(tmp_path / name)!r}\n")
    trained(tmp_path, [str(tmp_path / "including.gin")], "TRAIN_STEPS = 8")
    assert (tmp_path / name).read_text() == own
    trained(tmp_path, [DIGITS])
    assert (tmp_path / name).read_text() != own


def execute(program: str, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    function = {"eval": "evaluate"}.get(program, program)
    about = f"    python -m idode_gin.{program} --gin_file=F"
    code = programs.run(f"idode_gin.{program}", function, about, arguments)
    return code, capsys.readouterr().err


def test_a_folder_without_configuration(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = f"--gin.CHECKPOINT_PATH={str(tmp_path)!r}"
    code, errors = execute("eval", capsys, named)
    assert (code, "No checkpoint in" in errors) == (2, True)
    (tmp_path / "checkpoint_3").mkdir()
    code, errors = execute("eval", capsys, named)
    assert code == 2
    assert "neither operative_config.gin nor config.gin" in errors
    code, errors = execute("eval", capsys, "--gin.CHECKPOINT_PATH='no/run'")
    assert (code, "there is no such directory" in errors) == (2, True)
    code, errors = execute("train", capsys, named)
    assert (code, errors.startswith("error: No --gin_file. For example:")) == (2, True)
    code, errors = execute("eval", capsys, named.replace("PATH", "PAHT"))
    expected = "error: --gin.CHECKPOINT_PAHT: did you mean CHECKPOINT_PATH? No --gin_file."
    assert (code, errors.startswith(expected)) == (2, True)
    (tmp_path / "runs").mkdir()
    code, errors = execute("eval", capsys, f"--gin.CHECKPOINT_PATH={str(tmp_path / 'rnus/a')!r}")
    assert (code, f"Did you mean {tmp_path / 'runs'}?" in errors) == (2, True)


def test_a_configuration_of_t5x_is_none(
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither its own run nor a converted one is built from it; a line that includes ours is."""
    (tmp_path / "config.gin").write_text(
        "from __gin__ import dynamic_registration\nfrom t5x import utils\n"
    )
    (tmp_path / "checkpoint_3" / "state").mkdir(parents=True)
    named = f"--gin.CHECKPOINT_PATH={str(tmp_path)!r}"
    code, errors = execute("eval", capsys, named)
    assert (code, "Convert it: python -m idode_gin.interop.convert" in errors) == (2, True)
    assert "--debug" not in errors
    (tmp_path / "checkpoint_3" / "state").rename(tmp_path / "checkpoint_3" / "meta")
    code, errors = execute("eval", capsys, named)
    assert code == 2
    assert "(config.gin there is t5x's)" in errors
    assert "--gin_file=gin_configs/experiments/digits_eval.gin" in errors
    with pytest.raises(ValueError, match=r"config\.gin there is t5x's"):
        loaded.load(tmp_path)
    (tmp_path / "operative_config.gin").write_text(f"include {DIGITS!r}\n")
    assert from_training.config_of(tmp_path) == tmp_path / "operative_config.gin"
    monkeypatch.chdir(tmp_path)  # gin_configs is found beside the package
    assert built("eval", tmp_path)["model"].image_shape == (8, 8, 1)
    found, _ = from_training.model_and_dataset_of(tmp_path / "operative_config.gin")
    assert found.image_shape == (8, 8, 1)


def test_the_screen_names_the_configuration_of_the_run(
    run: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = f"--gin.CHECKPOINT_PATH={str(run)!r}"
    programs.run("idode_gin.sample", "sample", "", [named, "--dry_run=full"])
    shown = capsys.readouterr().out
    assert f"gin files              {(run / 'operative_config.gin').resolve()}\n" in shown
    assert "Nothing to draw 64 images with yet." in shown


def test_functions_in_a_model_need_gin_no_longer(tmp_path: pathlib.Path) -> None:
    (tmp_path / "my.gin").write_text(
        "from __gin__ import dynamic_registration\nimport toy_network\n"
        f"include '{DIGITS}'\n"
        "NETWORK = @toy_network.Scaled()\n"
        "toy_network.Scaled.function = @toy_network.times\n"
        "toy_network.times.factor = 3.0\n"
    )
    model, _ = from_training.model_and_dataset_of(tmp_path / "my.gin")
    config.clear_config()
    before = config.operative_config_str()
    assert model.network.function(2.0) == 6.0
    assert dataclasses.replace(model.network).function(1.0) == 3.0
    assert config.operative_config_str() == before


def test_files_read_are_those_of_the_last_configuration(run: pathlib.Path) -> None:
    built("sample", run)
    assert run / "operative_config.gin" in loading.files_read
    building.load_and_check(train_program.train, [DIGITS])
    assert run / "operative_config.gin" not in loading.files_read
