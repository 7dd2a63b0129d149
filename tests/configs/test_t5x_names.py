"""Names and the import idiom of t5x's gin files: each is accepted or explained."""

import pathlib
import re
import sys

import bindable
import pytest
import toy_files
from gin import config

from idode_gin.configs import building, gin_internals, loading, programs, t5x_names, value_types
from idode_gin.configs.loading import ConfigError

ROOT = pathlib.Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "guides" / "t5x.md"
TRAIN = ("idode_gin.train", "train", "--gin_file=gin_configs/experiments/digits.gin")
EVAL = ("idode_gin.eval", "evaluate", "--gin_file=gin_configs/experiments/digits_eval.gin")
EXPLAINED = {
    "train.infer_eval_dataset_cfg=None": "the program idode_gin.eval scores every image",
    "train.inference_evaluator_cls=None": "the program idode_gin.eval scores every image",
    "train.learning_rate_fn=None": "LEARNING_RATE, AdamW.warmup_steps",
    "Trainer.learning_rate_fn=None": "LEARNING_RATE, AdamW.warmup_steps",
    "utils.create_learning_rate_scheduler.warmup_steps=10": "LEARNING_RATE, AdamW.warmup_steps",
    "train.use_hardware_rng=True": "a function of RANDOM_SEED",
    "train.summarize_config_fn=None": "config.gin and operative_config.gin are always written",
    "train.actions=None": "Trainer.early_stopping, or --gin_file=gin_configs/guards/early",
    "trainer.EarlyStoppingAction.patience=3": "EarlyStopping.patience and EarlyStopping.min_impr",
    "train.gc_period=10": "left as it is",
    "DatasetConfig.pack=True": "images have none of it",
    "utils.DatasetConfig.task_feature_lengths={}": "declares the shape of its images",
    "TASK_FEATURE_LENGTHS={}": "declares the shape of its images",
    "MIXTURE_OR_TASK_MODULE='my_tasks'": "DatasetConfig.module is the module",
    "USE_CACHED_TASKS=True": "DatasetConfig.use_cached reads",
    "SaveCheckpointConfig.save_dataset=True": "the order of images is a function of",
    "utils.SaveCheckpointConfig.dtype='bfloat16'": "idode_gin.interop.convert --dtype=bfloat16",
    "RestoreCheckpointConfig.assignment_map=()": "RestoreCheckpointConfig.rules decides",
    "RestoreCheckpointConfig.fallback_to_scratch=True": "RestoreCheckpointConfig.rules decides",
    "PjitPartitioner.model_parallel_submesh=(1, 1, 2, 1)": "PjitPartitioner.mesh_shape, or the",
    "infer_eval/utils.DatasetConfig.split='test'": "the program idode_gin.eval scores every image",
    "train.infer_eval_dataset_cfg=@infer_eval/utils.DatasetConfig()": "idode_gin.eval scores every",
    "PjitPartitioner.ici_mesh_shape=(1, 2)": "PjitPartitioner.mesh_shape, or the macro",
}
EXPLAINED_IN_EVAL = {
    "CheckpointConfig.save=None": "this program saves no checkpoints",
    "Trainer.num_microbatches=None": "this program does not train",
    "evaluate.inference_evaluator_cls=@seqio.Evaluator": "scores every image of the split",
    "t5x.eval.evaluate.fallback_init_rng=0": "every parameter must be in the checkpoint",
    "RestoreCheckpointConfig.mode='all'": "add --gin_file=gin_configs/checkpoints/all.gin",
    "utils.RestoreCheckpointConfig.path='a'": "CHECKPOINT_PATH names what to score",
    "evaluate.restore_checkpoint_cfg=None": "CHECKPOINT_PATH names what to score",
    "seqio.Evaluator.num_examples=100": "scores every image of the split",
    "infer.mode='score'": "idode_gin.sample draws them",
}
ACCEPTED = {
    "train.relative_steps=7": "train_script.train.relative_steps = 7",
    "TRAIN_STEPS_RELATIVE=7": "TRAIN_STEPS_RELATIVE = 7",
    "train.stats_period=7": "trainer.Trainer.log_period = 7",
    "utils.DatasetConfig.batch_size=7": "data.DatasetConfig.batch_size = 7",
    "train/utils.DatasetConfig.seed=7": "train/data.DatasetConfig.seed = 7",
    "utils.SaveCheckpointConfig.keep=7": "checkpoints.SaveCheckpointConfig.keep = 7",
    "partitioning.PjitPartitioner.num_partitions=1": "PjitPartitioner.num_partitions = 1",
}
NONES = {
    "RANDOM_SEED=None": "it draws a new seed at every start. Here a seed makes a run repeatable",
    "train.random_seed=None": "write a number, such as 0",
    "train/utils.DatasetConfig.seed=None": "write a number, such as 0",
    "Trainer.num_microbatches=None": "it does not split the batch. Write 1.",
    "PjitPartitioner.num_partitions=None": "Write 1, or bind MESH_SHAPE",
    "PjitPartitioner.logical_axis_rules=None": "its standard rules. Leave the line out",
    "SaveCheckpointConfig.checkpoint_steps=None": "it saves no other steps. Write ()",
    "CheckpointConfig.save=None": "SaveCheckpointConfig.period = None saves only that",
    "CheckpointConfig.restore=None": "Write INITIAL_CHECKPOINT_PATH = None",
    "train.stats_period=None": "it logs at every evaluation. Write %EVAL_PERIOD",
    "RestoreCheckpointConfig.path=[]": "Write one path as text, or INITIAL_CHECKPOINT_PATH",
}
IDIOM = """
from __gin__ import dynamic_registration
import __main__ as train_script
include 'gin_configs/experiments/digits.gin'
train_script.train:
    eval_period = 250
train_script.train.random_seed = 7
train_script.train.stats_period = 50
"""


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    config.clear_config()
    monkeypatch.chdir(ROOT)


