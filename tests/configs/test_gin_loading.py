"""Reading gin files: their bindings, where each was written, and the messages about mistakes."""

import pathlib
from collections.abc import Iterator

import gin
import optax  # noqa: F401  a library that a program has imported
import pytest
import toy_files
from gin import config

from idode_gin.configs import gin_internals, loading, readers
from idode_gin.configs.loading import ConfigError


@pytest.fixture(autouse=True)
def _clean() -> None:
    config.clear_config()


def error(folder: pathlib.Path, text: str, bindings: tuple[str, ...] = ()) -> str:
    """Return the message of the ConfigError that a file with this text raises."""
    (folder / "wrong.gin").write_text(text)
    with pytest.raises((ConfigError, SyntaxError)) as caught:
        loading.load(["wrong.gin"], bindings, [str(folder)])
    return str(caught.value)


def test_binds_what_gin_itself_would_bind(tmp_path: pathlib.Path) -> None:
    toy_files.write(tmp_path)
    bindings = ["STEPS = 11", "Wheel.grip = 0.25"]
    loading.load(["experiment.gin"], bindings, [str(tmp_path)])
    ours = config.config_str()
    config.clear_config()
    gin.add_config_file_search_path(str(tmp_path))
    gin.parse_config_files_and_bindings(["experiment.gin"], bindings)
    assert ours == config.config_str()
    assert "STEPS = 11" in ours


def test_remembers_where_and_in_what_order(tmp_path: pathlib.Path) -> None:
    toy_files.write(tmp_path)
    bindings = loading.load(["experiment.gin"], ["STEPS = 11"], [str(tmp_path)])
    steps = [each for each in bindings if str(each.key) == "STEPS"]
    assert [each.where for each in steps] == ["run.gin:5", "experiment.gin:6", "--gin.STEPS=11"]
    assert [each.value for each in steps[1:]] == [10, 11]
    assert "WHEEL/Wheel.size" in [str(each.key) for each in bindings]


def test_later_file_wins(tmp_path: pathlib.Path) -> None:
    toy_files.write(tmp_path)
    (tmp_path / "later.gin").write_text("STEPS = 3")
    loading.load(["experiment.gin", "later.gin"], [], [str(tmp_path)])
    assert gin.query_parameter("STEPS/gin.macro.value") == 3


def test_first_search_path_wins_for_includes_too(tmp_path: pathlib.Path) -> None:
    ours, users = tmp_path / "ours", tmp_path / "users"
    for folder, steps in ((ours, 1), (users, 2)):
        folder.mkdir()
        (folder / "part.gin").write_text(f"STEPS = {steps}")
    (ours / "whole.gin").write_text("include 'part.gin'")
    loading.load(["whole.gin"], [], [str(users), str(ours)])
    assert gin.query_parameter("STEPS/gin.macro.value") == 2


def test_missing_file_names_folders_and_nearest(tmp_path: pathlib.Path) -> None:
    toy_files.write(tmp_path)
    with pytest.raises(ConfigError) as caught:
        loading.load(["experimnt.gin"], [], [str(tmp_path)])
    assert str(tmp_path) in str(caught.value)
    assert "Did you mean 'experiment.gin'?" in str(caught.value)
    with pytest.raises(ConfigError, match=r"Did you mean 'gin_configs/models/unet_tiny.gin'\?"):
        loading.load(["models/unet_tiny.gin"], [], [str(pathlib.Path(__file__).parents[2])])


def test_missing_include_names_the_file_that_wants_it(tmp_path: pathlib.Path) -> None:
    message = error(tmp_path, "\ninclude 'gone.gin'")
    assert "'gone.gin'" in message
    assert "wrong.gin" in message
    assert "line 2" in message


