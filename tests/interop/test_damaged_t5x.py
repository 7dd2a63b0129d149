"""Damaged checkpoints of upstream t5x: one line says what does not fit, and nothing is written."""

import copy
import json

import jax
import numpy as np
import pytest
import states
from test_t5x_checkpoints import STEP, upstream_tree, write

from idode_gin.interop import convert, t5x_checkpoints
from idode_gin.reports import fingerprints


def without(*path):
    def change(tree):
        *folders, last = path
        for each in folders:
            tree = tree[each]
        del tree[last]

    return change


def with_value(value, *path):
    def change(tree):
        *folders, last = path
        for each in folders:
            tree = tree[each]
        tree[last] = value

    return change


BIAS = ("target", "hidden", "bias")
WRONG = {
    "no parameters": (without("target"), "its state has no 'target'"),
    "no state": (without("state"), "its state has no 'state'"),
    "no step": (without("state", "step"), "must hold its step as an integer"),
    "half a step": (with_value(np.float32(2.5), "state", "step"), "must hold its step"),
    "step before zero": (with_value(np.int32(-1), "state", "step"), "must hold its step"),
    "steps": (with_value(np.zeros(2, np.int32), "state", "step"), "must hold its step"),
    "no average of a leaf": (without(*BIAS), "These differ: hidden/bias"),
    "another shape": (with_value(np.zeros(3, np.float32), *BIAS), "These differ: hidden/bias"),
    "another moment": (
        without("state", "param_states", "0", "0", "mu", "out", "bias"),
        "mu/out/bias",
    ),
    "a moment of another shape": (
        with_value(
            np.zeros((1, 8), np.float32), "state", "param_states", "0", "0", "nu", *BIAS[1:]
        ),
        "These differ: 0/nu/hidden/bias",
    ),
    "a moment too many": (
        with_value(np.zeros(1, np.float32), "state", "param_states", "0", "0", "nu", "new"),
        "These differ: 0/nu/new",
    ),
    "a leaf too many": (with_value(np.zeros(1, np.float32), "target", "new"), "differ: new"),
    "integers": (with_value(np.zeros(8, np.int32), *BIAS), "These are not: target/hidden/bias"),
    "truth values": (with_value(np.zeros(8, bool), *BIAS), "These are not: target/hidden/bias"),
    "complex": (with_value(np.zeros(8, np.complex64), *BIAS), "These are not: target/hidden/bias"),
    "double precision": (
        with_value(np.zeros(8, np.float64), *BIAS),
        "These are not: target/hidden/bias",
    ),
    "the step of another": (
        with_value(np.int32(7), "state", "step"),
        "the step of its name, got 7",
    ),
    "not a number": (
        with_value(np.full(8, np.nan, np.float32), *BIAS),
        "These are not: target/hidden/bias",
    ),
}


def assert_refused(code, tmp_path, capsys, expected=""):
    """Check for exit code 2, one line that names the checkpoint, and no output folder."""
    error = capsys.readouterr().err
    assert code == 2
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert f"checkpoint_{STEP}" in error
    assert expected in error
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_refused_by_name(tmp_path, capsys, name):
    change, expected = WRONG[name]
    tree = copy.deepcopy(jax.tree.map(np.asarray, upstream_tree()))
    change(tree)
    write(tmp_path / "theirs", tree)
    command = [f"--source={tmp_path / 'theirs'}", f"--output={tmp_path / 'ours'}"]
    assert_refused(convert.main(command), tmp_path, capsys, expected)


SIGNALING_NAN = np.full(8, 0x7FA00000, np.uint32).view(np.float32)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (BIAS, SIGNALING_NAN),
        (("state", "step"), np.float32(3e38)),
        (("state", "step"), np.float32(np.inf)),
        (("state", "step"), SIGNALING_NAN[0]),
        (("state", "param_states", "0", "0", "count"), np.float32(3e38)),
    ],
)
def test_flipped_bytes_are_one_error_without_warnings(tmp_path, recwarn, path, value):
    tree = copy.deepcopy(jax.tree.map(np.asarray, upstream_tree()))
    with_value(value, *path)(tree)
    folder = write(tmp_path, tree)
    recwarn.clear()
    with pytest.raises(ValueError, match=path[-1]):
        t5x_checkpoints.load(folder)
    assert not recwarn.list


