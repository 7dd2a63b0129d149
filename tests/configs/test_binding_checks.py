"""Checks of bindings: every mistake that gin does not report is an error, and nothing else is."""

import contextlib
import functools
import pathlib
import re
from collections.abc import Callable

import pytest
import toy_files
import toy_program
from gin import config

from idode_gin.configs import building
from idode_gin.configs.loading import ConfigError, Key
from idode_gin.configs.reach import Reach

Load = Callable[..., Reach]
H = toy_files.HEADER


@pytest.fixture
def load(tmp_path: pathlib.Path) -> Load:
    return functools.partial(toy_files.load, tmp_path)


def error(load: Load, more: str = "", *bindings: str) -> list[str]:
    """Return the findings of the ConfigError that loading raises."""
    with pytest.raises(ConfigError) as caught:
        load(more, bindings)
    return [line.strip() for line in str(caught.value).split("\n")]


def test_right_configuration_passes_and_is_what_gin_uses(load: Load) -> None:
    reach = load()
    arguments = building.build(toy_program.main)
    assert arguments["steps"] == 10
    assert arguments["wheel"] == toy_program.Wheel(size=4)
    assert {str(key) for key in reach.used} == {
        *("STEPS", "FOLDER", "WHEEL", "WHEEL/Wheel.size", "Engine.power"),
        *("main.steps", "main.folder", "main.wheel", "main.engine"),
    }


def test_misspelt_macro(load: Load) -> None:
    assert error(load, "", "STEP = 7") == [
        "STEP is not used by anything [--gin.STEP=7]. Did you mean 'STEPS'?"
    ]
    assert error(load, "FOLDR = 'runs/b'") == [
        "FOLDR is not used by anything [experiment.gin:10]. Did you mean 'FOLDER'?"
    ]


def test_macro_without_value(load: Load) -> None:
    assert error(load, "toy.main.steps = %STEPZ\ntoy.Wheel.grip = 1.0") == [
        "%STEPZ is used but has no value. Did you mean 'STEPS'?"
    ]


@pytest.mark.parametrize(
    ("binding", "near"),
    [
        ("WHEL/Wheel.size = 7", "Did you mean 'WHEEL/Wheel.size'?"),
        ("WHEEL/toy/Wheel.size = 7", "Did you mean 'WHEEL/Wheel.size'?"),
        ("Wheel.size = 7", "Every use has its own: WHEEL/Wheel.size."),
        ("WHEEL/Engine.power = 7.0", "Did you mean 'Engine.power'?"),
        ("WHEEL/main.steps = 7", "Did you mean 'main.steps'?"),
    ],
)
def test_binding_that_nothing_reads(load: Load, binding: str, near: str) -> None:
    name = binding.split()[0]
    flag = f"--gin.{binding.replace(' ', '')}"
    assert error(load, "", binding) == [f"{name} is not used by anything [{flag}]. {near}"]


def test_class_that_nothing_builds(load: Load) -> None:
    found = error(load, "SPARE = @toy.Crate()\n")
    assert found == [
        "SPARE is not used by anything [experiment.gin:10]. Known: 'FOLDER', 'STEPS', 'WHEEL'."
    ]


def test_all_missing_values_at_once(tmp_path: pathlib.Path) -> None:
    toy_files.write(tmp_path)
    with pytest.raises(ConfigError) as caught:
        building.load_and_check(toy_program.main, ["run.gin"], [], [str(tmp_path)])
    assert str(caught.value) == (
        "These need a value: STEPS [run.gin:5], FOLDER [run.gin:6], WHEEL [run.gin:7]."
    )


def test_a_value_that_a_later_file_took_back(tmp_path: pathlib.Path) -> None:
    toy_files.write(tmp_path)
    with pytest.raises(ConfigError) as caught:
        building.load_and_check(
            toy_program.main, ["experiment.gin", "run.gin"], [], [str(tmp_path)]
        )
    (found,) = str(caught.value).splitlines()
    listed, _, order = found.partition(". ")
    assert listed.startswith("These need a value: STEPS [run.gin:5], ")
    assert re.fullmatch(
        r"STEPS had one \[experiment.gin:\d+\], which run.gin:5 took back: what is read later "
        "wins, so name the file with the value last.",
        order,
    )


