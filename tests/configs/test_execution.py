"""A program from its command line to its exit code."""

import contextlib
import errno
import gc
import hashlib
import os
import pathlib
import re
import signal
import time

import jax
import pytest
import toy_files
import toy_program
from gin import config

from idode_gin import checks
from idode_gin.configs import building, execution, exit_codes, flags, loading, outputs, programs
from idode_gin.configs.loading import ConfigError
from idode_gin.processes import preemption

ABOUT = "Toys.\n\n    python -m toy_program --gin_file=toy_files.gin\n"


@pytest.fixture
def run(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """Run the toy program on the toy experiment; return (exit code, output, errors)."""
    toy_files.write(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(toy_program, "CALLS", [])

    def call(*arguments: str, file: str = "experiment.gin") -> tuple[int, str, str]:
        given = [f"--gin_file={file}"] if file else []
        code = programs.run("toy_program", "main", ABOUT, [*given, *arguments])
        return code, *capsys.readouterr()

    return call


def test_runs_with_what_gin_binds(run) -> None:
    code, output, errors = run(
        "--gin.STEPS=11", "--gin_bindings=Engine.power = 3", "--gin.main.loud=True"
    )
    assert (code, errors) == (0, "")
    (call,) = toy_program.CALLS
    assert call["steps"] == 11
    assert call["loud"] is True
    assert call["engine"] == toy_program.Engine(power=3)
    assert call["dry_run"] is False


def test_first_screen_shows_files_and_macros(run) -> None:
    lines = run("--gin.STEPS=11")[1].splitlines()
    assert lines[0].startswith("toy_program")
    shown = [line.split(maxsplit=1) for line in lines[2:]]
    assert shown == [["FOLDER", "'runs/a'"], ["STEPS", "11"], ["WHEEL", "toy.Wheel()"]]
    assert "experiment.gin" in lines[1]


def test_later_file_and_search_path(run, tmp_path: pathlib.Path) -> None:
    (tmp_path / "users").mkdir()
    (tmp_path / "users" / "more.gin").write_text("STEPS = 12")
    code, _, errors = run("--gin_search_paths=nowhere,users", "--gin_file=more.gin")
    assert (code, errors) == (0, "")
    assert toy_program.CALLS[0]["steps"] == 12


def test_dry_run_is_passed_on(run) -> None:
    assert run("--dry_run")[0] == 0
    assert toy_program.CALLS[0]["dry_run"] is True
    code, _, errors = run("--gin.main.dry_run=True")
    assert code == 2
    assert errors == "error: main.dry_run has no effect: use the flag --dry_run.\n"


def test_a_dry_run_collects_no_garbage_and_a_run_does(run) -> None:
    assert run("--dry_run")[0] == run()[0] == 0
    assert [call["collects_garbage"] for call in toy_program.CALLS] == [False, True]
    assert gc.isenabled()


def test_dry_run_has_a_short_and_a_full_form(run) -> None:
    long = "--gin.FOLDER='" + 90 * "a" + "'"
    code, text, _ = run("--dry_run", "--gin.STEPS=11", long)
    assert code == 0
    assert "FOLDER='" + 56 * "a" + "..." in text
    assert "STEPS=11  WHEEL=toy.Wheel()" in text
    assert "main.wheel" not in text
    assert max(map(len, text.splitlines())) <= 100
    code, text, _ = run("--dry_run=full", "--gin.STEPS=11", long)
    assert code == 0
    assert toy_program.CALLS[1]["dry_run"] == "full"
    assert f"FOLDER     {90 * 'a'!r}" in text
    assert "main.wheel = %WHEEL" in text
    assert text.count(90 * "a") == 1  # macros are printed once
    assert "# Macros" not in text
    assert [run(each)[0] for each in ("--dry_run=true", "--nodry_run", "--dry_run=false")] == [
        0
    ] * 3
    assert [call["dry_run"] for call in toy_program.CALLS[2:]] == [True, False, False]


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--gin.STEP=7"], "STEP is not used by anything [--gin.STEP=7]. Did you mean 'STEPS'?"),
        (["--gin.STEPS=1e3"], "Write 1000."),
        (["--gin.FOLDER=runs/b"], "--gin.FOLDER=\"'runs/b'\""),
        (["--gin.FOLDER"], "--gin.FOLDER has no value. Write --gin.FOLDER=VALUE, with an equals"),
        (["--gin.STEPS", "30"], "has no value. Write --gin.STEPS=30, with an equals sign."),
        (["--gin.FOLDER", "runs/b"], "no value. Write --gin.FOLDER=\"'runs/b'\", with an equals"),
        (["--gin.FOLDER", "'a b'"], "no value. Write --gin.FOLDER=\"'a b'\", with an equals"),
        (["--gin.FOLDER", "'$a'"], "no value. Write --gin.FOLDER=''\"'\"'$a'\"'\"'', with"),
        (
            ["--gin.power=1.0"],
            "power is not used by anything [--gin.power=1.0]. Did you mean Engine.power?",
        ),
        (["--gin_fil=a.gin"], "Unknown flag --gin_fil. Did you mean --gin_file?"),
        (["--checkpoint_path=a"], "macro of gin: --gin.CHECKPOINT_PATH=VALUE"),
        (["--zzz"], "Unknown flag --zzz. --help lists all flags."),
        (["--dry_run=maybe"], "write --dry_run or --dry_run=full"),
        (["--process_index=one"], "process_index"),
        (["STEPS=7"], "'STEPS=7' is no flag."),
        (["--process_index=1"], "--process_index without --multiprocess_gpu."),
        (["--local_device_ids=0,1"], "--local_device_ids without --multiprocess_gpu."),
        (["--gin_file=more.gin"], "There is no gin file 'more.gin'. Searched: "),
        (["--gin.Engine.power=-1.0"], "`power` must be positive, got -1.0. [Engine]"),
        (["--gin.Whel.size=1"], "Did you mean 'Wheel'?"),
    ],
)
def test_wrong_command_ends_in_2_and_names_the_way_out(
    run, arguments: list[str], found: str
) -> None:
    code, _, errors = run(*arguments)
    assert code == 2
    assert errors.startswith("error: ")
    assert found in errors
    assert "Traceback" not in errors
    assert toy_program.CALLS == []


