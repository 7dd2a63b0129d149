"""The share of initial parameters in their average: formula, warning, and the real update."""

import math

import pytest
import tiny

from idode_gin.runs import averaging, run_inputs


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.1, 0.5, 0.9, 0.99, 0.9999])
@pytest.mark.parametrize("updates", [0, 1, 2, 9, 10, 300, 5000])
@pytest.mark.parametrize("before", [0, 1, 8, 40])
@pytest.mark.parametrize("warms_up", [False, True])
def test_the_share_is_the_product_of_all_rates(rate, updates, before, warms_up):
    first, last = before, before + updates
    rates = (min(rate, (1 + n) / (10 + n)) if warms_up else rate for n in range(first, last))
    found = averaging.initial_share(rate, last, first, warms_up=warms_up)
    assert found == pytest.approx(math.prod(rates), rel=1e-9, abs=1e-300)


@pytest.mark.parametrize(
    ("facts", "step", "percent"),
    [
        ({"ema_rate": 0.999}, 100, "90.48 %"),
        ({"ema_rate": 0.999, "optimizer.accumulation_steps": "4"}, 100, "97.53 %"),
        ({"ema_rate": 0.999, "ema_warmup": True}, 1, "10 %"),
        ({"ema_rate": 0.999, "ema_warmup": True}, 100, None),
        ({"ema_rate": 0.9}, 100, None),
        ({"ema_rate": 0.999, "first_step": 100_000}, 100_500, "60.64 %"),
        ({"ema_rate": 0.999, "first_step": None}, 500, "60.64 %"),
        ({}, 1, None),
        ({"ema_rate": None}, 1, None),
    ],
)
def test_a_large_share_is_reported(facts, step, percent):
    found = averaging.warning(facts, step)
    assert found is None if percent is None else found.startswith(f"{percent} of the EMA")


def test_training_and_its_users_report_it(tmp_path, monkeypatch, capsys, caplog):
    tiny.use_tiny_data(monkeypatch)
    trainer = tiny.trainer(tmp_path, ema_rate=0.99, train_steps=3)
    trainer.run(tiny.model(), tiny.config(8))
    assert "WARNING: 97.03 % of the EMA parameters at step 3" in capsys.readouterr().out
    for use_ema in (True, False):
        caplog.clear()
        run_inputs.load_params(tiny.model(), tiny.SHAPE, str(tmp_path), use_ema)
        assert ("97.03 % of the EMA parameters" in caplog.text) is use_ema
