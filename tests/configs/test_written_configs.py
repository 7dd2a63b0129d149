"""The configurations that programs write: either file repeats the run."""

import pathlib

import pytest
from gin import config

from idode_gin import eval as eval_program
from idode_gin import train as train_program
from idode_gin.configs import building, gin_internals, outputs
from idode_gin.time_samplers.uniform_in_gamma import UniformInGamma

ROOT = pathlib.Path(__file__).parents[2]
DIGITS = "gin_configs/experiments/digits.gin"
OBJECTIVES = sorted(each.stem for each in (ROOT / "gin_configs/objectives").glob("*.gin"))
UNIFORM_IN_A_FIXED_TIME = {"ddpm", "scoreflow", "flow_matching"}
RULES = {"z.*": "reset", "a.*": "restore", "(?i)long" + "g" * 80: "pad", "b.*": "drop"}


@pytest.mark.parametrize("name", ["config.gin", "operative_config.gin"])
def test_rules_are_written_in_their_order(name, tmp_path):
    """The first rule that matches applies, and gin would sort them."""
    binding = f"RestoreCheckpointConfig.rules = {RULES!r}"
    given = [DIGITS], [binding, "INITIAL_CHECKPOINT_PATH = 'a'", f"MODEL_DIR = '{tmp_path}'"]
    building.load_and_check(train_program.train, *given)
    building.build(train_program.train)
    with outputs.begun(str(tmp_path), "MODEL_DIR"):
        pass
    building.load_and_check(train_program.train, [str(tmp_path / name)])
    found = building.build(train_program.train)["checkpoint_cfg"].restore.rules
    assert list(found.items()) == list(RULES.items())


def test_gin_is_left_as_it_was():
    printer = config.pprint
    gin_internals.given_text()
    assert config.pprint is printer


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_evaluation_estimates_the_bound_as_the_model_says(name):
    files = ["gin_configs/experiments/digits_eval.gin", f"gin_configs/objectives/{name}.gin"]
    building.load_and_check(eval_program.evaluate, files)
    built = building.build(eval_program.evaluate)
    found = built["evaluator"].variational_bound.time_sampler
    assert found == built["model"].bound_sampler
    assert isinstance(found, UniformInGamma) == (name in UNIFORM_IN_A_FIXED_TIME)