def test_missing_parameters_of_what_is_built(load: Load) -> None:
    found = error(load, "toy.main.spare = @spare/toy.Engine()\ntoy.Engine.power = %gin.REQUIRED")
    assert found == [
        "These need a value: Engine.power [experiment.gin:11]. Engine.power had one [run.gin:13], "
        "which experiment.gin:11 took back: what is read later wins, so name the file with the "
        "value last."
    ]
    found = error(load, "WHEEL = @toy.Engine()\nWHEEL/toy.Engine.fuel = 'oil'\nPOWER = 1.0")
    assert found == ["POWER is not used by anything [experiment.gin:12]. Did you mean 'FOLDER'?"]


def test_parameter_without_default_or_binding(tmp_path: pathlib.Path) -> None:
    (tmp_path / "bare.gin").write_text(f"{H}toy.main.engine = @toy.Engine()")
    with pytest.raises(ConfigError) as caught:
        building.load_and_check(toy_program.main, ["bare.gin"], [], [str(tmp_path)])
    assert str(caught.value) == (
        "These need a value: main.steps, main.folder, main.wheel, Engine.power."
    )


def test_uncalled_reference_needs_no_arguments_yet(load: Load) -> None:
    load("toy.Engine.governor = @toy.limited")
    assert building.build(toy_program.main)["engine"].governor(0.5) == 0.5


@pytest.mark.parametrize(
    ("binding", "found"),
    [
        ("STEPS = 'ten'", "main.steps must be int, got 'ten' (str), through STEPS"),
        ("STEPS = 1e3", "main.steps must be int, got 1000.0 (float), through STEPS"),
        ("main.steps = True", "main.steps must be int, got True (bool)"),
        ("main.steps = None", "main.steps must be int, got None"),
        ("FOLDER = 5", "main.folder must be str, got 5 (int), through FOLDER"),
        ("main.loud = 1", "main.loud must be bool, got 1 (int)"),
        ("Engine.power = '2'", "Engine.power must be float, got '2' (str)"),
        ("WHEEL/Wheel.spokes = [1, 2]", "WHEEL/Wheel.spokes must be tuple[int, ...], got [1, 2]"),
        (
            "WHEEL/Wheel.spokes = (1, 'a')",
            "WHEEL/Wheel.spokes must be tuple[int, ...], got (1, 'a')",
        ),
        (
            "WHEEL/Wheel.spokes = (1, %FOLDER)",
            "WHEEL/Wheel.spokes must be tuple[int, ...], got (1, '",
        ),
        ("main.parts = {'a': %WHEEL, 'b': 3}", "main.parts must be dict[str, AbstractPart] | None"),
        ("WHEEL = 3", "main.wheel must be AbstractPart, got 3 (int), through WHEEL"),
        (
            "WHEEL = @Engine",
            "main.wheel must be AbstractPart, got @Engine, without (), through WHEEL",
        ),
    ],
)
def test_wrong_type(load: Load, binding: str, found: str) -> None:
    more = "toy.main.spare = @spare/toy.Wheel()" if "WHEEL = " not in binding else ""
    lines = error(load, more, binding)
    assert len(lines) == 1, lines
    assert lines[0].startswith(found)
    assert f"[--gin.{binding.replace(' = ', '=')}]" in lines[0]


@pytest.mark.parametrize(
    ("more", "found"),
    [
        (
            "toy.main.spare = @toy.Crate()",
            "main.spare must be AbstractPart | None, got @toy.Crate()",
        ),
        ("WHEEL = @toy.Crate()", "main.wheel must be AbstractPart, got @toy.Crate()"),
        (
            "toy.Engine.governor = @toy.half()",
            "Engine.governor must be a function | None, got @toy",
        ),
        ("toy.main.steps = @toy.half()", "main.steps must be int, got @toy.half(), which is float"),
        ("toy.Engine.fuel = 'wood'", "Engine.fuel must be one of 'coal', 'oil', got 'wood' (str)"),
    ],
)
def test_wrong_type_of_reference(load: Load, more: str, found: str) -> None:
    assert any(line.startswith(found) for line in error(load, f"toy.half.value = 2.0\n{more}\n"))


