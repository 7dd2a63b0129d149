"""Early stopping: where a run ends, what it leaves behind, and that resuming keeps the count."""

import json

import pytest
import tiny
from tiny_runs import rows, run

from idode_gin.checkpoints import saving
from idode_gin.devices.partitioning import PjitPartitioner
from idode_gin.training import early_stopping
from idode_gin.training.early_stopping import EarlyStopping
from idode_gin.training.trainer import Trainer
from idode_gin.training.validation import Validation

VALUES = {2: 5.0, 4: 4.0, 6: 4.5, 8: 4.0, 10: 3.0, 12: 3.5, 14: 3.5}
RULE = EarlyStopping(patience=2)


@pytest.fixture
def train(monkeypatch, tmp_path):
    """Train with evaluations that give `VALUES`; return the summary."""
    made = {}
    program = Trainer.program

    def once(trainer, *args):
        if not made:
            made["program"] = program(trainer, *args)
        return made["program"]

    def evaluated(_, ema, step, last_words):
        return {"eval/bpd": VALUES[step], "eval/bpd_stderr": 0.1}

    monkeypatch.setattr(Trainer, "program", once)
    monkeypatch.setattr(Validation, "run", evaluated)

    def trained(train_steps=14, rule=RULE, name="run"):
        return run(
            tmp_path / name, train_steps, period=5, eval_period=2, early_stopping=rule, log_period=4
        )

    return trained


@pytest.mark.parametrize(
    ("values", "min_improvement", "expected"),
    [
        ([], 0.0, 0),
        ([3.0], 0.0, 0),
        ([3.0, 2.0, 1.0], 0.0, 0),
        ([3.0, 3.0, 3.0], 0.0, 2),
        ([3.0, 4.0, 2.9, 3.0], 0.0, 1),
        ([3.0, 2.95, 2.9, 2.85], 0.1, 0),
        ([3.0, 2.95, 2.91], 0.1, 2),
    ],
)
def test_evaluations_since_the_best(values, min_improvement, expected):
    rule = EarlyStopping(patience=2, min_improvement=min_improvement)
    assert rule.since_best(values)[0] == expected
    message = rule.message([{"step": n, "eval/bpd": each} for n, each in enumerate(values)])
    assert (message is not None) == (expected >= 2)


def test_a_run_ends_with_its_state_saved(train, tmp_path, capsys):
    summary = train()
    assert (summary["exit_reason"], summary["step"], summary["bpd"]) == ("early_stopping", 8, 4.0)
    assert summary["checkpoint"] == str(tmp_path / "run" / "checkpoint_8")
    assert summary["params_sha256"] is not None
    found = [row.get("eval/evaluations_since_best") for row in rows(tmp_path / "run")]
    assert found == [0, 0, 1, 2]
    assert "the last 2 evaluations have not improved on 4.0000" in capsys.readouterr().out
    again = train()
    assert (again["exit_reason"], again["step"]) == ("early_stopping", 8)
    assert again["params_sha256"] == summary["params_sha256"]


def test_a_resumed_run_keeps_its_count(train, tmp_path):
    expected = train(name="whole")
    assert train(6)["exit_reason"] == "done"
    summary = train()
    assert (summary["exit_reason"], summary["step"]) == ("early_stopping", 8)
    assert summary["params_sha256"] == expected["params_sha256"]
    one, other = (
        [row.get("eval/evaluations_since_best") for row in rows(tmp_path / name)]
        for name in ("whole", "run")
    )
    assert one == other == [0, 0, 1, 2]


def test_a_run_that_ended_trains_on_with_more_patience(train, tmp_path):
    assert train()["step"] == 8
    summary = train(rule=EarlyStopping(patience=3))
    assert (summary["exit_reason"], summary["step"]) == ("done", 14)
    assert train(name="whole", rule=None)["params_sha256"] == summary["params_sha256"]
    assert not any("eval/evaluations_since_best" in row for row in rows(tmp_path / "whole"))


def test_the_last_step_ends_a_run_as_usual(train):
    assert train(8)["exit_reason"] == "done"


def test_dry_run_tells_the_rule_and_what_has_ended(tmp_path):
    model = tiny.model(image_shape=tiny.SHAPE)
    trainer = tiny.trainer(tmp_path, early_stopping=RULE)
    text = trainer.dry_run(model, tiny.config(), tiny.config(8))
    assert "Steps: 6, or until 2 evaluations have not improved, saved every 2." in text
    found = [{"step": n, "eval/bpd": 3.0} for n in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    text = trainer.dry_run(model, tiny.config(), tiny.config(8))
    assert text.endswith("or leave early stopping out.")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"eval_period": None}, "EVAL_PERIOD is None"),
        ({"eval_period": 6}, "EVAL_PERIOD = 6 steps, is not before the last step, 6"),
        ({}, "train.train_eval_dataset_cfg is None"),
    ],
)
def test_it_needs_evaluations(tmp_path, changes, words):
    held_out = tiny.config(8) if changes else None
    with pytest.raises(ValueError, match=words):
        tiny.trainer(tmp_path, early_stopping=RULE, **changes).run(
            tiny.model(), tiny.config(), held_out
        )
    assert not list(tmp_path.iterdir())


def test_batches_of_evaluation_divide_among_devices(tmp_path):
    mesh = PjitPartitioner(mesh_shape={"data": 2}).without_devices()
    trainer = tiny.trainer(tmp_path, partitioner=mesh)
    with pytest.raises(ValueError, match="`batch_size of evaluation` must be a multiple of `data`"):
        trainer._check(tiny.config(4), tiny.config(3))
    trainer._check(tiny.config(4), tiny.config(6))


def test_keeping_the_best_needs_evaluations(tmp_path):
    config = saving.CheckpointConfig(save=saving.SaveCheckpointConfig(keep_best=2))
    with pytest.raises(ValueError, match="`keep_best` needs an evaluation split"):
        tiny.trainer(tmp_path, checkpoints=config).run(tiny.model(), tiny.config(), None)


@pytest.mark.parametrize(
    "fields", [{"patience": 0}, {"patience": 1, "min_improvement": -1.0}, {"patience": 2.5}]
)
def test_numbers_out_of_range(fields):
    with pytest.raises((ValueError, TypeError), match="patience|min_improvement"):
        EarlyStopping(**fields)


def test_evaluations_of_another_number_of_images_do_not_count():
    few, many = ({"eval/images": images} for images in (8, 64))
    earlier = [few | {"step": step, "eval/bpd": 3.0} for step in (1, 2)]
    later = [many | {"step": 3, "eval/bpd": 3.3}, {"step": 4}, many | {"step": 5, "eval/bpd": 3.2}]
    rule = EarlyStopping(patience=2)
    assert rule.message([*earlier, *later]) is None
    assert rule.message([*earlier, *later, *([later[0]] * 2)]) is not None
    assert early_stopping.field(rule, [*earlier, *later], later[0])[early_stopping.SINCE_BEST] == 1
    assert early_stopping.field(rule, earlier, later[0])[early_stopping.SINCE_BEST] == 0