def message(program: tuple[str, str, str], binding: str, capsys: pytest.CaptureFixture) -> str:
    """Return the error of a dry run with one more binding."""
    name, function, file = program
    code = programs.run(name, function, "", [file, "--dry_run", f"--gin.{binding}"])
    assert code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("binding", EXPLAINED)
def test_name_of_t5x_is_explained(binding: str, capsys: pytest.CaptureFixture) -> None:
    assert EXPLAINED[binding] in message(TRAIN, binding, capsys)


def answer(*bindings: str, file: str = TRAIN[2].partition("=")[2]) -> str:
    """Return the error that bindings of training lead to, "" if they are accepted."""
    from idode_gin import train

    config.clear_config()
    try:
        building.load_and_check(train.train, [file], bindings)
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("binding", NONES)
def test_value_of_t5x_is_explained(binding: str) -> None:
    assert NONES[binding] in answer(binding)


def check_answers(written: dict[str, str]) -> None:
    """Check the answer to each binding: the text beside it, or, for "", that its name is known."""
    answer()
    for binding, text in written.items():
        try:
            loading.load((), [binding])
            found = answer(binding) if text else ""
        except ConfigError as error:
            found = str(error)
        assert text in found, binding
        if not text:
            assert "a function or class" not in found, f"{binding}: {found}"


def scoped(*names: str) -> list[str]:
    return [f"{scope}{name}" for name in names for scope in ("", "some/")]


def test_every_macro_of_t5x_gets_its_answer_left_and_right() -> None:
    names = {name: text for name, text in t5x_names.TABLE.items() if re.fullmatch("[A-Z_]+", name)}
    assert len(names) == 12
    left = {f"{each} = 1": text for name, text in names.items() for each in scoped(name)}
    right = {
        f"train.total_steps = %{each}": text
        for name, text in names.items()
        for each in scoped(name)
    }
    check_answers(left | right)


MODULES = {"train": "train", "Trainer": "trainer", "PjitPartitioner": "partitioning"} | {
    "Checkpointer": "checkpoints"
}


def test_every_parameter_of_t5x_gets_its_answer_with_and_without_module() -> None:
    bound()
    ours = {
        name
        for _, each in gin_internals.registry.items()
        for name in value_types.parameters(each.wrapped)
    }
    written = {}
    for name, text in t5x_names.TABLE.items():
        owner, _, parameter = name.partition(".")
        if owner == "evaluate" or not re.fullmatch(r"(train|[A-Z]\w+)\.[a-z]\w*", name):
            continue
        module = MODULES.get(owner, "utils")
        whole = (f"t5x.{module}.{name}", *([f"{module}.{name}"] if owner != "train" else []))
        if (accepted := text.startswith("accepted")) and name not in t5x_names.SYNONYMS:
            continue
        for each in scoped(name, *whole):
            written[f"{each} = None"] = "" if accepted else text
        if parameter not in ours:
            written[f"{parameter} = None"] = "For t5x's"
    assert len(written) > 200
    check_answers(written)


