"""Mutants by syntax: one small edit of an expression or statement, as a tired hand makes it."""

import ast
import copy
import dataclasses
import os
import re
from collections.abc import Iterator

BINARY = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Pow: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
COMPARED = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
REDUCTIONS = {"sum": "mean", "min": "max", "any": "all", "minimum": "maximum", "floor": "ceil"}
REDUCTIONS |= {"argmin": "argmax", "logsumexp": "max", "log_mean_exp": "mean", "std": "var"}
REDUCTIONS |= {after: before for before, after in REDUCTIONS.items()}
REDUCTIONS |= {"mean": "sum", "max": "min"}
BROTHERS = (
    *(("first", "second"), ("left", "right"), ("before", "after"), ("low", "high"), ("a", "b")),
    *(("start", "end"), ("run", "total"), ("train", "eval"), ("params", "ema"), ("old", "new")),
    *(("noise", "probes"), ("prior", "det"), ("lower", "upper"), ("minimum", "maximum")),
)
"""Words that are easily taken for each other, alone or as a part of a name."""

NOT_ARGUMENTS = {"isinstance", "issubclass", "hasattr", "zip", "print", "cast", "einsum"}
NEVER_SWAPPED = (ast.Starred, ast.Lambda, ast.Constant, ast.JoinedStr)
NO_FIGURE = {"strict", "help", "label", "exist_ok", "missing_ok", "parents", "dtype", "encoding"}
NO_FIGURE |= {"flush", "file", "verb", "unit", "daemon", "stacklevel", "sort_keys", "indent"}
UNSEEN = ("logging", "warnings", "print", "say", "_say")
"""Calls that only speak: what they say is no figure."""


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One edit of `path`, a file of `idode_gin`: the bytes `[start, end)` become `after`."""

    path: str
    function: str
    line: int
    kind: str
    shown: str
    after: str
    start: int
    end: int

    @property
    def name(self) -> str:
        """The mutant without line numbers, so that it is found again after a move in its file."""
        return f"{self.path}::{self.function}: {self.shown}"

    def apply(self, source: bytes) -> bytes:
        """Return the source with the edit."""
        return source[: self.start] + self.after.encode() + source[self.end :]


def functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Yield the functions and methods that no function holds, each under its qualified name."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield node.name, node
        elif isinstance(node, ast.ClassDef):
            for each in node.body:
                if isinstance(each, ast.FunctionDef):
                    yield f"{node.name}.{each.name}", each


def called_at_import(source: bytes) -> set[str]:
    """Return names that a module uses outside of functions: no single test enters those."""
    tree, found = ast.parse(source), set()
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Name):
            found.add(node.id)
        if not isinstance(node, ast.FunctionDef):
            waiting += ast.iter_child_nodes(node)
    return found


def mutants(path: str, source: bytes) -> list[Mutant]:
    """Return every mutant of the functions of a module, in the order of the lines.

    Edits of one function that read the same are numbered: every name is there once.
    """
    lines = [0]
    for line in source.splitlines(keepends=True):
        lines.append(lines[-1] + len(line))
    found: dict[str, Mutant] = {}
    same: dict[str, list] = {}
    for function, node in functions(ast.parse(source)):
        names = _variables(node)
        for old in _inside(node):
            before = ast.unparse(old)
            for kind, new in _changes(old, names):
                start = lines[old.lineno - 1] + old.col_offset
                end = lines[old.end_lineno - 1] + old.end_col_offset
                after = ast.unparse(ast.fix_missing_locations(new))
                edit = (f"({after})" if isinstance(new, ast.expr) else after, start, end)
                shown = _shown(before, after)
                seen = same.setdefault(f"{function} {shown}", [])
                if edit not in seen:
                    seen.append(edit)
                    numbered = shown if len(seen) == 1 else f"{shown} #{len(seen)}"
                    mutant = Mutant(path, function, old.lineno, kind, numbered, *edit)
                    found[mutant.name] = mutant
    return sorted(found.values(), key=lambda each: (each.line, each.start))


def _variables(function: ast.FunctionDef) -> dict[str, int]:
    """Return the variables of a function, and the line from which each has a value."""
    found: dict[str, int] = {}
    for each in ast.walk(function):
        if isinstance(each, ast.arg):
            found[each.arg] = 0
        elif isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store):
            found[each.id] = min(each.lineno, found.get(each.id, each.lineno))
    return found


def _shown(before: str, after: str, around: int = 16) -> str:
    """Return both texts, without what they share beyond `around` characters of the edit."""
    shared = os.path.commonprefix([before, after])
    head = max(len(re.sub(r"\w+$", "", shared)) - around, 0)
    rest = os.path.commonprefix([before[len(shared) :][::-1], after[len(shared) :][::-1]])
    tail = max(len(re.sub(r"^\w+", "", rest[::-1])) - around, 0)
    texts = [re.sub(r"\s+", " ", text[head : len(text) - tail]) for text in (before, after)]
    lead, trail = "…" if head else "", "…" if tail else ""
    return " -> ".join(f"{lead}{text}{trail}" for text in texts)


def _inside(function: ast.FunctionDef) -> Iterator[ast.AST]:
    """Yield the nodes of a function's body that decide a value, without messages and types."""
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop()
        is_text = isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr | ast.arguments)
        if is_text or (isinstance(node, ast.Expr) and _only_speaks(node.value)):
            continue
        yield node
        skipped = {"annotation", "returns", "decorator_list", "type_params"}
        for name, value in ast.iter_fields(node):
            if name not in skipped:
                values = value if isinstance(value, list) else [value]
                waiting += [each for each in values if isinstance(each, ast.AST)]


