"""Messages about differences. Real processes: tests/end_to_end/test_processes.py."""

import io
import pathlib

import jax
import pytest

from idode_gin.processes import agreement, failures, output
from idode_gin.reports import paths


def test_differences_in_words() -> None:
    first = {"STEPS": "5", "RATE": "0.1", "ONLY": "1"}
    others = {1: first | {"STEPS": "7"}, 3: {"STEPS": "5", "RATE": "0.1", "NEW": "2"}}
    assert agreement.differences(first, others) == [
        "process 1 has STEPS = 7, process 0 has 5",
        "process 3 has NEW = 2, process 0 has none",
        "process 3 has no ONLY, process 0 has ONLY = 1",
    ]
    assert agreement.differences(first, {1: first}) == []


def test_equal_differences_are_listed_once() -> None:
    others = {index: {"jax": "0.9"} for index in range(1, 9)}
    assert agreement.differences({"jax": "0.10"}, others) == [
        "8 processes (1, 2, 3, 4, 5, …) have jax = 0.9, process 0 has 0.10"
    ]


def test_one_process_does_not_look() -> None:
    def facts() -> dict[str, str]:
        raise AssertionError

    agreement.check("anything", facts)
    agreement.check_shared(pathlib.Path("nowhere"), "MODEL_DIR")
    with failures.until_done():
        failures.fail(2, "not for other processes")


def test_a_bucket_that_refuses_is_not_a_file_that_is_missing(monkeypatch) -> None:
    def refuse(_: pathlib.Path) -> bytes:
        raise paths.StoreError("the bucket refuses: no credentials")

    assert agreement._file_digest(pathlib.Path("nowhere")) == "nothing: No such file or directory"
    monkeypatch.setattr(pathlib.Path, "read_bytes", refuse)
    with pytest.raises(paths.StoreError, match="no credentials"):
        agreement._file_digest(pathlib.Path("config.gin"))


def test_every_module_counts() -> None:
    modules = agreement.modules()
    assert {
        "idode_gin/training/trainer.py",
        "idode_gin/processes/agreement.py",
        "tasks/digits.py",
    } <= set(modules)
    root = pathlib.Path(agreement.idode_gin.__file__).parent
    assert len([each for each in modules if each.startswith("idode_gin/")]) == len(
        list(root.rglob("*.py"))
    )
    assert {"idode_gin", "jax", "jax_platforms", "jax_enable_x64"} <= set(agreement.of_code())


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("enable_x64", True),
        ("default_matmul_precision", "highest"),
        ("default_prng_impl", "rbg"),
        ("threefry_partitionable", False),
    ],
)
def test_settings_that_change_numbers_are_compared(name, other) -> None:
    """A process with another one of them would compute its part of another run."""
    before = agreement.of_code()
    with getattr(jax, name)(other):
        after = agreement.of_code()
    assert {each for each in before if before[each] != after[each]} == {f"jax_{name}"}


def test_long_values_are_shortened_but_stay_different() -> None:
    one, other = (agreement._text("x" * 500 + end) for end in "ab")
    assert one != other
    assert len(one) < 250
    assert agreement._text((1, 2)) == "(1, 2)"


def test_every_line_has_its_process_in_front() -> None:
    written = io.StringIO()
    stream = output._Prefixed(written, "process 3: ")
    for text in ("a", "b\nc\n", "", "\nd"):
        assert stream.write(text) == len(text)
    assert written.getvalue() == "process 3: ab\nprocess 3: c\nprocess 3: \nprocess 3: d"
    assert not stream.closed