def edited_tree(generator):
    """Return a checkpoint's tree with one random leaf removed, added or replaced; and its name."""
    tree = copy.deepcopy(jax.tree.map(np.asarray, upstream_tree()))
    names = [name for name, _ in fingerprints.paths_and_leaves(tree)]
    # Of counters alone other values may be right.
    names = [name for name in names if not name.endswith("count")]
    name = names[generator.integers(len(names))]
    *folders, last = name.split("/")
    here = tree
    for each in folders:
        here = here[each]
    leaf = here[last]
    kind = ("missing", "shape", "dtype", "extra", "nan", "tree")[generator.integers(6)]
    if kind == "missing":
        del here[last]
    elif kind == "shape":
        here[last] = np.zeros((*leaf.shape, 2), leaf.dtype)
    elif kind == "dtype":
        here[last] = leaf.astype(np.complex64)
    elif kind == "extra":
        inside = here if len(folders) > 1 else tree["target"]
        inside[f"{last}_again"] = np.zeros(3, np.float32)
    elif kind == "nan":
        here[last] = np.full(leaf.shape, np.nan, np.float32)
    else:
        here[last] = {"inside": leaf}
    return tree, f"{kind} {name}"


def damage(path, generator):
    """Change one random file of a checkpoint; return what was done."""
    files = sorted(each for each in (path / "state").rglob("*") if each.is_file())
    victim = files[generator.integers(len(files))]
    content = bytearray(victim.read_bytes())
    kind = ("delete", "cut", "bytes", "json")[generator.integers(4)]
    if kind == "json":
        texts = [each for each in files if each.read_bytes()[:1] == b"{"]
        victim = texts[generator.integers(len(texts))]
        edited = edited_json(json.loads(victim.read_text()), generator)
        victim.write_text(json.dumps(edited))
    elif kind == "delete":
        victim.unlink()
    elif kind == "cut":
        victim.write_bytes(content[: generator.integers(len(content))])
    else:
        for place in generator.integers(len(content), size=4):
            content[place] = generator.integers(256)
        victim.write_bytes(content)
    return f"{kind} {victim.relative_to(path)}"


def edited_json(value, generator):
    """Return the value with one entry of it, at any depth, removed or replaced."""
    others = [None, -1, 2**40, "?", [], {}, True, 1.5]
    if isinstance(value, dict | list) and value and generator.random() < 0.8:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = keys[generator.integers(len(keys))]
        if generator.random() < 0.2:
            del value[key]
        else:
            value[key] = edited_json(value[key], generator)
        return value
    return others[generator.integers(len(others))]


def check_damage(seed, tmp_path, capsys):
    generator = np.random.default_rng(seed)
    path = write(tmp_path / "theirs", upstream_tree())
    done = damage(path, generator)
    code = convert.main([f"--source={path}", f"--output={tmp_path / 'ours'}"])
    if code:
        assert_refused(code, tmp_path, capsys)
        return
    # The file was not needed; or, as t5x saves no checksums, other numbers are as good.
    found, wanted = t5x_checkpoints.load(path), states.state_of(STEP)
    shapes, expected = (
        {name: leaf.shape for name, leaf in fingerprints.paths_and_leaves(each.params)}
        for each in (found, wanted)
    )
    assert shapes == expected, done
    if "/d/" not in done:
        states.assert_same(found.params, wanted.params)


@pytest.mark.parametrize("seed", range(4))
def test_damaged_files(seed, tmp_path, capsys):
    check_damage(seed, tmp_path, capsys)


@pytest.mark.full
@pytest.mark.parametrize("block", range(20))
def test_damaged_files_many(block, tmp_path, capsys):
    for seed in range(100 + 15 * block, 115 + 15 * block):
        check_damage(seed, tmp_path / str(seed), capsys)


def check_edit(seed, tmp_path, capsys):
    tree, done = edited_tree(np.random.default_rng(seed))
    path = write(tmp_path / "theirs", tree)
    code = convert.main([f"--source={path}", f"--output={tmp_path / 'ours'}"])
    assert code == 2, done
    assert_refused(code, tmp_path, capsys)


@pytest.mark.parametrize("seed", range(4))
def test_edited_trees(seed, tmp_path, capsys):
    check_edit(seed, tmp_path, capsys)


@pytest.mark.full
@pytest.mark.parametrize("block", range(20))
def test_edited_trees_many(block, tmp_path, capsys):
    for seed in range(100 + 10 * block, 110 + 10 * block):
        check_edit(seed, tmp_path / str(seed), capsys)
