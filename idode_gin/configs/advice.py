"""Advice on values that the command line cannot express or gin cannot parse."""

import ast
import operator
import pathlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gin import config_parser

from idode_gin.configs import gin_internals, t5x_names, value_types

_OPERATORS: Mapping[type, Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Pow: operator.pow,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}
_LARGEST_POWER = 64
_CALL = re.compile(r"@?([A-Za-z_]\w*(?:\.\w+)*)(?:\(.*\))?", re.DOTALL)


def about_value(name: str, value: str, message: str, current: Any) -> str:
    """Return how to write a command-line binding that gin cannot parse.

    Args:
        name: of the macro or parameter.
        value: its text.
        message: gin's.
        current: the value that the files bind, None if there is none.
    """
    is_name = config_parser.MODULE_RE.match(name.replace("/", "."))
    if is_name and (lines := lines_of_library(name, value)):
        return lines
    if not is_name or not value or value[0] in "@%[({":
        return f"{message} Write --gin.NAME=VALUE, or --gin.scope/function.parameter=VALUE"
    if value.lower() in ("true", "false", "none"):
        return f"{value!r} is no Python literal. Write --gin.{name}={value.capitalize()}"
    if (number := _number(value)) is not None:
        return f"{value!r} is no Python literal: gin computes nothing. Write --gin.{name}={number}"
    if isinstance(current, int | float) and not isinstance(current, bool):
        return f"{value!r} is no number, and {name} is one: {current} in the files."
    called = _CALL.fullmatch(value)
    if called and "." in called[1] and (about_t5x := t5x_names.about_symbol(called[1])):
        return f"{value!r} is no Python literal. {about_t5x}"
    if called and gin_internals.registry.matching_selectors(called[1]):
        return f"{value!r} is no Python literal. Write --gin.{name}=@{called[1]}()"
    if called and hasattr(current, "configurable"):
        return (
            f"{value!r} is no function or class that the gin files import, and {name} is one: "
            f"{current} in the files. Write --gin.{name}=@NAME() for one that they import, or bind "
            "it in a gin file that imports it: docs/guides/extend.md"
        )
    quoted = value.strip("'\"")
    return (
        f"{value!r} is no Python literal. Text needs Python's quotes inside the shell's: "
        f"--gin.{name}=\"'{quoted}'\""
    )


def beside(modules: Sequence[str], current: Any) -> Sequence[str]:
    """Return the modules in the package of what is bound so far; all if it is in none of theirs.

    Args:
        modules: their names.
        current: the value of the macro or parameter that will be bound, such as a reference.
    """
    bound = getattr(getattr(current, "configurable", None), "wrapped", None)
    package = getattr(bound, "__module__", "").rpartition(".")[0]
    return [each for each in modules if each.rpartition(".")[0] == package] or modules


def lines_for_a_file(name: str, value: str, selector: str, modules: Sequence[str]) -> str:
    """Return the lines of a gin file that import and bind what the command line cannot import.

    Where several modules of ours define it, those of the first, and what the class in each is.
    """
    package, _, module = modules[0].rpartition(".")
    class_name = selector.rpartition(".")[2]
    reference = f"{module}.{class_name}"
    which = [f"  {each}: {_first_line(each, class_name)}" for each in modules if modules[1:]]
    several = ["Import the one that is meant:", *which] if which else []
    return "\n  ".join(
        [
            _lines(
                selector,
                [
                    f"from {package} import {module}",
                    f"{name} = {value.replace(selector, reference)}",
                ],
            ),
            *several,
        ]
    )


def lines_of_library(name: str, value: str) -> str:
    """Return those lines for a function of a library, such as `optax.lion`; else "".

    The library must be imported already: a look at others would run them.
    """
    found = _CALL.fullmatch(value)
    first, *rest = found[1].split(".") if found else [""]
    target = sys.modules.get(first) if rest else None
    for attribute in rest:
        target = getattr(target, attribute, None)
    if found is None or not callable(target):
        return ""
    macros = {scope for scope, selector in gin_internals.bindings if selector == "gin.macro"}
    required = [key for key, each in value_types.parameters(target).items() if each.required]
    bound = (f"%{key.upper()}" if key.upper() in macros else "VALUE" for key in required)
    parameters = [f"{found[1]}.{key} = {each}" for key, each in zip(required, bound, strict=True)]
    return _lines(found[1], [f"import {first}", f"{name} = @{found[1]}()", *parameters])


def _first_line(module: str, name: str) -> str:
    """Return the first line of the docstring of a class or function, without importing it."""
    source = pathlib.Path(*module.split(".")).with_suffix(".py")
    tree = ast.parse((pathlib.Path(__file__).parents[2] / source).read_text(encoding="utf-8"))
    kinds = ast.ClassDef | ast.FunctionDef
    found = (each for each in tree.body if isinstance(each, kinds) and each.name == name)
    return (ast.get_docstring(next(found)) or "").partition("\n")[0]


def _lines(selector: str, lines: Sequence[str]) -> str:
    return "\n  ".join(
        [
            f"No gin file uses a function or class named {selector!r}. The command line cannot "
            f"import it. Write these lines into a gin file and add it with one more "
            "--gin_file:",
            "from __gin__ import dynamic_registration",
            *lines,
        ]
    )


def _number(text: str) -> int | float | None:
    """Return the value of arithmetic on numbers; None if it is something else."""
    try:
        return _evaluated(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, TypeError, ArithmeticError, KeyError, RecursionError):
        return None


def _evaluated(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value
    if isinstance(node, ast.UnaryOp):
        return _OPERATORS[type(node.op)](_evaluated(node.operand))
    if not isinstance(node, ast.BinOp):
        raise ValueError("no arithmetic")
    left, right = _evaluated(node.left), _evaluated(node.right)
    if isinstance(node.op, ast.Pow) and abs(right) > _LARGEST_POWER:
        raise ValueError("too large to compute")
    return _OPERATORS[type(node.op)](left, right)
