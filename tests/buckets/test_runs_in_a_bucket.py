"""A run in a bucket has the numbers and files of a run on a disk."""

import numpy as np
import pytest
import tiny
import tiny_runs

from idode_gin.checkpoints import files, saving
from idode_gin.reports import fingerprints
from idode_gin.runs import run_inputs

pytest.importorskip("gcsfs")
pytest.importorskip("gcp_storage_emulator")


@pytest.fixture(autouse=True)
def _tiny_data(monkeypatch):
    tiny.use_tiny_data(monkeypatch)


def test_train_resume_and_read(bucket, tmp_path):
    here = tmp_path / "run"
    for folder in (here, bucket):
        tiny_runs.run(folder, 3, period=1, keep=2)
        tiny_runs.run(folder, 6, period=1, keep=2, tensorboard=True)  # resumes
    assert tiny_runs.outcome(bucket) == tiny_runs.outcome(here)
    assert files.saved_steps(bucket) == files.saved_steps(here) == [5, 6]
    names = {each.name for each in here.iterdir()}
    assert {each.name for each in bucket.iterdir()} == names
    assert {each.name for each in (bucket / "train").glob("*.png")} == {
        each.name for each in (here / "train").glob("*.png")
    }
    assert list((bucket / "train").glob("events.out.tfevents.*"))
    _check_same_parameters(bucket, here)
    _damage(bucket / "checkpoint_6")
    tiny_runs.run(bucket, 6, period=1, keep=2)
    assert tiny_runs.outcome(bucket) == tiny_runs.outcome(here)
    assert (bucket / "damaged_checkpoint_6").is_dir()


def test_an_unfinished_checkpoint_is_none(bucket):
    tiny_runs.run(bucket, 4, period=2)
    (bucket / "checkpoint_4" / files.COMMITTED).unlink()
    assert files.saved_steps(bucket) == [2]
    assert saving.find(str(bucket)).name == "checkpoint_2"
    with pytest.raises(ValueError, match="No checkpoint in gs://"):
        saving.find(str(bucket / "train"))


def _check_same_parameters(bucket, here):
    abstract = run_inputs.param_shapes(tiny.model(), tiny.split().image_shape)
    ours, theirs = (saving.restore_params(str(each), abstract) for each in (bucket, here))
    assert ours.step == theirs.step
    assert fingerprints.sha256(ours.params) == fingerprints.sha256(theirs.params)


def _damage(checkpoint):
    path = max((checkpoint / "ema").glob("d/*"), key=lambda each: len(each.read_bytes()))
    content = np.frombuffer(path.read_bytes(), np.uint8).copy()
    content[len(content) // 2 :] ^= 1
    path.write_bytes(content.tobytes())
