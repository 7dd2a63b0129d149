"""Values kept on disk: none is computed twice, lost, or mixed with another computation."""

import errno
import logging
import os

import numpy as np
import pytest

from idode_gin.runs import partial_results
from idode_gin.runs.partial_results import PartialResults

FACTS = {"seed": 3, "likelihood.solver": "Euler", "shape": (4, 4)}
NUMBER = 7


@pytest.fixture(autouse=True)
def _every_batch_is_written(monkeypatch):
    monkeypatch.setattr(partial_results, "WRITE_PERIOD", 0.0)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "out" / "partial"


def opened(folder, facts=FACTS, **others):
    return PartialResults(folder, facts, NUMBER, **others)


def values(index):
    """Values of every dtype that is kept."""
    index = np.asarray(index)
    return {
        "bpd": (index + 0.1).astype(np.float32),
        "image": np.stack([index, index + 1], axis=1).astype(np.uint8),
        "success": index % 2 == 0,
        "parity/random_batches": index + 0.5,
    }


def fill(kept, section, *batches):
    for index in batches:
        kept.add(section, np.asarray(index), values(index))


def parts(folder):
    return sorted(folder.glob("part_*.npz"))


def test_rows_keep_their_order_and_dtype(folder):
    fill(opened(folder), "a", [5, 1], [0])  # as if killed afterwards
    fill(opened(folder), "b/c", [2])
    kept = opened(folder)
    assert kept.progress("pairs") == "3 of 7 pairs of a, 1 of 7 pairs of b/c"
    assert kept.missing("a").tolist() == [2, 3, 4, 6]
    assert kept.missing("b/c").tolist() == [0, 1, 3, 4, 5, 6]
    assert kept.progress() == "3 of 7 images of a, 1 of 7 images of b/c"
    fill(kept, "a", kept.missing("a"))
    for found in (kept.rows("a"), opened(folder).rows("a")):
        assert list(found) == sorted(found)
        for name, expected in values(range(NUMBER)).items():
            assert found[name].dtype == expected.dtype
            np.testing.assert_array_equal(found[name], expected)


def test_some_images_can_be_all_that_a_section_holds(folder):
    some = np.array([1, 4, 6])
    fill(opened(folder), "a", [4])
    kept = opened(folder)
    assert kept.missing("a", some).tolist() == [1, 6]
    kept.expected["a"] = 3
    assert kept.progress() == "1 of 3 images of a"
    fill(kept, "a", kept.missing("a", some))
    assert kept.missing("a", some).size == 0
    for name, expected in values(some).items():
        np.testing.assert_array_equal(kept.rows("a", some)[name], expected)


def test_facts_known_later_bind_the_values_that_depend_on_them(folder):
    """The solver that a pilot chose: bounds that need none are kept under another one."""
    first = opened(folder)
    fill(first, "bound", range(NUMBER))
    first.require({"tn": "8 steps"}, unless_in=["bound"])
    kept = opened(folder)
    kept.require({"tn": "16 steps"}, unless_in=["bound"])
    fill(kept, "tn", [0])
    with pytest.raises(ValueError, match="tn was 16 steps and is now 8 steps"):
        opened(folder).require({"tn": "8 steps"}, unless_in=["bound"])
    opened(folder).require({"tn": "16 steps"}, unless_in=["bound"])
    assert opened(folder).missing("bound").size == 0


def test_seconds_add_up(folder, monkeypatch):
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(partial_results.time, "monotonic", lambda: next(clock))
    before = []
    for number in range(3):
        kept = opened(folder)
        before.append(kept.seconds_before)
        fill(kept, "a", [number])
    assert before[0] == 0
    assert 0 < before[1] == before[2] / 2


def test_seconds_of_several_parts_are_those_until_the_last(folder, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(partial_results.time, "monotonic", lambda: now[0])
    kept = opened(folder)
    for number, seconds in enumerate((1.0, 4.0, 2.0)):
        now[0] += seconds
        fill(kept, "a", [number])
    assert len(parts(folder)) == 3
    assert opened(folder).seconds_before == 1 + 4 + 2


def test_nothing_is_written_without_values(folder):
    kept = opened(folder)
    assert not kept.is_begun
    assert kept.missing("a").tolist() == list(range(NUMBER))
    kept.write()
    assert not folder.parent.exists()


def test_parts_are_written_periodically(folder, monkeypatch):
    monkeypatch.setattr(partial_results, "WRITE_PERIOD", 3600.0)
    kept = opened(folder)
    fill(kept, "a", [0], [1], [2])
    assert parts(folder) == []
    kept.write()
    kept.write()
    assert len(parts(folder)) == 1
    assert opened(folder).missing("a").tolist() == [3, 4, 5, 6]


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b[:99] + b[98:99] + b[100:], lambda b: b""]
)
def test_a_damaged_part_is_computed_again(folder, caplog, damage):
    fill(opened(folder), "a", [0, 1], [2, 3], [4])
    path = parts(folder)[1]
    path.write_bytes(damage(path.read_bytes()))
    with caplog.at_level(logging.WARNING, "absl"):
        kept = opened(folder)
    assert f"{path} is damaged; its images are computed again" in caplog.text
    assert kept.missing("a").tolist() == [2, 3, 5, 6]
    fill(kept, "a", kept.missing("a"))
    assert opened(folder).missing("a").size == 0