def test_right_types_of_references(load: Load) -> None:
    load(
        "toy.half.value = 2\ntoy.Engine.power = @toy.half()\ntoy.main.steps = @toy.count()\n"
        "toy.Engine.governor = @toy.limited\ntoy.limited.limit = 0.25\n"
        "toy.main.parts = {'a': %WHEEL, 'b': @toy.Engine()}\n"
    )
    arguments = building.build(toy_program.main)
    assert arguments["steps"] == 3
    assert arguments["engine"].power == 1.0
    assert arguments["engine"].governor(1.0) == 0.25
    assert arguments["parts"]["a"] == toy_program.Wheel(size=4)


def test_several_findings_are_reported_at_once(load: Load) -> None:
    found = error(load, "", "STEP = 7", "FOLDER = 5", "WHEL/Wheel.size = 1")
    assert [line.split()[0] for line in found] == ["STEP", "WHEL/Wheel.size", "main.folder"]


def test_what_a_later_line_put_out_of_use_is_no_error_and_is_dropped(load: Load) -> None:
    load("WHEEL = @toy.Engine()\n")  # the toy experiment's WHEEL/Wheel.size is now out of use
    assert "Wheel.size" not in config.config_str()
    load("", ["WHEEL = @Engine()"])
    assert "Wheel.size" not in config.config_str()
    load("toy.main.steps = 5\n")  # and so is STEPS
    assert "STEPS" not in config.config_str()


def test_included_files_may_bind_what_other_programs_use(tmp_path: pathlib.Path) -> None:
    (tmp_path / "gin_configs").mkdir()
    (tmp_path / "gin_configs" / "other.gin").write_text("# %GEAR, for another program")
    (tmp_path / "task.gin").write_text(f"{H}GEAR = @toy.Crate()\nWHEEL/toy.Wheel.grip = 0.1\n")
    toy_files.load(tmp_path, "include 'task.gin'\n")
    with pytest.raises(ConfigError, match=r"GEAR is not used by anything \[experiment"):
        toy_files.load(tmp_path, "include 'task.gin'\nGEAR = @toy.Wheel()\n")
    with pytest.raises(ConfigError, match=r"GEAR is not used by anything \[--gin.GEAR"):
        toy_files.load(tmp_path, "include 'task.gin'\n", ["GEAR = 1"])
    for folder, refused in (("experiments", True), ("tasks", False)):
        file = tmp_path / "gin_configs" / folder / "one.gin"
        file.parent.mkdir()
        file.write_text("include 'experiment.gin'\nGEAR = 1\n")
        files, outcome = [f"gin_configs/{folder}/one.gin"], contextlib.nullcontext()
        if refused:
            outcome = pytest.raises(
                ConfigError, match=r"GEAR is not used by anything \[gin_configs"
            )
        toy_files.write(tmp_path)
        with outcome:
            building.load_and_check(toy_program.main, files, [], [str(tmp_path)])
    (tmp_path / "gin_configs" / "other.gin").write_text("# %GEARS")
    with pytest.raises(ConfigError, match=r"GEAR is not used by anything \[task"):
        toy_files.load(tmp_path, "include 'task.gin'\n")


def test_what_was_out_of_use_when_it_was_written_is_an_error(load: Load) -> None:
    found = error(load, "toy.main.steps = 5\nSTEPS = 6\n")
    assert found[0].startswith("STEPS is not used by anything [experiment.gin:11].")
    found = error(load, "toy.main.steps = 5\n", "STEPS = 6")
    assert found[0].startswith("STEPS is not used by anything [--gin.STEPS=6].")
    found = error(load, "WHEEL = @toy.Engine()\n", "WHEEL/Wheel.size = 6")
    assert found[0].startswith("WHEEL/Wheel.size is not used by anything [--gin.WHEEL/")