def _only_speaks(value: ast.expr) -> bool:
    if isinstance(value, ast.Call):
        return any(part in UNSEEN for part in ast.unparse(value.func).split("."))
    return isinstance(value, ast.Constant)


def _with(node: ast.AST, **fields: object) -> ast.AST:
    """Return a copy of a node with other fields."""
    new = copy.copy(node)
    for name, value in fields.items():
        setattr(new, name, value)
    return new


def _changes(node: ast.AST, names: dict[str, int]) -> Iterator[tuple[str, ast.AST]]:
    """Yield kind and replacement of every edit of one node."""
    match node:
        case ast.BinOp() if not any(_is_text(side) for side in (node.left, node.right)):
            if type(node.op) in BINARY:
                yield "operator", _with(node, op=BINARY[type(node.op)]())
            if isinstance(node.op, ast.Add | ast.Sub | ast.Mult | ast.Div | ast.BitAnd | ast.BitOr):
                yield "term dropped", node.left
        case ast.Compare(ops=[op]) if type(op) in COMPARED:
            yield "comparison", _with(node, ops=[COMPARED[type(op)]()])
        case ast.UnaryOp(op=ast.USub() | ast.Not()):
            yield "sign", node.operand
        case ast.BoolOp():
            other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
            yield "and/or", _with(node, op=other)
            for dropped in range(len(node.values)):
                rest = [each for place, each in enumerate(node.values) if place != dropped]
                yield "condition dropped", rest[0] if len(rest) == 1 else _with(node, values=rest)
        case ast.Constant(value=bool() | int() | float()):
            yield "constant", ast.Constant(_other_number(node.value))
        case ast.Name(ctx=ast.Load()) if node.id in names:
            for other in sorted(names):
                if names[other] < node.lineno and _are_brothers(node.id, other):
                    yield ("key" if "key" in node.id else "name"), _with(node, id=other)
        case ast.Call():
            yield from _of_call(node)
        case ast.AugAssign():
            yield "augmented", ast.Assign([node.target], node.value, lineno=node.lineno)
            if type(node.op) in BINARY:
                yield "augmented", _with(node, op=BINARY[type(node.op)]())
        case ast.IfExp() if not any(_is_text(each) for each in (node.body, node.orelse)):
            yield "branch", node.body
            yield "branch", node.orelse
        case ast.Return(value=ast.Tuple(elts=[_, _, *_])):
            for place in range(len(node.value.elts) - 1):
                elements = _swapped(node.value.elts, place)
                yield "returned", _with(node, value=_with(node.value, elts=elements))
        case ast.Dict(keys=[_, _, *_]):
            for place in range(len(node.keys)):
                rest = [node.keys[:place] + node.keys[place + 1 :]]
                rest.append(node.values[:place] + node.values[place + 1 :])
                yield "entry dropped", ast.Dict(*rest)
        case ast.Expr(value=ast.Call()):
            yield "call dropped", ast.Pass()
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield "assignment dropped", ast.Pass()


def _of_call(node: ast.Call) -> Iterator[tuple[str, ast.AST]]:
    """Yield the edits of a call: its function, its arguments, their order."""
    name = ast.unparse(node.func).split(".")[-1]
    if name in REDUCTIONS:
        other = REDUCTIONS[name]
        if isinstance(node.func, ast.Attribute):
            yield "reduction", _with(node, func=_with(node.func, attr=other))
        elif name not in ("sum", "any", "all") or other in ("any", "all"):
            yield "reduction", _with(node, func=ast.Name(other, ast.Load()))
    if name == "stop_gradient":
        yield "stop_gradient", node.args[0]
    if name == "fold_in":
        yield "key", node.args[0]
        yield "key", _with(node, args=[node.args[0], ast.Constant(0)])
    if name == "where" and len(node.args) == 3:
        yield "swapped", _with(node, args=[node.args[0], node.args[2], node.args[1]])
    elif name not in NOT_ARGUMENTS:
        for place in range(len(node.args) - 1):
            pair = node.args[place : place + 2]
            if not any(isinstance(each, NEVER_SWAPPED) for each in pair):
                yield "swapped", _with(node, args=_swapped(node.args, place))
    for place, keyword in enumerate(node.keywords):
        rest = node.keywords[:place] + node.keywords[place + 1 :]
        if keyword.arg not in NO_FIGURE:
            yield "argument dropped", _with(node, keywords=rest)
    for place in range(len(node.keywords) - 1):
        first, second = node.keywords[place : place + 2]
        if first.arg and second.arg and not isinstance(first.value, ast.Constant):
            pair = [_with(first, value=second.value), _with(second, value=first.value)]
            keywords = node.keywords[:place] + pair + node.keywords[place + 2 :]
            yield "returned", _with(node, keywords=keywords)


def _swapped(values: list, place: int) -> list:
    first, second = values[place : place + 2]
    return [*values[:place], second, first, *values[place + 2 :]]


def _is_text(node: ast.AST) -> bool:
    is_constant = isinstance(node, ast.Constant) and isinstance(node.value, str | bytes)
    return is_constant or isinstance(node, ast.JoinedStr)


def _other_number(value: bool | int | float) -> bool | int | float:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return {0: 1, 1: 0, 2: 1}.get(value, value + 1)
    return 2 * value or 1.0


def _are_brothers(name: str, other: str) -> bool:
    """Return True if one is easily written for the other: two keys, `low` and `high`."""
    if name == other:
        return False
    parts, others = name.split("_"), other.split("_")
    for word in ("key", "keys"):
        if word in parts and word in others:
            return True
    differing = {pair for pair in zip(parts, others, strict=False) if pair[0] != pair[1]}
    is_pair = len(parts) == len(others) and len(differing) == 1
    return is_pair and any(pair in differing or pair[::-1] in differing for pair in BROTHERS)