def test_file_that_includes_itself(tmp_path: pathlib.Path) -> None:
    assert "includes itself" in error(tmp_path, "include 'wrong.gin'")


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("STEPS = ", "line 4"),
        ("STEPS = runs/a", "line 4"),
        ("STEPS = (1, 2", "wrong.gin"),
        ("import toy_programme", "There is no module 'toy_programme'. Is it on PYTHONPATH?"),
        (
            "from idode_gin.schedules import variance_preservin",
            "Did you mean 'variance_preserving'?",
        ),
        (
            "from toy_program import Wheel",
            "Write `import toy_program`, and then `toy_program.Wheel`",
        ),
        ("from idode_gin.encoding import Encoding", "Write `from idode_gin import encoding`, and"),
        (
            "toi.Wheel.size = 3",
            "'toi' in 'toi.Wheel' is not imported in this file. Did you mean 'toy'?",
        ),
        ("toy.Whel.size = 3", "'toy' has no 'Whel'. Did you mean 'Wheel'?"),
        ("toy.Wheel.siz = 3", "'toy.Wheel' has no parameter 'siz'. Did you mean 'size'?"),
        ("WHEEL = @toy.Whel()", "'toy' has no 'Whel'. Did you mean 'Wheel'?"),
        ("WHEEL = @toy()", "'toy' is a module, not a function or class."),
        ("toy.CALLS.size = 3", "'CALLS' is a list, not a function or class."),
    ],
)
def test_wrong_line_is_named(tmp_path: pathlib.Path, lines: str, expected: str) -> None:
    assert expected in error(tmp_path, toy_files.HEADER + lines)


@pytest.mark.parametrize(
    ("binding", "expected"),
    [
        (
            "FOLDER=runs/a",
            "Text needs Python's quotes inside the shell's: --gin.FOLDER=\"'runs/a'\"",
        ),
        ("FOLDER=digits", "--gin.FOLDER=\"'digits'\""),
        ("FOLDER=/tmp/a b", "--gin.FOLDER=\"'/tmp/a b'\""),
        ("LOUD=true", "Write --gin.LOUD=True"),
        ("WHEEL=none", "Write --gin.WHEEL=None"),
        ("STEPS=", "Write --gin.NAME=VALUE"),
        ("ST EPS=3", "Write --gin.NAME=VALUE"),
        ("Wheel.siz=3", "'Wheel' has no parameter 'siz'. Did you mean 'size'?"),
        ("Whel.size=3", "No gin file uses a function or class named 'Whel'. Did you mean 'Wheel'?"),
        (
            "WHEEL=@Whel()",
            "No gin file uses a function or class named 'Whel'. Did you mean 'Wheel'?",
        ),
    ],
)
def test_wrong_binding_is_named(tmp_path: pathlib.Path, binding: str, expected: str) -> None:
    message = error(tmp_path, toy_files.HEADER + "toy.Wheel.size = 1", (binding,))
    assert message.startswith(f"--gin.{binding}: ")
    assert expected in message
    assert "bindings string" not in message