def test_no_gin_file_shows_an_example(run) -> None:
    code, _, errors = run(file="")
    assert code == 2
    assert "python -m toy_program --gin_file=toy_files.gin" in errors


def test_required_macros_are_listed_at_once(run) -> None:
    code, _, errors = run(file="run.gin")
    assert code == 2
    assert re.findall(r"[A-Z]{3,}", errors) == ["STEPS", "FOLDER", "WHEEL"]


def test_syntax_error_names_file_and_line(run, tmp_path: pathlib.Path) -> None:
    (tmp_path / "broken.gin").write_text("STEPS = 3\nFOLDER = runs/a\n")
    code, _, errors = run(file="broken.gin")
    assert code == 2
    assert "broken.gin:2]  FOLDER = runs/a" in errors


@pytest.mark.parametrize(
    ("function", "code", "found"),
    [
        ("stop", 75, "stopped: saved at step 3\n"),
        ("diverge", 3, "error: the loss is NaN at step 3\n"),
        ("miss", 2, "error: [Errno 2] No such file or directory: 'no/such/file'\n"),
        ("interrupt", 75, "stopped: interrupted.\n"),
        ("fill_disk", 2, "error: [Errno 28] No space left on device: 'runs/a/summary.json'\n"),
    ],
)
def test_exceptions_become_exit_codes(run, function: str, code: int, found: str, tmp_path) -> None:
    (tmp_path / "fail.gin").write_text(f"{toy_files.HEADER}toy.main.fail = @toy.{function}\n")
    got, _, errors = run("--gin_file=fail.gin")
    assert (got, errors) == (code, found)
    if function != "interrupt":
        for debug in ("--debug", "-debug", "--debug=True"):
            assert "Traceback" in run("--gin_file=fail.gin", debug)[2]
        assert "Traceback" not in run("--gin_file=fail.gin", "--debug=false")[2]


