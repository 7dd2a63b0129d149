"""The most frequent mistakes: each ends a program with exit code 2 and a message with a way out.

The rules themselves have their tests where they live: `test_partitioning`, `test_mesh`,
`test_axis_rules`, `test_networks`, `test_checkpoint_retention`, `test_checkpoints` and
`test_run_lock`.
"""

import fcntl
import json
import pathlib

import pytest

from idode_gin.checkpoints import meta as checkpoint_meta
from idode_gin.configs import programs

PROGRAMS = {
    "train": "train",
    "eval": "evaluate",
    "sample": "sample",
    "encode": "encode",
    "interpolate": "interpolate",
}
EXPERIMENTS = {"train": "digits"} | {
    name: f"digits_{name}" for name in ("eval", "sample", "encode", "interpolate")
}
DRY = "--dry_run"
SAMPLERS = "--gin_file=gin_configs/samplers"
BEST = "SaveCheckpointConfig.keep_best=2"
RULES = "PjitPartitioner.logical_axis_rules"
EIGHT = "MESH_SHAPE={'data': 8}"
MISUSE = {
    "batch not divisible": (
        "train",
        [DRY, EIGHT, "BATCH_SIZE=60"],
        "`batch_size` must be a multiple of `data`, got batch_size=60 and data=8. "
        "The next valid `batch_size` is 64.",
    ),
    "batch not divisible into microbatches": (
        "train",
        [DRY, EIGHT, "Trainer.num_microbatches=3"],
        "got batch_size=64 and data * num_microbatches=24. The next valid `batch_size` is 72.",
    ),
    "batch of evaluation not divisible": (
        "train",
        [DRY, EIGHT, "train_eval/DatasetConfig.batch_size=60"],
        "`batch_size of evaluation` must be a multiple of `data`",
    ),
    "mesh larger than the devices": (
        "train",
        ["MESH_SHAPE={'data': 2, 'fsdp': 512}"],
        "got data=2 x fsdp=512 x model=1 = 1024 and",
    ),
    "mesh larger than the devices, by num_partitions": (
        "train",
        ["PjitPartitioner.num_partitions=512"],
        "got data=1 x fsdp=1 x model=512 = 512 and",
    ),
    "unknown mesh axis": ("train", [DRY, "MESH_SHAPE={'fdsp': 2}"], "Did you mean 'fsdp'?"),
    "unknown mesh axis in a rule": (
        "train",
        [DRY, f"{RULES}=[('hidden', 'modle')]"],
        "names the unknown mesh axis 'modle', got ('hidden', 'modle'). Did you mean 'model'?",
    ),
    "unknown axis of parameters in a rule": (
        "train",
        [DRY, f"{RULES}=[('hiden', 'model')]"],
        "is for the axis 'hiden', which no parameter has, got ('hiden', 'model'). "
        "Did you mean 'hidden'?",
    ),
    "channels not divisible by groups": (
        "train",
        [DRY, "UNet.channels=30", "UNet.groups=8"],
        "`channels` must be a multiple of `groups`, got channels=30 and groups=8. "
        "The next valid `channels` is 32.",
    ),
    "channels not divisible by heads": (
        "train",
        [DRY, "UNet.attention_heads=5"],
        "`channels` must be a multiple of `attention_heads`",
    ),
    "channels not divisible by the mesh": (
        "train",
        [DRY, "MESH_SHAPE={'model': 3}"],
        "`hidden` must be a multiple of the mesh axis 'model' that a rule splits it over",
    ),
    "keep-best without evaluation": (
        "train",
        [DRY, BEST, "train.train_eval_dataset_cfg=None"],
        "`keep_best` needs an evaluation split, got keep_best=2 and none.",
    ),
    "keep-best without evaluation of saved steps": (
        "train",
        [DRY, BEST, "EVAL_PERIOD=None"],
        "they never coincide before the last, 1500. Make EVAL_PERIOD a multiple of",
    ),
    "restore path empty": (
        "train",
        [DRY, "INITIAL_CHECKPOINT_PATH=''"],
        "INITIAL_CHECKPOINT_PATH must be a path, got an empty text.",
    ),
    "restore path an empty directory": (
        "train",
        [DRY, "INITIAL_CHECKPOINT_PATH='empty'"],
        "empty: it holds nothing. Give a run directory with checkpoint_<step> directories",
    ),
    "nothing at the restore path": (
        "train",
        [DRY, "INITIAL_CHECKPOINT_PATH='nowhere'"],
        "No checkpoint at",
    ),
    "checkpoint path empty in eval": (
        "eval",
        ["CHECKPOINT_PATH=''"],
        "CHECKPOINT_PATH must be a path, got an empty text.",
    ),
    "checkpoint path empty in sample": (
        "sample",
        ["CHECKPOINT_PATH=''"],
        "CHECKPOINT_PATH must be a path, got an empty text.",
    ),
    "order of a sampler out of range": (
        "sample",
        [DRY, f"{SAMPLERS}/dpm_solver_plus_plus.gin", "DPMSolverPlusPlus.order=4"],
        "`order` must be 1, 2 or 3, got order=4.",
    ),
    "sampler without steps": (
        "sample",
        [DRY, f"{SAMPLERS}/ancestral.gin", "Ancestral.steps=0"],
        "`steps` must be an integer, 1 or more, got steps=0.",
    ),
    "density of a sampler with noise": (
        "sample",
        [DRY, f"{SAMPLERS}/ancestral.gin", "RETURN_LOG_PROB=True"],
        "`return_log_prob` needs a sampler that follows the ODE, got Ancestral",
    ),
    "sampling without a shape": (
        "sample",
        [DRY, "IMAGE_SHAPE=None"],
        "Bind IMAGE_SHAPE",
    ),
    "pairs that are none": ("interpolate", [DRY, "PAIRS=()"], "`pairs` must be pairs of places"),
    "one point between two images": (
        "interpolate",
        [DRY, "NUM_POINTS=1"],
        "`num_points` must be an integer, 2 or more, got num_points=1.",
    ),
    "nothing to encode with": (
        "encode",
        ["CHECKPOINT_PATH=''"],
        "must be a path, got an empty text",
    ),
    "steps of a solver that was not chosen": (
        "eval",
        [DRY, "Adams.steps=8"],
        "No gin file uses 'Adams'. Add one that does: --gin_file=gin_configs/solvers/adams.gin.",
    ),
    "a file of which nothing is used": (
        "sample",
        [DRY, f"{SAMPLERS}/heun.gin", "--gin_file=gin_configs/solvers/adams.gin"],
        "solvers/adams.gin has no effect: as configured, this program reads nothing of what it "
        "binds (SOLVER, Adams.steps). Leave it out",
    ),
    "a binding that nothing uses": (
        "eval",
        [DRY, "--gin_file=gin_configs/solvers/dormand_prince.gin", "BPD_TOLERANCE=1", "PILOT=None"],
        "error: --gin.BPD_TOLERANCE=1 has no effect: as configured, this program reads nothing",
    ),
    "tolerance of steps where a pilot chooses": (
        "eval",
        [DRY, "TOLERANCE=1e-3"],
        "Did you mean 'BPD_TOLERANCE'? It is read with "
        "--gin_file=gin_configs/solvers/dormand_prince.gin; SOLVER is None here.",
    ),
    "tolerance of a grid": (
        "encode",
        [DRY, "--gin_file=gin_configs/solvers/fixed_grid.gin", "TOLERANCE=1e-3"],
        "TOLERANCE is not used by anything [--gin.TOLERANCE=1e-3]. It is read with "
        "--gin_file=gin_configs/solvers/dormand_prince.gin; SOLVER is FixedGrid here, which has "
        "FixedGrid.steps, FixedGrid.tableau, FixedGrid.spacing.",
    ),
    "tolerance of a sampler that takes none": (
        "sample",
        [DRY, f"{SAMPLERS}/heun.gin", "TOLERANCE=1e-3"],
        "TOLERANCE is not used by anything [--gin.TOLERANCE=1e-3]. It is read with "
        "--gin_file=gin_configs/samplers/ode.gin; SAMPLER is Heun here, which has Heun.steps, "
        "Heun.grid.",
    ),
    "lanes of a sampler that takes none": (
        "sample",
        [DRY, f"{SAMPLERS}/heun.gin", "LANES=2"],
        "It is read with --gin_file=gin_configs/samplers/ode.gin; SAMPLER is Heun here",
    ),
    "more lanes than images of a solve": (
        "sample",
        [DRY, "LANES=64"],
        "lanes=64 and solve_size=32. Lower `lanes` or raise `solve_size`. In gin: LANES, "
        "SOLVE_SIZE. [Sampler]\n",
    ),
    "lanes of training": (
        "train",
        [DRY, "LANES=2"],
        "[--gin.LANES=2]. gin_configs/bounds.gin reads it, for something that is not built here.",
    ),
    "a mesh of one number": (
        "train",
        [DRY, "MESH_SHAPE=8"],
        "got 8 (int), through MESH_SHAPE [--gin.MESH_SHAPE=8]. Write {'NAME': 8}, with the name",
    ),
    "a mesh with a name of another thing": (
        "train",
        [DRY, "MESH_SHAPE={'NAME': 8}"],
        "must use the axes data, fsdp, model, got 'NAME'.",
    ),
    "rows that are never logged": (
        "train",
        [DRY, "LOG_PERIOD=0"],
        "`log_period` must be greater than zero, got log_period=0. In gin: LOG_PERIOD.",
    ),
    "macros in a ring": (
        "sample",
        [DRY, "NUM_SAMPLES=%BATCH_SIZE", "BATCH_SIZE=%NUM_SAMPLES"],
        "error: The value of BATCH_SIZE depends on itself: BATCH_SIZE = %NUM_SAMPLES "
        "[--gin.BATCH_SIZE=%NUM_SAMPLES], NUM_SAMPLES = %BATCH_SIZE [",
    ),
    "a file that later ones replace": (
        "train",
        [
            DRY,
            "--gin_file=gin_configs/models/unet_cifar10.gin",
            "--gin_file=gin_configs/models/unet_tiny.gin",
        ],
        "error: --gin_file=gin_configs/models/unet_cifar10.gin has no effect: what is read later "
        "wins, and all that this program reads of it is replaced by "
        "--gin_file=gin_configs/models/unet_tiny.gin.",
    ),
    "an optimizer of optax by its name": (
        "train",
        [DRY, "OPTIMIZER=optax.lion"],
        "  import optax\n  OPTIMIZER = @optax.lion()\n"
        "  optax.lion.learning_rate = %LEARNING_RATE\n",
    ),
    "an optimizer by a name that nothing has": (
        "train",
        [DRY, "OPTIMIZER=Adam"],
        "error: --gin.OPTIMIZER=Adam: 'Adam' is no function or class that the gin files import, "
        "and OPTIMIZER is one: @optimizers.AdamW() in the files. Write --gin.OPTIMIZER=@NAME()",
    ),
    "arithmetic": ("train", [DRY, "LEARNING_RATE=2*1e-4"], "Write --gin.LEARNING_RATE=0.0002\n"),
    "a number in words": (
        "train",
        [DRY, "TRAIN_STEPS=ten"],
        "'ten' is no number, and TRAIN_STEPS is one: 1500 in the files.",
    ),
    "a run in a bucket": (
        "train",
        ["MODEL_DIR='az://bucket/run'"],
        "error: MODEL_DIR must be a path on this machine or in a bucket (gs://bucket/folder or "
        "s3://bucket/folder), got 'az://bucket/run'. Give such a path, or mount the other storage",
    ),
    "samples in a bucket": ("sample", [DRY, "SAMPLE_OUTPUT_DIR='hdfs://a/b'"], "got 'hdfs://a/b'"),
    "a file's address": ("eval", [DRY, "CHECKPOINT_PATH='file:///runs/a'"], "got 'file:///runs/a'"),
    "a warm start from a bucket": (
        "train",
        [DRY, "INITIAL_CHECKPOINT_PATH='gs://b/a'"],
        "INITIAL_CHECKPOINT_PATH must be a folder in a bucket, gs://bucket/folder, got 'gs://b/a'",
    ),
    "images at an address": (
        "encode",
        [DRY, "DATA_PATH='https://host/images'", "MIXTURE_OR_TASK_NAME='image_folder'"],
        "DATA_PATH must be a path on this machine",
    ),
    "a cache in a bucket": (
        "eval",
        [DRY, "DatasetConfig.cache_dir='gs://b/c'"],
        "DatasetConfig.cache_dir must be a path on this machine",
    ),
    "datasets in a bucket": (
        "train",
        [DRY, "--tfds_data_dir=gs:/b/c"],
        "--tfds_data_dir must be a path on this machine or in a bucket",
    ),
    "gin files in a bucket": (
        "train",
        [DRY, "--gin_file=gs://b/c.gin"],
        "--gin_file must be a folder in a bucket, gs://bucket/folder, got 'gs://b/c.gin'",
    ),
    "a home that is not there": (
        "interpolate",
        [DRY, "INTERPOLATE_OUTPUT_DIR='~nobody_here/a'"],
        "'~nobody_here/a' starts with '~nobody_here', and there is no such home folder. Set HOME",
    ),
    "two runs in one directory": ("train", ["MODEL_DIR='taken'"], "for one run at a time, and"),
}


