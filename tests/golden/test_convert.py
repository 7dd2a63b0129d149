"""Conversion of a published checkpoint, and a run that starts from the result."""

import jax
import numpy as np
import pytest

from idode_gin.checkpoints import saving
from idode_gin.devices import partitioning
from idode_gin.interop import convert, official
from idode_gin.training import optimizers, train_state

from . import cases


@pytest.mark.full
@pytest.mark.parametrize("name", cases.of_kind("ckpt")[:1])
def test_a_run_starts_from_a_published_checkpoint(name, tmp_path, capsys):
    folder = cases.unpack_checkpoint(cases.load(name), tmp_path)
    command = ["--source", str(folder), "--output", str(tmp_path / "ours")]
    assert convert.main(command) == 0
    published = official.load_official_checkpoint(folder)
    path = tmp_path / "ours" / f"checkpoint_{published['step']}"
    assert f"Wrote {path}" in capsys.readouterr().out

    def fresh():
        params = jax.tree.map(np.zeros_like, published["params"])
        return train_state.create(params, optimizers.AdamW().build(), ["loss"])

    shapes = jax.eval_shape(fresh)
    wanted = partitioning.abstract(shapes, partitioning.PjitPartitioner().state_sharding(shapes))
    restore = saving.RestoreCheckpointConfig(path=str(tmp_path / "ours"))
    config = saving.CheckpointConfig(restore=restore)
    state, _ = saving.Checkpoints(tmp_path / "run", config, {}).restore(wanted, fresh)
    adam, _, schedule = state.opt_state
    expected = published["opt_state"]
    for found, want in (
        (state.params, published["params"]),
        (state.ema, published["ema_params"]),
        (adam.mu, expected["mu"]),
        (adam.nu, expected["nu"]),
    ):
        jax.tree.map(np.testing.assert_array_equal, found, want)
    assert int(state.step) == published["step"]
    assert int(adam.count) == int(schedule.count) == expected["count"]


def test_what_cannot_be_converted(tmp_path, capsys):
    command = ["--source", str(tmp_path), "--output", str(tmp_path / "ours")]
    assert convert.main(command) == 2
    assert "No published checkpoint" in capsys.readouterr().err
    (tmp_path / "ours" / "checkpoint_3").mkdir(parents=True)
    assert convert.main(command) == 2
    assert "already contains checkpoints (steps [3])" in capsys.readouterr().err
