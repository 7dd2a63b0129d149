"""Relative steps: where a run ends that counts from the step it started at."""

import pytest
import states

from idode_gin.checkpoints import saving, steps_left
from idode_gin.checkpoints.saving import RestoreCheckpointConfig

SCRATCH = RestoreCheckpointConfig()


def save(directory, step, facts):
    with saving.Checkpoints(directory, saving.CheckpointConfig(), facts) as saved:
        saved.save(states.state_of(step))


def last_step(directory, restore=SCRATCH, relative=10):
    return steps_left.last_step(directory, restore, 100, relative)


def test_from_scratch_and_without_relative_steps(tmp_path):
    assert last_step(tmp_path) == 10
    assert last_step(tmp_path, relative=None) == 100
    with pytest.raises(ValueError, match="relative_steps"):
        last_step(tmp_path, relative=0)


def test_after_the_checkpoint_of_a_warm_start(tmp_path):
    save(tmp_path / "first", 6, {})
    path = str(tmp_path / "first")
    assert last_step(tmp_path / "run", RestoreCheckpointConfig(path=path)) == 16
    assert last_step(tmp_path / "run", RestoreCheckpointConfig(path=path, step="reset")) == 10


def test_a_resumed_run_ends_at_the_same_step(tmp_path):
    """Also if the run that it started from has trained on, or is gone."""
    save(tmp_path / "run", 8, {steps_left.FIRST_STEP: 6})
    assert last_step(tmp_path / "run", RestoreCheckpointConfig(path=str(tmp_path / "gone"))) == 16


def test_checkpoints_that_do_not_hold_their_first_step(tmp_path):
    save(tmp_path / "run", 8, {})
    with pytest.raises(ValueError, match="Bind TRAIN_STEPS, and TRAIN_STEPS_RELATIVE = None"):
        last_step(tmp_path / "run")


def test_a_warm_start_keeps_the_checkpoint_that_steps_are_counted_from(tmp_path):
    """Also if the run that it comes from trains on."""
    first, run = tmp_path / "first", tmp_path / "run"
    save(first, 6, {})
    given = RestoreCheckpointConfig(path=str(first), mode="latest")
    settled = steps_left.settled(run, given)
    save(first, 9, {})
    assert settled == RestoreCheckpointConfig(path=str(first / "checkpoint_6"))
    assert (last_step(run, settled), last_step(run, given)) == (16, 19)
    config = saving.CheckpointConfig(restore=settled)
    with saving.Checkpoints(run, config, {}) as saved:
        blank = states.state_of(0)
        found, _ = saved.restore(states.abstract_of(blank), lambda: blank)
    assert int(found.step) == 6


def test_a_start_that_has_no_step_of_its_own_stays_as_it_is(tmp_path):
    save(tmp_path / "first", 6, {})
    path = str(tmp_path / "first")
    for each in (SCRATCH, RestoreCheckpointConfig(path=path, step="reset")):
        assert steps_left.settled(tmp_path / "run", each) is each
    save(tmp_path / "run", 8, {steps_left.FIRST_STEP: 6})
    given = RestoreCheckpointConfig(path=path)
    assert steps_left.settled(tmp_path / "run", given) is given
