"""What a look at a series of checkpoints costs, in a directory that has many."""

import pytest

from idode_gin.checkpoints import files
from idode_gin.checkpoints.series import All, Watch, _Backlog


@pytest.fixture
def looks(tmp_path, monkeypatch):
    """A directory of 20 checkpoints, of which 5 have their scores, and the steps looked at."""
    done, asked, stamped = {1, 2, 3, 10, 20}, [], []
    for step in range(1, 21):
        (tmp_path / f"checkpoint_{step}").mkdir()

    def is_done(checkpoint):
        asked.append(step_of(checkpoint))
        return asked[-1] in done

    def stamp(checkpoint):
        stamped.append(step_of(checkpoint))
        return 1, 1

    monkeypatch.setattr(files, "stamp", stamp)
    return tmp_path, done, is_done, asked, stamped


def step_of(checkpoint):
    return int(checkpoint.name.partition("_")[2])


@pytest.mark.parametrize("series", [All(), Watch(period=0.01, timeout=0.05)])
def test_each_checkpoint_is_looked_at_before_and_after_it_is_given(looks, series):
    directory, done, is_done, asked, stamped = looks
    given = []
    for checkpoint in series.each(str(directory), is_done):
        given.append(step_of(checkpoint))
        done.add(given[-1])
    assert given == [step for step in range(1, 21) if step not in (1, 2, 3, 10, 20)]
    assert sorted(asked) == sorted([*range(1, 21), *given])
    assert stamped == given


def test_a_run_may_be_named_almost_like_a_checkpoint(tmp_path):
    watch = Watch(period=0.01, timeout=0.05)
    watch.check(str(tmp_path / "checkpoint_a"))
    for name in ("checkpoint_7", "checkpoint_007"):
        with pytest.raises(ValueError, match="No checkpoint at"):
            watch.check(str(tmp_path / name))


def test_one_that_is_not_done_is_given_again_when_it_changes(looks, monkeypatch):
    directory, done, is_done, *_ = looks
    given, changes = [], iter([(1, 1), (1, 2)])
    monkeypatch.setattr(files, "stamp", lambda _: next(changes, (1, 2)))
    done |= set(range(1, 21)) - {7}
    for checkpoint in All().each(str(directory), is_done):
        given.append(step_of(checkpoint))
    assert given == [7, 7]


def test_a_step_that_is_saved_anew_is_given_again(looks):
    """A run that diverged is resumed from an older checkpoint, and repeats its steps."""
    directory, done, is_done, *_ = looks
    done |= set(range(1, 21))
    backlog = _Backlog(str(directory), is_done)
    assert backlog.next() is None
    (directory / "checkpoint_20").rename(directory / "aside")
    assert backlog.next() is None
    (directory / "checkpoint_20").mkdir()
    done.remove(20)
    assert step_of(backlog.next()) == 20
