"""Settings without effect are reported, by a dry run and before training; others are not."""

import tiny
from tiny_runs import run

from idode_gin.checkpoints.saving import RestoreCheckpointConfig
from idode_gin.checkpoints.saving import SaveCheckpointConfig as SaveConfig
from idode_gin.schedules.time import linear
from idode_gin.training import idle_settings
from idode_gin.training.optimizers import AdamW


def found(steps, save=None, **optimizer):
    adamw = AdamW(warmup_steps=0, **optimizer)
    return idle_settings.lines(tiny.model(), adamw, save or SaveConfig(), steps)


def test_what_would_not_be_learned_or_saved():
    """Each setting is of step 7, which is the last one, or beyond it, or before it."""
    saved = SaveConfig(checkpoint_steps=(2, 7))
    for each in (found(7, decay_steps=7), found(7, accumulation_steps=7), found(7, saved)):
        assert each == []
    (decay,) = found(8, decay_steps=7)
    assert decay.startswith("From step 7 on, the learning rate is 1e-08 and nothing is learned")
    assert "ends at step 8. Bind AdamW.decay_steps = 8" in decay
    (updates,) = found(6, accumulation_steps=7)
    assert updates.endswith("ends at step 6, and AdamW.accumulation_steps = 7. Bind at most 6.")
    (steps,) = found(6, saved)
    assert "has steps that are not saved, from 7 on: training ends at step 6" in steps


def test_they_are_printed_by_runs_and_dry_runs(tmp_path, capsys):
    settings = {"optimizer": AdamW(warmup_steps=0, decay_steps=1)}
    model = tiny.model(image_shape=tiny.SHAPE)
    planned = tiny.trainer(tmp_path / "run", 2, **settings).dry_run(model, tiny.config())
    run(tmp_path / "run", 2, **settings)
    for text in (planned, capsys.readouterr().out):
        assert "WARNING: From step 1 on, the learning rate is 1e-08" in text


def test_a_start_that_was_trained_as_another_model(tmp_path, caplog):
    """Known to a dry run, which reads the description of the checkpoint."""
    run(tmp_path / "run", 2)
    restore = RestoreCheckpointConfig(path=str(tmp_path / "run"))
    again = tiny.trainer(tmp_path / "other", 4, restore=restore)
    again.dry_run(tiny.model(image_shape=tiny.SHAPE), tiny.config())
    assert "was trained as another model" not in caplog.text
    other = tiny.model(image_shape=tiny.SHAPE, time=linear.Linear(gamma_min=-7.0, gamma_max=5.0))
    again.dry_run(other, tiny.config())
    assert f"{tmp_path / 'run' / 'checkpoint_2'} was trained as another model" in caplog.text