def test_every_function_and_class_of_t5x_gets_its_answer_left_and_right() -> None:
    written = {"OPTIMIZER = adafactor.Adafactor()": "bind OPTIMIZER to optax.adafactor"}
    for name, text in t5x_names.TABLE.items():
        module, _, own = name.rpartition(".")
        if not re.fullmatch(r"infer|[a-z_]+\.\w+", name) or name in t5x_names.SYNONYMS:
            continue
        if module in ("train", "evaluate", "eval", "t5x"):
            continue
        text = "" if text.startswith("accepted") else text
        names = [name]
        if module not in ("", "seqio", "network"):
            names.append(f"t5x.{name}")
        if text and own not in ("Evaluator", "BaseModel"):
            names.append(own)
        for each in scoped(*names):
            written |= {f"{each}.x = 1": text, f"train.model = @{each}()": text}
            written |= {f"train.model = [@{each}]": text}
    assert len(written) > 300
    check_answers(written)


def test_classes_of_both_are_the_same_right_of_the_sign() -> None:
    written = bound(
        "train.train_dataset_cfg = @train/utils.DatasetConfig()",
        "train.checkpoint_cfg = @t5x.utils.CheckpointConfig()",
        "train.partitioner = @t5x.partitioning.PjitPartitioner()",
        "t5x.train.train.eval_period = 7",
    )
    assert "train_dataset_cfg = @train/data.DatasetConfig()" in written
    assert "checkpoint_cfg = @checkpoints.CheckpointConfig()" in written
    assert "partitioner = @partitioning.PjitPartitioner()" in written
    assert "eval_period = 7" in written


@pytest.mark.parametrize("binding", EXPLAINED_IN_EVAL)
def test_name_of_t5x_is_explained_in_eval(binding: str, capsys: pytest.CaptureFixture) -> None:
    assert EXPLAINED_IN_EVAL[binding] in message(EVAL, binding, capsys)


def bound(*bindings: str, file: str = "gin_configs/experiments/digits.gin") -> str:
    """Return the configuration of training with more bindings."""
    from idode_gin import train

    building.load_and_check(train.train, [file], bindings)
    return config.config_str()


@pytest.mark.parametrize("binding", ACCEPTED)
def test_name_of_t5x_is_accepted(binding: str) -> None:
    assert ACCEPTED[binding] in bound(binding)


def test_names_of_evaluation_are_accepted() -> None:
    from idode_gin import eval as eval_program

    files = ["gin_configs/experiments/digits_eval.gin"]
    building.load_and_check(eval_program.evaluate, files, ["evaluate.output_dir='there'"])
    assert "evaluator.Evaluator.output_dir = 'there'" in config.config_str()


def test_idiom_of_t5x_binds_the_program(tmp_path: pathlib.Path) -> None:
    (tmp_path / "mine.gin").write_text(IDIOM)
    written = bound(file=str(tmp_path / "mine.gin"))
    assert "__main__" not in written
    assert "eval_period = 250" in written
    assert "log_period = 50" in written
    (tmp_path / "again.gin").write_text(written)
    assert bound(file=str(tmp_path / "again.gin")) == written


