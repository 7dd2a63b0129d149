"""Which values fit which annotations, and the messages about those that do not."""

import collections.abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Optional, TypeVar, Union

import jax
import pytest
from jaxtyping import Float

from idode_gin.configs import value_types
from idode_gin.configs.value_types import Built, Named
from idode_gin.reports import paths
from idode_gin.reports.paths import LocalPath, StoredPath
from idode_gin.solvers.base import AbstractSolver
from idode_gin.solvers.tableaus import Tableau

REFERENCE = "Write a reference that builds one, @MODULE.NAME(), such as"
T = TypeVar("T")


class AbstractShape:
    pass


class Circle(AbstractShape):
    pass


class Dog:
    def __call__(self) -> None: ...


class Pair(NamedTuple):
    left: int


def double(x: float) -> float:
    return 2 * x


FITTING = [
    (3, int),
    (3, float),
    (0.5, float),
    ("a", str),
    (True, bool),
    (None, Optional[int]),  # noqa: UP045 the old spelling must be read too
    (None, int | None),
    ("a", Union[int, str]),  # noqa: UP007
    ((1, 2), tuple[int, ...]),
    ((), tuple[int, ...]),
    ((1, "a"), tuple[int, str]),
    ([1, 2], list[int]),
    ([1, 2], Sequence[int]),
    ((1, 2), Sequence[int]),
    ({"a": 1}, dict[str, int]),
    ({"a": (1, None)}, Mapping[str, tuple[int | None, ...]]),
    ({"a": 1}, dict),
    ("coal", Literal["coal", "oil"]),
    (object(), Any),
    ("x", T),
    (3, object),
    (Built(Circle, "Circle"), AbstractShape),
    (Built(Circle, "Circle"), AbstractShape | None),
    (Built(int, "count"), float),
    (Built(Any, "unknown"), int),
    (Built(Dog, "Dog"), Callable[[], None]),
    (Built(Pair, "Pair"), tuple),
    ((Built(Circle, "Circle"),), tuple[AbstractShape, ...]),
    (Built(dict[str, int], "f"), dict),
    (Built(float | None, "f"), float),
    (Named(double, "double"), Callable[[float], float]),
    (Named(Circle, "Circle"), Callable[..., AbstractShape]),
    (Named(Circle, "Circle"), type[AbstractShape]),
    (Named(Circle, "Circle"), type),
    (3, jax.Array),
    (0.5, Float[jax.Array, ""] | None),
]

NOT_FITTING = [
    ("ten", int),
    (1e3, int),
    (True, int),
    (True, float),
    ("1e-3", float),
    (1, bool),
    (5, str),
    (None, int),
    (None, str),
    ([1, 2], tuple[int, ...]),
    (6, tuple[int, ...]),
    ((1, "a"), tuple[int, ...]),
    ((1,), tuple[int, str]),
    ((1, 2), list[int]),
    ([1.5], list[int]),
    ("ab", Sequence[str]),
    ({"a": "b"}, dict[str, int]),
    ({1: 1}, dict[str, int]),
    ("wood", Literal["coal", "oil"]),
    (1, Literal[True]),
    (3, AbstractShape),
    ("Circle", AbstractShape),
    ([3], AbstractShape),
    (3, Callable[[], int]),
    (3, collections.abc.Callable),
    (Built(Dog, "Dog"), AbstractShape),
    (Built(Dog, "Dog"), AbstractShape | int),
    (Built(float, "half"), int),
    (Built(None, "f"), int),
    (Built(str, "f"), float | None),
    ((Built(Dog, "Dog"),), tuple[AbstractShape, ...]),
    (Built(Circle, "Circle"), Callable[[], None]),
    (Named(Circle, "Circle"), AbstractShape),
    (Named(double, "double"), float),
    (Named(Dog, "Dog"), type[AbstractShape]),
    (3, jax.sharding.AbstractMesh),
    ("a", jax.Array),
    (True, jax.Array),
]


@pytest.mark.parametrize(("value", "annotation"), FITTING)
def test_fitting(value: object, annotation: object) -> None:
    assert value_types.fits(value, annotation)