def test_defect_passes_through(run, tmp_path: pathlib.Path) -> None:
    (tmp_path / "fail.gin").write_text(f"{toy_files.HEADER}toy.main.fail = @toy.break_down\n")
    with pytest.raises(ZeroDivisionError):
        run("--gin_file=fail.gin")


def test_file_of_another_program(run, tmp_path: pathlib.Path) -> None:
    sample = "gin_configs/experiments/digits_sample.gin"
    code, _, errors = run(file=sample)
    assert code == 2
    assert "bind nothing of `toy_program.main`. They are files of idode_gin.sample: run " in errors
    assert "`python -m idode_gin.sample …`" in errors
    code, _, errors = run(f"--gin_file={sample}")
    assert code == 2
    assert "This is toy_program, but " in errors
    assert f"{sample} binds idode_gin.sample: leave that file" in errors


def test_error_of_a_constructor_can_be_traced(run) -> None:
    _, _, errors = run("--gin.Engine.power=-1.0")
    assert errors.endswith("\n(--debug prints where it was raised)\n")
    _, _, errors = run("--gin.Engine.power=-1.0", "--debug")
    assert "in __post_init__" in errors
    assert errors.endswith("error: `power` must be positive, got -1.0. [Engine]\n")


def test_error_of_a_constructor_names_the_macro(run) -> None:
    more = ["--gin.Engine.power=%STEPS", "--gin.STEPS=-1", "--gin.main.steps=1"]
    _, _, errors = run(*more, "--debug")
    assert errors.endswith("error: `power` must be positive, got -1. In gin: STEPS. [Engine]\n")


def test_macros_of_arguments_in_a_message(tmp_path: pathlib.Path) -> None:
    toy_files.load(tmp_path)
    for text, macros in {
        "`steps` is 3.": " In gin: STEPS.",
        "`main.steps` is 3, see `folder`.": " In gin: STEPS, FOLDER.",
        "`other.steps` is 3.": "",
        "`steps` is 3. Lower STEPS.": "",
    }.items():
        assert exit_codes.message(ValueError(text), "main") == text + macros
    assert exit_codes.message(ConfigError("`steps` is 3."), "main") == "`steps` is 3."


def test_help(run) -> None:
    code, output, _ = run("--help", file="")
    assert code == 0
    assert "python -m toy_program" in output
    for name in (
        *("gin_file", "gin_bindings", "gin_search_paths", "tfds_data_dir", "dry_run", "debug"),
        *("seqio_additional_cache_dirs", "multiprocess_gpu", "coordinator_address", "help"),
        *("process_count", "process_index", "initialization_timeout", "local_device_ids"),
    ):
        assert f"  --{name}\n" in output
    assert "A gin file; repeatable, later files win.\n" in output
    assert "This is one of several processes, on any device.\n" in output
    assert "specify a list" not in output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    "moment", [(building, "load_and_check"), (execution, "first_screen")], ids=["load", "screen"]
)
def test_asked_to_stop_outside_a_loop(run, monkeypatch, number: int, moment: tuple) -> None:
    """No `except Exception` on the way catches the request to stop."""
    before = [signal.getsignal(each) for each in preemption.SIGNALS]

    def signalled(*_: object) -> None:
        with contextlib.suppress(Exception):
            os.kill(os.getpid(), number)
            time.sleep(10)

    monkeypatch.setattr(*moment, signalled)
    code, _, errors = run()
    assert code == checks.EXIT_PREEMPTED
    name = signal.Signals(number).name
    assert f"stopped: Stopped by {name} while starting or finishing." in errors
    assert "Traceback" not in errors
    assert [signal.getsignal(each) for each in preemption.SIGNALS] == before