def test_values_of_another_computation_raise(folder):
    fill(opened(folder), "a", [0])
    others = {"seed": 4, "likelihood.solver": "Euler", "K": 2}
    with pytest.raises(ValueError, match="seed was 3 and is now 4") as error:
        opened(folder, others)
    for expected in (
        str(folder),
        "K was nothing and is now 2",
        "shape was [4, 4] and is now nothing",
    ):
        assert expected in str(error.value)
    assert "solver" not in str(error.value)
    assert "another output directory" in str(error.value)
    assert opened(folder).missing("a").size == NUMBER - 1
    with pytest.raises(ValueError, match="; and 4 more"):
        opened(folder, {f"fact {number}": 1 for number in range(6)})


def test_values_of_another_format_raise(folder, monkeypatch):
    fill(opened(folder), "a", [0])
    monkeypatch.setattr(partial_results, "FORMAT", "another")
    with pytest.raises(ValueError, match="format was .* and is now another"):
        opened(folder)


def test_values_of_two_computations_are_never_mixed(folder, caplog):
    """One process continues to write after its facts were removed and another one started."""
    first = opened(folder)
    fill(first, "a", [0])
    (folder / "facts.json").unlink()
    with caplog.at_level(logging.WARNING, "absl"):
        second = opened(folder, {"seed": 4})
    assert not second.is_begun
    assert "belongs to another computation" in caplog.text
    fill(second, "a", [1])
    fill(first, "a", [2])
    assert opened(folder, {"seed": 4}).missing("a").tolist() == [0, 2, 3, 4, 5, 6]


def test_what_is_known_before_a_start_is_compared(folder):
    partial_results.check(folder, {"seed": 4})  # nothing there
    digests = [str(each) * 64 for each in (0, 1)]
    fill(opened(folder, {**FACTS, "code_sha256": digests[0]}), "a", [0])
    partial_results.check(folder, {"seed": 3, "shape": (4, 4)})
    with pytest.raises(ValueError, match="seed was 3 and is now 4"):
        partial_results.check(folder, {"seed": 4})
    with pytest.raises(ValueError, match="likelihood.solver was Euler and is now nothing"):
        partial_results.check(folder, {"seed": 3}, ["likelihood", "seed"])
    partial_results.check(folder, {"seed": 3}, ["seed", "other"])
    with pytest.raises(ValueError, match="new was nothing and is now 1"):
        partial_results.check(folder, {"new": 1})
    with pytest.raises(ValueError, match="code_sha256 was 0{12}… and is now 1{12}…. Restore"):
        partial_results.check(folder, {"code_sha256": digests[1]})
    (folder / "facts.json").write_text("{")
    partial_results.check(folder, {"seed": 4})  # the run repairs it


def test_damaged_facts_are_rewritten(folder):
    fill(opened(folder), "a", [0])
    (folder / "facts.json").write_text("{")
    fill(opened(folder), "a", [1])
    with pytest.raises(ValueError, match="seed was 3"):
        opened(folder, {**FACTS, "seed": 4})
    assert opened(folder).missing("a").tolist() == [2, 3, 4, 5, 6]


def test_other_hardware_is_logged(folder, caplog):
    fill(opened(folder, hardware="1 x cpu"), "a", [0])
    with caplog.at_level(logging.WARNING, "absl"):
        assert opened(folder, hardware="1 x cpu").is_begun
        assert caplog.text == ""
        assert opened(folder, hardware="2 x cpu").is_begun
    assert "computed on 1 x cpu; the others are computed on 2 x cpu" in caplog.text


def test_nothing_is_written_after_removal(folder, monkeypatch):
    kept = opened(folder)
    fill(kept, "a", [0])
    monkeypatch.setattr(partial_results, "WRITE_PERIOD", 3600.0)
    fill(kept, "a", [1])
    kept.remove()
    kept.write()
    assert not folder.exists()
    assert folder.parent.exists()


def test_a_disk_error_names_the_file(folder, monkeypatch):
    kept = opened(folder)
    fill(kept, "a", [0])

    def refuse(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match=f"{os.strerror(errno.ENOSPC)}: '{folder}/part_"):
        fill(kept, "a", [1])
    assert opened(folder).missing("a").tolist() == [1, 2, 3, 4, 5, 6]