@pytest.mark.parametrize(("value", "annotation"), NOT_FITTING)
def test_not_fitting(value: object, annotation: object) -> None:
    assert not value_types.fits(value, annotation)


@pytest.mark.parametrize(
    ("value", "annotation", "advice"),
    [
        (1e3, int, "Write 1000."),
        (1e3, int | None, "Write 1000."),
        ("10", int, "Write 10, without quotes."),
        ("1e-3", float, "Write 0.001, without quotes."),
        ("true", bool, "Write True, without quotes."),
        (1, bool, "Write True."),
        (True, int, "Write 1 if the number is meant."),
        (5, str, "Text needs quotes: '5'."),
        ([1, 2], tuple[int, ...], "Write (1, 2)."),
        ((1, 2), list[int], "Write [1, 2]."),
        (6, tuple[int, ...], "Write (6,), with its comma."),
        ((28, 28), tuple[int, int, int] | None, "Write (28, 28, 1) for grey images"),
        (Named(Circle, "Circle"), AbstractShape, "Add () to build it: @Circle()."),
        (Built(float, "double"), Callable[[float], float], "Drop the () to pass"),
        (None, AbstractShape, "It cannot be left out: drop the line"),
        ("adams", AbstractSolver, f"{REFERENCE} one of idode_gin.solvers."),
        ("heun", Tableau | None, f"{REFERENCE} one of idode_gin.solvers.tableaus."),
        ("Circle", AbstractShape, ""),
        (None, int, ""),
        (None, tuple[int, ...], ""),
        ("ten", int, ""),
        (0.5, int, ""),
    ],
)
def test_hint(value: object, annotation: object, advice: str) -> None:
    hint = value_types.hint(value, annotation)
    assert hint.startswith(advice)
    assert bool(hint) == bool(advice)


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        (int, "int"),
        (int | None, "int | None"),
        (tuple[int, ...], "tuple[int, ...]"),
        (dict[str, AbstractShape], "dict[str, AbstractShape]"),
        (Literal["a", "b"], "one of 'a', 'b'"),
        (Callable[[int], int], "a function"),
        (AbstractShape, "AbstractShape"),
    ],
)
def test_describe(annotation: object, text: str) -> None:
    assert value_types.describe(annotation) == text


def test_parameters_of_dataclass_class_and_function() -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Data:
        needed: "int"
        given: str = "a"

    class Plain:
        def __init__(self, size: int, *rest: int, **more: int) -> None: ...

    needed, given = value_types.parameters(Data).values()
    assert (needed.annotation, needed.required) == (int, True)
    assert (given.annotation, given.required) == (str, False)
    assert list(value_types.parameters(Plain)) == ["size"]
    assert value_types.parameters(Plain)["size"].annotation is int
    assert value_types.takes_any_keyword(Plain)
    assert not value_types.takes_any_keyword(Data)
    assert value_types.parameters(double)["x"] == value_types.Parameter(float, True)
    assert value_types.result_type(double) is float
    assert value_types.result_type(Data) is Data


def test_annotation_that_cannot_be_resolved_accepts_everything() -> None:
    def lost(x: "Nowhere", y: int) -> None: ...  # noqa: F821

    assert value_types.fits("anything", value_types.parameters(lost)["x"].annotation)
    assert not value_types.fits("anything", value_types.parameters(lost)["y"].annotation)


def test_a_number_where_names_are_wanted() -> None:
    annotation = Mapping[str, int] | Sequence[int] | None
    expected = "Write {'NAME': 8}, with the name of what the value is for."
    assert value_types.hint(8, annotation) == expected
    assert value_types.hint(8, Sequence[int]) == "Write (8,), with its comma."


def test_a_path_is_text_with_a_mark() -> None:
    def takes(here: LocalPath, there: StoredPath | None = None, text: str = "") -> None:
        """Annotated as the programs' parameters are."""

    found = value_types.parameters(takes)
    readers = [each.read_path for each in found.values()]
    assert readers == [paths.local, paths.stored, None]
    assert [value_types.describe(each.annotation) for each in found.values()] == [
        "str",
        "str | None",
        "str",
    ]