SCOPES = {
    "inner scope wins": ("a/b/toy.Wheel.size = 3\na/toy.Wheel.size = 2", "@a/b/toy.Wheel()"),
    "outer scope serves": ("a/toy.Wheel.size = 2", "@a/b/toy.Wheel()"),
    "no scope serves": ("toy.Wheel.grip = 0.25", "@a/b/toy.Wheel()"),
    "a reference's scope replaces the one around it": (
        "a/toy.Wheel.size = 2\nM = @a/toy.Wheel()",
        "%M",
    ),
    "a macro's value is built in the macro's scope": (
        "M/toy.Wheel.size = 2\nM = @toy.Wheel()",
        "%M",
    ),
    "a macro of a macro": ("N/toy.Wheel.size = 2\nM = %N\nN = @toy.Wheel()", "%M"),
    "a scoped macro falls back to its outer name": (
        "a = @toy.Wheel()\na/b/toy.Wheel.size = 2",
        "%a/b",
    ),
    "a singleton is built in its own scope": (
        "one/gin.singleton.constructor = @toy.Wheel\none/toy.Wheel.size = 2",
        "@one/gin.singleton()",
    ),
}


@pytest.mark.parametrize("name", SCOPES)
def test_reach_is_what_gin_uses(load: Load, name: str) -> None:
    lines, spare = SCOPES[name]
    reachable_only = lines.replace("a/toy.Wheel.size = 2", "") if "inner" in name else lines
    reach = load(f"toy.main.spare = {spare}\n{reachable_only}\n")
    assert _calls(reach, deferred=False) <= _dynamic() <= _calls(reach, deferred=True)
    assert building.build(toy_program.main)["spare"] != toy_program.Wheel()


def test_shadowed_in_every_scope_is_an_error(load: Load) -> None:
    lines, spare = SCOPES["inner scope wins"]
    found = error(load, f"toy.main.spare = {spare}\n{lines}\n")
    assert found[0].startswith("a/Wheel.size is not used by anything")


def test_deferred_call_in_the_scope_of_its_consumer_or_around_it(load: Load) -> None:
    more = "toy.main.spare = @a/toy.Engine()\na/toy.Engine.governor = @toy.limited\n"
    load(more + "a/toy.limited.limit = 0.5\n")
    load(more + "toy.limited.limit = 0.5\n")
    found = error(load, more + "b/toy.limited.limit = 0.5\n")
    assert "Did you mean" in found[0]


def test_deferred_call_by_the_consumer_of_its_consumer(load: Load) -> None:
    """The truck, built in scope `out`, calls a function of the engine, built in scope `inner`."""
    more = (
        "toy.main.spare = @out/toy.Truck()\ntoy.Truck.engine = @inner/toy.Engine()\n"
        "inner/toy.Engine.governor = @toy.limited\nout/toy.limited.limit = 0.5\n"
    )
    reach = load(more)
    assert "out/limited.limit" in {str(key) for key in reach.used}
    building.build(toy_program.main)
    assert config._OPERATIVE_CONFIG["out", "toy.limited"]["limit"] == 0.5


def test_type_of_a_scoped_macro_that_falls_back(load: Load) -> None:
    found = error(load, "STEPS = 'ten'\ntoy.main.steps = %STEPS/later\n")
    assert found == ["main.steps must be int, got 'ten' (str), through STEPS [experiment.gin:10]."]


def test_what_python_itself_made_configurable_is_never_reported(load: Load) -> None:
    config.external_configurable(_decorated, "decorated", module="tests")
    reach = load("", ["decorated.amount = 3", "deep/decorated.amount = %STEPS"])
    used = {str(key) for key in reach.used}
    assert {"decorated.amount", "deep/decorated.amount", "STEPS"} <= used


def test_required_in_a_container(load: Load) -> None:
    found = error(load, "toy.main.parts = {'a': %gin.REQUIRED}\n")
    assert found == ["These need a value: main.parts [experiment.gin:10]."]


def _decorated(amount: int) -> None: ...


def _calls(reach: Reach, *, deferred: bool) -> set[tuple[str, str, frozenset[str]]]:
    """Return the calls that building makes, or with `deferred` may make, with their bindings."""
    return {
        ("/".join(call.scope), call.selector, frozenset(keys))
        for call, keys in reach.calls.items()
        if not call.selector.endswith("main") and deferred >= call.deferred
    }


def _dynamic() -> set[tuple[str, str, frozenset[str]]]:
    """Return the same from gin's own record, after building."""
    building.build(toy_program.main)
    found = set()
    for (scope, selector), values in config._OPERATIVE_CONFIG.items():
        bound = config._get_bindings(selector, scope.split("/") if scope else [])
        found.add((scope, selector, frozenset(set(values) & set(bound))))
    return found


