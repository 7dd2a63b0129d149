"""How to write what the command line cannot express, or what gin cannot parse."""

import ast
import operator
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gin import config_parser

from idode_gin.configs import gin_internals, value_types

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
    if called and gin_internals.registry.matching_selectors(called[1]):
        return f"{value!r} is no Python literal. Write --gin.{name}=@{called[1]}()"
    quoted = value.strip("'\"")
    return (
        f"{value!r} is no Python literal. Text needs Python's quotes inside the shell's: "
        f"--gin.{name}=\"'{quoted}'\""
    )


def lines_for_a_file(name: str, value: str, selector: str, modules: Sequence[str]) -> str:
    """Return the lines of a gin file that import and bind what the command line cannot import."""
    package, _, module = modules[0].rpartition(".")
    reference = f"{module}.{selector.rpartition('.')[2]}"
    others = f" (or: {', '.join(modules[1:])})" if modules[1:] else ""
    return _lines(
        selector,
        others,
        [f"from {package} import {module}", f"{name} = {value.replace(selector, reference)}"],
    )


def lines_of_library(name: str, value: str) -> str:
    """Return the like for a function of a library, such as `optax.lion`; else "".

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
    return _lines(found[1], "", [f"import {first}", f"{name} = @{found[1]}()", *parameters])


def _lines(selector: str, others: str, lines: Sequence[str]) -> str:
    return "\n  ".join(
        [
            f"No gin file uses a function or class named {selector!r}. The command line cannot "
            f"import it. Write these lines into a gin file{others} and add it with one more "
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
