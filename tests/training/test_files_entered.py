"""Files that loading a batch and tracing an update enter: few, so that the way can be followed."""

from benchmarks import files_entered

NOT_MATHS = ("training", "runs", "devices", "processes", "feed", "reports", "checkpoints")


def test_loading_a_batch():
    assert 1 < len(files_entered.of_a_batch("digits")) <= 10


def test_tracing_a_step_enters_three_files_beside_the_maths():
    entered = [each.removeprefix("idode_gin/") for each in files_entered.of_a_step()]
    assert {each for each in entered if each.startswith(NOT_MATHS)} == {
        "training/train_step.py",
        "training/guards.py",
        "training/optimizers.py",
    }
    assert len(entered) <= 17
