"""Every gin file loads, passes the checks and builds; the static analysis agrees with gin."""

import itertools
import pathlib
import re
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
from gin import config

from idode_gin import encode as encode_program
from idode_gin import eval as eval_program
from idode_gin import interpolate as interpolate_program
from idode_gin import sample as sample_program
from idode_gin import train as train_program
from idode_gin.checkpoints.series import All, Watch
from idode_gin.configs import building, gin_internals, value_types
from idode_gin.configs.loading import MACRO, ConfigError
from idode_gin.configs.reach import Reach
from idode_gin.networks.unet import UNet
from idode_gin.reports.wandb_writer import WandB
from idode_gin.samplers.ancestral import Ancestral
from idode_gin.samplers.dpm_solver import DPMSolverPlusPlus
from idode_gin.samplers.heun import Heun
from idode_gin.samplers.ode import ODESampler
from idode_gin.schedules.time.linear import gamma_min_for_levels
from idode_gin.solvers.adams import Adams
from idode_gin.solvers.adaptive import DormandPrince
from idode_gin.solvers.divergence import Exact, Hutchinson
from idode_gin.solvers.fixed_grid import FixedGrid
from idode_gin.training.early_stopping import EarlyStopping
from idode_gin.training.guards import LossSpike, Skip
from idode_gin.training.optimizers import AdamW
from idode_gin.training.profiling import ProfileWindow
from idode_gin.training.trainer import Trainer

ROOT = pathlib.Path(__file__).parents[2]
CONFIGS = ROOT / "gin_configs"
# Those of t5x's own programs are checked in tests/interop.
GIN_FILES = sorted(
    str(each.relative_to(ROOT)) for each in CONFIGS.rglob("*.gin") if each.parent.name != "t5x"
)


def names(folder: str) -> list[str]:
    return sorted(each.stem for each in (CONFIGS / folder).glob("*.gin"))


PROGRAMS: dict[str, Callable[..., Any]] = {
    "train": train_program.train,
    "finetune": train_program.train,
    "eval": eval_program.evaluate,
    "sample": sample_program.sample,
    "encode": encode_program.encode,
    "interpolate": interpolate_program.interpolate,
}
SETTINGS = {
    "train": "MODEL_DIR = 'm'\nTRAIN_STEPS = 10\nBATCH_SIZE = 8\n",
    "finetune": "MODEL_DIR = 'm'\nTRAIN_STEPS = 10\nBATCH_SIZE = 8\n"
    "INITIAL_CHECKPOINT_PATH = 'c'\n",
    "eval": "CHECKPOINT_PATH = 'c'\nEVAL_OUTPUT_DIR = 'o'\n",
    "sample": "CHECKPOINT_PATH = 'c'\nSAMPLE_OUTPUT_DIR = 'o'\n",
    "encode": "CHECKPOINT_PATH = 'c'\nENCODE_OUTPUT_DIR = 'o'\n",
    "interpolate": "CHECKPOINT_PATH = 'c'\nINTERPOLATE_OUTPUT_DIR = 'o'\n",
}
EXPERIMENTS = {
    name: name.rpartition("_")[2] if name.rpartition("_")[2] in PROGRAMS else "train"
    for name in names("experiments")
}
DEFINES = {
    "models": {"NETWORK", "DROPOUT_RATE"},
    "tasks": {"MIXTURE_OR_TASK_NAME", "NUM_LEVELS", "IMAGE_SHAPE", "GAMMA_MIN"},
    "objectives": {"SCHEDULE", "PARAMETERIZATION", "TIME_SAMPLER", "LOSS"},
    "schedules": {"TIME"},
    "solvers": {"SOLVER"},
    "sizes": {
        *("NETWORK", "DROPOUT_RATE", "TRAIN_STEPS", "BATCH_SIZE", "EVAL_PERIOD", "EVAL_STEPS"),
        *("CHECKPOINT_PERIOD", "LEARNING_RATE", "EMA_RATE", "EMA_WARMUP"),
    },
    "divergences": {"DIVERGENCE"},
    "samplers": {"SAMPLER"},
}
# What some files of a folder define beside, and what they leave to their user.
DEFINES_TOO = {
    "tasks": {"EVAL_SPLIT", "DATA_PATH"},
    "objectives": {"TIME"},
    "schedules": {"TIME_SAMPLER"},
    "solvers": {"TOLERANCE"},
}
REQUIRES = {"image_folder": {"IMAGE_SHAPE", "DATA_PATH"}, "image_npz": {"IMAGE_SHAPE", "DATA_PATH"}}
ANSWERS = {"IMAGE_SHAPE": "(8, 8, 1)", "DATA_PATH": "'d'"}
WITH_EACH_MODEL = ("train", "finetune", "eval", "sample")  # encode and interpolate are as eval is
COMBINATIONS = [
    *(
        (run, "unet_tiny", "digits", objective)
        for run in WITH_EACH_MODEL
        for objective in names("objectives")
    ),
    *(
        (run, model, "digits", "vp_velocity_importance")
        for run in WITH_EACH_MODEL
        for model in names("models")
    ),
    *((run, "unet_tiny", task, "sp_noise_uniform") for run in PROGRAMS for task in names("tasks")),
]


