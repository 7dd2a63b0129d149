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