@pytest.mark.parametrize(
    ("facts", "settings", "sentence"),
    [
        ({"model.schedule": "StraightPath"}, [], "holds a run of another model: model.schedule"),
        ({}, [], "checkpoint_3 does not fit: "),
        (None, ["INITIAL_CHECKPOINT_PATH='nowhere'"], "No checkpoint at "),
    ],
)
def test_a_refused_run_leaves_the_configuration_as_it_was(
    facts, settings, sentence, folder, capsys
) -> None:
    begun = folder / "begun"
    begun.mkdir()
    (begun / "config.gin").write_text("# as it was\n")
    if facts is not None:
        (begun / "checkpoint_3" / "meta").mkdir(parents=True)
        parts = {"params": {}, "ema": {}, "training": {}}
        for part in parts:
            (begun / "checkpoint_3" / part).mkdir()
        meta = checkpoint_meta.describe(parts, dict.fromkeys(parts, ()), step=3, facts=facts)
        (begun / "checkpoint_3" / "meta" / "metadata").write_text(json.dumps(meta))
    before = sorted(each.name for each in begun.iterdir())
    arguments = [f"--gin.{each}" for each in ["MODEL_DIR='begun'", *settings]]
    file = "--gin_file=gin_configs/experiments/digits.gin"
    assert programs.run("idode_gin.train", "train", "", [file, *arguments]) == 2
    assert sentence in capsys.readouterr().err
    assert sorted(each.name for each in begun.iterdir()) == before
    assert (begun / "config.gin").read_text() == "# as it was\n"


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """The current folder, with an empty folder in it, and one that another run trains in."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "taken").mkdir()
    with open(tmp_path / "taken" / "run.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield tmp_path


@pytest.mark.parametrize("misuse", MISUSE)
def test_misuse_ends_in_2_and_a_sentence(misuse: str, folder: pathlib.Path, capsys) -> None:
    program, arguments, sentence = MISUSE[misuse]
    given = [each if each.startswith("--") else f"--gin.{each}" for each in arguments]
    file = f"--gin_file=gin_configs/experiments/{EXPERIMENTS[program]}.gin"
    code = programs.run(f"idode_gin.{program}", PROGRAMS[program], "", [file, *given])
    errors = capsys.readouterr().err
    assert code == 2
    assert errors.startswith("error: ")
    assert sentence in errors
    assert "Traceback" not in errors
    assert [each.name for each in (folder / "taken").iterdir()] == ["run.lock"]
    assert not list(folder.rglob("*checkpoint_*"))
    assert not list(folder.glob("*:"))


@pytest.mark.parametrize("program", ["eval", "sample", "encode", "interpolate"])
def test_an_output_folder_that_another_process_writes_to_is_refused(program, folder, capsys):
    (folder / "run" / "checkpoint_3").mkdir(parents=True)
    macro = f"{program.upper()}_OUTPUT_DIR"
    arguments = [
        f"--gin_file=gin_configs/experiments/{EXPERIMENTS[program]}.gin",
        "--gin.CHECKPOINT_PATH='run'",
        f"--gin.{macro}='taken'",
    ]
    assert programs.run(f"idode_gin.{program}", PROGRAMS[program], "", arguments) == 2
    errors = capsys.readouterr().err
    assert "for one run at a time" in errors
    assert f"choose another {macro}." in errors
    assert [each.name for each in (folder / "taken").iterdir()] == ["run.lock"]
