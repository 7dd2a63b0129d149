"""The last lines of a program: the commands there can be pasted into a shell."""

import json
import pathlib
import re
import shlex
from collections.abc import Callable
from typing import Any

import pytest

from idode_gin import checks, compare, report
from idode_gin import train as train_program
from idode_gin.checkpoints import files
from idode_gin.configs import building, next_steps, outputs, programs
from idode_gin.devices import backends
from idode_gin.feed import loading
from idode_gin.reports import buckets
from idode_gin.training.trainer import Trainer

DIGITS = "gin_configs/experiments/digits.gin"
FUNCTIONS = {"idode_gin.eval": "evaluate", "idode_gin.sample": "sample"}
NAMES = ["run", "my runs/it's $1", 'a"b\\c']


@pytest.fixture(params=NAMES)
def folder(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> pathlib.Path:
    """A run directory that holds the configuration of a run; nothing is trained."""
    folder = tmp_path / request.param
    building.load_and_check(train_program.train, [DIGITS], [f"MODEL_DIR = {str(folder)!r}"])
    building.build(train_program.train)
    with outputs.begun(folder, "MODEL_DIR"):
        pass
    return folder


def commands(text: str) -> dict[str, list[str]]:
    """Return the arguments of the commands in the last lines, by module."""
    found = {}
    for line in text.splitlines()[1:]:
        python, option, module, *arguments = shlex.split(line)
        assert (line[:2], python, option) == ("  ", "python", "-m")
        found[module] = arguments
    return found


def test_after_training_the_run_can_be_scored_drawn_and_reported(
    folder: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "run", lambda *_, **__: {})
    monkeypatch.setattr(loading, "set_data_dirs", lambda **_: None)  # they are seqio's global ones
    monkeypatch.chdir(pathlib.Path(__file__).parents[2])
    data = folder.parent / "data of tfds"
    given = [f"--gin_file={DIGITS}", f"--gin.MODEL_DIR={str(folder)!r}", f"--tfds_data_dir={data}"]
    assert programs.run("idode_gin.train", "train", "", given) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[0].endswith(f") on {backends.described()}")
    last = shown[shown.index("The run is in ") :]
    assert last.startswith(f"The run is in {folder}: ")
    found = commands(last)
    assert list(found) == ["idode_gin.eval", "idode_gin.sample", "idode_gin.report"]
    assert f"--tfds_data_dir={data}" in found["idode_gin.eval"]
    for module, function in FUNCTIONS.items():
        assert programs.run(module, function, "", [*found[module], "--dry_run=full"]) == 0
        shown = capsys.readouterr().out
        assert re.search(rf"\n  CHECKPOINT_PATH +{re.escape(repr(str(folder)))}\n", shown)
        assert "Next:" not in shown  # nothing was done
    assert report.main(found["idode_gin.report"]) == 0
    assert (folder / "report.html").exists()


def test_after_a_small_training_a_cheap_evaluation_comes_first(
    folder: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pathlib.Path(__file__).parents[2])
    images = {"eval_data": {"num_images": 10_000}, "images_per_second": 60.0}
    (folder / "summary.json").write_text(json.dumps({**images, "seconds": {"train": 500.0}}))
    holds, costs, quick, full, *_ = next_steps.after("train", str(folder)).splitlines()
    assert holds.startswith(f"The run is in {folder}: ")
    assert "scores 10,000 under all bounds, in about 5.6 h, longer than the training" in costs
    for line, shown in ((quick, "image: 8 network"), (full, "image: 364 network")):
        arguments = shlex.split(line)[3:]
        assert programs.run("idode_gin.eval", "evaluate", "", [*arguments, "--dry_run"]) == 0
        out = capsys.readouterr().out
        assert shown in out
        assert ("eval/quick" in out) == (line is quick)


@pytest.mark.parametrize("is_saved", [True, False])
def test_a_stopped_training_can_be_used(
    is_saved: bool,
    folder: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(*_: object, begin: Callable[[], Any]) -> None:
        with begin():
            raise checks.Preempted("Stopped by SIGTERM.")

    monkeypatch.setattr(Trainer, "run", run)
    monkeypatch.setattr(loading, "set_data_dirs", lambda **_: None)
    monkeypatch.chdir(pathlib.Path(__file__).parents[2])
    if is_saved:
        files.checkpoint_path(folder, 3).mkdir()
    data = folder.parent / "data of tfds"
    given = [f"--gin_file={DIGITS}", f"--gin.MODEL_DIR={str(folder)!r}", f"--tfds_data_dir={data}"]
    assert programs.run("idode_gin.train", "train", "", given) == checks.EXIT_PREEMPTED
    shown = capsys.readouterr().err
    assert "stopped: Stopped by SIGTERM." in shown
    found = commands(shown[shown.index("stopped: ") :])
    used = next_steps.after("train", str(folder), {"tfds_data_dir": str(data)})
    assert found == (commands(used) if is_saved else {})


def test_a_replay_ends_without_next_steps(
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Trainer, "run", lambda *_, **__: {})
    given = [f"--gin_file={DIGITS}", f"--gin.MODEL_DIR={str(tmp_path / 'run')!r}"]
    more = "--gin.Trainer.replay='bad_step_3.npz'"
    assert programs.run("idode_gin.train", "train", "", [*given, more]) == 0
    assert "Next:" not in capsys.readouterr().out


@pytest.mark.parametrize("read", [None, "config.gin", "operative_config.gin"])
def test_a_failed_step_is_replayed_as_it_was_trained(
    read: str | None,
    folder: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A run that was resumed from its own configuration, with another learning rate."""
    batch = str(folder / "train" / "bad_step_3.npz")

    def run(self: Trainer, *_: object, begin: Callable[[], Any]) -> dict[str, object]:
        if self.replay is not None:
            assert self.replay == batch
            rates.append(self.optimizer.learning_rate)
            return {}
        with begin() as settled:
            settled()  # the configuration is written
            raise checks.NonFiniteError("Step 3 is not finite.", batch)

    rates: list[float] = []
    monkeypatch.setattr(Trainer, "run", run)
    monkeypatch.setattr(loading, "set_data_dirs", lambda **_: None)
    monkeypatch.chdir(pathlib.Path(__file__).parents[2])
    file, data = DIGITS if read is None else str(folder / read), folder.parent / "data of tfds"
    given = [f"--gin_file={file}", f"--gin.MODEL_DIR={str(folder)!r}", f"--tfds_data_dir={data}"]
    given.append("--gin.LEARNING_RATE=0.125")
    assert programs.run("idode_gin.train", "train", "", given) == checks.EXIT_NON_FINITE
    found = commands(capsys.readouterr().err)["idode_gin.train"]
    assert f"--tfds_data_dir={data}" in found
    assert programs.run("idode_gin.train", "train", "", found) == 0
    assert rates == [0.125]


@pytest.mark.parametrize("program", ["eval", "sample", "encode", "interpolate"])
def test_after_other_programs_the_run_is_reported(
    program: str, folder: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = folder / program / "digits_test"
    last = next_steps.after(program, str(output))
    assert str(output) in last.splitlines()[0]
    found = commands(last)
    assert found["idode_gin.report"] == [str(folder)]
    if program == "eval":
        assert compare.main(found["idode_gin.compare"]) == 2
        assert repr(str(output)) in capsys.readouterr().err  # where no evaluation is yet
    else:
        assert list(found) == ["idode_gin.report"]


def test_of_a_series_of_checkpoints_its_last_evaluation_is_compared(folder: pathlib.Path) -> None:
    output = folder / "eval" / "digits_test_curve"
    for step in (900, 1000):
        (output / f"step_{step}").mkdir(parents=True)
        (output / f"step_{step}/summary.json").touch()
    (output / "series.json").touch()
    last = next_steps.after("eval", str(output))
    assert last.startswith(f"The curve is in {output}: curve.csv, ")
    assert commands(last)["idode_gin.compare"] == [str(output / "step_1000"), "OTHER_RUN"]


def test_an_output_folder_outside_a_run_is_reported_itself(tmp_path: pathlib.Path) -> None:
    found = commands(next_steps.after("sample", str(tmp_path / "drawn")))
    assert found == {"idode_gin.report": [str(tmp_path / "drawn")]}


def test_a_bucket_that_does_not_answer_ends_no_program_that_is_done(monkeypatch):
    class Broken:
        def __getattr__(self, _):
            raise ConnectionError("no route")

    monkeypatch.setattr(buckets, "filesystem", Broken)
    for program in ("train", "eval"):
        text = next_steps.after(program, "gs://bucket/a/run")
        assert " is in gs://bucket/a/run: " in text
        assert "python -m idode_gin.report gs://bucket/a/run" in text
