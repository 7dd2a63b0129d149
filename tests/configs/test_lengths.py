"""Files and functions are short enough to be read at once."""

import ast
import pathlib
import statistics

ROOT = pathlib.Path(__file__).parents[2]
OURS = [path for name in ("idode_gin", "tasks") for path in sorted((ROOT / name).rglob("*.py"))]
FILE, FILE_OF_TESTS, MEDIAN, FUNCTION = 400, 500, 120, 60


def lines(path: pathlib.Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function, without its docstring."""
    last = function.end_lineno or function.lineno
    found = last - function.lineno + 1
    if ast.get_docstring(function) is not None:
        text = function.body[0]
        found -= (text.end_lineno or text.lineno) - text.lineno + 1
    return found


def too_long(source: str, limit: int) -> dict[str, int]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    functions = [each for each in ast.walk(ast.parse(source)) if isinstance(each, kinds)]
    return {each.name: length(each) for each in functions if length(each) > limit}


def test_long_functions_are_found():
    source = '''
def f(a):
    """Docstring.

    Of three lines."""
    b = 1
    return b

def g(
    a
):
    return a
'''
    assert too_long(source, 2) == {"f": 3, "g": 4}
    assert too_long(source, 3) == {"g": 4}


def test_lengths():
    tests = sorted((ROOT / "tests").rglob("*.py"))
    assert {str(each): lines(each) for each in OURS if lines(each) > FILE} == {}
    assert {str(each): lines(each) for each in tests if lines(each) > FILE_OF_TESTS} == {}
    assert statistics.median(map(lines, OURS)) <= MEDIAN
    long = {str(each): too_long(each.read_text(encoding="utf-8"), FUNCTION) for each in OURS}
    assert {path: found for path, found in long.items() if found} == {}