def test_ambiguous_short_name_lists_the_long_ones(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("left_hand", "right_hand"):
        (tmp_path / f"{module}.py").write_text(
            "class Glove:\n    def __init__(self, size=1): ...\n"
        )
    monkeypatch.syspath_prepend(tmp_path)
    text = """
from __gin__ import dynamic_registration
import left_hand
import right_hand
A = @left_hand.Glove()
B = @right_hand.Glove()
"""
    message = error(tmp_path, text, ("Glove.size=2",))
    assert "'Glove' means more than one thing. Write left_hand.Glove or right_hand" in message
    config.clear_config()
    bindings = loading.load(["wrong.gin"], ["left_hand.Glove.size=2"], [str(tmp_path)])
    assert str(bindings[-1].key) == "left_hand.Glove.size"


def test_module_that_cannot_be_imported_is_explained(tmp_path: pathlib.Path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    for name, statement, reason in (
        ("needs_more", "import not_installed_anywhere", "No module named 'not_installed_anywhere'"),
        ("has_less", "from math import tau_of_pi", "cannot import name 'tau_of_pi' from 'math'"),
    ):
        (tmp_path / f"{name}.py").write_text(statement)
        message = error(tmp_path, toy_files.HEADER + f"import {name}")
        assert f"Cannot import {name!r}: {reason}" in message


def test_a_folder_searched_twice_is_listed_once(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConfigError) as caught:
        loading.load(["a.gin"], [], [str(tmp_path), f"{tmp_path}/../{tmp_path.name}"])
    assert str(caught.value).count(f"{tmp_path}") == 1


def test_class_that_no_file_imports_comes_with_the_lines_that_do(tmp_path: pathlib.Path) -> None:
    for written in ("@score.Score()", "@Score()"):
        message = error(
            tmp_path, toy_files.HEADER + "A = @toy.half", (f"PARAMETERIZATION={written}",)
        )
        *_, first, second, third = (each.strip() for each in message.splitlines())
        assert (first, second) == (
            "from __gin__ import dynamic_registration",
            "from idode_gin.parameterizations import score",
        )
        assert third == "PARAMETERIZATION = @score.Score()"
    (tmp_path / "lines.gin").write_text(f"{first}\n{second}\n{third}\n")
    config.clear_config()
    (binding,) = loading.load(["lines.gin"], [], [str(tmp_path)])
    assert str(binding.value) == third.partition(" = ")[2]


def test_modules_are_searched_by_the_name_they_are_written_with() -> None:
    assert readers.modules_that_define("uniform.Uniform") == [
        "idode_gin.dequantizers.uniform",
        "idode_gin.time_samplers.uniform",
    ]
    assert readers.modules_that_define("trainer.Trainer") == ["idode_gin.training.trainer"]
    assert readers.modules_that_define("NoSuchName") == []


@pytest.fixture
def _no_uniform() -> Iterator[None]:
    """Hides what gin files of earlier tests have registered."""
    registry = gin_internals.registry
    hidden = {name: registry.pop(name) for name in registry.matching_selectors("uniform.Uniform")}
    yield
    for name, each in hidden.items():
        registry[name] = each


@pytest.mark.usefixtures("_no_uniform")
def test_of_several_modules_the_one_beside_what_is_bound_is_imported(tmp_path) -> None:
    bound = "from idode_gin.{0} import {1}\nPART = @{1}.{2}()"
    for package, module, name in (
        ("time_samplers", "importance", "Importance"),
        ("dequantizers", "truncated_normal", "TruncatedNormal"),
    ):
        text = toy_files.HEADER + bound.format(package, module, name)
        config.clear_config()
        message = error(tmp_path, text, ("PART=@uniform.Uniform()",))
        assert f"from idode_gin.{package} import uniform" in message
        assert message.count("idode_gin") == 1
    config.clear_config()
    message = error(tmp_path, toy_files.HEADER + "A = @toy.half", ("PART=@uniform.Uniform()",))
    assert "Import the one that is meant:" in message
    assert "idode_gin.dequantizers.uniform: Uniform noise over the bin" in message
    assert "idode_gin.time_samplers.uniform: " in message


def test_an_included_file_may_lie_beside(tmp_path: pathlib.Path) -> None:
    (tmp_path / "own/parts").mkdir(parents=True)
    (tmp_path / "own/top.gin").write_text("include 'parts/middle.gin'\nSTEPS = 1")
    (tmp_path / "own/parts/middle.gin").write_text("include 'low.gin'\ninclude '../side.gin'")
    (tmp_path / "own/parts/low.gin").write_text("STEPS = 2")
    (tmp_path / "own/side.gin").write_text("\nSTEPS = 3")
    for folders, name in (([str(tmp_path)], "own/top.gin"), ([""], str(tmp_path / "own/top.gin"))):
        config.clear_config()
        found = loading.load([name], [], folders)
        assert [(each.value, each.named) for each in found] == [(n, name) for n in (2, 3, 1)]
        assert found[0].where == f"{tmp_path}/own/parts/low.gin:1"
        assert all(each.is_part for each in found[:2])


def test_search_paths_come_before_the_folder_of_the_including_file(tmp_path: pathlib.Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own/top.gin").write_text("include 'part.gin'")
    (tmp_path / "own/part.gin").write_text("STEPS = 1")
    (tmp_path / "part.gin").write_text("STEPS = 2")
    (found,) = loading.load(["own/top.gin"], [], [str(tmp_path)])
    assert (found.value, found.where) == (2, "part.gin:1")


def test_files_that_include_each_other_beside(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.gin").write_text("include 'b.gin'")
    (tmp_path / "b.gin").write_text("include 'a.gin'")
    with pytest.raises(ConfigError, match="includes itself"):
        loading.load([str(tmp_path / "a.gin")], [], [""])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("STEPS = 3".encode("utf-16"), "it is UTF-16, or no text"),
        ("STEPS = 3".encode("utf-16-le"), "it is UTF-16, or no text"),
        ("\n# größer\nSTEPS = 3".encode("latin-1"), "byte 0xf6 of line 2 is none"),
    ],
)
def test_encodings(tmp_path: pathlib.Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.gin").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        loading.load(["a.gin"], [], [str(tmp_path)])
    assert str(caught.value) == f"'a.gin' must be text in UTF-8: {reason}. Save it as UTF-8."


def test_a_byte_order_mark_and_windows_lines_are_read(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.gin").write_bytes("\ufeff# größer\r\nSTEPS = 3\r\n".encode())
    (found,) = loading.load(["a.gin"], [], [str(tmp_path)])
    assert (found.value, found.where) == (3, "a.gin:2")


def test_what_is_no_gin_file(tmp_path: pathlib.Path) -> None:
    (tmp_path / "notes.md").write_text("# Notes\n\nA text of several words.")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.gin").touch()
    for name, reason in (
        ("notes.md", "'notes.md' is no gin file, whose names end in .gin: .* .line 3.$"),
        ("run", "'run' is a folder; .* Gin files in it: config.gin"),
    ):
        with pytest.raises(ConfigError, match=reason):
            loading.load([name], [], [str(tmp_path)])


@pytest.mark.parametrize(
    ("binding", "expected"),
    [
        ("Engine.power=3*1e-3", "gin computes nothing. Write --gin.Engine.power=0.003"),
        ("STEPS=-(60*60)//7", "Write --gin.STEPS=-515"),
        ("STEPS=2**10", "Write --gin.STEPS=1024"),
        ("STEPS=9**9**9", "Text needs"),
        ("STEPS=1/0", "Text needs"),
        ("SIZE=many", "'many' is no number, and SIZE is one: 4 in the files."),
        ("SIZE=4px", "'4px' is no number, and SIZE is one: 4 in the files."),
        ("Wheel.size=big", "'big' is no number, and Wheel.size is one: 4 in the files."),
        ("A=toy.Wheel()", "Write --gin.A=@toy.Wheel()"),
        ("A=toy_program.Wheel", "import toy_program\n  A = @toy_program.Wheel()"),
    ],
)
def test_way_out_of_a_binding(tmp_path: pathlib.Path, binding: str, expected: str) -> None:
    text = toy_files.HEADER + "SIZE = 4\ntoy.Wheel.size = %SIZE\nA = @toy.half"
    assert expected in error(tmp_path, text, (binding,))


@pytest.mark.parametrize(
    ("name", "written"),
    [  # one name each: gin remembers what a file mentions
        ("sgd", "optax.sgd"),
        ("yogi", "@optax.yogi()"),
        ("fromage", "optax.fromage(1e-3)"),
        ("rmsprop", "@optax.rmsprop"),
    ],
)
def test_a_function_of_a_library_comes_with_the_lines_that_bind_it(
    tmp_path: pathlib.Path, name: str, written: str
) -> None:
    message = error(tmp_path, "LEARNING_RATE = 0.5", (f"OPTIMIZER={written}",))
    *_, library, value, parameter = lines = [each.strip() for each in message.splitlines()][-4:]
    assert (library, value) == ("import optax", f"OPTIMIZER = @optax.{name}()")
    assert parameter == f"optax.{name}.learning_rate = %LEARNING_RATE"
    (tmp_path / "lines.gin").write_text("\n".join(lines))
    config.clear_config()
    found = loading.load(["lines.gin"], [], [str(tmp_path)])
    assert [str(each.key) for each in found] == ["OPTIMIZER", f"{name}.learning_rate"]