def load_experiment(name: str, *bindings: str) -> tuple[Reach, Callable[..., Any]]:
    root = PROGRAMS[EXPERIMENTS[name]]
    file = f"gin_configs/experiments/{name}.gin"
    return building.load_and_check(root, [file], bindings), root


def assert_static_equals_dynamic(reach: Reach, root: Callable[..., Any]) -> None:
    """Build, and compare every call and every bound parameter with gin's own record."""
    with config._OPERATIVE_CONFIG_LOCK:
        config._OPERATIVE_CONFIG.clear()
    arguments = building.build(root)
    if "trainer_cls" in arguments:
        arguments["trainer_cls"](model_dir="m", train_steps=1)
    found = {
        (scope, selector): set(config._get_bindings(selector, scope.split("/") if scope else []))
        for scope, selector in config._OPERATIVE_CONFIG
    }
    root_selector = config._inverse_lookup(root).selector
    expected = {
        ("/".join(call.scope), call.selector): set(keys)
        for call, keys in reach.calls.items()
        if call.selector != root_selector
    }
    assert found == expected


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_passes_and_static_analysis_agrees_with_gin(name: str) -> None:
    reach, root = load_experiment(name)
    assert_static_equals_dynamic(reach, root)


@pytest.mark.parametrize(("run", "model", "task", "objective"), COMBINATIONS)
def test_combination_passes_and_static_analysis_agrees_with_gin(
    run: str, model: str, task: str, objective: str, tmp_path: pathlib.Path
) -> None:
    parts = [f"runs/{run}", f"models/{model}", f"tasks/{task}", f"objectives/{objective}"]
    lines = [f"include 'gin_configs/{part}.gin'\n" for part in parts]
    for macro in REQUIRES.get(task, set()) - ({"DATA_PATH"} if run == "sample" else set()):
        lines.append(f"{macro} = {ANSWERS[macro]}\n")
    (tmp_path / "whole.gin").write_text("".join(lines) + SETTINGS[run])
    reach = building.load_and_check(PROGRAMS[run], [str(tmp_path / "whole.gin")])
    assert_static_equals_dynamic(reach, PROGRAMS[run])


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_bound_parameter_has_an_annotation_to_check(name: str) -> None:
    reach, _ = load_experiment(name)
    for call, keys in reach.calls.items():
        if call.selector == MACRO:
            continue
        target = config._REGISTRY[call.selector].wrapped
        assert value_types.result_type(target) is not value_types.UNKNOWN, call
        for parameter in keys:
            known = value_types.parameters(target)[parameter].annotation
            assert known is not value_types.UNKNOWN, (call, parameter)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_config_text_repeats_the_experiment(name: str, tmp_path: pathlib.Path) -> None:
    _, root = load_experiment(name)
    expected = building.build(root)
    (tmp_path / "config.gin").write_text(gin_internals.given_text())
    building.load_and_check(root, [str(tmp_path / "config.gin")])
    found = building.build(root)
    for each in (expected, found):
        each.pop("trainer_cls", None)
    assert found == expected