def test_output_directory_that_cannot_be_one(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(ConfigError, match=r"FOLDER = '.*/file' cannot be .*: it is a file\. Bind"),
        outputs.begun(tmp_path / "file", "FOLDER"),
    ):
        pass
    with (
        pytest.raises(ConfigError, match=r"FOLDER = '.*/file/run' cannot be .*: Not a directory"),
        outputs.begun(tmp_path / "file" / "run", "FOLDER"),
    ):
        pass


def test_absl_flags_are_known() -> None:
    assert not flags.parse(["--verbosity=-1"]).help
    with pytest.raises(ConfigError, match="Did you mean --verbosity"):
        flags.parse(["--verbositi=1"])


def test_exit_codes_are_those_of_checks() -> None:
    assert exit_codes.exit_code(ConfigError("")) == checks.EXIT_BAD_INPUT
    assert exit_codes.exit_code(checks.NonFiniteError("")) == checks.EXIT_NON_FINITE
    assert exit_codes.exit_code(checks.Preempted("")) == checks.EXIT_PREEMPTED
    for number in (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO, errno.EACCES):
        assert exit_codes.exit_code(OSError(number, "")) == checks.EXIT_BAD_INPUT
    assert exit_codes.exit_code(RuntimeError("RESOURCE_EXHAUSTED")) is None
    assert exit_codes.exit_code(TypeError("")) is None