def test_idiom_leaves_a_program_of_the_user_alone(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = sys.modules["__main__"]
    monkeypatch.setattr(main, "train", toy_files.load, raising=False)
    assert t5x_names.program("train_script", IDIOM) is None
    monkeypatch.delattr(main, "train")
    assert t5x_names.program("train_script", IDIOM) == "idode_gin.train"
    assert t5x_names.program("other", IDIOM) is None


def test_answers_name_what_there_is() -> None:
    """Parameters, macros, gin files and flags of ours that the texts tell a user to write."""
    bound()
    fields = {
        f"{target.__name__}.{field}"
        for target in bindable.targets()
        for field in bindable.fields(target)
    }
    runs = "".join(path.read_text() for path in (ROOT / "gin_configs").rglob("*.gin"))
    for name, text in t5x_names.TABLE.items():
        for each in re.findall(r"\b(?:[A-Z]\w*|train)\.[a-z]\w*", text):
            assert each in fields, f"{name}: {each}"
        for macro in re.findall(r"\b[A-Z]+_[A-Z_]+\b", text.replace("JAX_PLATFORMS", "")):
            assert re.search(rf"^{macro} =", runs, re.MULTILINE), f"{name}: {macro}"
        for file in re.findall(r"gin_configs/\S+\.gin", text):
            assert (ROOT / file).is_file(), f"{name}: {file}"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("from t5x import utils", "`from idode_gin.feed import data` and `data.DatasetConfig`"),
        ("from t5x import partitioning", "`from idode_gin.devices import partitioning`"),
        ("from t5x import trainer", "`from idode_gin.training import trainer`"),
        ("utils.SaveCheckpointConfig.keep = 3", "`checkpoints.SaveCheckpointConfig`"),
        ("A = @utils.create_learning_rate_scheduler()", "LEARNING_RATE, AdamW.warmup_steps"),
        ("A = @a/utils.DatasetConfig()", "`from idode_gin.feed import data`"),
        ("train/utils.DatasetConfig.pack = True", "images have none of it"),
        ("A = @adafactor.Adafactor()", "bind OPTIMIZER to optax.adafactor"),
        ("from t5x import adafactor", "bind OPTIMIZER to optax.adafactor"),
        ("from t5x.examples.t5 import network", "gin_configs/models/unet_small.gin"),
        ("import t5.data.mixtures", "DatasetConfig.module is the module that registers them"),
        ("include 't5x/configs/runs/pretrain.gin'", "gin_configs/experiments/digits.gin for"),
        (
            "from idode_gin.checkpoints import config as checkpoints\n"
            "checkpoints.Checkpointer.save_dtype = 'bfloat16'",
            "idode_gin.interop.convert --dtype=bfloat16",
        ),
    ],
)
def test_modules_of_t5x_are_explained(tmp_path: pathlib.Path, line: str, expected: str) -> None:
    (tmp_path / "mine.gin").write_text(f"from __gin__ import dynamic_registration\n{line}\n")
    with pytest.raises(ConfigError) as caught:
        loading.load([str(tmp_path / "mine.gin")])
    assert expected in str(caught.value)


def test_a_class_of_the_user_gets_no_advice_about_t5x(tmp_path: pathlib.Path) -> None:
    text = f"{toy_files.HEADER}toy.Wheel.pack = True\n"
    (tmp_path / "mine.gin").write_text(text)
    with pytest.raises(ConfigError) as caught:
        loading.load([str(tmp_path / "mine.gin")])
    assert "t5x" not in str(caught.value)


def test_file_of_the_guide_loads(tmp_path: pathlib.Path) -> None:
    (text,) = re.findall(r"```\n(from __gin__.*?)```", GUIDE.read_text(), re.DOTALL)
    (tmp_path / "mine.gin").write_text(text)
    assert "eval_period = 250" in bound(file=str(tmp_path / "mine.gin"))


@pytest.mark.full
def test_file_of_the_guide_dry_runs(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    (text,) = re.findall(r"```\n(from __gin__.*?)```", GUIDE.read_text(), re.DOTALL)
    (tmp_path / "mine.gin").write_text(text)
    flags = [f"--gin_file={tmp_path / 'mine.gin'}", "--dry_run"]
    assert programs.run("idode_gin.train", "train", "", flags) == 0
    assert "evaluated every 250 steps" in capsys.readouterr().out


def test_names_that_the_guide_calls_the_same_are_ours() -> None:
    bound()
    table, *_ = GUIDE.read_text().split("## A gin file")
    rows = re.findall(
        r"^\| (`\w+`|checkpoints|`PjitPartitioner`.*?) \| (.*) \|$", table, re.MULTILINE
    )
    assert len(rows) == 4
    parameters = {
        name
        for _, each in gin_internals.registry.items()
        for name in value_types.parameters(each.wrapped)
    }
    names = {name for _, row in rows for name in re.findall(r"`(\w+)`", row)}
    assert names <= parameters
    differ = {each.rpartition(".")[2] for each in t5x_names.TABLE if each not in t5x_names.SYNONYMS}
    assert not differ & names