@pytest.mark.parametrize("name", ["digits", "digits_eval", "digits_sample"])
def test_misspelling_any_macro_on_the_command_line_is_an_error(name: str) -> None:
    reach, _ = load_experiment(name)
    macros = sorted(key.scope for key in reach.used if key.selector == MACRO)
    assert len(macros) > 10
    for macro in macros:
        with pytest.raises(ConfigError, match=rf"{macro[:-1]} is not used by anything"):
            load_experiment(name, f"{macro[:-1]} = 1")


def test_several_ways_to_bind_on_the_command_line() -> None:
    bindings = [
        "Trainer.num_microbatches = 2",
        "train/DatasetConfig.shuffle = False",
        "DatasetConfig.seed = 5",
        "SaveCheckpointConfig.keep = 1",
        "INITIAL_CHECKPOINT_PATH = 'c'",
        "RestoreCheckpointConfig.mode = 'latest'",
        "RestoreCheckpointConfig.rules = {'.*/dense_0/kernel': 'pad'}",
        "PjitPartitioner.num_partitions = 1",
        "MESH_SHAPE = {'data': 1, 'fsdp': -1}",
        "PjitPartitioner.logical_axis_rules = [('hidden', ('model', 'fsdp')), ('channels', None)]",
        "train.eval_period = None",
        "UNet.channels = 16",
        "OPTIMIZER = @AdamW()",
    ]
    load_experiment("digits", *bindings)
    arguments = building.build(train_program.train)
    assert arguments["model"].network.channels == 16
    assert arguments["train_dataset_cfg"].shuffle is False
    assert arguments["train_dataset_cfg"].seed == 5
    assert arguments["train_eval_dataset_cfg"].shuffle is True
    assert arguments["checkpoint_cfg"].save.keep == 1
    assert arguments["checkpoint_cfg"].restore.rules == {".*/dense_0/kernel": "pad"}
    assert arguments["eval_period"] is None
    assert arguments["partitioner"].mesh_shape == {"data": 1, "fsdp": -1}
    assert len(arguments["partitioner"].logical_axis_rules) == 2
    assert arguments["trainer_cls"](model_dir="m", train_steps=1).num_microbatches == 2


@pytest.mark.parametrize(
    ("binding", "found"),
    [
        ("TRAIN_STEP = 7", r"Did you mean 'TRAIN_STEPS'\?"),
        ("TRAIN_STEPS = 'ten'", "train.total_steps must be int, got 'ten'"),
        ("BATCH_SIZE = 1e3", r"DatasetConfig.batch_size must be int, got 1000.0 .* Write 1000\."),
        ("MODEL_DIR = runs/a", "--gin.MODEL_DIR=\"'runs/a'\""),
        ("SCHEDULE = @UNet()", "DiffusionODE.schedule must be AbstractSchedule, got @UNet()"),
        ("NETWORK = @UNet", r"DiffusionODE.network must be AbstractNetwork, .* Add \(\)"),
        ("trian/DatasetConfig.seed = 1", "Did you mean 'train/DatasetConfig.seed'"),
        (
            "DatasetConfig.split = 'test'",
            "Every use has its own: train/DatasetConfig.split, train_eval",
        ),
        ("UNet.chanels = 8", "'UNet' has no parameter 'chanels'. Did you mean 'channels'"),
        ("UNet.fourier_exponents = [6]", r"tuple\[int, ...\], got \[6\] \(list\).*Write \(6,\)\."),
        ("Trainr.log_period = 1", "Did you mean 'Trainer'"),
        ("IMAGE_SHAPE = (8, 8)", "DiffusionODE.image_shape must be tuple"),
        ("MIXTURE_OR_TASK_NAME = digits", "--gin.MIXTURE_OR_TASK_NAME=\"'digits'\""),
        ("GAMMA_MIN = '-13'", "Linear.gamma_min must be float, .* Write -13, without quotes"),
        ("warmup_steps = 1", r"Did you mean AdamW.warmup_steps\?"),
        ("MESH_SHAPE = 8", r"PjitPartitioner.mesh_shape must be .*got 8"),
        ("OPTIMIZER = 'adam'", "train.optimizer must be AdamW | GradientTransformation"),
    ],
)
def test_wrong_binding_of_a_real_experiment(binding: str, found: str) -> None:
    with pytest.raises(ConfigError, match=found.replace("@UNet()", r"@UNet\(\)")):
        load_experiment("digits", binding)