def test_too_little_memory_on_a_device_is_no_bug() -> None:
    error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nat")
    assert exit_codes.exit_code(error) == checks.EXIT_BAD_INPUT
    said = exit_codes.message(error, "train")
    for words in ("allocating 9 bytes. Train with", "Trainer.num_microbatches", "SOLVE_SIZE"):
        assert words in said
    assert exit_codes.exit_code(jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK")) is None


def test_too_little_memory_of_the_machine_is_no_bug() -> None:
    error = MemoryError("Unable to allocate 9. GiB for an array")
    assert exit_codes.exit_code(error) == checks.EXIT_BAD_INPUT
    assert "9. GiB for an array. Use another" in exit_codes.message(error, "train")


def test_refuses_what_a_caller_overrides(tmp_path: pathlib.Path) -> None:
    toy_files.load(tmp_path)
    building.refuse_bindings(toy_program.Wheel, ["grip"], "")
    building.refuse_bindings(toy_program.Crate, ["size"], "")
    with pytest.raises(ConfigError, match=r"WHEEL/Wheel.size has no effect: because\."):
        building.refuse_bindings(toy_program.Wheel, ["size", "grip"], "because")


def test_written_configs_repeat_the_run(tmp_path: pathlib.Path) -> None:
    toy_files.load(tmp_path, "", ["STEPS = 11", "WHEEL = @Engine()", "WHEEL/Engine.fuel = 'oil'"])
    expected = building.build(toy_program.main)
    config.get_configurable(toy_program.main)()
    with outputs.begun(tmp_path / "out", "FOLDER"):
        pass
    for name in ("config.gin", "operative_config.gin"):
        building.load_and_check(toy_program.main, [str(tmp_path / "out" / name)])
        found = building.build(toy_program.main)
        assert {key: found[key] for key in expected} == expected
    assert "Wheel.size" not in (tmp_path / "out" / "config.gin").read_text()


@pytest.mark.parametrize(
    ("end", "expected"), [(None, 12), (checks.Preempted(), 12), (ValueError("refused"), 11)]
)
def test_a_configuration_is_replaced_when_nothing_was_refused(
    end: Exception | None, expected: int, tmp_path: pathlib.Path
) -> None:
    """That of the values which the folder holds is not lost to a program that changes none."""
    for steps in (11, 12):
        toy_files.load(tmp_path, "", [f"STEPS = {steps}"])
        building.build(toy_program.main)
        config.get_configurable(toy_program.main)()
        with contextlib.suppress(Exception), outputs.begun(tmp_path / "out", "FOLDER") as digest:
            text = (tmp_path / "out/operative_config.gin").read_text()
            assert "STEPS = 11" in text  # an empty folder gets it at once
            if steps == 12 and end is not None:
                raise end
    for name in ("config.gin", "operative_config.gin"):
        assert f"STEPS = {expected}" in (tmp_path / "out" / name).read_text()
    whole = (tmp_path / "out/operative_config.gin").read_bytes()
    assert (hashlib.sha256(whole).hexdigest() == digest) == (expected == 12)


def test_used_bindings_are_compared_whole(tmp_path: pathlib.Path) -> None:
    folder = repr("long " * 40)
    toy_files.load(tmp_path, "", ["STEPS = 11", f"FOLDER = {folder}"])
    building.build(toy_program.main)
    used = outputs.used_bindings()
    assert used["STEPS"] == "11"
    assert re.sub("['()]", "", used["FOLDER"]).split() == ["long"] * 40


def test_search_paths_put_the_users_first_and_ours_last() -> None:
    first, *_, last = loading.search_paths(["mine"])
    assert first == "mine"
    assert (pathlib.Path(last) / "gin_configs" / "__init__.py").exists()


@pytest.mark.parametrize("platforms", ["cpu", "cuda"])
def test_processes_join_as_the_flags_say(monkeypatch: pytest.MonkeyPatch, platforms: str) -> None:
    joined: dict[str, object] = {}
    updated: dict[str, object] = {}
    met: list[object] = []
    quiet: list[int] = []
    monkeypatch.setattr("jax.distributed.initialize", lambda **given: joined.update(given))
    monkeypatch.setattr("idode_gin.processes.meeting.meet", lambda *given: met.extend(given))
    monkeypatch.setattr("idode_gin.processes.output.only_errors", quiet.append)
    monkeypatch.setattr(type(jax.config), "jax_platforms", property(lambda _: platforms))
    monkeypatch.setattr("jax.config.update", updated.__setitem__)
    execution.initialize_processes(flags.parse([]))
    assert joined == {}
    given = ["--multiprocess_gpu", "--coordinator_address=host:1", "--process_count=2"]
    given += ["--process_index=1", "--local_device_ids=2,3", "--initialization_timeout=5"]
    execution.initialize_processes(flags.parse(given))
    assert joined == {
        "coordinator_address": "host:1",
        "num_processes": 2,
        "process_id": 1,
        "local_device_ids": [2, 3],
        "initialization_timeout": 5,
    }
    assert met == ["host:1", 2, 1, 5]
    assert quiet == [1]
    gloo = {"jax_cpu_collectives_implementation": "gloo"}
    assert updated == (gloo if platforms == "cpu" else {})


def test_all_local_devices_are_not_for_jax_to_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    """With None, jax gives a task of SLURM or Open MPI one device."""
    joined: dict[str, object] = {}
    monkeypatch.setattr("jax.distributed.initialize", lambda **given: joined.update(given))
    monkeypatch.setattr("idode_gin.processes.meeting.meet", lambda *_: None)
    given = ["--multiprocess_gpu", "--coordinator_address=host:1", "--process_count=2"]
    given += ["--process_index=0", "--local_device_ids=all"]
    execution.initialize_processes(flags.parse(given))
    assert joined["local_device_ids"] == []


def test_data_folders_are_passed_on(run, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, object] = {}
    monkeypatch.setattr(
        "idode_gin.feed.loading.set_data_dirs", lambda **folders: given.update(folders)
    )
    assert run()[0] == 0
    assert given == {}
    assert run("--tfds_data_dir=/d", "--seqio_additional_cache_dirs=/a,/b")[0] == 0
    assert given == {"tfds_data_dir": "/d", "seqio_cache_dirs": ["/a", "/b"]}
