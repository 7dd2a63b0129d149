"""Files that tracing one update enters: the maths, and as little else as possible."""

import pathlib
import sys

import tiny

import idode_gin
from idode_gin.devices import partitioning
from idode_gin.runs import run_inputs

ROOT = pathlib.Path(idode_gin.__file__).parent
NOT_MATHS = ("training", "runs", "devices", "processes", "feed", "reports", "checkpoints")


def test_tracing_a_step_enters_three_files_beside_the_maths(tmp_path):
    trainer = tiny.trainer(tmp_path)
    batch = run_inputs.blank_batch(tiny.model(), tiny.SHAPE, 4)
    program = trainer.program(tiny.model(), tiny.SHAPE, batch)
    sharding = dict.fromkeys(batch, trainer.partitioner.batch_sharding)
    placed = partitioning.abstract(batch, sharding)
    entered = set()
    sys.setprofile(lambda frame, *_: entered.add(frame.f_code.co_filename))
    try:
        program.step.lower(program.abstract_state, placed)
    finally:
        sys.setprofile(None)
    ours = {str(pathlib.Path(each).relative_to(ROOT)) for each in entered if str(ROOT) in each}
    ours = {each for each in ours if not each.startswith("networks/")}
    assert {each for each in ours if each.startswith(NOT_MATHS)} == {
        "training/train_step.py",
        "training/guards.py",
        "training/optimizers.py",
    }
    assert len(ours) <= 17