def test_key_is_written_as_in_a_gin_file(load: Load) -> None:
    load()
    assert str(Key("STEPS", "gin.macro", "value")) == "STEPS"
    assert str(Key("a/b", "toy.Wheel", "size")) == "a/b/Wheel.size"


@pytest.mark.parametrize(
    ("more", "bindings"),
    [
        ("STEPS = %STEPS", ["STEPS = %STEPS [experiment.gin:10]"]),
        (
            "A = %B\nB = %STEPS\nSTEPS = %A",
            ["A = %B [experiment.gin:10]", "B = %STEPS [", "STEPS = %A ["],
        ),
        ("toy.Wheel.spokes = (%N, 3)\nN = [%N]", ["N = [%N] [experiment.gin:11]"]),
        (
            "WHEEL/toy.Wheel.name = %NAME\nNAME = @toy.Wheel()\nNAME/toy.Wheel.name = %NAME",
            ["NAME = @", "NAME/Wheel.name = %NAME ["],
        ),
        (
            "toy.Engine.power = @toy.limited()\ntoy.limited.value = @toy.limited()",
            ["limited.value"],
        ),
    ],
)
def test_ring_of_bindings(load: Load, more: str, bindings: list[str]) -> None:
    (found,) = error(load, more)
    assert " depends on itself: " in found
    assert [found.index(each) for each in bindings] == sorted(map(found.index, bindings))
    assert found.endswith(". Give one of them a value.")


def test_a_function_that_is_passed_on_within_itself_is_no_ring(load: Load) -> None:
    load("toy.Engine.governor = @toy.limited\ntoy.limited.limit = @toy.count()")
    engine = building.build(toy_program.main)["engine"]
    assert engine.governor(5) == toy_program.count()
    load("A = %B\nB = 3\nSTEPS = %A\ntoy.Engine.power = %A")
    arguments = building.build(toy_program.main)
    assert (arguments["steps"], arguments["engine"].power) == (3, 3)


def test_a_file_whose_bindings_are_all_replaced(tmp_path: pathlib.Path) -> None:
    toy_files.write(tmp_path)
    (tmp_path / "mine.gin").write_text("STEPS = 3")
    (tmp_path / "wheel.gin").write_text(f"{H}\nSTEPS = 4\ntoy.Wheel.grip = 1.0")

    def load(files: list[str], *bindings: str) -> None:
        building.load_and_check(toy_program.main, files, bindings, [str(tmp_path)])

    for files, bindings, by in (
        (["mine.gin", "experiment.gin"], [], "--gin_file=experiment.gin"),
        (["experiment.gin", "mine.gin", "wheel.gin"], [], "--gin_file=wheel.gin"),
        (["experiment.gin", "mine.gin"], ["STEPS = 5"], "--gin.STEPS=5"),
    ):
        with pytest.raises(ConfigError, match=f"^--gin_file=mine.gin has no effect: .* by {by}. L"):
            load(files, *bindings)
    load(["wheel.gin", "experiment.gin", "mine.gin"], "FOLDER = 'a'", "FOLDER = 'b'")


def test_a_binding_that_a_file_included_below_it_replaces(tmp_path: pathlib.Path) -> None:
    toy_files.write(tmp_path)
    mine, other = tmp_path / "mine.gin", tmp_path / "other.gin"
    other.write_text("STEPS = 4")

    def load(*bindings: str) -> None:
        building.load_and_check(toy_program.main, ["mine.gin"], bindings, [str(tmp_path)])

    lost = "include 'experiment.gin'\nSTEPS = 3\ninclude 'other.gin'"
    mine.write_text(lost)
    expected = r"^STEPS has no effect \[.*mine.gin:2\]: .*other.gin:1, "
    with pytest.raises(ConfigError, match=expected):
        load()
    load("STEPS = 5")
    declared = lost.replace("3", "%gin.REQUIRED")
    for harmless in (declared, lost.replace("3", "4"), lost + "\nSTEPS = 5", lost + "\nSTEPS = 3"):
        mine.write_text(harmless)
        load()
    mine.write_text("include 'experiment.gin'\ninclude 'other.gin'\nSTEPS = 3")
    load()