@pytest.mark.parametrize(
    ("binding", "found"),
    [
        ("TIME_SAMPLER = @uniform.Uniform()", "time_samplers.uniform"),
        ("SCHEDULE = @linear.Linear()", None),
    ],
)
def test_class_of_another_kind_with_the_wanted_name(binding: str, found: str | None) -> None:
    with pytest.raises(ConfigError) as caught:
        load_experiment("digits_eval", binding)
    assert found is None or found in str(caught.value)
    assert found is not None or "write into a gin file" not in str(caught.value)


def test_what_train_passes_to_its_trainer_cannot_be_bound_there() -> None:
    load_experiment("digits", "Trainer.train_steps = 7")
    with pytest.raises(ConfigError, match=r"Trainer.train_steps has no effect"):
        config.get_configurable(train_program.train)(dry_run=True)


def test_objective_and_task_can_be_swapped_by_a_later_file() -> None:
    files = [
        f"gin_configs/{each}.gin" for each in ("experiments/digits", "objectives/sp_noise_uniform")
    ]
    building.load_and_check(train_program.train, files)
    model = building.build(train_program.train)["model"]
    assert type(model.schedule).__name__ == "StraightPath"
    assert type(model.parameterization).__name__ == "Noise"


@pytest.mark.parametrize("name", names("schedules"))
@pytest.mark.parametrize("program", ["train", "eval"])
def test_gamma_over_time_can_be_swapped_by_a_later_file(name: str, program: str) -> None:
    experiment = {"train": "digits", "eval": "digits_eval"}[program]
    files = [
        f"gin_configs/{each}.gin" for each in (f"experiments/{experiment}", f"schedules/{name}")
    ]
    reach = building.load_and_check(PROGRAMS[program], files)
    assert_static_equals_dynamic(reach, PROGRAMS[program])
    time = building.build(PROGRAMS[program])["model"].time
    assert type(time).__name__.lower() == name.replace("_", "")
    assert (time.gamma_min, time.gamma_max) == (gamma_min_for_levels(17), 5.0)


@pytest.mark.parametrize(
    ("experiment", "solver"),
    [
        *itertools.product(
            ["digits_eval", "digits_sample"], ["dormand_prince", "fixed_grid", "adams"]
        ),
        ("digits_eval", "by_tolerance"),
    ],
)
def test_solver_can_be_swapped_by_a_later_file(experiment: str, solver: str) -> None:
    parts = [f"experiments/{experiment}", f"solvers/{solver}"]
    root = PROGRAMS[EXPERIMENTS[experiment]]
    files = [f"gin_configs/{each}.gin" for each in parts]
    reach = building.load_and_check(root, files)
    assert_static_equals_dynamic(reach, root)
    arguments = building.build(root)
    if experiment == "digits_eval":
        found = {each.solver for each in arguments["evaluator"].likelihoods.values()}
    else:
        found = {arguments["sampler"].method.solver}
    expected = {
        "dormand_prince": DormandPrince(rtol=1e-5, atol=1e-5),
        "adams": Adams(steps=64),
        "by_tolerance": None,
        "fixed_grid": FixedGrid(steps=64),
    }
    assert found == {expected[solver]}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ode", ODESampler(solver=DormandPrince(rtol=1e-4, atol=1e-4))),
        ("ancestral", Ancestral()),
        ("heun", Heun()),
        ("dpm_solver_plus_plus", DPMSolverPlusPlus()),
    ],
)
def test_sampler_can_be_swapped_by_a_later_file(name: str, expected: object) -> None:
    files = [
        f"gin_configs/{each}.gin" for each in ("experiments/digits_sample", f"samplers/{name}")
    ]
    reach = building.load_and_check(sample_program.sample, files)
    assert_static_equals_dynamic(reach, sample_program.sample)
    assert building.build(sample_program.sample)["sampler"].method == expected


