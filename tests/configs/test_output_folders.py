"""No program overwrites the output of another one."""

import itertools
import pathlib

import pytest

from idode_gin.configs import outputs, programs
from idode_gin.reports import paths
from idode_gin.runs import output_folders

LEAVES = {
    "train": "metrics.jsonl",
    "eval": "results.npz",
    "sample": "samples.npz",
    "encode": "latents.npz",
    "interpolate": "interpolation.npz",
}
MACROS = {"train": "MODEL_DIR"} | {
    name: f"{name.upper()}_OUTPUT_DIR" for name in ("eval", "sample", "encode", "interpolate")
}
FUNCTIONS = {name: name for name in LEAVES} | {"eval": "evaluate"}


def config(program: str) -> str:
    return f"from idode_gin import models\nfrom idode_gin import {program} as {program}_script\n"


@pytest.mark.parametrize(("program", "owner"), itertools.product(LEAVES, LEAVES))
def test_a_folder_is_of_the_program_that_left_something_there(program, owner, tmp_path):
    (tmp_path / LEAVES[owner]).touch()
    (tmp_path / "summary.json").touch()
    told = output_folders.refusal(tmp_path, program, "FOLDER")
    (tmp_path / LEAVES[owner]).unlink()
    (tmp_path / "config.gin").write_text(config(owner))
    told_by_config = output_folders.refusal(tmp_path, program, "FOLDER")
    if program == owner:
        assert told is told_by_config is None
        return
    for each, name in ((told, LEAVES[owner]), (told_by_config, "config.gin")):
        assert each is not None
        assert f"of idode_gin.{owner} ({name})" in each
        assert each.endswith(f"--gin.FOLDER=\"'{tmp_path / program}'\".")


def test_the_last_configuration_owns_a_folder(tmp_path):
    (tmp_path / "samples.npz").touch()
    (tmp_path / "config.gin").write_text(config("eval"))
    assert output_folders.refusal(tmp_path, "eval", "FOLDER") is None
    assert "holds an evaluation" in str(output_folders.refusal(tmp_path, "sample", "FOLDER"))


def test_any_program_may_write_where_none_did(tmp_path):
    (tmp_path / "notes.txt").touch()
    (tmp_path / "training").mkdir()
    (tmp_path / "config.gin").write_bytes(b"\xff")
    for program, folder in itertools.product(LEAVES, ("", "new")):
        assert output_folders.refusal(tmp_path / folder, program, "FOLDER") is None


@pytest.mark.parametrize("program", LEAVES)
def test_programs_refuse_and_touch_nothing(program, tmp_path, capsys):
    other = "eval" if program == "train" else "train"
    folder = tmp_path / "taken"
    (folder / "checkpoint_3").mkdir(parents=True)
    (folder / "config.gin").write_text(config(other))
    experiment = "digits" if program == "train" else f"digits_{program}"
    arguments = [
        f"--gin_file=gin_configs/experiments/{experiment}.gin",
        f"--gin.{MACROS[program]}={str(folder)!r}",
    ]
    code = programs.run(f"idode_gin.{program}", FUNCTIONS[program], "", arguments)
    errors = capsys.readouterr().err
    assert code == 2
    assert f"error: An output folder is for one program, and {MACROS[program]} = " in errors
    assert {each.name for each in folder.iterdir()} == {"checkpoint_3", "config.gin"}
    assert (folder / "config.gin").read_text() == config(other)


@pytest.mark.parametrize("flag", [[], ["--dry_run"]])
def test_a_run_of_t5x_is_left_as_it_is(flag, tmp_path, capsys):
    """Its checkpoints are not damaged ones of ours: nothing is renamed or written."""
    state = tmp_path / "checkpoint_5" / "state"
    state.mkdir(parents=True)
    for path in (state / "manifest.ocdbt", tmp_path / "config.gin"):
        path.write_text("of t5x")
    before = {path: path.is_file() and path.read_text() for path in tmp_path.rglob("*")}
    digits = ["--gin_file=gin_configs/experiments/digits.gin", f"--gin.MODEL_DIR={str(tmp_path)!r}"]
    assert programs.run("idode_gin.train", "train", "", [*digits, *flag]) == 2
    said = capsys.readouterr().err
    assert "checkpoint_5 is a checkpoint of t5x" in said
    assert f"python -m idode_gin.interop.convert --source {tmp_path}" in said
    after = {path: path.is_file() and path.read_text() for path in tmp_path.rglob("*")}
    assert after == before


def test_an_outage_is_no_fault_of_the_folder(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise paths.StoreError("gs://bucket/run cannot be reached.")

    monkeypatch.setattr(pathlib.Path, "mkdir", fail)
    with pytest.raises(paths.StoreError, match="cannot be reached"):
        outputs.make_folder(tmp_path / "run", "MODEL_DIR")
