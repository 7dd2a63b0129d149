"""The mutants themselves: every kind of edit, and a fixed sample that runs to its end."""

import ast
import os
import pathlib
import subprocess
import sys

import mutant_syntax
import mutant_tests
import pytest

HERE = pathlib.Path(__file__).parent


def edits(body, arguments="a, b, c, low, high, key_a, key_b"):
    """The edits of a function of this body, by kind."""
    source = f"def fn({arguments}):\n    {body}\n"
    found = mutant_syntax.mutants("module.py", source.encode())
    for each in found:
        ast.parse(each.apply(source.encode()))
    return {(each.kind, each.shown) for each in found}


@pytest.mark.parametrize(
    ("body", "kind", "shown"),
    [
        ("return a + c", "operator", "a + c -> a - c"),
        ("return a / c", "operator", "a / c -> a * c"),
        ("return a**c", "operator", "a ** c -> a * c"),
        ("return a * c", "term dropped", "a * c -> a"),
        ("return a < c", "comparison", "a < c -> a <= c"),
        ("return a is not c", "comparison", "a is not c -> a is c"),
        ("return -a", "sign", "-a -> a"),
        ("return not a", "sign", "not a -> a"),
        ("return a and c", "and/or", "a and c -> a or c"),
        ("return a and c", "condition dropped", "a and c -> c"),
        ("return np.std(a, ddof=1)", "constant", "1 -> 0"),
        ("return np.std(a, ddof=1)", "argument dropped", "np.std(a, ddof=1) -> np.std(a)"),
        ("return a[0] * 0.5", "constant", "0 -> 1"),
        ("return jnp.sum(a, axis=0)", "reduction", "jnp.sum(a, axis=0) -> jnp.mean(a, axis=0)"),
        ("return np.mean(a)", "reduction", "np.mean(a) -> np.sum(a)"),
        ("return jnp.min(a)", "reduction", "jnp.min(a) -> jnp.max(a)"),
        ("return all(a)", "reduction", "all(a) -> any(a)"),
        ("return fold_in(a, 3)", "key", "fold_in(a, 3) -> fold_in(a, 0)"),
        ("return fold_in(a, 3)", "key", "fold_in(a, 3) -> a"),
        ("return draw(key_a), draw(key_b)", "key", "key_a -> key_b"),
        ("return low, high", "name", "low -> high"),
        ("return lax.stop_gradient(a)", "stop_gradient", "lax.stop_gradient(a) -> a"),
        ("return fn(a, b)", "swapped", "fn(a, b) -> fn(b, a)"),
        ("return where(a, b, c)", "swapped", "where(a, b, c) -> where(a, c, b)"),
        ("a += c", "augmented", "a += c -> a = c"),
        ("return a, c", "returned", "return (a, c) -> return (c, a)"),
        ("return Pair(u=a, v=b)", "returned", "Pair(u=a, v=b) -> Pair(u=b, v=a)"),
        ("return {'u': a, 'v': b}", "entry dropped", "{'u': a, 'v': b} -> {'v': b}"),
        ("a.clear()", "call dropped", "a.clear() -> pass"),
        ("a.count = 0", "assignment dropped", "a.count = 0 -> pass"),
        ("return b if a else c", "branch", "b if a else c -> c"),
    ],
)
def test_each_kind_of_edit(body, kind, shown):
    assert (kind, shown) in edits(body)


@pytest.mark.parametrize(
    "body",
    [
        "raise ValueError(f'{a + b} and {2}')",
        "logging.info(a + b)",
        "'a docstring'",
        "return c + 'text'",
    ],
)
def test_what_only_speaks_is_left_alone(body):
    assert not edits(body)


def test_an_edit_changes_its_place_alone_and_is_named_once():
    path = "likelihood/density.py"
    source = (mutant_tests.ROOT / "idode_gin" / path).read_bytes()
    found = mutant_syntax.mutants(path, source)
    assert len({each.name for each in found}) == len(found) > 20
    for each in found:
        mutated = each.apply(source)
        ast.parse(mutated)
        assert mutated != source
        assert mutated[: each.start] == source[: each.start]
        assert source.endswith(mutated[len(mutated) - len(source) + each.end :])


def test_a_fixed_sample(tmp_path):
    """An edit that the tests notice, and one of a bound that no test meets exactly."""
    names = {
        "end - begin -> end + begin": "killed",
        "share < NEGLIGIBLE -> share <= NEGLIGIBLE": "survived",
    }
    command = [sys.executable, str(HERE), "--tests", "tests/runs/test_averaging.py"]
    command += ["--folder", "runs/averaging.py", "--budget", "1"]
    for name in names:
        command += ["--name", name]
    done = subprocess.run(
        command,
        cwd=mutant_tests.ROOT,
        env={**os.environ, "MUTANTS_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    for name, result in names.items():
        assert any(line.startswith(result) and name in line for line in lines), done.stdout
    assert lines[-1] == "2 mutants, 1 survived, 1 without a reason."