@pytest.mark.parametrize(("name", "expected"), [("exact", Exact()), ("hutchinson", Hutchinson())])
def test_divergence_can_be_swapped_by_a_later_file(name: str, expected: object) -> None:
    files = [
        f"gin_configs/{each}.gin" for each in ("experiments/digits_eval", f"divergences/{name}")
    ]
    reach = building.load_and_check(eval_program.evaluate, files)
    assert_static_equals_dynamic(reach, eval_program.evaluate)
    evaluator = building.build(eval_program.evaluate)["evaluator"]
    assert {each.divergence for each in evaluator.likelihoods.values()} == {expected}


@pytest.mark.parametrize(
    ("files", "expected"), [([], None), (["all"], All()), (["watch"], Watch())]
)
def test_checkpoints_can_be_chosen_by_a_later_file(files: list[str], expected: object) -> None:
    parts = ["experiments/digits_eval", *(f"checkpoints/{each}" for each in files)]
    reach = building.load_and_check(
        eval_program.evaluate, [f"gin_configs/{each}.gin" for each in parts]
    )
    assert_static_equals_dynamic(reach, eval_program.evaluate)
    assert building.build(eval_program.evaluate)["evaluator"].checkpoints == expected


@pytest.mark.parametrize(
    ("file", "field", "expected"),
    [
        ("guards/skip", "non_finite", Skip()),
        ("guards/skip", "loss_spike", LossSpike(then=Skip())),
        ("guards/stop_at_spikes", "loss_spike", LossSpike()),
        ("guards/early_stopping", "early_stopping", EarlyStopping(patience=5)),
        ("watching/profile", "profile", ProfileWindow()),
    ],
)
def test_guards_and_watching_by_a_later_file(file: str, field: str, expected: object) -> None:
    files = ["gin_configs/experiments/digits.gin", f"gin_configs/{file}.gin"]
    reach = building.load_and_check(train_program.train, files)
    trainer = building.build(train_program.train)["trainer_cls"](model_dir="m", train_steps=20)
    assert getattr(trainer, field) == expected
    assert {key.selector.split(".")[-1] for key in reach.used} >= {"Trainer"}


def test_watching_with_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", types.ModuleType("wandb"))
    files = ["gin_configs/experiments/digits.gin", "gin_configs/watching/wandb.gin"]
    with pytest.raises(ConfigError, match="WANDB_PROJECT"):
        building.load_and_check(train_program.train, files)
    bindings = ["WANDB_PROJECT = 'mine'", "Trainer.peak_flops = {'cpu': {'float32': 1e11}}"]
    building.load_and_check(train_program.train, files, [*bindings, "WandB.name = 'first'"])
    trainer = building.build(train_program.train)["trainer_cls"](model_dir="m", train_steps=20)
    assert trainer.wandb == WandB(project="mine", name="first")
    assert trainer.peak_flops == {"cpu": {"float32": 1e11}}


@pytest.mark.parametrize("size", names("sizes"))
@pytest.mark.parametrize("experiment", ["image_folder", "image_npz", "fashion_mnist"])
def test_size_can_be_chosen_by_a_later_file(experiment: str, size: str) -> None:
    later = f"gin_configs/sizes/{size}.gin"
    networks = []
    for program in ("train", "eval", "sample"):
        name = experiment if program == "train" else f"{experiment}_{program}"
        files = [f"gin_configs/experiments/{name}.gin", later]
        building.load_and_check(PROGRAMS[program], files)
        networks.append(building.build(PROGRAMS[program])["model"].network)
        if program == "train":
            steps = building.build(train_program.train)["total_steps"]
    assert networks[0] == networks[1] == networks[2]
    expected = {"small": (32, 2, 2_000), "base": (128, 8, 80_000), "published": (128, 32, 100_000)}
    assert (networks[0].channels, networks[0].levels, steps) == expected[size]


def test_misspelt_size_is_an_error() -> None:
    files = [f"gin_configs/{each}.gin" for each in ("experiments/image_folder", "sizes/smal")]
    with pytest.raises(ConfigError, match="Did you mean '[a-z_/]*small.gin'"):
        building.load_and_check(train_program.train, files)


@pytest.mark.parametrize("run", PROGRAMS)
def test_run_alone_lists_what_it_needs(run: str) -> None:
    with pytest.raises(ConfigError) as caught:
        building.load_and_check(PROGRAMS[run], [f"gin_configs/runs/{run}.gin"])
    message = str(caught.value)
    assert message.startswith("These need a value: ")
    needed = {"NETWORK", "NUM_LEVELS", "SCHEDULE", "PARAMETERIZATION", "TIME_SAMPLER", "LOSS"}
    settings = set(re.findall(r"^(\w+) =", SETTINGS[run], re.MULTILINE))
    assert needed | settings <= set(re.findall(r"[A-Z_]{4,}", message))


@pytest.mark.parametrize("file", GIN_FILES)
def test_file_is_short_and_headed(file: str) -> None:
    lines = (ROOT / file).read_text().splitlines()
    assert lines[0].startswith("# ")
    # A command is not broken: it is there to be copied.
    assert max(len(line) for line in lines if "--gin_file=" not in line) <= 100
    assert len(lines) <= (30 if "/experiments/" in file else 60)
    if "/experiments/" in file:
        name = pathlib.Path(file).stem
        program = {"finetune": "train"}.get(EXPERIMENTS[name], EXPERIMENTS[name])
        assert f"#   python -m idode_gin.{program} --gin_file={file}" in lines
        assert any(line.startswith("# Cost:") for line in lines)
        assert any(line.startswith("# Result:") for line in lines)
    folder = pathlib.Path(file).parent.name
    if folder in DEFINES:
        said = re.search(r"# Defines ([A-Z_, \n#]+)\.", "\n".join(lines))
        assert said is not None
        names_said = set(re.findall(r"[A-Z_]+", said[1]))
        assert DEFINES[folder] <= names_said <= DEFINES[folder] | DEFINES_TOO.get(folder, set())


def test_every_gin_folder_is_a_package() -> None:
    for file in GIN_FILES:
        assert (ROOT / file).with_name("__init__.py").exists()


@pytest.mark.parametrize("folder", DEFINES)
def test_files_of_a_folder_define_the_same_macros(folder: str) -> None:
    for name in names(folder):
        run = "gin_configs/runs/train.gin"
        part = f"gin_configs/{folder}/{name}.gin"
        with pytest.raises(ConfigError) as caught:
            building.load_and_check(train_program.train, [run, part])
        missing = set(re.findall(r"[A-Z_]{4,}", str(caught.value)))
        assert missing & (DEFINES[folder] | {"DATA_PATH"}) == REQUIRES.get(name, set())


def test_published_numbers() -> None:
    load_experiment("digits", "LEARNING_RATE = 2e-4", "EMA_RATE = 0.9999")
    arguments = building.build(train_program.train)
    assert arguments["optimizer"] == AdamW(
        learning_rate=2e-4, b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.01, warmup_steps=100
    )
    run = (CONFIGS / "runs/train.gin").read_text()
    assert "LEARNING_RATE = 2e-4" in run
    assert "EMA_RATE = 0.9999" in run
    trainer = arguments["trainer_cls"](model_dir="m", train_steps=1)
    assert isinstance(trainer, Trainer)
    assert trainer.ema_rate == 0.9999
    for name, expected in {
        "unet_cifar10": UNet(channels=128, levels=32, dropout_rate=0.1),
        "unet_imagenet32": UNet(channels=256, levels=32),
        "unet_cifar10_aug": UNet(
            channels=256, levels=32, dropout_rate=0.1, attention_everywhere=True
        ),
    }.items():
        files = ["gin_configs/experiments/digits.gin", f"gin_configs/models/{name}.gin"]
        building.load_and_check(train_program.train, files)
        assert building.build(train_program.train)["model"].network == expected
